"""Seeds of a hostile world for the processing loop: a nasty broker and members that crash; see `World`."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Coroutine, Mapping, Sequence
from typing import Any

from simulated_world import (
    CALM_S,
    FAULTS_S,
    GROUP,
    LEASE_S,
    LETTERS,
    PATIENCE_S,
    POLICY,
    TOPIC,
    DeadError,
    VirtualClock,
    VirtualLoop,
    World,
    message_of,
)

from broker import (
    Broker,
    Delivery,
    Done,
    Outcome,
    Processor,
    Reject,
    Retry,
    RetryPolicy,
    Unavailable,
)
from broker.drivers.base import Order, Room
from broker.drivers.memory import MemoryDriver, MemorySubscription
from broker.errors import DeadlineExceeded
from broker.logs import log


class SimMember(MemorySubscription):
    """A member of the model broker: slow, failing, forgetful of its answers, and mortal."""

    async def receive(self, limit: Room, timeout: float) -> list[Delivery]:
        found: list[Delivery] = await self._call(super().receive(limit, timeout))
        for each in found:
            self._driver.world.check_delivery(each)
        return found

    async def settle(
        self, acks: Sequence[Delivery], releases: Sequence[Delivery], retries: Sequence[Any]
    ) -> Any:
        return await self._call(self._settle(acks, releases, retries))

    async def _settle(
        self, acks: Sequence[Delivery], releases: Sequence[Delivery], retries: Sequence[Any]
    ) -> Any:
        pending = self._store.group(self._topic, self._group).pending
        entries = {each.receipt.seq: pending.get(each.receipt.seq) for each in acks}
        holders = {seq: entry.token for seq, entry in entries.items() if entry is not None}
        calm = self._driver.clock.now() > FAULTS_S + CALM_S
        if calm and any(each in self._driver.begun for each in releases):
            self._driver.world.violate("I10: what was begun was handed back, and nothing was wrong")
        lost = await super().settle(acks, releases, retries)
        for each in acks:
            seq = each.receipt.seq
            if each not in lost:
                self._driver.world.accepted_ack(each.message, holders.get(seq) == each.receipt.token)
                self._driver.acked += 1
        return lost

    async def extend(self, deliveries: Sequence[Delivery]) -> list[Delivery]:
        return await self._call(super().extend(deliveries))

    async def forward(self, delivery: Delivery, topic: str, extra: Mapping[str, str]) -> None:
        world = self._driver.world
        if world.is_down("letters", self._driver.clock.now()):
            raise Unavailable("the dead-letter topic is away")
        await self._call(super().forward(delivery, topic, extra))

    async def _call(self, work: Coroutine[Any, Any, Any]) -> Any:
        driver, world = self._driver, self._driver.world
        try:
            await driver.suffer()
            if world.chance(world.fails_before):
                raise Unavailable("not now")
            result = await work
        finally:
            work.close()
        driver.must_live()
        await driver.suffer()
        if world.chance(world.fails_after):
            world.uncertain = True
            raise Unavailable("done, but the answer was lost")
        return result

    _driver: SimDriver


class SimDriver(MemoryDriver):
    """One process's connection to the model broker."""

    def __init__(self, world: World) -> None:
        super().__init__(world.store, lease=LEASE_S, clock=VirtualClock())
        self.world = world
        self.dead = False
        self.acked = 0
        self.begun: dict[Delivery, None] = {}

    async def subscribe(self, topic: str, group: str, order: Order) -> SimMember:
        return SimMember(self, topic, group, order)

    async def suffer(self) -> None:
        """Take a while; stall for longer than a lease, or crash, now and then."""
        world = self.world
        self.must_live()
        if world.chance(world.crashes):
            self.dead = world.uncertain = True
        if world.chance(world.stalls):
            await asyncio.sleep(LEASE_S * world.rng.uniform(0.5, 2.0))
        elif world.latency:
            await asyncio.sleep(world.rng.random() * world.latency)
        self.must_live()

    def must_live(self) -> None:
        if self.dead:
            raise DeadError("this member crashed")


class SimHandler:
    """Writes a row for each message, as its kind says, unless its world is away."""

    def __init__(self, driver: SimDriver, world: World) -> None:
        self._driver = driver
        self._world = world
        self.processor: Processor

    async def __call__(self, deliveries: Sequence[Delivery]) -> list[Outcome]:
        world, held = self._world, self.processor.watch.held
        if len(held) > world.batching.max_messages * (world.batching.concurrency + 1):
            world.violate(f"I6: {Counter(each.stage for each in held.values())} are held")
        begun = dict.fromkeys(each for each in deliveries if world.kinds[each.message.id] == "good")
        self._driver.begun.update(begun)
        try:
            return await self._answer(deliveries, world)
        except Exception:
            for each in begun:
                self._driver.begun.pop(each, None)
            raise

    async def _answer(self, deliveries: Sequence[Delivery], world: World) -> list[Outcome]:
        await self._driver.suffer()
        now = self._driver.clock.now()
        if world.is_down("model", now):
            return [self._fail(each, "the model is away") for each in deliveries]
        if world.is_down("sink", now) or world.chance(world.fails_before):
            raise Unavailable("the sink is away")
        for each in deliveries:
            if world.kinds[each.message.id] == "poison":
                if len(deliveries) == 1:
                    world.blames[each.message.id] += 1
                raise ZeroDivisionError("poison")
        outcomes = [self._judge(each) for each in deliveries]
        done = [each for each, outcome in zip(deliveries, outcomes, strict=True) if isinstance(outcome, Done)]
        world.rows.update(each.message.id for each in done)
        await self._driver.suffer()
        return outcomes

    def _judge(self, delivery: Delivery) -> Outcome:
        kind = self._world.kinds[delivery.message.id]
        if kind == "bad":
            return Reject("invalid-image")
        return self._fail(delivery, "flaky") if kind == "flaky" and delivery.attempt < 3 else Done()

    def _fail(self, delivery: Delivery, why: str) -> Outcome:
        self._world.blames[delivery.message.id] += 1
        return Retry(why)


async def member(world: World, over: asyncio.Event) -> None:
    """Run one member after another in the same place, until it is all over."""
    retry = RetryPolicy(attempts=6, base=0.05, cap=0.3, breaker=POLICY)
    while not over.is_set():
        driver, stop = SimDriver(world), asyncio.Event()
        handler = SimHandler(driver, world)
        async with Broker(driver) as broker:
            world.starts += 1
            handler.processor = processor = Processor(broker, TOPIC, GROUP, handler, world.batching, retry)
            run = asyncio.create_task(processor.run(stop=stop, drain_timeout=20.0))
            ends = asyncio.create_task(over.wait())
            told = world.rng.uniform(0.1, 10.0) if world.rng.random() < world.stops else None
            try:
                await asyncio.wait({run, ends}, timeout=told, return_when=asyncio.FIRST_COMPLETED)
                stop.set()
                totals = await run
            except (DeadError, DeadlineExceeded):
                await asyncio.sleep(world.rng.random())
                continue
            finally:
                for task in (run, ends):
                    task.cancel()
                await asyncio.gather(run, ends, return_exceptions=True)
        if not world.uncertain and totals.done + totals.dead_lettered != driver.acked:
            world.violate(f"I12: {totals} for {driver.acked} acks")


async def _publish(world: World, broker: Broker) -> None:
    """Publish everything, all at once or little by little, some of it after the last fault."""
    names = list(world.kinds)
    step = world.rng.choice([0.0, (FAULTS_S + 1.5 * CALM_S) / len(names)])
    for name in names:
        await broker.publish(TOPIC, [message_of(name)])
        if step:
            await asyncio.sleep(world.rng.uniform(0.0, 2 * step))


async def _play(world: World) -> None:
    over, clock = asyncio.Event(), VirtualClock()
    async with Broker(MemoryDriver(world.store, lease=LEASE_S, clock=clock)) as broker:
        await broker.ensure(TOPIC, group=GROUP)
        await broker.ensure(LETTERS, group="operators")
        members = [asyncio.create_task(member(world, over)) for _ in range(world.members)]
        members.append(asyncio.create_task(_publish(world, broker)))
        try:
            settled, since = -1, 0.0
            while (stats := await broker.stats(TOPIC, GROUP)).unsettled or not members[-1].done():
                world.faulty = clock.now() < FAULTS_S
                if stats.settled != settled or world.faulty:
                    settled, since = stats.settled or 0, clock.now()
                if clock.now() > since + PATIENCE_S:
                    world.violate(f"liveness: {stats} for {PATIENCE_S:g} s, long after the last fault")
                await asyncio.wait([each for each in members if not each.done()], timeout=0.5)
                if world.violation is not None:
                    raise world.violation
                for task in members:
                    if task.done():
                        task.result()
            world.faulty = False
            over.set()
            await asyncio.gather(*members)
        finally:
            for task in members:
                task.cancel()
            await asyncio.gather(*members, return_exceptions=True)
    world.check_end()


def simulate(seed: int) -> World:
    """Run one seed: a time of faults, then a time without, at whose end everything must be settled.

    Raises:
        ViolationError: an invariant does not hold.
    """
    world = World(seed)
    random.seed(seed)
    loop = VirtualLoop()
    asyncio.set_event_loop(loop)
    was_disabled, log.disabled = log.disabled, True
    try:
        loop.run_until_complete(_play(world))
    finally:
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(asyncio.sleep(60.0))
        log.disabled = was_disabled
        asyncio.set_event_loop(None)
        loop.close()
    return world
