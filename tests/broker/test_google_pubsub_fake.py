"""The Pub/Sub backend against the contract, on a service inside the test process: no Java, no Docker.

The driver is the real one over real gRPC. Time is the service's: leases and delays end when it is advanced.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from dataclasses import replace

import pytest
from test_google_pubsub import CountingDriver, CountingHarness

from broker import Broker
from broker.conformance import Conformance
from tests.services.fake_pubsub import FakePubSub

_LIMIT_S = 10.0


class ServiceClock:
    """The service's time, for the driver; whoever sleeps wakes when it is advanced."""

    def __init__(self, fake: FakePubSub) -> None:
        self._fake = fake
        self._sleepers: dict[asyncio.Task[object], tuple[float, asyncio.Event]] = {}
        self._awake: set[asyncio.Task[object]] = set()

    def now(self) -> float:
        return self._fake.now()

    async def sleep(self, seconds: float) -> None:
        task = asyncio.current_task()
        assert task is not None
        until, woken = self.now() + seconds, asyncio.Event()
        self._sleepers[task] = (until, woken)
        self._awake.discard(task)
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await woken.wait()
        finally:
            del self._sleepers[task]

    async def advance(self, seconds: float) -> None:
        """Move on from sleeper to sleeper; each does what it woke for before time goes on."""
        end = self.now() + seconds
        while (left := end - self.now()) > 0:
            due = min((until for until, _ in self._sleepers.values()), default=end)
            self._fake.advance(min(left, max(0.0, due - self.now())))
            await self._run_the_woken()

    async def _run_the_woken(self) -> None:
        now = self.now()
        for task, (until, woken) in self._sleepers.items():
            if until <= now:
                woken.set()
                self._awake.add(task)
        async with asyncio.timeout(_LIMIT_S):
            while any(not task.done() for task in self._awake):
                await asyncio.sleep(0.001)
        self._awake.clear()


class FakeHarness(CountingHarness):
    """All clients of one harness share a service of their own."""

    lease = 30.0
    quiet = 0.1
    crowd = 10  # each waiting pull is a thread of this process
    exactly_once = False

    def __init__(self, fake: FakePubSub) -> None:
        super().__init__(fake.host)
        self.fake = fake
        self.clock = ServiceClock(fake)

    def connect(self) -> Broker:
        driver = CountingDriver(
            self.project,
            self.host,
            self.books,
            self.exactly_once,
            lease=self.lease,
            clock=self.clock,
            lease_clock=self.clock.now,
        )
        # Unlike the emulator's, its messages outlive its server, as Google's do.
        driver.capabilities = replace(driver.capabilities, durable=True)
        return Broker(driver)

    async def advance(self, seconds: float) -> None:
        await self.clock.advance(seconds)

    async def restart(self) -> None:
        self.fake.stop()
        self.fake.start()


class ExactlyOnceHarness(FakeHarness):
    """Groups have their acks confirmed by the service."""

    exactly_once = True


@pytest.fixture
def fake() -> Iterator[FakePubSub]:
    with FakePubSub() as fake:
        yield fake


class TestFake(Conformance):
    """Every check of the suite."""

    @pytest.fixture
    async def harness(self, fake: FakePubSub) -> FakeHarness:
        return FakeHarness(fake)


class TestExactlyOnce(Conformance):
    """Every check of the suite again, on exactly-once subscriptions."""

    @pytest.fixture
    async def harness(self, fake: FakePubSub) -> ExactlyOnceHarness:
        return ExactlyOnceHarness(fake)
