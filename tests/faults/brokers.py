"""Brokers as an outsider sees them: offsets, backlogs and dead letters by each broker's own client."""

from __future__ import annotations

import contextlib
import json
import logging
import sqlite3
import time
import uuid
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import pytest

from broker import connect_blocking
from broker.blocking import BlockingBroker

GROUP = "classifiers"
OPERATORS = "operators"
_log = logging.getLogger("tests.faults")
# What these clients say of brokers that are down on purpose is no news.
_log.addHandler(logging.NullHandler())
_log.propagate = False


class Letter(NamedTuple):
    """One dead letter, as it lies there.

    Attributes:
        message_id: of the message.
        reason: ``couturier-reason``.
        attempts: ``couturier-attempts``.
        data: the body; None for a null value.
        headers: all of them, in order.
    """

    message_id: str
    reason: str
    attempts: int
    data: bytes | None
    headers: tuple[tuple[str, bytes], ...]


class Place(Protocol):
    """A topic with its group on one broker.

    Attributes:
        name: of the backend.
        url: ``BROKER_URL`` of the workers.
        env: what else their environment needs.
        topic: of this place alone.
        lease_s: after so many seconds, what a dead worker held comes again.
        versions: of server and client.
    """

    name: str
    url: str
    env: dict[str, str]
    topic: str
    lease_s: float
    versions: dict[str, str]

    def open(self, partitions: int) -> None:
        """Make topic, group and dead-letter topic."""

    def client(self) -> contextlib.AbstractContextManager[BlockingBroker]:
        """Open a client of ours that takes no proxy."""

    def unsettled(self) -> int:
        """Return how many messages the group has not finished."""

    def letters(self) -> list[Letter]:
        """Return every dead letter that was ever written; removes none."""

    def close(self) -> None:
        """Let connections go."""


def new_topic() -> str:
    """Return a name that nobody else has."""
    return f"faults-{uuid.uuid4().hex[:12]}"


def _ensure(place: Place, partitions: int) -> None:
    with place.client() as broker:
        broker.ensure(place.topic, GROUP, partitions=partitions)
        broker.ensure(f"{place.topic}.{GROUP}.dlq", OPERATORS)


class KafkaPlace:
    """A topic on Kafka.

    Args:
        bootstrap: ``host:port`` for us.
        workers_bootstrap: ``host:port`` for the workers, where that differs.
        session_s: after so many seconds without a heartbeat a worker counts as dead.
        max_poll_s: after so many without a poll.
    """

    name = "kafka"

    def __init__(
        self,
        bootstrap: str,
        workers_bootstrap: str | None = None,
        session_s: float = 6.0,
        max_poll_s: float = 30.0,
    ) -> None:
        self._bootstrap = bootstrap
        self.topic = new_topic()
        options = f"?group_id={{topic}}.{{group}}&session={session_s:g}&max_poll={max_poll_s:g}"
        self.url = f"kafka://{workers_bootstrap or bootstrap}{options}"
        self._direct = f"kafka://{bootstrap}{options}"
        self.env: dict[str, str] = {}
        self.lease_s = session_s
        self.versions: dict[str, str] = {}
        self._books: Any = None

    def open(self, partitions: int) -> None:
        """Make topic, group and dead-letter topic."""
        import confluent_kafka

        _ensure(self, partitions)
        version = confluent_kafka.version()
        self.versions = {
            "confluent-kafka": version if isinstance(version, str) else version[0],
            "librdkafka": confluent_kafka.libversion()[0],
        }
        self._books = self._consumer(f"{self.topic}.{GROUP}")

    def client(self) -> contextlib.AbstractContextManager[BlockingBroker]:
        """Open a client of ours that takes no proxy."""
        return connect_blocking(self._direct)

    def unsettled(self) -> int:
        """Return how far the commits are from the ends, in the topic and in the storage of retries."""
        return sum(
            end - (max(committed, begin))
            for topic in (self.topic, f"{self.topic}.{GROUP}.retry")
            for committed, begin, end in self.places(topic).values()
        )

    def places(self, topic: str) -> dict[int, tuple[int, int, int]]:
        """Return committed offset (-1001 for none), begin and end of each partition."""
        from confluent_kafka import TopicPartition

        found = self._books.list_topics(topic, timeout=20).topics[topic].partitions
        asked = [TopicPartition(topic, number) for number in found]
        return {
            each.partition: (each.offset, *self._books.get_watermark_offsets(each, timeout=20))
            for each in self._books.committed(asked, timeout=20)
        }

    def members(self) -> dict[str, frozenset[tuple[str, int]]]:
        """Return the partitions of every member of the group, by member id."""
        from confluent_kafka.admin import AdminClient

        group_id = f"{self.topic}.{GROUP}"
        admin = AdminClient({"bootstrap.servers": self._bootstrap}, logger=_log)
        found = admin.describe_consumer_groups([group_id], request_timeout=20)[group_id].result()
        return {
            each.member_id: frozenset((at.topic, at.partition) for at in each.assignment.topic_partitions)
            for each in found.members
        }

    def letters(self) -> list[Letter]:
        """Read the dead-letter topic from begin to end."""
        topic = f"{self.topic}.{GROUP}.dlq"
        consumer = self._consumer(f"outsider-{uuid.uuid4().hex[:8]}", **{"enable.partition.eof": True})
        try:
            return list(_kafka_letters(consumer, topic))
        finally:
            consumer.close()

    def produce(
        self, value: bytes | None, key: bytes | None, headers: list[tuple[str, bytes | None]]
    ) -> None:
        """Store a record as a foreign producer does, with any headers.

        Raises:
            KafkaException: it is not stored.
        """
        from confluent_kafka import KafkaException, Producer

        errors: list[Any] = []
        producer = Producer(
            {"bootstrap.servers": self._bootstrap, "message.max.bytes": 20_000_000}, logger=_log
        )
        producer.produce(self.topic, value, key, headers=headers, on_delivery=lambda e, _: errors.append(e))
        producer.flush(30)
        if errors != [None]:
            raise KafkaException(errors[0] if errors else None)

    def close(self) -> None:
        """Let connections go."""
        if self._books is not None:
            self._books.close()

    def _consumer(self, group_id: str, **more: Any) -> Any:
        from confluent_kafka import Consumer

        config = {
            "bootstrap.servers": self._bootstrap,
            "group.id": group_id,
            "enable.auto.commit": False,
            **more,
        }
        return Consumer(config, logger=_log)


def _kafka_letters(consumer: Any, topic: str) -> Iterator[Letter]:
    from confluent_kafka import OFFSET_BEGINNING, KafkaError, TopicPartition

    found = consumer.list_topics(topic, timeout=20).topics[topic].partitions
    consumer.assign([TopicPartition(topic, number, OFFSET_BEGINNING) for number in found])
    open_ends = set(found)
    deadline = time.monotonic() + 60
    while open_ends:
        assert time.monotonic() < deadline, f"{topic} has no end"
        for record in consumer.consume(1000, timeout=1.0):
            if record.error() is None:
                yield _letter(record.headers() or [], record.value(), "ce_id")
            elif record.error().code() == KafkaError._PARTITION_EOF:
                open_ends.discard(record.partition())


def _letter(headers: list[tuple[str, bytes | None]], data: bytes | None, id_name: str) -> Letter:
    plain = {name: (value or b"").decode(errors="replace") for name, value in headers}
    return Letter(
        plain.get(id_name) or plain.get("couturier-id", ""),
        plain.get("couturier-reason", ""),
        int(plain.get("couturier-attempts", "0")),
        data,
        tuple((name, value or b"") for name, value in headers),
    )


class PubsubPlace:
    """A project of its own on the emulator; a spy's subscription sees every dead letter.

    Args:
        host: ``host:port`` for us.
        workers_host: for the workers, where that differs.
        lease_s: of deliveries.
    """

    name = "pubsub"

    def __init__(self, host: str, workers_host: str | None = None, lease_s: float = 10.0) -> None:
        self._host = host
        self._project = f"proj-{uuid.uuid4().hex[:12]}"
        self.topic = new_topic()
        self.url = f"pubsub://{self._project}?lease={lease_s:g}"
        self.env = {"PUBSUB_EMULATOR_HOST": workers_host or host}
        self.lease_s = lease_s
        self.versions: dict[str, str] = {}
        self._letters: dict[str, Letter] = {}

    def open(self, partitions: int) -> None:
        """Make topic, group, dead-letter topic and the spy's subscription to it."""
        from importlib.metadata import version

        self.versions = {"google-cloud-pubsub": version("google-cloud-pubsub"), "grpcio": version("grpcio")}
        _ensure(self, partitions)
        spy = {"name": self._path("spy"), "topic": self._dlq}
        self._subscriber.create_subscription(request=spy, timeout=20)

    @contextlib.contextmanager
    def client(self) -> Iterator[BlockingBroker]:
        """Open a client of ours that takes no proxy."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("PUBSUB_EMULATOR_HOST", self._host)
            with connect_blocking(self.url) as broker:
                patch.undo()  # the host has been read
                yield broker

    def unsettled(self) -> int:
        """Ask our own client: the emulator itself does not say."""
        with self.client() as broker:
            return broker.stats(self.topic, GROUP).unsettled

    def letters(self) -> list[Letter]:
        """Return what the spy has seen so far; two of one id stay two."""
        quiet = 0
        while quiet < 3:
            asked = {"subscription": self._path("spy"), "max_messages": 1000, "return_immediately": True}
            with warnings.catch_warnings(action="ignore"):  # the flag is deprecated, and without it we wait
                received = self._subscriber.pull(request=asked, timeout=20).received_messages
            quiet = 0 if received else quiet + 1
            for each in received:
                headers = [(name, value.encode()) for name, value in each.message.attributes.items()]
                self._letters[each.message.message_id] = _letter(headers, each.message.data, "ce-id")
            if received:
                done = {"subscription": self._path("spy"), "ack_ids": [each.ack_id for each in received]}
                self._subscriber.acknowledge(request=done, timeout=20)
        return list(self._letters.values())

    def produce(self, data: bytes, attributes: Mapping[str, str]) -> None:
        """Store a message as a foreign publisher does."""
        import grpc
        from google.pubsub_v1 import PublisherClient
        from google.pubsub_v1.services.publisher.transports import PublisherGrpcTransport

        with grpc.insecure_channel(self._host) as channel:
            client = PublisherClient(transport=PublisherGrpcTransport(channel=channel))
            topic = f"projects/{self._project}/topics/{self.topic}"
            message = {"data": data, "attributes": dict(attributes)}
            client.publish(request={"topic": topic, "messages": [message]}, timeout=20)

    def close(self) -> None:
        """Let the connection go."""
        if "_channel" in self.__dict__:
            self._channel.close()

    @property
    def _dlq(self) -> str:
        return f"projects/{self._project}/topics/{self.topic}.{GROUP}.dlq"

    def _path(self, subscription: str) -> str:
        return f"projects/{self._project}/subscriptions/{subscription}"

    @property
    def _subscriber(self) -> Any:
        import grpc
        from google.pubsub_v1 import SubscriberClient
        from google.pubsub_v1.services.subscriber.transports import SubscriberGrpcTransport

        if "_client" not in self.__dict__:
            self._channel = grpc.insecure_channel(self._host, [("grpc.max_receive_message_length", -1)])
            self._client = SubscriberClient(transport=SubscriberGrpcTransport(channel=self._channel))
        return self._client


class SqlitePlace:
    """A queue file.

    Args:
        directory: where it lies.
        lease_s: of deliveries.
    """

    name = "sqlite"

    def __init__(self, directory: Path, lease_s: float = 2.0) -> None:
        self.path = directory / "queue.db"
        self.topic = new_topic()
        self.url = f"sqlite:///{self.path}?lease={lease_s:g}"
        self.env: dict[str, str] = {}
        self.lease_s = lease_s
        self.versions = {"sqlite": sqlite3.sqlite_version}

    def open(self, partitions: int) -> None:
        """Make topic, group and dead-letter topic."""
        _ensure(self, partitions)

    def client(self) -> contextlib.AbstractContextManager[BlockingBroker]:
        """Open a client of ours."""
        return connect_blocking(self.url)

    def unsettled(self) -> int:
        """Count what is behind the cursor and what is pending before it."""
        query = """
            SELECT (SELECT count(*) FROM pending p WHERE p.group_id = g.group_id)
                 + (SELECT count(*) FROM messages m WHERE m.topic_id = g.topic_id AND m.seq > g.cursor)
            FROM groups g JOIN topics t USING (topic_id) WHERE t.name = ? AND g.name = ?"""
        return int(self._read(query, self.topic, GROUP)[0][0])

    def letters(self) -> list[Letter]:
        """Read the dead-letter topic's messages, settled ones included."""
        query = """SELECT m.id, m.attributes, m.data FROM messages m JOIN topics t USING (topic_id)
                   WHERE t.name = ? ORDER BY m.seq"""
        return [
            _letter(
                [("ce-id", message_id.encode())]
                + [
                    (name, value.encode(errors="surrogateescape"))
                    for name, value in json.loads(attributes).items()
                ],
                data,
                "ce-id",
            )
            for message_id, attributes, data in self._read(query, f"{self.topic}.{GROUP}.dlq")
        ]

    @contextlib.contextmanager
    def blocked(self) -> Iterator[None]:
        """Hold the queue's write lock."""
        with contextlib.closing(sqlite3.connect(self.path, timeout=30, isolation_level=None)) as db:
            db.execute("BEGIN IMMEDIATE")
            yield
            db.execute("ROLLBACK")

    def close(self) -> None:
        """Nothing is open."""

    def _read(self, query: str, *values: str) -> list[Any]:
        with contextlib.closing(sqlite3.connect(self.path, timeout=30)) as db:
            return db.execute(query, values).fetchall()
