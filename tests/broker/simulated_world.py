"""The world that the processing loop is simulated in: virtual time, what may go wrong, and what must hold.

What runs is the shipped ``Processor`` with everything below it down to the driver; only the event loop's
clock, the driver and the handler's world are models. Everything random comes from the seed, so a seed that
fails fails again: ``simulate(seed)``.
"""

from __future__ import annotations

import asyncio
import random
import selectors
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NoReturn

from broker import (
    Batching,
    BreakerPolicy,
    Closed,
    Delivery,
    Message,
    dead_letter_topic,
)
from broker.drivers.memory import MemoryStore

TOPIC, GROUP = "images", "workers"
LETTERS = dead_letter_topic(TOPIC, GROUP)
LEASE_S = 5.0
# Faults end then; after that so long a time without any progress is a standstill.
FAULTS_S, PATIENCE_S = 8.0, 120.0
# So long after the last fault its consequences are over, for all that was not delayed.
CALM_S = 8.0
POLICY = BreakerPolicy(failures=4, base=0.5, cap=2.0, probe=3, patience=30.0)


class ViolationError(AssertionError):
    """An invariant does not hold."""


class DeadError(Closed):
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
        self.crashes, self.stalls, self.stops = often(0.02), often(0.02), often(0.9)
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
        start = self.rng.choice([0.0, self.rng.uniform(0.0, FAULTS_S / 2)])
        return [(start, start + self.rng.uniform(1.0, FAULTS_S / 2))]

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
