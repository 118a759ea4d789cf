"""What a driver's authors provide (``Harness``) and what a check works with (``Bench``)."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import uuid
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TypeVar

import pytest

from ..connect import Broker
from ..drivers.base import Order
from ..message import Capabilities, Delivery, GroupStats, Message
from ..subscription import Subscription

GROUP = "workers"
_names = itertools.count(1)
_Check = TypeVar("_Check", bound=Callable[..., object])


class Harness(ABC):
    """One backend under test.

    Attributes:
        lease: seconds, as in the backend's ``Capabilities``.
        impossible: name of a check to the reason why this backend cannot pass it.
        patience: real seconds within which what must happen happens.
        quiet: real seconds without a message that count as "nothing comes".
    """

    lease: float
    impossible: Mapping[str, str] = MappingProxyType({})
    patience: float = 20.0
    quiet: float = 0.25

    @abstractmethod
    def connect(self) -> Broker:
        """Return a new client, not yet open; all clients of one harness see the same messages."""

    @abstractmethod
    async def advance(self, seconds: float) -> None:
        """Let ``seconds`` pass for leases and delays: move an injected clock, or wait."""

    async def restart(self) -> None:
        """Stop the backend and start it again on what it stored; every client is closed before.

        An embedded backend, which stops with its last client, has nothing to do.
        """
        return

    async def rebalanced(self) -> None:
        """Return once members that have just joined take part; for backends where that takes time."""
        return

    async def freeze(self, subscription: Subscription) -> None:
        """Stop a member from keeping its leases, as a suspended process would."""
        await _cancel(subscription._keeper)

    async def crash(self, subscription: Subscription) -> None:
        """End a member without a word: nothing that it holds is settled or handed back."""
        await _cancel(subscription._keeper)
        await _cancel(subscription._fetch)
        subscription._member = None


class Claim:
    """Something a check needs and ``Capabilities`` may claim or deny."""

    def __init__(self, text: str, holds: Callable[[Capabilities], bool]) -> None:
        self.text = text
        self.holds = holds


KEY_ORDER = Claim("order='key'", lambda capabilities: "key" in capabilities.order)
DURABLE = Claim("durable", lambda capabilities: capabilities.durable)


def needs(claim: Claim) -> Callable[[_Check], _Check]:
    """Mark a check as one that only a backend with ``claim`` can pass."""

    def mark(check: _Check) -> _Check:
        check.claim = claim  # type: ignore[attr-defined]
        return check

    return mark


def unique_name(prefix: str = "topic") -> str:
    """Return a name that no other check, and no other run, uses."""
    return f"{prefix}-{next(_names)}-{uuid.uuid4().hex[:8]}"


def numbered(count: int, first: int = 0) -> list[Message]:
    """Return ``count`` messages whose bodies are ascending numbers."""
    return [Message(data=b"%d" % number) for number in range(first, first + count)]


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

    async def publish(self, count: int, first: int = 0) -> list[Message]:
        """Publish numbered messages and return them."""
        messages = numbered(count, first)
        await self.broker.publish(self.topic, messages)
        return messages

    async def take(self, subscription: Subscription, count: int) -> list[Delivery]:
        """Receive exactly ``count`` deliveries, settling none."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self.harness.patience
        taken: list[Delivery] = []
        while len(taken) < count and loop.time() < deadline:
            taken += await subscription.receive(max_messages=count - len(taken), timeout=1.0)
        assert len(taken) == count, f"{len(taken)} of {count} came within {self.harness.patience:g} s"
        return taken

    async def take_and_ack(self, subscription: Subscription, count: int) -> list[Delivery]:
        """Receive and finish exactly ``count`` deliveries."""
        deliveries = await self.take(subscription, count)
        await subscription.ack(deliveries)
        return deliveries

    async def nothing_comes(self, subscription: Subscription) -> None:
        """Fail when anything is received while the backend is given time to deliver."""
        came = await subscription.receive(timeout=self.harness.quiet)
        assert came == [], f"unexpected: {[(each.message.data, each.attempt) for each in came]}"

    async def left(self) -> list[bytes]:
        """Return, sorted, what a new member of the group still receives; it acks all of it."""
        stats = await self.stats()
        async with self.subscribe() as subscription:
            deliveries = await self.take_and_ack(subscription, stats.unsettled)
            await self.nothing_comes(subscription)
        return sorted(bodies(deliveries))

    async def stats(self) -> GroupStats:
        """Return the counts of the group."""
        return await self.broker.stats(self.topic, GROUP)

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


async def _cancel(task: asyncio.Task[None] | None) -> None:
    if task is not None:
        task.cancel()
        await asyncio.wait({task})
