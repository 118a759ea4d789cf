"""Results as events on a topic of the broker: for services that wait for their answers."""

from __future__ import annotations

from collections.abc import Sequence

from broker import Broker, BrokerError, InvalidMessage, NotFound, PublishError, connect
from client.schema import RESULTS_KEPT_S, ResultRow

from .base import SinkUnavailable, WriteReport


class TopicSink:
    """Publishes every row as a CloudEvents event, on the backend that the environment names.

    A topic cannot tell a repeat: what is delivered again is published again, and so is the rest of a batch
    that failed in part. Events are stored at least once; their id follows from the request's, so that whoever
    receives them can tell repeats, by that id or by the attribute ``couturier-message-id``.

    Args:
        topic: of valid name.
        retention: seconds for which a new topic keeps events; None means a week.
        create: make the topic if it is missing. It gets one partition, where there are any; make it
            yourself for a group whose members share the work.
        broker: open, and left open; None connects to what ``BROKER_URL`` or ``BROKER_BACKEND`` names.
    """

    def __init__(
        self, topic: str, retention: float | None = None, create: bool = True, broker: Broker | None = None
    ) -> None:
        self._topic = topic
        self._retention = retention
        self._create = create
        self._broker = broker
        self._own: Broker | None = None

    async def open(self) -> None:
        """Connect, and make or find the topic.

        Raises:
            ValueError: the broker lives inside this process, or a variable does not work.
            NotFound: there is no topic, and none is to be made.
            BrokerError: the broker cannot be used.
        """
        if self._broker is None:
            self._own = await _connected(self._topic)
        try:
            await self._find()
        except BaseException:
            await self.aclose()
            raise

    async def _find(self) -> None:
        """Make sure of the topic."""
        broker = self._used()
        is_there = any(each.name == self._topic for each in await broker.topics())
        if not is_there and not self._create:
            raise NotFound(
                f"SINK_URL='topic:{self._topic}': there is no such topic at {broker.address}, and"
                " COUTURIER_CREATE=false makes none; make it with"
                f" `couturier topics ensure {self._topic}`"
            )
        if self._create and not (is_there and self._retention is None):
            retention = self._retention or (RESULTS_KEPT_S if broker.capabilities.retention else None)
            await broker.ensure(self._topic, partitions=1, retention=retention)

    async def write(self, rows: Sequence[ResultRow]) -> WriteReport:
        """Publish rows in one go; when it returns the broker has stored them.

        Raises:
            SinkUnavailable: the broker or the topic is away; some rows may be stored.
        """
        events = {}
        refused: dict[str, str] = {}
        for row in rows:
            try:
                event = row.to_message()
                events[event.id] = (row.message_id, event)
            except (ValueError, TypeError) as error:
                refused[row.message_id] = f"{type(error).__name__}: {error}"
        try:
            await self._used().publish(self._topic, [event for _, event in events.values()])
        except PublishError as failure:
            for event_id, problem in failure.failed.items():
                # All else is about the topic, and blames no row.
                if not isinstance(problem, InvalidMessage):
                    raise SinkUnavailable(f"topic {self._topic!r}: {problem}") from failure
                refused[events[event_id][0]] = f"{type(problem).__name__}: {problem}"
        except BrokerError as failure:
            raise SinkUnavailable(f"topic {self._topic!r}: {failure}") from failure
        identical = len(rows) - len({row.message_id for row in rows})
        return WriteReport(len(rows) - identical - len(refused), identical, refused=refused)

    async def aclose(self) -> None:
        """Release the connection that ``open`` made."""
        own, self._own = self._own, None
        if own is not None:
            await own.aclose()

    def _used(self) -> Broker:
        broker = self._broker or self._own
        assert broker is not None, "the sink is not open"
        return broker


async def _connected(topic: str) -> Broker:
    broker = connect()
    if not broker.capabilities.shared:
        raise ValueError(
            f"SINK_URL='topic:{topic}' needs a broker that others can reach, and"
            f" {broker.capabilities.backend} lives inside this process; set BROKER_URL to sqlite:///queue.db,"
            " kafka://HOST:PORT or pubsub://PROJECT"
        )
    return await broker.__aenter__()
