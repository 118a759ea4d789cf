"""What the fault tests on real Kafka share: a ledger of every message, and the books of an outsider."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import Any

from broker import Broker, Delivery, LeaseLost, Message, PublishError, Subscription, connect
from broker.conformance.bench import GROUP, unique_name

PATIENCE_S = 60.0
# Quick sessions; Kafka wants a poll interval that is no shorter.
QUICK = "session=2&max_poll=3"


class Ledger:
    """What was stored, and how often each message was handled.

    Attributes:
        stored: bodies whose publish was confirmed.
        doubtful: bodies whose publish failed; they may be stored or not.
        handled: how often a body was received; work is done before it is acked.
        acked: bodies whose ack was accepted; one that was cancelled on its way is not entered.
        late: acks that were refused with ``LeaseLost``.
    """

    def __init__(self) -> None:
        self.stored: set[str] = set()
        self.doubtful: set[str] = set()
        self.handled: Counter[str] = Counter()
        self.acked: Counter[str] = Counter()
        self.late = 0

    @property
    def lost(self) -> set[str]:
        """Stored, and never handled by anybody."""
        return self.stored - set(self.handled)

    @property
    def redelivered(self) -> set[str]:
        """Handled more than once."""
        return {body for body, count in self.handled.items() if count > 1}

    async def publish(self, broker: Broker, topic: str, count: int) -> None:
        """Publish numbered messages, each with a key of its own."""
        first = len(self.stored) + len(self.doubtful)
        messages = [Message(data=b"%d" % n, key=str(n)) for n in range(first, first + count)]
        failed: set[str] = set()
        try:
            await broker.publish(topic, messages)
        except PublishError as error:
            failed = {each.data.decode() for each in messages if each.id in error.failed}
        self.doubtful |= failed
        self.stored |= {each.data.decode() for each in messages} - failed

    async def work(self, subscription: Subscription, pause: float = 0.0) -> None:
        """Handle and ack for ever; ``pause`` seconds of work for each batch."""
        while True:
            deliveries = await subscription.receive(max_messages=20, timeout=0.5)
            self.handled.update(bodies(deliveries))
            if pause and deliveries:
                await asyncio.sleep(pause)
            await self.ack(subscription, deliveries)

    async def ack(self, subscription: Subscription, deliveries: list[Delivery]) -> None:
        """Ack; count what came too late."""
        gone: set[str] = set()
        try:
            await subscription.ack(deliveries)
        except LeaseLost as error:
            gone = set(error.ids)
        self.late += len(gone)
        self.acked.update(each.message.data.decode() for each in deliveries if each.message.id not in gone)


def bodies(deliveries: Iterable[Delivery]) -> list[str]:
    """Return the bodies in order."""
    return [each.message.data.decode() for each in deliveries]


class Books:
    """Committed offsets and log ends, read by a client that is none of ours.

    Args:
        bootstrap: the broker's address.
        topic: whose partitions.
        group_id: whose commits.
    """

    def __init__(self, bootstrap: str, topic: str, group_id: str) -> None:
        from confluent_kafka import Consumer

        self.topic = topic
        config = {"bootstrap.servers": bootstrap, "group.id": group_id, "enable.auto.commit": False}
        self._consumer: Any = Consumer(config, logger=logging.getLogger("tests.books"))

    def committed(self) -> dict[int, int]:
        """Return the committed offset of each partition; -1001 for none."""
        return {each.partition: each.offset for each in self._consumer.committed(self._places(), timeout=10)}

    def ends(self) -> dict[int, int]:
        """Return the offset after the last record of each partition."""
        places = self._places()
        return {each.partition: self._consumer.get_watermark_offsets(each, timeout=10)[1] for each in places}

    def balanced(self) -> bool:
        """Whether everything in the log is committed as finished."""
        return self.committed() == self.ends()

    def close(self) -> None:
        """Let the connection go."""
        self._consumer.close()

    def _places(self) -> list[Any]:
        from confluent_kafka import TopicPartition

        found = self._consumer.list_topics(self.topic, timeout=10).topics[self.topic].partitions
        return [TopicPartition(self.topic, number) for number in found]


class Scene:
    """A topic of its own with the group ``GROUP``, a ledger, and any number of members.

    Attributes:
        bootstrap: the broker's address.
        url: how members connect.
        topic: of this scene alone.
        ledger: of all its messages.
        books: the unbiased client's.
    """

    def __init__(self, bootstrap: str, options: str = QUICK) -> None:
        self.bootstrap = bootstrap
        self.url = f"kafka://{bootstrap}?group_id={{topic}}.{{group}}&{options}"
        self.topic = unique_name("faults")
        self.group_id = f"{self.topic}.{GROUP}"
        self.ledger = Ledger()
        self.books = Books(bootstrap, self.topic, self.group_id)

    @contextlib.asynccontextmanager
    async def open(self, partitions: int = 6) -> AsyncIterator[Broker]:
        """Make the topic; yield a client."""
        try:
            async with connect(self.url) as broker:
                await broker.ensure(self.topic, group=GROUP, partitions=partitions)
                yield broker
        finally:
            self.books.close()

    @contextlib.asynccontextmanager
    async def member(self) -> AsyncIterator[Subscription]:
        """Open a member on a client of its own."""
        async with connect(self.url) as broker, broker.subscribe(self.topic, group=GROUP) as member:
            yield member

    @contextlib.asynccontextmanager
    async def working(self, pause: float = 0.0) -> AsyncIterator[Subscription]:
        """Open a member that handles and acks while the block runs."""
        async with self.member() as member:
            task = asyncio.create_task(self.ledger.work(member, pause))
            try:
                yield member
            finally:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task

    async def finished(self) -> None:
        """Wait until the group has committed everything that stands in the log; then nothing may be lost."""
        await eventually(self.books.balanced, "the group has committed all")
        assert self.ledger.lost == set()


async def eventually(
    condition: Callable[[], bool] | Callable[[], Awaitable[bool]], what: str, patience: float = PATIENCE_S
) -> None:
    """Wait until ``condition`` holds, at most ``patience`` seconds."""
    deadline = time.monotonic() + patience
    while True:
        if asyncio.iscoroutinefunction(condition):
            holds = await condition()
        else:
            holds = await asyncio.to_thread(condition)
        if holds:
            return
        assert time.monotonic() < deadline, f"not within {patience:g} s: {what}"
        await asyncio.sleep(0.1)


async def take(subscription: Subscription, count: int, patience: float = PATIENCE_S) -> list[Delivery]:
    """Receive exactly ``count`` deliveries."""
    taken: list[Delivery] = []
    deadline = time.monotonic() + patience
    while len(taken) < count:
        assert time.monotonic() < deadline, f"{len(taken)} of {count} came within {patience:g} s"
        taken += await subscription.receive(max_messages=count - len(taken), timeout=1.0)
    return taken
