"""The asynchronous surface of a client over the blocking form, so that the suite can run through it.

Every call goes to ``connect_blocking``'s objects in a thread of its own, as a threaded server would make it.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from types import MappingProxyType
from typing import Any, Self, TypeVar, cast

import pytest
from test_memory import MemoryHarness

from broker import Broker, Closed, Delivery, Outcome, Subscription, Totals, connect_blocking
from broker.blocking import BlockingSubscription
from broker.conformance import Harness
from broker.drivers.memory import MemoryDriver, MemoryStore

T = TypeVar("T")

# A waiting `receive` keeps its thread; the busiest check has as many members, and each may wait.
_THREADS = ThreadPoolExecutor(128, thread_name_prefix="caller")


async def in_thread(call: Callable[..., T], *arguments: Any, **options: Any) -> T:
    """Call an ordinary function as another thread of the application would."""
    return await asyncio.get_running_loop().run_in_executor(_THREADS, partial(call, *arguments, **options))


class Face:
    """Names of ``broker`` and ``subscription`` alike: what is not spelled out is called in a thread."""

    verbs: frozenset[str]
    facts: frozenset[str]

    def __init__(self, context: AbstractContextManager[Any]) -> None:
        self._context: AbstractContextManager[Any] | None = context
        self._blocking: Any = None

    async def __aenter__(self) -> Self:
        assert self._context is not None
        self._blocking = await in_thread(self._context.__enter__)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Leave the context, once."""
        if self._blocking is not None:
            context, self._context = self._context, None
            if context is not None:
                await in_thread(context.__exit__, None, None, None)

    def __getattr__(self, name: str) -> Any:
        if name in self.verbs:
            return partial(self._call, name)
        if name in self.facts:
            return getattr(self.entered, name)
        raise AttributeError(name)

    async def _call(self, name: str, *arguments: Any, **options: Any) -> Any:
        return await in_thread(getattr(self.entered, name), *arguments, **options)

    @property
    def entered(self) -> Any:
        """The blocking object; without ``with`` there is none that could refuse a call."""
        if self._blocking is None:
            raise Closed("not entered")
        return self._blocking

    async def _iterate(self, make: Callable[[], Any]) -> AsyncIterator[Any]:
        iterator = await in_thread(make)
        try:
            while (found := await in_thread(next, iterator, None)) is not None:
                yield found
        finally:
            await in_thread(iterator.close)


class FaceSubscription(Face):
    """``Subscription`` over ``BlockingSubscription``."""

    verbs = frozenset({"receive", "ack", "nack", "release", "settle", "forward", "flush", "drain"})
    facts = frozenset({"topic", "group", "in_flight"})

    @property
    def below(self) -> Subscription:
        """What the blocking form wraps: for a crash, and for looks that it does not offer."""
        below: Subscription = self.entered._subscription
        return below

    @property
    def _member(self) -> Any:
        return None if self._blocking is None else self.below._member

    def holds(self, delivery: Delivery) -> bool:
        """As everything; a member that was never entered holds nothing."""
        return self._blocking is not None and self.entered.holds(delivery)

    def __aiter__(self) -> AsyncIterator[Delivery]:
        return self._iterate(lambda: iter(self.entered))


class FaceBroker(Face):
    """``Broker`` over ``BlockingBroker``."""

    verbs = frozenset({"ensure", "remove_group", "publish", "stats", "topics", "lag", "describe"})
    facts = frozenset({"capabilities", "address"})

    def browse(self, topic: str, group: str) -> AsyncIterator[Delivery]:
        return self._iterate(lambda: self.entered.browse(topic, group))

    def subscribe(self, topic: str, **options: Any) -> FaceSubscription:
        return FaceSubscription(self.entered.subscribe(topic, **options))

    async def process(
        self, topic: str, *, handler: Any, stop: asyncio.Event | None = None, **options: Any
    ) -> Totals:
        """As everything; the handler, which is asynchronous here, runs in the caller's event loop."""
        loop, end = asyncio.get_running_loop(), threading.Event()

        def handle(deliveries: Sequence[Delivery]) -> Sequence[Outcome]:
            outcomes: Sequence[Outcome] = asyncio.run_coroutine_threadsafe(handler(deliveries), loop).result()
            return outcomes

        async def pass_on() -> None:
            await (stop or asyncio.Event()).wait()
            end.set()

        passing = asyncio.create_task(pass_on())
        try:
            with self._remembering():
                return await in_thread(self.entered.process, topic, handler=handle, stop=end, **options)
        finally:
            passing.cancel()
            end.set()

    @contextmanager
    def _remembering(self) -> Iterator[None]:
        """Let who replaced ``subscribe`` here see the member that ``process`` makes below."""
        below: Broker = self.entered._broker

        def remembered(*arguments: Any, **options: Any) -> Subscription:
            vars(below).pop("subscribe")
            member = below.subscribe(*arguments, **options)
            face = self.subscribe(*arguments, **options)
            face._blocking = BlockingSubscription(member, below, self.entered._portal)
            return member

        below.subscribe = remembered  # type: ignore[method-assign]
        try:
            yield
        finally:
            vars(below).pop("subscribe", None)


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
    impossible = MappingProxyType(
        {
            **MemoryHarness.impossible,
            **dict.fromkeys(
                ("cancelling_receive_loses_nothing", "cancelling_process_hands_everything_back"),
                "a call that blocks its thread cannot be cancelled",
            ),
        }
    )

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.store = MemoryStore()
        self.clock = PortalClock()
        # `connect_blocking` takes a URL, and no URL names a clock.
        monkeypatch.setattr("broker.blocking.connect", self._connect_below)

    def _connect_below(self, _: str | None, **__: object) -> Broker:
        return Broker(MemoryDriver(self.store, lease=self.lease, clock=self.clock))

    def connect(self) -> Broker:
        return cast(Broker, FaceBroker(connect_blocking("memory://")))

    async def advance(self, seconds: float) -> None:
        await self.clock.advance(seconds)

    async def restart(self) -> None:
        self.store = MemoryStore()

    async def freeze(self, subscription: Subscription) -> None:
        await self._below(super().freeze, subscription)

    async def crash(self, subscription: Subscription) -> None:
        await self._below(super().crash, subscription)

    @staticmethod
    async def _below(do: Callable[[Subscription], Any], subscription: Any) -> None:
        """Do it where the subscription lives."""
        assert isinstance(subscription, FaceSubscription)
        await in_thread(subscription.entered._portal.call, do, subscription.below)
