"""Memory that behaves like a partitioned log: for tests that the conformance suite itself is fit for one.

A partition belongs to one member of a group at a time; members join and leave after a moment, which moves
partitions and takes from their former owners what they held; a silent member keeps its partitions, and keeps
others from joining, until its session ends. Leases do not run out by themselves, and nobody knows what the
members of another client hold.
"""

from __future__ import annotations

import asyncio
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace

from test_memory import MemoryHarness

from broker import Broker, Delivery, GroupStats, ManualClock, Subscription
from broker.conformance import Harness, member_of
from broker.drivers.base import Order, Room, Start
from broker.drivers.memory import MemoryDriver, MemorySubscription
from broker.drivers.memory_store import Group, MemoryStore, Pending, Topic

JOIN_S = 0.03
SESSION_S = 30.0


class Coordinator:
    """Who owns which partition of one topic for one group.

    Attributes:
        members: those that take part.
        moving: how many joins and departures are under way.
    """

    def __init__(self, store: MemoryStore, topic: str, group: str, partitions: int) -> None:
        self._place = (store, topic, group)
        self.owners: dict[int, PartitionedSubscription | None] = dict.fromkeys(range(partitions))
        self.members: list[PartitionedSubscription] = []
        self._blocked: list[PartitionedSubscription] = []
        self.moving = 0

    def owner(self, seq: int) -> PartitionedSubscription | None:
        store, topic, _ = self._place
        key = store.topic(topic).log[seq].key
        number = seq if key is None else zlib.crc32(key.encode())
        return self.owners[number % len(self.owners)]

    def soon(self, member: PartitionedSubscription, *, joins: bool) -> None:
        self.moving += 1
        asyncio.get_running_loop().call_later(JOIN_S, self._move, member, joins)

    def _move(self, member: PartitionedSubscription, joins: bool) -> None:
        self.moving -= 1
        if joins and member.is_there:
            waits = any(each.silent_since is not None for each in self.members)
            (self._blocked if waits else self.members).append(member)
        elif not joins and member in self.members:
            self.members.remove(member)
        self._balance()

    def evict(self, member: PartitionedSubscription) -> None:
        self.members.remove(member)
        self.members += [each for each in self._blocked if each.is_there]
        self._blocked.clear()
        self._balance()

    def _balance(self) -> None:
        """Spread partitions evenly, moving as few as possible."""
        store, topic, group = self._place
        load = Counter({id(each): 0 for each in self.members})
        for number, owner in self.owners.items():
            if owner not in self.members:
                self.owners[number] = None
            else:
                load[id(owner)] += 1
        for number, owner in self.owners.items():
            if not self.members:
                break
            least = min(self.members, key=lambda each: load[id(each)])
            if owner is None or load[id(owner)] > load[id(least)] + 1:
                if owner is not None:
                    load[id(owner)] -= 1
                self.owners[number] = least
                load[id(least)] += 1
        for seq, entry in store.group(topic, group).pending.items():
            if entry.token is not None and store.holders[entry.token] is not self.owner(seq):
                entry.available_at, entry.token = 0.0, None
        store.changed()


class PartitionedStore(MemoryStore):
    """Remembers the partitions of topics, and who was given which lease."""

    def __init__(self) -> None:
        super().__init__()
        self.partitions: dict[str, int] = {}
        self.coordinators: dict[tuple[str, str], Coordinator] = {}
        self.holders: dict[int, PartitionedSubscription] = {}

    def coordinator(self, topic: str, group: str) -> Coordinator:
        place = (topic, group)
        if place not in self.coordinators:
            self.coordinators[place] = Coordinator(self, topic, group, self.partitions[topic])
        return self.coordinators[place]


class PartitionedSubscription(MemorySubscription):
    """A member that is handed only what lies in its own partitions."""

    def __init__(self, driver: PartitionedDriver, topic: str, group: str, order: Order) -> None:
        super().__init__(driver, topic, group, order)
        self.driver = driver
        self.is_there = True
        self.silent_since: float | None = None
        self.coordinator = driver.partitioned.coordinator(topic, group)
        self.coordinator.soon(self, joins=True)

    def _claim(self, limit: Room) -> list[Delivery]:
        taken = super()._claim(limit)
        for each in taken:
            self.driver.partitioned.holders[each.receipt.token] = self
            self._store.group(self._topic, self._group).pending[each.receipt.seq].available_at = float("inf")
        return taken

    def _candidates(self, topic: Topic, group: Group, now: float) -> Iterator[int]:
        group.pending |= {seq: Pending(now) for seq in range(group.cursor + 1, topic.last + 1)}
        group.cursor = topic.last
        if self.silent_since is None:
            mine = {seq: entry for seq, entry in group.pending.items() if self.coordinator.owner(seq) is self}
            yield from super()._candidates(topic, replace(group, pending=mine), now)

    async def extend(self, deliveries: Sequence[Delivery]) -> list[Delivery]:
        lost: list[Delivery] = []
        pending = self._store.group(self._topic, self._group).pending
        for each in deliveries:
            self._held(pending, each, lost)
        return [] if self.silent_since is not None else lost

    async def aclose(self) -> None:
        self.is_there = False
        self.coordinator.soon(self, joins=False)


class PartitionedDriver(MemoryDriver):
    """A client of a ``PartitionedStore``."""

    def __init__(self, store: PartitionedStore, clock: ManualClock) -> None:
        super().__init__(store, lease=SESSION_S, clock=clock)
        self.partitioned = store
        self.capabilities = replace(self.capabilities, backend="partitioned")

    async def ensure(
        self, topic: str, group: str | None, partitions: int, start: Start, retention: float | None
    ) -> float | None:
        self.partitioned.partitions.setdefault(topic, partitions)
        return await super().ensure(topic, group, partitions, start, retention)

    async def subscribe(self, topic: str, group: str, order: Order) -> PartitionedSubscription:
        self.store.group(topic, group)
        return PartitionedSubscription(self, topic, group, order)

    async def stats(self, topic: str, group: str) -> GroupStats:
        stats = await super().stats(topic, group)
        tokens = [each.token for each in self.store.group(topic, group).pending.values() if each.token]
        mine = sum(self.partitioned.holders[each].driver is self for each in tokens)
        return replace(stats, in_flight=mine, ready=stats.ready + stats.in_flight - mine)


class PartitionedHarness(Harness):
    """All clients of one harness share a store and a clock."""

    lease = SESSION_S
    quiet = 0.02
    rebalances = True
    impossible = MemoryHarness.impossible

    def __init__(self) -> None:
        self.store = PartitionedStore()
        self.clock = ManualClock()

    def connect(self) -> Broker:
        return Broker(PartitionedDriver(self.store, self.clock))

    async def advance(self, seconds: float) -> None:
        await self.clock.advance(seconds)
        for each in [*self.store.coordinators.values()]:
            for member in [*each.members]:
                if member.silent_since is not None and self.clock.now() - member.silent_since >= SESSION_S:
                    each.evict(member)
                    member.silent_since = None
                    if member.is_there:
                        each.soon(member, joins=True)

    async def restart(self) -> None:
        self.store = PartitionedStore()

    async def rebalanced(self) -> None:
        while any(each.moving for each in self.store.coordinators.values()):
            await asyncio.sleep(JOIN_S / 10)

    async def freeze(self, subscription: Subscription) -> None:
        self._member(subscription).silent_since = self.clock.now()

    async def crash(self, subscription: Subscription) -> None:
        member = self._member(subscription)
        member.silent_since, member.is_there = self.clock.now(), False
        await super().crash(subscription)

    @staticmethod
    def _member(subscription: Subscription) -> PartitionedSubscription:
        member = member_of(subscription)
        assert isinstance(member, PartitionedSubscription)
        return member
