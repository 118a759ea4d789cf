"""What the tests of the claim check share: small backends, a store that can be held up, a content handler."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fsspec.implementations.local import LocalFileSystem

from broker import (
    Batching,
    Broker,
    Delivery,
    Done,
    Message,
    Outcome,
    RetryPolicy,
    Subscription,
    dead_letter_topic,
)
from broker.claims import ClaimStore
from broker.drivers.memory import MemoryDriver, MemoryStore
from broker.drivers.sqlite import SqliteDriver
from broker.processing import outages

TOPIC, GROUP = "images", "workers"
LETTERS = dead_letter_topic(TOPIC, GROUP)
LIMIT = 100
LARGE = b"large" * 100
DAY = 86_400.0


@pytest.fixture(autouse=True)
def quick_outages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Outages are waited out in small steps."""
    monkeypatch.setattr(outages, "PACE", RetryPolicy(attempts=1, base=0.002, cap=0.01))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "claims"


@pytest.fixture(params=["memory", "sqlite"])
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], Any]:
    """Return what makes one more client of one backend whose largest body has 100 bytes."""
    store = MemoryStore()

    def client() -> Any:
        driver = MemoryDriver(store) if request.param == "memory" else SqliteDriver(tmp_path / "queue.db")
        return small(driver)

    return client


def small(driver: Any) -> Any:
    """Return ``driver`` with a limit that a test can reach."""
    driver.capabilities = replace(driver.capabilities, max_message_bytes=LIMIT)
    return driver


@asynccontextmanager
async def opened(driver: Any, store: ClaimStore | Path | str | None) -> Any:
    """Open a broker with topic, group and the group of its dead letters."""
    claims = ClaimStore(str(store)) if isinstance(store, Path | str) else store
    async with Broker(driver, claims) as broker:
        await broker.ensure(TOPIC, group=GROUP)
        await broker.ensure(LETTERS, group="operators")
        yield broker


async def take(subscription: Subscription, count: int) -> list[Delivery]:
    """Receive exactly ``count`` deliveries."""
    taken: list[Delivery] = []
    async with asyncio.timeout(10.0):
        while len(taken) < count:
            taken += await subscription.receive(max_messages=count - len(taken), timeout=0.2)
    return taken


async def received(broker: Broker, count: int) -> list[Message]:
    """Receive ``count`` messages and finish them."""
    async with broker.subscribe(TOPIC, group=GROUP) as subscription:
        deliveries = await take(subscription, count)
        await subscription.ack(deliveries)
    return [each.message for each in deliveries]


def bodies(folder: Path) -> list[Path]:
    """Return the bodies that a store holds, oldest name first."""
    return sorted(folder.glob("[0-9a-f][0-9a-f]/*"))


class Handler:
    """A handler that is content with everything.

    Attributes:
        seen: the bodies that it got.
    """

    def __init__(self) -> None:
        self.seen: list[bytes] = []

    async def __call__(self, deliveries: Sequence[Delivery]) -> list[Outcome]:
        self.seen += [each.message.data for each in deliveries]
        return [Done() for _ in deliveries]


@asynccontextmanager
async def processing(broker: Broker, handler: Handler) -> Any:
    """Process until the block ends; yield the task."""
    stop = asyncio.Event()
    call = broker.process(TOPIC, group=GROUP, handler=handler, stop=stop, batch=Batching(max_wait=0.0))
    task = asyncio.create_task(call)
    try:
        yield task
        stop.set()
        await task
    finally:
        task.cancel()


def settled(broker: Broker, count: int) -> Callable[[], Awaitable[bool]]:
    """Return the condition that ``count`` messages are settled."""

    async def condition() -> bool:
        return (await broker.stats(TOPIC, GROUP)).settled == count

    return condition


def limited(init: Callable[..., None]) -> Callable[..., None]:
    """Return the constructor of a driver, for clients that ``connect`` makes, with the small limit."""

    def wrapped(self: Any, *args: Any, **options: Any) -> None:
        init(self, *args, **options)
        small(self)

    return wrapped


class Gate:
    """Holds every read of a body until it is opened.

    Attributes:
        opened: set it to let all go on.
        busy: how many wait now.
        most: how many waited at one time.
    """

    def __init__(self) -> None:
        self.opened = threading.Event()
        self.busy = self.most = 0
        self._lock = threading.Lock()
        self._read = LocalFileSystem.cat_file

    def cat_file(self, *args: Any) -> bytes:
        with self._lock:
            self.busy += 1
            self.most = max(self.most, self.busy)
        self.opened.wait(20.0)
        with self._lock:
            self.busy -= 1
        data: bytes = self._read(*args)
        return data

    async def is_busy(self) -> bool:
        return self.busy > 0


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    gate = Gate()
    monkeypatch.setattr(LocalFileSystem, "cat_file", lambda *args: gate.cat_file(*args))  # noqa: PLW0108 - binds
    yield gate
    gate.opened.set()


def swept(store: ClaimStore) -> None:
    """Sweep now, whenever the last time was."""
    marker = Path(store.address) / ".couturier-swept"
    if marker.exists():
        os.utime(marker, (0, 0))
    store._sweep()
