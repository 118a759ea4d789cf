"""Apache Kafka behind the contract, on confluent-kafka's sync ``Producer`` and ``Consumer``.

A group is a consumer group whose position stands in its committed offsets, finished work beyond it in the
commits' metadata (``offsets``). A failed message is copied to ``<topic>.<group>.retry`` with its attempt
number and due time, and members read that topic beside the input. The client's asyncio classes are not
used: its producer takes no headers, and cancelling a poll of its consumer loses the message.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any

from ..clock import Clock, SystemClock
from ..errors import BrokerError, Closed, InvalidMessage, NotFound, PermissionDenied, Unavailable
from ..message import Capabilities, Message, Receipt
from .base import Order
from .kafka_admin import KafkaAdmin
from .kafka_errors import mapped, refused
from .kafka_member import KafkaMember
from .kafka_publish import Publisher, Row
from .kafka_records import Headers, Record, headers
from .options import LEAST_RETENTION_S, check_url, split_url, take_seconds

log = logging.getLogger("broker")

_CONNECT_S = 10.0
# The broker's default `message.max.bytes` is 1,048,588 with the batch's overhead; the rest is for the key
# and the headers: kafka.apache.org/documentation/#brokerconfigs
_MAX_BODY_BYTES = 1_000_000
# How long a topic that was seen is taken to be there.
_KNOWN_S = 60.0
# A hundred years: some clients read `retention.ms` into less than 64 bits of nanoseconds.
_MOST_RETENTION_S = 100 * 365 * 86_400.0
_GROUP_PROTOCOLS = ("classic", "consumer")
# The broker's smallest session for `group.protocol=consumer`, and its default.
_CONSUMER_SESSION_S = 45.0


class KafkaDriver:
    """Connection to one cluster.

    Args:
        servers: ``host:port``, comma separated.
        session: seconds without a heartbeat after which a member's partitions go to others.
        protocol: ``classic`` (cooperative-sticky) or ``consumer`` (KIP-848, brokers from 4.0).
        max_poll: seconds without a poll, as in a frozen process, after which a member leaves the group.
        group_id: Kafka's ``group.id``, made from ``{topic}`` and ``{group}``. Members of one ``group.id``
            rebalance together, also when they read different topics.
        config: any further librdkafka settings, such as security.
        clock: due times of retries; shared by all processes, so it follows the wall clock.
    """

    def __init__(
        self,
        servers: str,
        session: float = 10.0,
        protocol: str = "classic",
        max_poll: float = 300.0,
        group_id: str = "{group}",
        config: Mapping[str, Any] | None = None,
        clock: Clock | None = None,
    ) -> None:
        if protocol not in _GROUP_PROTOCOLS:
            raise ValueError(f"option protocol={protocol!r}: known are {', '.join(_GROUP_PROTOCOLS)}")
        if "{group}" not in group_id:
            raise ValueError(
                f"option group_id={group_id!r} must contain {{group}}, and may contain {{topic}}"
            )
        self.clock: Clock = clock or SystemClock(time.time)
        self.address = f"kafka://{servers}"
        self.members: set[KafkaMember] = set()
        self.failure: BrokerError | None = None
        self._complaint = ""
        self.capabilities = Capabilities(
            backend="kafka",
            shared=True,
            durable=True,
            history=True,
            counts=True,
            order=frozenset({"none"}),
            lease=session if protocol == "classic" else _CONSUMER_SESSION_S,
            max_delay=7 * 86_400.0,
            max_message_bytes=_MAX_BODY_BYTES,
            max_attributes=100,
            max_attribute_bytes=1024,
            max_attribute_name_bytes=1024,
            retention=(LEAST_RETENTION_S, _MOST_RETENTION_S),
        )
        self._common = {
            **(config or {}),
            "bootstrap.servers": servers,
            "error_cb": self._note,
            "logger": logging.getLogger("broker.kafka"),
        }
        self._group_id = group_id
        self.membership = _membership(session, protocol, max_poll)
        # Seconds of silence after which a member may be evicted.
        self.silence = min(self.capabilities.lease, max_poll)
        self.admin = KafkaAdmin(self)
        self._publisher: Publisher | None = None
        self._known: dict[str, float] = {}

    def consumer_config(self, group: str, **more: Any) -> dict[str, Any]:
        """Return the settings of a consumer that commits by our hand only."""
        return {
            "fetch.queue.backoff.ms": 10,
            "queued.max.messages.kbytes": 32_768,
            # Partitions that are added to a topic are found this soon (the client's default: 5 minutes).
            "topic.metadata.refresh.interval.ms": 30_000,
            **self._common,
            "group.id": group,
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            "auto.offset.reset": "earliest",
            "allow.auto.create.topics": False,
            **more,
        }

    @property
    def has_login(self) -> bool:
        """Whether brokers are told who this is; they hide what a login may not see."""
        return any(key.startswith(("sasl.", "ssl.certificate", "ssl.keystore")) for key in self._common)

    @property
    def common_config(self) -> dict[str, Any]:
        """The settings of every client: where the brokers are, and credentials."""
        return dict(self._common)

    async def open(self) -> None:
        self._publisher = Publisher(self._common, self.address)
        try:
            await asyncio.to_thread(self._reach)
        except BaseException:
            await self.aclose()
            raise

    def _reach(self) -> None:
        from confluent_kafka import KafkaException

        assert self._publisher is not None

        deadline = time.monotonic() + _CONNECT_S
        while True:
            try:
                self._publisher.client.list_topics(timeout=1.0)
                return
            except KafkaException as error:
                if self.failure is not None:
                    raise self.failure from error
                if time.monotonic() > deadline:
                    protocol = str(self._common.get("security.protocol", "PLAINTEXT")).upper()
                    raise Unavailable(
                        f"no Kafka broker answers at {self.address} within {_CONNECT_S:g} s; is it running,"
                        f" are host and port right, and does it speak {protocol} there"
                        " (KAFKA_SECURITY_PROTOCOL)?"
                        f" The client says: {self._complaint or error.args[0].str()}"
                    ) from error

    async def aclose(self) -> None:
        for member in tuple(self.members):
            await member.aclose()
        await self.admin.aclose()
        publisher, self._publisher = self._publisher, None
        if publisher is not None:
            await publisher.aclose()

    async def send(self, topic: str, messages: Sequence[Message]) -> list[Receipt | BrokerError]:
        return await self._store(topic, [(each.data, each.key, headers(each), each.id) for each in messages])

    async def copies(
        self, topic: str, copies: Sequence[tuple[Record, Headers]]
    ) -> list[Receipt | BrokerError]:
        """Store copies of native records, keys and null values as they are; return an answer for each."""
        if not copies:
            return []
        return await self._store(
            topic, [(each.native.value(), each.native.key(), head, "") for each, head in copies]
        )

    async def _store(self, topic: str, rows: Sequence[Row]) -> list[Receipt | BrokerError]:
        await self.check_topic(topic)
        answers = await self._publish(topic, rows)
        if not all(isinstance(each, Receipt) for each in answers):
            self._known.pop(topic, None)
            await self._sift(topic, rows, answers)
        return answers

    async def _publish(self, topic: str, rows: Sequence[Row]) -> list[Receipt | BrokerError]:
        publisher = self._publisher
        if publisher is None:
            raise Closed("the broker was closed")
        if publisher.failure is not None:
            ended, publisher = publisher, Publisher(self._common, self.address)
            self._publisher = publisher
            await ended.aclose()
        return await publisher.store(topic, rows)

    async def _sift(self, topic: str, rows: Sequence[Row], answers: list[Receipt | BrokerError]) -> None:
        """Part the bad records from the good ones that a broker refused with them, in one batch."""
        refused = [number for number, each in enumerate(answers) if type(each) is InvalidMessage]
        half = len(refused) // 2
        for part in filter(None, (refused[:half], refused[half:])):
            some = [rows[number] for number in part]
            found = await self._publish(topic, some)
            if len(part) > 1:
                await self._sift(topic, some, found)
            for number, answer in zip(part, found, strict=True):
                answers[number] = answer

    async def check_topic(self, topic: str) -> None:
        """Raise ``NotFound`` unless the topic was seen lately; the client itself would wait for it."""
        if self._known.get(topic, 0.0) < time.monotonic():
            await self.admin.partitions(topic)
            self._known[topic] = time.monotonic() + _KNOWN_S

    async def subscribe(self, topic: str, group: str, order: Order) -> KafkaMember:
        from confluent_kafka import Consumer, KafkaException

        await self.admin.check_group(topic, group)
        # The storage of retries is made with the group; a group of before, or of others, may lack it.
        await self.admin.create(self.retry_topic(topic, group), await self.admin.partitions(topic))
        member: list[KafkaMember] = []
        config = self.consumer_config(
            self.group_id(topic, group),
            # Resetting is ours (``kafka_places``): to the earliest record, and said aloud.
            **{**self.membership, "auto.offset.reset": "error"},
            on_commit=lambda *result: member[0].commits.result(*result),  # noqa: PLW0108 - not made yet
        )
        try:
            consumer = Consumer(config)
        except KafkaException as error:
            raise refused(error) from None
        member.append(KafkaMember(self, topic, group, consumer))
        self.members.add(member[0])
        member[0].start()
        return member[0]

    def group_id(self, topic: str, group: str) -> str:
        """Return Kafka's ``group.id`` for a group of a topic."""
        return self._group_id.replace("{topic}", topic).replace("{group}", group)

    @staticmethod
    def retry_topic(topic: str, group: str) -> str:
        """Return where a group keeps what failed and comes again."""
        return f"{topic}.{group}.retry"

    def _note(self, error: Any) -> None:
        """Called by the client's threads; what it does not recover from by itself is kept."""
        problem = mapped(error, self.address)
        if isinstance(problem, PermissionDenied | NotFound) or error.fatal():
            self.failure = problem
        else:
            # The client logs it, too, as often as it tries.
            log.debug("kafka: %s", problem)
            if error.name() != "_ALL_BROKERS_DOWN":
                self._complaint = error.str()


def _membership(session: float, protocol: str, max_poll: float) -> dict[str, Any]:
    common = {"group.protocol": protocol, "max.poll.interval.ms": int(max_poll * 1000)}
    if protocol == "consumer":
        return common
    return {
        **common,
        "session.timeout.ms": int(session * 1000),
        "heartbeat.interval.ms": int(min(3.0, session / 5) * 1000),
        "partition.assignment.strategy": "cooperative-sticky",
    }


def from_url(url: str, options: Mapping[str, str]) -> KafkaDriver:
    """Open ``kafka://host:9092,other:9092``.

    Options: ``session`` and ``max_poll``, seconds; ``protocol``, ``classic`` or ``consumer``; ``group_id``,
    ``{group}`` unless given, for example ``{topic}.{group}``. Credentials
    and any other setting of the client come from the environment (``KAFKA_*``).
    """
    from ..settings import kafka_client_config

    check_url(url)
    _, servers, _ = split_url(url)
    rest = dict(options)
    protocol, group_id = rest.pop("protocol", "classic"), rest.pop("group_id", "{group}")
    seconds = take_seconds(rest, {"session": 10.0, "max_poll": 300.0})
    return KafkaDriver(
        servers, seconds["session"], protocol, seconds["max_poll"], group_id, kafka_client_config()
    )
