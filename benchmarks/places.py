"""Where a benchmark runs: makes topics, and counts with another client what is stored and what is settled."""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
import uuid
from contextlib import ExitStack
from pathlib import Path

from broker import connect

from .measure import Job

_PARTITIONS = 12
_CALL_S = 30.0


class KafkaPlace:
    """A cluster.

    Args:
        stack: ends what is started here.
    """

    backend = "kafka"

    def __init__(self, stack: ExitStack) -> None:
        from confluent_kafka.admin import AdminClient

        self.address = os.environ.get("KAFKA_BOOTSTRAP_SERVERS") or service(
            "KafkaService", "bootstrap", stack
        )
        self._admin = AdminClient({"bootstrap.servers": self.address})

    def make(self, client: str, group: str) -> str:
        """Make a topic and return its name."""
        from confluent_kafka.admin import NewTopic

        topic = f"bench-{uuid.uuid4().hex[:12]}"
        for future in self._admin.create_topics([NewTopic(topic, _PARTITIONS)]).values():
            future.result(_CALL_S)
        return topic

    def check(self, job: Job) -> None:
        """Raise ``RuntimeError`` unless everything is stored, and, after ``consume``, committed."""
        ends, committed = self._offsets(job)
        if sum(ends) != job.count:
            raise RuntimeError(f"the broker has {sum(ends)} of {job.count} messages")
        deadline = time.monotonic() + _CALL_S
        while job.task == "consume" and committed != ends:
            if time.monotonic() > deadline:
                raise RuntimeError(f"committed {committed}, but the ends are {ends}")
            time.sleep(0.1)
            ends, committed = self._offsets(job)

    def _offsets(self, job: Job) -> tuple[list[int], list[int]]:
        from confluent_kafka import Consumer, TopicPartition

        consumer = Consumer({"bootstrap.servers": self.address, "group.id": job.group})
        try:
            places = [TopicPartition(job.topic, number) for number in range(_PARTITIONS)]
            ends = [consumer.get_watermark_offsets(each, timeout=_CALL_S)[1] for each in places]
            return ends, [max(0, each.offset) for each in consumer.committed(places, timeout=_CALL_S)]
        finally:
            consumer.close()

    def remove(self, topic: str) -> None:
        """Delete a topic and what a group keeps beside it."""
        names = [name for name in self._admin.list_topics(timeout=_CALL_S).topics if name.startswith(topic)]
        for future in self._admin.delete_topics(names).values():
            future.result(_CALL_S)


class PubsubPlace:
    """The emulator; what it measures is mostly the emulator.

    Args:
        stack: ends what is started here.
    """

    backend = "pubsub"

    def __init__(self, stack: ExitStack) -> None:
        from .pubsub_clients import PROJECT

        given = os.environ.get("PUBSUB_EMULATOR_HOST")
        self.address = given or service("PubSubService", "host", stack)
        os.environ["PUBSUB_EMULATOR_HOST"] = self.address
        self._url = f"pubsub://{PROJECT}"

    def make(self, client: str, group: str) -> str:
        """Make a topic with a subscription and return its name; kombu makes one of its own."""
        topic = f"bench-{uuid.uuid4().hex[:12]}"
        if client != "kombu":
            asyncio.run(_ensure(self._url, topic, group))
        return topic

    def check(self, job: Job) -> None:
        """Raise ``RuntimeError`` unless nothing is left after ``consume``."""
        deadline = time.monotonic() + _CALL_S
        while job.task == "consume" and job.client != "kombu" and (left := self._left(job)):
            if time.monotonic() > deadline:
                raise RuntimeError(f"{left} messages are left")
            time.sleep(0.5)

    def _left(self, job: Job) -> int:
        return asyncio.run(_left(self._url, job))

    def remove(self, topic: str) -> None:
        """Leave it: an emulator forgets."""


class SqlitePlace:
    """A directory.

    Args:
        stack: removes it.
    """

    backend = "sqlite"

    def __init__(self, stack: ExitStack) -> None:
        self._directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="couturier-bench-"))
        self.address = ""

    def make(self, client: str, group: str) -> str:
        """Make a file with a topic and a group."""
        topic = f"bench-{uuid.uuid4().hex[:12]}"
        self.address = str(Path(self._directory) / f"{topic}.db")
        asyncio.run(_ensure(f"sqlite:///{self.address}", topic, group))
        return topic

    def check(self, job: Job) -> None:
        """Raise ``RuntimeError`` unless everything is stored, and, after ``consume``, settled."""
        left = asyncio.run(_left(f"sqlite:///{self.address}", job))
        if left != (0 if job.task == "consume" else job.count):
            raise RuntimeError(f"{left} of {job.count} messages are unsettled")

    def remove(self, topic: str) -> None:
        """Delete the file."""
        for path in Path(self._directory).glob(f"{topic}*"):
            path.unlink()


PLACES: dict[str, type[KafkaPlace] | type[PubsubPlace] | type[SqlitePlace]] = {
    each.backend: each for each in (KafkaPlace, PubsubPlace, SqlitePlace)
}


def service(kind: str, attribute: str, stack: ExitStack) -> str:
    """Start a server of ``tests.services``; the addresses that the tests know work here, too.

    Args:
        kind: name of the class.
        attribute: of the service, what is asked for.
        stack: ends it.
    """
    from tests import services

    run = services.Run.alone()
    stack.callback(run.remove)
    try:
        service = getattr(services, kind).start(run)
    except services.NotInstalledError as error:
        raise SystemExit(f"no address in the environment, and none can be started here: {error}") from None
    stack.callback(service.stop)
    return str(getattr(service, attribute))


async def _ensure(url: str, topic: str, group: str) -> None:
    async with connect(url) as broker:
        await broker.ensure(topic, group=group)


async def _left(url: str, job: Job) -> int:
    async with connect(url) as broker:
        return (await broker.stats(job.topic, job.group)).unsettled
