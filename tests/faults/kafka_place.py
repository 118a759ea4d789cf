"""A topic on Kafka, its commits and its dead letters, read by Kafka's own client."""

from __future__ import annotations

import contextlib
import logging
import time
import uuid
from collections.abc import Iterator
from typing import Any

from broker import connect_blocking
from broker.blocking import BlockingBroker

from .brokers import GROUP, Letter, ensure, letter_of, new_topic

_log = logging.getLogger("tests.faults")
# What these clients say of brokers that are down on purpose is no news.
_log.addHandler(logging.NullHandler())
_log.propagate = False


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

        ensure(self, partitions)
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
                yield letter_of(record.headers() or [], record.value(), "ce_id")
            elif record.error().code() == KafkaError._PARTITION_EOF:
                open_ends.discard(record.partition())
