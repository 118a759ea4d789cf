"""A queue inside this process: for tests, and for services that want the contract without a broker.

Everything is lost with the process. Leases, redelivery and delays are those of the other backends.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from urllib.parse import urlsplit

from ..clock import Clock, SystemClock
from ..errors import BrokerError, LeaseLost
from ..message import (
    Capabilities,
    Delivery,
    GroupStats,
    Lag,
    Message,
    Receipt,
    Redelivery,
    TopicInfo,
    utc_now,
)
from .base import Order, Room, Start
from .memory_store import Group, Lease, MemoryStore, Pending, Topic
from .options import LEAST_RETENTION_S, take_seconds


class MemorySubscription:
    """One member of one group."""

    def __init__(self, driver: MemoryDriver, topic: str, group: str, order: Order) -> None:
        self._driver = driver
        self._store = driver.store
        self._topic = topic
        self._group = group
        self._order = order

    async def receive(self, limit: Room, timeout: float) -> list[Delivery]:
        changed = asyncio.Event()
        loop = asyncio.get_running_loop()
        with self._store.calling(lambda: loop.call_soon_threadsafe(changed.set)):
            deadline = loop.time() + timeout
            while True:
                changed.clear()
                deliveries = self._claim(limit)
                remaining = deadline - loop.time()
                if deliveries or remaining <= 0:
                    return deliveries
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(changed.wait(), min(remaining, self._until_due()))

    async def settle(
        self, acks: Sequence[Delivery], releases: Sequence[Delivery], retries: Sequence[Redelivery]
    ) -> list[Delivery]:
        now = self._driver.clock.now()
        lost: list[Delivery] = []
        with self._store.lock:
            pending = self._store.group(self._topic, self._group).pending
            for each in acks:
                if self._held(pending, each, lost):
                    del pending[each.receipt.seq]
            for each in releases:
                if held := self._held(pending, each, lost):
                    held.available_at, held.token = now, None
            for retry in retries:
                if held := self._held(pending, retry.delivery, lost):
                    held.available_at, held.token = now + retry.delay, None
                    held.failures = retry.attempt - 1
            self._store.topic(self._topic).trim()
        self._store.changed()
        return lost

    async def extend(self, deliveries: Sequence[Delivery]) -> list[Delivery]:
        until = self._driver.clock.now() + self._driver.capabilities.lease
        lost: list[Delivery] = []
        with self._store.lock:
            pending = self._store.group(self._topic, self._group).pending
            for each in deliveries:
                if held := self._held(pending, each, lost):
                    held.available_at = until
        return lost

    async def forward(self, delivery: Delivery, topic: str, extra: Mapping[str, str]) -> None:
        with self._store.lock:
            lost: list[Delivery] = []
            if not self._held(self._store.group(self._topic, self._group).pending, delivery, lost):
                raise LeaseLost([delivery.message.id])
            message = self._store.topic(self._topic).log[delivery.receipt.seq]
            copy = replace(message, attributes={**message.attributes, **extra})
            self._store.topic(topic).append(copy, self._driver.clock.now())
        self._store.changed()

    async def flush(self) -> None:
        return

    async def aclose(self) -> None:
        return

    def _claim(self, limit: Room) -> list[Delivery]:
        now = self._driver.clock.now()
        token = next(self._store.tokens)
        received_at = utc_now()
        taken: list[Delivery] = []
        with self._store.lock:
            self._store.expire(now)
            topic = self._store.topic(self._topic)
            group = self._store.group(self._topic, self._group)
            found = list(islice(self._candidates(topic, group, now), limit.messages))
            for seq in found[: limit.fitting(len(topic.log[seq].data) for seq in found)]:
                held = group.pending.setdefault(seq, Pending(now))
                group.cursor = max(group.cursor, seq)
                held.available_at, held.token = now + self._driver.capabilities.lease, token
                lease = Lease(seq, token)
                taken.append(Delivery(topic.log[seq], self._topic, held.failures + 1, received_at, lease))
        return taken

    def _candidates(self, topic: Topic, group: Group, now: float) -> Iterator[int]:
        """Yield what may be handed over now: what came back first, then the log from the cursor on."""
        blocked: set[str] = set()
        for seq in sorted(group.pending):
            key = topic.log[seq].key if self._order == "key" else None
            if group.pending[seq].available_at <= now and key not in blocked:
                yield seq
            if key is not None:
                blocked.add(key)
        for seq in range(group.cursor + 1, topic.last + 1):
            if self._order == "key":
                # All enter `pending`, so that the cursor can pass those that must wait their turn.
                group.pending[seq] = Pending(now)
                group.cursor = seq
                key = topic.log[seq].key
                if key is not None and key in blocked:
                    continue
                if key is not None:
                    blocked.add(key)
            yield seq

    def _until_due(self) -> float:
        """Return the seconds until a lease or a delay ends."""
        now = self._driver.clock.now()
        with self._store.lock:
            pending = self._store.group(self._topic, self._group).pending
            later = (each.available_at for each in pending.values() if each.available_at > now)
            return max(0.001, min(later, default=now + 60.0) - now)

    @staticmethod
    def _held(pending: dict[int, Pending], delivery: Delivery, lost: list[Delivery]) -> Pending | None:
        """Return the entry if this delivery's lease is the current one, else note it as lost."""
        entry = pending.get(delivery.receipt.seq)
        if entry is None or entry.token != delivery.receipt.token:
            lost.append(delivery)
            return None
        return entry


class MemoryDriver:
    """Connection to a ``MemoryStore``.

    Args:
        store: shared by everyone who is to see the same messages.
        lease: seconds after which an unsettled delivery of a dead member comes again.
        clock: what leases and delays are measured by.
    """

    def __init__(self, store: MemoryStore, lease: float = 30.0, clock: Clock | None = None) -> None:
        self.store = store
        self.clock: Clock = clock or SystemClock()
        self.address = f"memory:{id(store):x}"
        self.admin = self
        self.capabilities = Capabilities(
            backend="memory",
            shared=False,
            durable=False,
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

    async def open(self) -> None:
        return

    async def aclose(self) -> None:
        return

    async def send(self, topic: str, messages: Sequence[Message]) -> list[Receipt | BrokerError]:
        with self.store.lock:
            log = self.store.topic(topic)
            now = self.clock.now()
            self.store.expire(now)
            receipts: list[Receipt | BrokerError] = [
                Receipt(message.id, topic, str(log.append(message, now))) for message in messages
            ]
        self.store.changed()
        return receipts

    async def subscribe(self, topic: str, group: str, order: Order) -> MemorySubscription:
        self.store.group(topic, group)
        return MemorySubscription(self, topic, group, order)

    async def ensure(
        self, topic: str, group: str | None, partitions: int, start: Start, retention: float | None
    ) -> float | None:
        with self.store.lock:
            log = self.store.topics.setdefault(topic, Topic(retention))
            if group is not None and group not in log.groups:
                position = log.last if start == "latest" else next(iter(log.log), log.last + 1) - 1
                log.groups[group] = Group(position, position)
        return None if log.retention == retention else log.retention or math.inf

    async def remove_group(self, topic: str, group: str) -> None:
        with self.store.lock:
            if topic in self.store.topics:
                self.store.topics[topic].groups.pop(group, None)
        self.store.changed()

    async def stats(self, topic: str, group: str) -> GroupStats:
        now = self.clock.now()
        with self.store.lock:
            log, state = self.store.topic(topic), self.store.group(topic, group)
            waiting = [each for each in state.pending.values() if each.available_at > now]
            in_flight = sum(each.token is not None for each in waiting)
            return GroupStats(
                published=log.last - state.start,
                settled=state.cursor - state.start - len(state.pending),
                in_flight=in_flight,
                delayed=len(waiting) - in_flight,
                ready=len(state.pending) - len(waiting) + log.last - state.cursor,
            )

    async def topics(self) -> list[TopicInfo]:
        with self.store.lock:
            found = {name: tuple(sorted(topic.groups)) for name, topic in self.store.topics.items()}
        return [TopicInfo(name, None, found[name]) for name in sorted(found)]

    async def lag(self, topic: str, group: str) -> list[Lag]:
        unsettled = (await self.stats(topic, group)).unsettled
        with self.store.lock:
            position, end = self.store.group(topic, group).cursor, self.store.topic(topic).last
        return [Lag(None, unsettled, str(position), str(end))]

    async def describe(self) -> dict[str, str]:
        return {"store": "memory of this process", "topics": str(len(self.store.topics))}

    async def browse(self, topic: str, group: str) -> AsyncIterator[Delivery]:
        with self.store.lock:
            log, state = self.store.topic(topic), self.store.group(topic, group)
            failures = {seq: each.failures for seq, each in state.pending.items()}
            failures.update(dict.fromkeys(range(state.cursor + 1, log.last + 1), 0))
            seen = [(log.log[seq], failures[seq]) for seq in sorted(failures)]
        for message, failed in seen:
            yield Delivery(message, topic, failed + 1, utc_now())


_stores: dict[str, MemoryStore] = {}


def from_url(url: str, options: Mapping[str, str]) -> MemoryDriver:
    """Open ``memory://name``; everyone in this process who names it shares it, for as long as it runs."""
    seconds = take_seconds(options, {"lease": 30.0})
    parts = urlsplit(url)
    return MemoryDriver(_stores.setdefault(parts.netloc + parts.path, MemoryStore()), seconds["lease"])
