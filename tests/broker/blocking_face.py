"""The asynchronous surface of a client over the blocking form, so that the suite can run through it.

Every call goes to ``connect_blocking``'s objects in a thread of its own, as a threaded server would make it.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, Self, TypeVar, cast

import pytest

from broker import Broker, Capabilities, Closed, Delivery, GroupStats, Message, Receipt, connect_blocking
from broker.blocking import BlockingBroker, BlockingSubscription
from broker.conformance import Harness
from broker.drivers.memory import MemoryDriver
from broker.drivers.memory_store import MemoryStore
from broker.subscription import Subscription

T = TypeVar("T")

# A waiting `receive` keeps its thread; the busiest check has as many members, and each may wait.
_THREADS = ThreadPoolExecutor(128, thread_name_prefix="caller")


async def in_thread(call: Callable[..., T], *arguments: Any, **options: Any) -> T:
    """Call an ordinary function as another thread of the application would."""
    return await asyncio.get_running_loop().run_in_executor(_THREADS, partial(call, *arguments, **options))


class FaceSubscription:
    """``Subscription`` over ``BlockingSubscription``."""

    def __init__(self, context: AbstractContextManager[BlockingSubscription]) -> None:
        self._context: AbstractContextManager[BlockingSubscription] | None = context
        self._blocking: BlockingSubscription | None = None

    async def __aenter__(self) -> Self:
        assert self._context is not None
        self._blocking = await in_thread(self._context.__enter__)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        context, self._context = self._context, None
        if context is not None:
            await in_thread(context.__exit__, None, None, None)

    @property
    def below(self) -> Subscription:
        """What the blocking form wraps: for a crash, and for looks that it does not offer."""
        return self._joined()._subscription

    @property
    def in_flight(self) -> int:
        return self.below.in_flight

    async def receive(self, max_messages: int = 256, timeout: float = 1.0) -> list[Delivery]:
        return await in_thread(self._joined().receive, max_messages, timeout)

    async def __aiter__(self) -> AsyncIterator[Delivery]:
        deliveries = iter(self._joined())
        while (delivery := await in_thread(next, deliveries, None)) is not None:
            yield delivery

    async def ack(self, deliveries: Any) -> None:
        await in_thread(self._joined().ack, deliveries)

    async def nack(self, deliveries: Any, delay: float = 0.0) -> None:
        await in_thread(self._joined().nack, deliveries, delay)

    async def release(self, deliveries: Any) -> None:
        await in_thread(self._joined().release, deliveries)

    async def flush(self) -> None:
        await in_thread(self._joined().flush)

    async def drain(self, timeout: float) -> bool:
        return await in_thread(self._joined().drain, timeout)

    def _joined(self) -> BlockingSubscription:
        if self._blocking is None:
            # Without `with` there is no blocking subscription that could say so.
            raise Closed("not entered")
        return self._blocking


class Face:
    """``Broker`` over ``BlockingBroker``."""

    def __init__(self, url: str) -> None:
        self._context: AbstractContextManager[BlockingBroker] | None = connect_blocking(url)
        self._blocking: BlockingBroker | None = None

    async def __aenter__(self) -> Self:
        assert self._context is not None
        self._blocking = await in_thread(self._context.__enter__)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        context, self._context = self._context, None
        if context is not None:
            await in_thread(context.__exit__, None, None, None)

    @property
    def capabilities(self) -> Capabilities:
        return self._open.capabilities

    @property
    def _open(self) -> BlockingBroker:
        assert self._blocking is not None
        return self._blocking

    async def ensure(self, topic: str, group: str | None = None, **options: Any) -> None:
        await in_thread(self._open.ensure, topic, group, **options)

    async def publish(self, topic: str, messages: Sequence[Message]) -> list[Receipt]:
        return await in_thread(self._open.publish, topic, messages)

    async def stats(self, topic: str, group: str) -> GroupStats:
        return await in_thread(self._open.stats, topic, group)

    def subscribe(self, topic: str, **options: Any) -> FaceSubscription:
        return FaceSubscription(self._open.subscribe(topic, **options))


class PortalClock:
    """A clock that moves only when told, for sleepers on several event loops in several threads."""

    def __init__(self) -> None:
        self._now = 1_000_000.0
        self._order = itertools.count()
        self._lock = threading.Lock()
        self._sleepers: list[tuple[float, int, asyncio.AbstractEventLoop, asyncio.Future[None]]] = []

    def now(self) -> float:
        return self._now

    async def sleep(self, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        woken: asyncio.Future[None] = loop.create_future()
        with self._lock:
            heapq.heappush(self._sleepers, (self._now + seconds, next(self._order), loop, woken))
        await woken

    async def advance(self, seconds: float) -> None:
        """Move forward, waking each sleeper at its own time and letting it run before time goes on."""
        end = self._now + seconds
        while True:
            with self._lock:
                if not self._sleepers or self._sleepers[0][0] > end:
                    break
                self._now, _, loop, woken = heapq.heappop(self._sleepers)
            if not loop.is_closed():
                await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(_wake(woken), loop))
        self._now = end


async def _wake(sleeper: asyncio.Future[None]) -> None:
    if not sleeper.done():
        sleeper.set_result(None)
    for _ in range(20):
        await asyncio.sleep(0)


class BlockingHarness(Harness):
    """All clients of one harness share a store and a clock; each has a portal, thus a thread and a loop."""

    lease = 30.0
    quiet = 0.02

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.store = MemoryStore()
        self.clock = PortalClock()
        # `connect_blocking` takes a URL, and no URL names a clock.
        monkeypatch.setattr("broker.blocking.connect", self._connect_below)

    def _connect_below(self, _: str | None, **__: object) -> Broker:
        return Broker(MemoryDriver(self.store, lease=self.lease, clock=self.clock))

    def connect(self) -> Broker:
        return cast(Broker, Face("memory://"))

    async def advance(self, seconds: float) -> None:
        await self.clock.advance(seconds)

    async def freeze(self, subscription: Subscription) -> None:
        await self._below(super().freeze, subscription)

    async def crash(self, subscription: Subscription) -> None:
        await self._below(super().crash, subscription)

    @staticmethod
    async def _below(do: Callable[[Subscription], Any], subscription: Any) -> None:
        """Do it where the subscription lives."""
        assert isinstance(subscription, FaceSubscription)
        await in_thread(subscription._joined()._portal.call, do, subscription.below)
