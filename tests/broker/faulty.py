"""A memory backend whose calls fail, wait or are counted on demand, below the contract."""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from broker import BrokerError, Delivery, ManualClock, Message, Receipt
from broker.drivers.base import Order, Room
from broker.drivers.memory import MemoryDriver, MemoryStore, MemorySubscription


class Faults:
    """What goes wrong, by name of the driver's method.

    Attributes:
        errors: raised one per call, in order.
        gates: a call waits until its gate is set.
        calls: how often each method was called.
    """

    def __init__(self) -> None:
        self.errors: dict[str, list[BaseException]] = defaultdict(list)
        self.gates: dict[str, asyncio.Event] = {}
        self.calls: Counter[str] = Counter()

    async def strike(self, method: str) -> None:
        """Count a call, then wait and fail as planned."""
        self.calls[method] += 1
        if method in self.gates:
            await self.gates[method].wait()
        if self.errors[method]:
            raise self.errors[method].pop(0)


class FaultySubscription(MemorySubscription):
    """A member that fails as planned before it does anything."""

    def __init__(self, driver: FaultyDriver, topic: str, group: str, order: Order) -> None:
        super().__init__(driver, topic, group, order)
        self._faults = driver.faults

    async def receive(self, limit: Room, timeout: float) -> list[Delivery]:
        await self._faults.strike("receive")
        return await super().receive(limit, timeout)

    async def settle(
        self, acks: Sequence[Delivery], releases: Sequence[Delivery], retries: Sequence[Any]
    ) -> list[Delivery]:
        await self._faults.strike("settle")
        return await super().settle(acks, releases, retries)

    async def extend(self, deliveries: Sequence[Delivery]) -> list[Delivery]:
        await self._faults.strike("extend")
        return await super().extend(deliveries)

    async def forward(self, delivery: Delivery, topic: str, extra: Mapping[str, str]) -> None:
        await self._faults.strike("forward")
        await super().forward(delivery, topic, extra)

    async def flush(self) -> None:
        await self._faults.strike("flush")
        await super().flush()


class FaultyDriver(MemoryDriver):
    """A client on a store and a clock of its own, unless one is given."""

    def __init__(self, store: MemoryStore | None = None, clock: ManualClock | None = None) -> None:
        self.manual = clock or ManualClock()
        self.faults = Faults()
        super().__init__(store or MemoryStore(), lease=30.0, clock=self.manual)

    async def send(self, topic: str, messages: Sequence[Message]) -> list[Receipt | BrokerError]:
        await self.faults.strike("send")
        return await super().send(topic, messages)

    async def subscribe(self, topic: str, group: str, order: Order) -> FaultySubscription:
        self.store.group(topic, group)
        return FaultySubscription(self, topic, group, order)


async def until(condition: Callable[[], Awaitable[bool]], timeout: float = 15.0) -> None:
    """Return once a condition holds; fail after ``timeout`` seconds."""
    async with asyncio.timeout(timeout):
        while True:
            if await condition():
                return
            await asyncio.sleep(0.002)
