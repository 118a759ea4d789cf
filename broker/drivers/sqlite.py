"""A durable queue in one SQLite file, for many processes of one host: the embedded default.

Publishing appends to ``messages``. A group is a cursor into that log; what it took and has not settled
stands in ``pending`` with a token and the time at which its lease or its delay ends. Settling and renewing
compare the token, so a member that lost its lease changes nothing.

What was published or forwarded is on disk (fsync) when the call returns. Verdicts survive the death of
every process at once, and a power cut after ``flush`` or half a second; a lost verdict delivers again.
"""

from __future__ import annotations

import asyncio
import math
import secrets
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar
from urllib.parse import unquote, urlsplit

from ..clock import Clock, SystemClock
from ..errors import BrokerError, Closed
from ..logs import log
from ..message import Capabilities, Delivery, GroupStats, Lag, Message, Receipt, Redelivery, TopicInfo
from .base import Order, Room, Start
from .options import GONE, LEAST_RETENTION_S, SWEEP_S, take_seconds
from .sqlite_admin import Membership
from .sqlite_store import SqliteStore

T = TypeVar("T")

# How often a member looks for news: at first, and after a while without any.
_POLL_S = 0.005
_POLL_IDLE_S = 0.05
# Verdicts are forced to disk at the latest after this.
_SETTLE_INTERVAL_S = 0.5


class SqliteDriver:
    """Connection to one queue file.

    Args:
        path: created when missing.
        lease: seconds after which an unsettled delivery of a dead member comes again.
        retention: seconds that a message is kept after every group has settled it, for later groups.
        clock: shared by all processes of the file, so it follows the wall clock.
    """

    def __init__(
        self, path: Path, lease: float = 10.0, retention: float = 7 * 86_400.0, clock: Clock | None = None
    ) -> None:
        self.clock: Clock = clock or SystemClock(time.time)
        self.address = f"sqlite:///{path.absolute()}"
        self.admin = self
        self.capabilities = Capabilities(
            backend="sqlite",
            shared=True,
            durable=True,
            history=True,
            counts=True,
            order=frozenset({"none", "key"}),
            lease=lease,
            max_delay=7 * 86_400.0,
            max_message_bytes=64 * 1024 * 1024,
            max_attributes=1000,
            max_attribute_bytes=64 * 1024,
            max_attribute_name_bytes=64 * 1024,
            retention=(LEAST_RETENTION_S, math.inf),
        )
        self._path = path
        self._retention = retention
        self._store: SqliteStore | None = None
        # sqlite3 blocks; one thread serves the connection, and its queue keeps the calls in order.
        self._thread: ThreadPoolExecutor | None = None
        self._sync: asyncio.TimerHandle | None = None
        self._next_sweep = -math.inf
        self._gone: Counter[str] = Counter()

    async def open(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="sqlite queue")
        try:
            forget_before = self.clock.now() - self._retention
            self._store = await self._in_thread(lambda: SqliteStore(self._path, forget_before))
        except BaseException:
            self._thread.shutdown()
            raise

    async def aclose(self) -> None:
        store, self._store = self._store, None
        if self._sync is not None:
            self._sync.cancel()
        if store is not None and self._thread is not None:
            await self._in_thread(store.close)
            self._thread.shutdown()

    async def send(self, topic: str, messages: Sequence[Message]) -> list[Receipt | BrokerError]:
        positions = await self.run(lambda store: self._append(store, topic, messages))
        return [
            Receipt(message.id, topic, str(position))
            for message, position in zip(messages, positions, strict=True)
        ]

    def _append(self, store: SqliteStore, topic: str, messages: Sequence[Message]) -> list[int]:
        now = self.clock.now()
        self.expire(store, now)
        return store.append(topic, messages, now)

    async def subscribe(self, topic: str, group: str, order: Order) -> SqliteSubscription:
        return SqliteSubscription(
            self, await self.run(lambda store: store.member(topic, group, by_key=order == "key"))
        )

    async def ensure(
        self, topic: str, group: str | None, partitions: int, start: Start, retention: float | None
    ) -> float | None:
        return await self.run(
            lambda store: store.ensure(topic, group, partitions, start == "earliest", retention)
        )

    async def remove_group(self, topic: str, group: str) -> None:
        await self.run(lambda store: store.remove_group(topic, group))

    async def stats(self, topic: str, group: str) -> GroupStats:
        return await self.run(lambda store: store.stats(store.member(topic, group), self.clock.now()))

    async def topics(self) -> list[TopicInfo]:
        return await self.run(lambda store: store.topics())

    async def lag(self, topic: str, group: str) -> list[Lag]:
        return await self.run(lambda store: [store.lag(store.member(topic, group))])

    async def describe(self) -> dict[str, str]:
        return await self.run(lambda store: store.describe())

    async def browse(self, topic: str, group: str) -> AsyncIterator[Delivery]:
        member = await self.run(lambda store: store.member(topic, group))
        after = 0
        while page := await self.run(lambda store: store.browse(member, after)):  # noqa: B023
            for delivery in page:
                yield delivery
            after = page[-1].receipt.seq

    async def run(self, call: Callable[[SqliteStore], T]) -> T:
        """Run ``call`` in the connection's thread. It runs to its end even if the caller is cancelled."""
        store = self._store
        if store is None:
            raise Closed(f"the queue {self._path} is not open")
        return await self._in_thread(lambda: call(store))

    def expire(self, store: SqliteStore, now: float) -> None:
        """Delete what is older than its topic's retention, once in ``SWEEP_S`` seconds; in the thread."""
        if now < self._next_sweep:
            return
        missed, more = store.expire(now)
        self._gone.update(missed)
        if more:
            return
        self._next_sweep = now + SWEEP_S
        for topic, count in self._gone.items():
            log.warning(GONE, count, topic)
        self._gone.clear()

    def sync_soon(self) -> None:
        """Force verdicts to disk within the settle interval."""
        if self._sync is None:
            self._sync = asyncio.get_running_loop().call_later(_SETTLE_INTERVAL_S, self._sync_now)

    def _sync_now(self) -> None:
        self._sync = None
        store = self._store
        if store is not None and self._thread is not None:
            # A failure leaves it to the next durable commit; a lost verdict only delivers again.
            self._thread.submit(store.sync)

    async def _in_thread(self, call: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, call)


class SqliteSubscription:
    """One member of one group."""

    def __init__(self, driver: SqliteDriver, member: Membership) -> None:
        self._driver = driver
        self._member = member
        self._pause = _POLL_S

    async def receive(self, limit: Room, timeout: float) -> list[Delivery]:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        while True:
            deliveries = await self._driver.run(lambda store: self._claim(store, limit))
            remaining = deadline - loop.time()
            if deliveries:
                self._pause = _POLL_S
            if deliveries or remaining <= 0:
                return deliveries
            await asyncio.sleep(min(self._pause, remaining))
            self._pause = min(self._pause * 1.2, _POLL_IDLE_S)

    def _claim(self, store: SqliteStore, limit: Room) -> list[Delivery]:
        now = self._driver.clock.now()
        self._driver.expire(store, now)
        if not store.has_news(self._member, now):
            return []
        token = secrets.randbits(62)
        deliveries = store.claim(self._member, limit, now, self._driver.capabilities.lease, token)
        if not deliveries:
            # There is something that does not fit; what makes room for it takes longer than a look.
            self._pause = _POLL_IDLE_S
        return deliveries

    async def settle(
        self, acks: Sequence[Delivery], releases: Sequence[Delivery], retries: Sequence[Redelivery]
    ) -> list[Delivery]:
        lost = await self._driver.run(
            lambda store: store.settle(self._member, acks, releases, retries, self._driver.clock.now())
        )
        self._driver.sync_soon()
        return lost

    async def extend(self, deliveries: Sequence[Delivery]) -> list[Delivery]:
        until = self._driver.clock.now() + self._driver.capabilities.lease
        return await self._driver.run(lambda store: store.extend(self._member, deliveries, until))

    async def forward(self, delivery: Delivery, topic: str, extra: Mapping[str, str]) -> None:
        await self._driver.run(
            lambda store: store.forward(self._member, delivery, topic, extra, self._driver.clock.now())
        )

    async def flush(self) -> None:
        await self._driver.run(lambda store: store.sync())

    async def aclose(self) -> None:
        return


def from_url(url: str, options: Mapping[str, str]) -> SqliteDriver:
    """Open ``sqlite:///relative/path.db`` or ``sqlite:////absolute/path.db``.

    Options: ``lease`` and ``retention``, seconds.
    """
    parts = urlsplit(url)
    if parts.netloc or len(parts.path) < 2:
        raise ValueError(
            "write sqlite:///relative.db (three slashes) or sqlite:////absolute.db (four slashes)"
        )
    seconds = take_seconds(options, {"lease": 10.0, "retention": 7 * 86_400.0})
    return SqliteDriver(Path(unquote(parts.path[1:])), seconds["lease"], seconds["retention"])
