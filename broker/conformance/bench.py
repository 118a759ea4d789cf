"""What a check works with: an open client, a topic of its own, and verbs that wait as long as they must."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass, replace

import pytest

from ..connect import Broker
from ..drivers.base import Order
from ..errors import LeaseLost
from ..message import Delivery, GroupStats, Message
from ..subscription import Subscription
from .harness import Harness

GROUP = "workers"
# Of a topic whose members share work: more than any check has members that must be busy at once.
MANY = 8
_names = itertools.count(1)


def unique_name(prefix: str = "topic") -> str:
    """Return a name that no other check, and no other run, uses."""
    return f"{prefix}-{next(_names)}-{uuid.uuid4().hex[:8]}"


def numbered(count: int, first: int = 0) -> list[Message]:
    """Return ``count`` messages whose bodies are ascending numbers."""
    return [Message(data=b"%d" % number) for number in range(first, first + count)]


def spread(messages: Iterable[Message]) -> list[Message]:
    """Return the messages with a key each, so that they spread over all partitions."""
    return [replace(each, key=each.id) for each in messages]


def bodies(deliveries: Iterable[Delivery]) -> list[bytes]:
    """Return the bodies in order."""
    return [each.message.data for each in deliveries]


def attempts(deliveries: Iterable[Delivery]) -> set[int]:
    """Return every attempt number that occurs."""
    return {each.attempt for each in deliveries}


@dataclass(frozen=True)
class Bench:
    """An open client and a topic of its own, ensured with the group ``GROUP``.

    Attributes:
        harness: the backend under test.
        broker: an open client.
        topic: used by this check alone.
    """

    harness: Harness
    broker: Broker
    topic: str

    async def another(self, prefix: str = "topic", partitions: int | None = None) -> Bench:
        """Return a bench on a new topic, with the group; on ``harness.partitions`` unless told otherwise."""
        topic = unique_name(prefix)
        await self.broker.ensure(topic, group=GROUP, partitions=partitions or self.harness.partitions)
        return Bench(self.harness, self.broker, topic)

    def on(self, broker: Broker) -> Bench:
        """Return the same topic on another client."""
        return Bench(self.harness, broker, self.topic)

    def subscribe(
        self,
        *,
        broker: Broker | None = None,
        group: str = GROUP,
        order: Order = "none",
        **limits: int,
    ) -> Subscription:
        """Return a member of the group, not yet open; ``limits`` as for ``Broker.subscribe``."""
        return (broker or self.broker).subscribe(self.topic, group=group, order=order, **limits)

    @contextlib.asynccontextmanager
    async def apart(self, order: Order = "none", **limits: int) -> AsyncIterator[Subscription]:
        """Open a member on a client of its own, as in a process of its own: it may crash or freeze."""
        async with (
            self.harness.connect() as client,
            self.subscribe(broker=client, group=GROUP, order=order, **limits) as member,
        ):
            yield member

    @contextlib.asynccontextmanager
    async def pair(
        self, first: Order = "none", second: Order = "none"
    ) -> AsyncIterator[tuple[Subscription, Subscription]]:
        """Open two members, the first one apart; where a partition has one owner, the first owns them all.

        The second one stands by there, and on other backends receives like the first.
        """
        async with self.apart(first) as owner:
            await self.harness.rebalanced()
            async with self.subscribe(order=second) as other:
                await self.harness.rebalanced()
                yield owner, other

    async def publish(self, count: int, first: int = 0) -> list[Message]:
        """Publish numbered messages and return them."""
        messages = numbered(count, first)
        await self.broker.publish(self.topic, messages)
        return messages

    async def take(self, subscription: Subscription, count: int) -> list[Delivery]:
        """Receive exactly ``count`` deliveries, settling none."""
        return await self.take_any([subscription], count)

    async def take_any(self, members: list[Subscription], count: int) -> list[Delivery]:
        """Receive exactly ``count`` deliveries between these members, settling none."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self.harness.patience
        slice_s = 1.0 if len(members) == 1 else self.harness.quiet
        taken: list[Delivery] = []
        while len(taken) < count and loop.time() < deadline:
            for each in members:
                if len(taken) < count:
                    taken += await each.receive(max_messages=count - len(taken), timeout=slice_s)
        assert len(taken) == count, f"{len(taken)} of {count} came within {self.harness.patience:g} s"
        return taken

    async def take_and_ack(self, subscription: Subscription, count: int) -> list[Delivery]:
        """Receive and finish exactly ``count`` deliveries."""
        deliveries = await self.take(subscription, count)
        await subscription.ack(deliveries)
        return deliveries

    async def ack_held(self, subscription: Subscription, deliveries: list[Delivery]) -> list[Delivery]:
        """Finish deliveries while members come and go; return those that were still held."""
        try:
            await subscription.ack(deliveries)
        except LeaseLost as lost:
            if not self.harness.rebalances:
                raise
            return [each for each in deliveries if each.message.id not in lost.ids]
        return deliveries

    async def nothing_comes(self, *members: Subscription) -> None:
        """Fail when any of them receives anything while the backend is given time to deliver."""
        quiet = self.harness.quiet
        for came in await asyncio.gather(*(each.receive(timeout=quiet) for each in members)):
            assert came == [], f"unexpected: {[(each.message.data, each.attempt) for each in came]}"

    async def left(self) -> list[bytes]:
        """Return, sorted, what a new member of the group still receives; it acks all of it."""
        stats = await self.stats()
        async with self.subscribe() as subscription:
            await self.harness.rebalanced()
            deliveries = await self.take_and_ack(subscription, stats.unsettled)
            await self.nothing_comes(subscription)
        return sorted(bodies(deliveries))

    async def stats(self, group: str = GROUP) -> GroupStats:
        """Return the counts of the group."""
        return await self.harness.stats(self.broker, self.topic, group)

    async def settled(self) -> int:
        """Return how many messages the group has finished."""
        settled = (await self.stats()).settled
        assert settled is not None, "Harness.stats leaves `settled` out"
        return settled

    async def advance_leases(self, leases: float = 1.25) -> None:
        """Let a little more than one lease pass, or ``leases`` of them."""
        await self.harness.advance(self.harness.lease * leases)

    async def eventually(self, condition: Callable[[], Awaitable[bool] | bool], what: str) -> None:
        """Wait until ``condition`` holds, at most ``patience`` seconds."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self.harness.patience
        while True:
            holds = condition()
            if holds if isinstance(holds, bool) else await holds:
                return
            if loop.time() > deadline:
                pytest.fail(f"not within {self.harness.patience:g} s: {what}")
            await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def within(seconds: float, what: str) -> AsyncIterator[None]:
    """Fail when the block takes longer than ``seconds`` of real time."""
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError:
        pytest.fail(f"took more than {seconds:g} s: {what}")
