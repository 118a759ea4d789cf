"""Topics and groups of a Kafka cluster, and their books.

A group exists where it has committed offsets; ``ensure`` commits where it begins. Brokers forget the
offsets of a group that has had no member for a week (``offsets.retention.minutes``).
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import time
from collections.abc import AsyncIterator, Callable, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar

from ..errors import NotFound, PermissionDenied
from ..limits import DAY_S
from ..message import Delivery, GroupStats, Lag, TopicInfo
from .base import Start
from .kafka_begin import begin, committed
from .kafka_errors import mapped
from .kafka_reader import Reader
from .kafka_records import deliveries, origin, read
from .kafka_topics import create_topic, remove_group, remove_topic, retention_of
from .offsets import Progress

if TYPE_CHECKING:
    from concurrent.futures import Future

    from .kafka import KafkaDriver

T = TypeVar("T")

_CALL_S = 10.0
_PAGE = 200
_RETRY = ".retry"
_SETTLING = {
    "NOT_LEADER_FOR_PARTITION", "LEADER_NOT_AVAILABLE", "FENCED_LEADER_EPOCH", "UNKNOWN_LEADER_EPOCH",
    "UNKNOWN_TOPIC_OR_PART", "COORDINATOR_LOAD_IN_PROGRESS", "NOT_COORDINATOR", "COORDINATOR_NOT_AVAILABLE",
    "GROUP_LOAD_IN_PROGRESS", "GROUP_COORDINATOR_NOT_AVAILABLE", "NOT_COORDINATOR_FOR_GROUP",
    "REBALANCE_IN_PROGRESS", "_WAIT_COORD",
}  # fmt: skip


class KafkaAdmin:
    """Blocking calls of the client, in threads; one at a time, because they share the clients."""

    def __init__(self, driver: KafkaDriver) -> None:
        self._driver = driver
        self._consumers: dict[str, Any] = {}
        self._client: Any = None
        self._turn = asyncio.Lock()

    async def aclose(self) -> None:
        """Close what was opened to ask."""
        consumers, self._consumers, self._client = self._consumers, {}, None
        for consumer in consumers.values():
            await asyncio.to_thread(consumer.close)

    async def ensure(
        self, topic: str, group: str | None, partitions: int, start: Start, retention: float | None
    ) -> float | None:
        is_new = await self.create(topic, partitions, retention)
        if group is not None:
            count = await self.partitions(topic)
            # What waits for its retry must outlast its delay, however soon the topic forgets.
            longest = retention and max(retention, self._driver.capabilities.max_delay + DAY_S)
            await self.create(self._driver.retry_topic(topic, group), count, longest)
            await self._run(lambda: self._begin(topic, group, start))
        if is_new or retention is None:
            return None
        kept = await self._run(lambda: retention_of(self._admin_client(), topic))
        return None if kept == retention else kept

    async def remove_group(self, topic: str, group: str) -> None:
        group_id, retry_topic = self._driver.group_id(topic, group), self._driver.retry_topic(topic, group)
        address = self._driver.address
        await self._run(lambda: remove_group(self._admin_client(), group_id, (topic, retry_topic), address))
        await self._run(lambda: remove_topic(self._admin_client(), retry_topic))
        # Until the cluster has forgotten it, an `ensure` would take it to be there.
        deadline = time.monotonic() + _CALL_S
        with contextlib.suppress(NotFound):
            while time.monotonic() < deadline:
                await self.partitions(retry_topic)
                await asyncio.sleep(0.02)

    async def partitions(self, topic: str) -> int:
        """Return how many partitions a topic has.

        Raises:
            NotFound: it does not exist.
        """
        return len(await self._run(lambda: self.numbers(topic)))

    async def check_group(self, topic: str, group: str) -> None:
        """Raise ``NotFound`` unless topic and group were ensured."""
        await self._run(lambda: self._progress(topic, group, topic))

    async def create(self, topic: str, partitions: int, retention: float | None = None) -> bool:
        """Create a topic, wait until the cluster knows it; return False if it was there."""
        try:
            if await self.partitions(topic):
                return False
        except NotFound:
            pass
        try:
            await self._run(lambda: self._create(topic, partitions, retention))
        except PermissionDenied as error:
            raise PermissionDenied(f"topic {topic!r} is missing or hidden; creating it: {error}") from error
        deadline = time.monotonic() + _CALL_S
        while True:
            try:
                await self.partitions(topic)
                return True
            except NotFound:
                if time.monotonic() > deadline:
                    raise
                await asyncio.sleep(0.02)

    async def stats(self, topic: str, group: str) -> GroupStats:
        main = await self._run(lambda: self._counts(topic, group, topic))
        retry_topic = self._driver.retry_topic(topic, group)
        waiting = [each async for each in self._records(topic, group, retry_topic)]
        now = self._driver.clock.now()
        held = [
            record
            for member in self._driver.members
            if (member.topic, member.group) == (topic, group)
            for record in tuple(member.work.held)
        ]
        published, unsettled = main
        delayed = sum(each.receipt.due > now for each in waiting)
        in_flight = len(held)
        return GroupStats(
            published=published,
            settled=published - unsettled - len(waiting),
            in_flight=in_flight,
            delayed=delayed,
            ready=max(0, unsettled + len(waiting) - in_flight - delayed),
        )

    async def topics(self) -> list[TopicInfo]:
        found = await self._run(self._all_topics)
        groups: dict[str, list[str]] = {name: [] for name in found}
        for name in found:
            # The storage of retries says which groups were ensured, without asking each about each. The
            # longest topic that fits is its own: a dead-letter topic begins like the topic it belongs to.
            owners = [each for each in found if name.startswith(each + ".") and name.endswith(_RETRY)]
            if owners:
                owner = max(owners, key=len)
                groups[owner].append(name[len(owner) + 1 : -len(_RETRY)])
        return [
            TopicInfo(name, found[name], tuple(sorted(groups[name])))
            for name in sorted(found)
            if not name.endswith(_RETRY)
        ]

    async def lag(self, topic: str, group: str) -> list[Lag]:
        found = await self._run(lambda: self._progress(topic, group, topic))
        waiting = [each async for each in self._records(topic, group, self._driver.retry_topic(topic, group))]
        origins = [origin(each.receipt.native)[1] for each in waiting]
        return [
            Lag(
                number,
                max(0, high - max(progress.position, low) - progress.finished_beyond) + origins.count(number),
                str(progress.position),
                str(high),
            )
            for number, (progress, low, high) in sorted(found.items())
        ]

    async def describe(self) -> dict[str, str]:
        from importlib.metadata import version

        from confluent_kafka import libversion

        found = await self._run(lambda: self._consumer("couturier-admin").list_topics(timeout=_CALL_S))
        return {
            "server": f"Kafka cluster {found.cluster_id}",
            "brokers": ", ".join(sorted(str(each) for each in found.brokers.values())),
            "client": f"confluent-kafka {version('confluent-kafka')}, librdkafka {libversion()[0]}",
        }

    async def browse(self, topic: str, group: str) -> AsyncIterator[Delivery]:
        retry_topic = self._driver.retry_topic(topic, group)
        again = [each async for each in self._records(topic, group, retry_topic)]
        again.sort(key=lambda each: origin(each.receipt.native))
        async for each in self._records(topic, group, topic):
            while again and origin(again[0].receipt.native) < origin(each.receipt.native):
                yield again.pop(0)
            yield each
        for each in again:
            yield each

    async def _run(self, call: Callable[[], T]) -> T:
        from confluent_kafka import KafkaException

        deadline = time.monotonic() + _CALL_S
        async with self._turn:
            while True:
                try:
                    return await asyncio.to_thread(call)
                except KafkaException as error:
                    # A topic is announced before its leader serves it, and a coordinator may be moving.
                    if error.args[0].name() not in _SETTLING or time.monotonic() > deadline:
                        raise mapped(error, self._driver.address) from error
                await asyncio.sleep(0.05)

    def describe_topics(self, topics: Sequence[str]) -> dict[str, Future[Any]]:
        """Ask for the descriptions of topics, from any thread, without waiting for them."""
        from confluent_kafka import TopicCollection

        found: dict[str, Future[Any]] = self._admin_client().describe_topics(
            TopicCollection(list(topics)), request_timeout=_CALL_S
        )
        return found

    def _admin_client(self) -> Any:
        from confluent_kafka.admin import AdminClient

        if self._client is None:
            self._client = AdminClient(self._driver.common_config)
        return self._client

    def _consumer(self, group: str) -> Any:
        """Return a consumer that asks about a group and never joins it."""
        from confluent_kafka import Consumer

        if group not in self._consumers:
            self._consumers[group] = Consumer(self._driver.consumer_config(group))
        return self._consumers[group]

    def _all_topics(self) -> dict[str, int]:
        """Return the partition counts of all topics but the cluster's own."""
        found = self._consumer("couturier-admin").list_topics(timeout=_CALL_S).topics
        return {name: len(each.partitions) for name, each in found.items() if not name.startswith("__")}

    def numbers(self, topic: str) -> list[int]:
        """Return the partitions of a topic. All topics are asked for, because to ask for one may make it."""
        found = self._consumer("couturier-admin").list_topics(timeout=_CALL_S).topics.get(topic)
        if found is None or not found.partitions:
            hidden = ", or this login may not see it" if self._driver.has_login else ""
            raise NotFound(
                f"topic {topic!r} does not exist at {self._driver.address}{hidden}; create it with"
                f" `await broker.ensure({topic!r})`"
            )
        return sorted(found.partitions)

    def _create(self, topic: str, partitions: int, retention: float | None) -> None:
        create_topic(self._admin_client(), topic, partitions, retention)

    def _begin(self, topic: str, group: str, start: Start) -> None:
        from confluent_kafka import Consumer

        driver, group_id = self._driver, self._driver.group_id(topic, group)

        def member() -> Any:
            return Consumer(driver.consumer_config(group_id, **driver.membership))

        begin(self._consumer(group_id), topic, self.numbers(topic), start, member)

    def _progress(self, topic: str, group: str, of: str) -> dict[int, tuple[Progress, int, int]]:
        """Return progress, low and high watermark of every partition of the topic ``of``."""
        from confluent_kafka import TopicPartition

        consumer = self._consumer(self._driver.group_id(topic, group))
        places = [TopicPartition(of, number) for number in self.numbers(of)]
        commits = committed(consumer, places)
        if of == topic and all(each.offset < 0 for each in commits):
            raise NotFound(
                f"group {group!r} of topic {topic!r} does not exist at {self._driver.address}; create it"
                f" with `await broker.ensure({topic!r}, group={group!r})`"
            )
        live = {
            key: part.progress()
            for member in self._driver.members
            if (member.topic, member.group) == (topic, group)
            for key, part in tuple(member.work.partitions.items())
        }
        found = {}
        for place in commits:
            low, high = consumer.get_watermark_offsets(place, timeout=_CALL_S)
            known = live.get((of, place.partition))
            if known is None or known.position < 0:
                known = (
                    Progress.parse(place.offset, place.metadata) if place.offset >= 0 else Progress(low, low)
                )
            found[place.partition] = (known, low, high)
        return found

    def _counts(self, topic: str, group: str, of: str) -> tuple[int, int]:
        """Return how many messages a group is to see, and how many of them are not finished."""
        published = unsettled = 0
        for progress, low, high in self._progress(topic, group, of).values():
            published += max(0, high - progress.start)
            unsettled += max(0, high - max(progress.position, low) - progress.finished_beyond)
        return published, unsettled

    async def _records(self, topic: str, group: str, of: str) -> AsyncIterator[Delivery]:
        """Yield what is unfinished in the topic ``of``, oldest first; leases, hides and ages nothing."""
        try:
            progress = await self._run(lambda: self._progress(topic, group, of))
        except NotFound:
            if of == topic:
                raise
            return
        group_id = self._driver.group_id(topic, group)
        readers = [
            Reader(self._driver, group_id, (of, number), *where)
            for number, where in progress.items()
            if where[2] > max(where[0].position, where[1]) + where[0].finished_beyond
        ]
        merged = heapq.merge(*readers, key=origin)
        try:
            while page := await asyncio.to_thread(lambda: list(islice(merged, _PAGE))):
                for each in deliveries([read(native, (of, native.partition()), 0) for native in page], topic):
                    yield each
        finally:
            for reader in readers:
                await asyncio.to_thread(reader.close)
