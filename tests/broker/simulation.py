"""A simulated world for the processing loop: virtual time, a nasty broker, members that crash, one seed.

What runs is the shipped ``Processor`` with everything below it down to the driver; only the event loop's
clock, the driver and the handler's world are models. Everything random comes from the seed, so a seed that
fails fails again: ``simulate(seed)``.
"""

from __future__ import annotations

import asyncio
import random
import selectors
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

from broker import (
    Batching,
    BreakerPolicy,
    Broker,
    Closed,
    Delivery,
    Done,
    Message,
    Outcome,
    Processor,
    Reject,
    Retry,
    RetryPolicy,
    Unavailable,
    dead_letter_topic,
)
from broker.drivers.base import Order, Room
from broker.drivers.memory import MemoryDriver, MemoryStore, MemorySubscription
from broker.errors import DeadlineExceeded
from broker.logs import log

TOPIC, GROUP = "images", "workers"
LETTERS = dead_letter_topic(TOPIC, GROUP)
LEASE_S = 5.0
# Faults end then; all must be settled so much later.
FAULTS_S, PATIENCE_S = 8.0, 400.0
# So long after the last fault its consequences are over, for all that was not delayed.
CALM_S = 8.0
POLICY = BreakerPolicy(failures=4, base=0.5, cap=4.0, probe=3, patience=60.0)


class ViolationError(AssertionError):
    """An invariant does not hold."""


class Dead(Closed):
    """This member crashed: whatever it calls has no effect any more."""


class _NoSelector(selectors.SelectSelector):
    """Nothing ever comes from outside; waiting for it lets the virtual time pass."""

    passed = 0.0

    def select(self, timeout: float | None = None) -> list[Any]:
        if timeout is None:
            raise ViolationError("liveness: everything waits and nothing will ever happen")
        # Thinking takes a little time, too; without it, who waits for "the rest of a moment" waits for ever.
        self.passed += max(1e-6, timeout)
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose time is virtual: it passes only while nobody has anything to do."""

    def __init__(self) -> None:
        self._virtual = _NoSelector()
        super().__init__(self._virtual)

    def time(self) -> float:
        return self._virtual.passed


class VirtualClock:
    """The loop's time, as a driver's clock."""

    def now(self) -> float:
        return asyncio.get_running_loop().time()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class _InOrder(dict[Callable[[], object], None]):
    """A set that remembers the order, for waiters must be woken alike in every run."""

    def add(self, each: Callable[[], object]) -> None:
        self[each] = None

    def discard(self, each: Callable[[], object]) -> None:
        self.pop(each, None)


@dataclass
class World:
    """All there is beside the code under test, and what must hold.

    Attributes:
        rows: ids in the results table.
        blames: how often the handler failed for a message's own sake, by id.
        log: what happened, for comparing two runs.
    """

    seed: int
    rows: set[str] = field(default_factory=set)
    blames: Counter[str] = field(default_factory=Counter)
    log: list[tuple[object, ...]] = field(default_factory=list)
    faulty: bool = True
    uncertain: bool = False
    violation: ViolationError | None = None
    starts: int = 0

    def __post_init__(self) -> None:
        self.rng = rng = random.Random(self.seed)

        def often(most: float) -> float:
            return rng.choice([0.0, most * rng.random()])

        self.latency = rng.choice([0.0, 0.01, 0.3])
        self.fails_before, self.fails_after = often(0.3), often(0.1)
        self.crashes, self.stalls, self.stops = often(0.02), often(0.02), often(0.3)
        self.down = {what: self._windows() for what in ("sink", "letters", "model")}
        self.messages = rng.choice([20, 100, 200])
        self.members = rng.randint(1, 3)
        self.batching = Batching(rng.choice([1, 4, 16]), concurrency=rng.randint(1, 3))
        self.store = MemoryStore()
        self.store._waiting = _InOrder()  # type: ignore[assignment]
        kinds = rng.choices(
            ["good", "flaky", "poison", "bad"], rng.choice([(1, 0, 0, 0), (8, 1, 1, 1)]), k=500
        )
        self.kinds = {f"m{n}": kinds[n] for n in range(self.messages)}

    def _windows(self) -> list[tuple[float, float]]:
        """When something is away: never, or for one part of the faulty time."""
        if self.rng.random() < 0.5:
            return []
        start = self.rng.uniform(0.0, FAULTS_S / 2)
        return [(start, start + self.rng.uniform(0.5, FAULTS_S / 2))]

    def is_down(self, what: str, now: float) -> bool:
        return self.faulty and any(start <= now < end for start, end in self.down[what])

    def chance(self, share: float) -> bool:
        return self.faulty and self.rng.random() < share

    def violate(self, text: str) -> NoReturn:
        """Fail this run, whoever catches the error on its way."""
        self.violation = self.violation or ViolationError(f"seed {self.seed}: {text}")
        raise self.violation

    def accepted_ack(self, message: Message, holds: bool) -> None:
        """Check I2 and I3 at the moment at which the broker forgets a message."""
        kind = self.kinds[message.id]
        letters = [each for each in self.store.topic(LETTERS).log.values() if each.id == message.id]
        self.log.append(("ack", message.id))
        if not holds:
            self.violate(f"I3: {message.id} was settled by a member that no longer held it")
        if message.id not in self.rows and not letters:
            self.violate(f"I2: {message.id} ({kind}) was acked without a row or a dead letter")

    def check_delivery(self, delivery: Delivery) -> None:
        """Check I9: nobody is blamed for what was not his fault."""
        failures = self.blames[delivery.message.id]
        if delivery.attempt > failures + 1:
            self.violate(
                f"I9: attempt {delivery.attempt} of {delivery.message.id}, which failed {failures} times"
            )

    def check_end(self) -> None:
        """Check I1, I5 and I8 when all is settled."""
        letters = list(self.store.topic(LETTERS).log.values())
        dead = {each.id for each in letters}
        for each in letters:
            original = message_of(each.id)
            if (each.data, each.key, each.attributes.get("own")) != (original.data, original.key, "ä"):
                self.violate(f"I5: the letter of {each.id} is not what was sent")
            if "couturier-reason" not in each.attributes:
                self.violate(f"I5: the letter of {each.id} does not say why")
        unlucky = 0
        for name, kind in self.kinds.items():
            row, letter = name in self.rows, name in dead
            if (row, letter) == (kind in ("good", "flaky"), kind in ("poison", "bad")):
                continue
            if not letter or kind == "bad":
                self.violate(f"I1, I8: {name} ({kind}): row {row}, letter {letter}")
            unlucky += 1
        # An outage that comes as failures is known by the first few of them, once for each start of a member.
        if unlucky > (POLICY.failures - 1) * self.starts * bool(self.down["model"]):
            self.violate(f"I9: {unlucky} messages died of an outage")


def message_of(name: str) -> Message:
    return Message(data=b"body of " + name.encode(), key=name[-1], attributes={"own": "ä"}, id=name)


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
            raise Dead("this member crashed")


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
    retry = RetryPolicy(attempts=6, base=0.05, cap=1.0, breaker=POLICY)
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
            except (Dead, DeadlineExceeded):
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
            while not members[-1].done() or (await broker.stats(TOPIC, GROUP)).unsettled:
                world.faulty = clock.now() < FAULTS_S
                if clock.now() > FAULTS_S + PATIENCE_S:
                    world.violate(f"liveness: {await broker.stats(TOPIC, GROUP)} long after the last fault")
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
        Violation: an invariant does not hold.
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
