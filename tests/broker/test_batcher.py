"""The batcher against a model: whatever arrives and whenever, every promise of its docstring holds."""

from __future__ import annotations

import math
from datetime import UTC, datetime

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from broker import Batching, Delivery, Message
from broker.processing.batcher import Batcher

NOW = datetime(2024, 1, 1, tzinfo=UTC)
UNMEASURABLE = 999


def delivery(cost: int = 1) -> Delivery:
    """Return a delivery whose body says what it costs."""
    return Delivery(Message(data=b"%d" % cost), "images", 1, NOW)


def cost_of(each: Delivery) -> float:
    """Return the cost that the body names; some cannot be measured."""
    cost = int(each.message.data)
    if cost == UNMEASURABLE:
        raise ValueError("not an image")
    return math.inf if cost == -1 else float(cost)


class BatcherMachine(RuleBasedStateMachine):
    """Arrivals, time, batches that start and end, in any order."""

    @initialize(
        max_messages=st.integers(1, 6),
        max_wait=st.sampled_from([0.0, 1.0, 3.0]),
        concurrency=st.integers(1, 3),
        max_cost=st.sampled_from([1.0, 10.0, 25.0]),
        max_bytes=st.sampled_from([1, 4, 7, 1000]),
    )
    def start(
        self, max_messages: int, max_wait: float, concurrency: int, max_cost: float, max_bytes: int
    ) -> None:
        self.batching = Batching(max_messages, max_wait, concurrency, cost_of, max_cost, max_bytes)
        self.batcher = Batcher(self.batching)
        self.now = 0.0
        self.running = 0
        self.waiting: list[tuple[float, float, Delivery]] = []

    def cost(self, each: Delivery) -> float:
        """Return what the model counts: what cannot be measured, or is dearer than a batch, fills one."""
        try:
            return min(cost_of(each), self.batching.max_cost)
        except ValueError:
            return self.batching.max_cost

    @rule(costs=st.lists(st.sampled_from([0, 1, 3, 9, 10, 30, -1, UNMEASURABLE]), max_size=8))
    def arrive(self, costs: list[int]) -> None:
        fresh = [delivery(cost) for cost in costs]
        self.batcher.add(self.now, fresh)
        self.waiting += [(self.now, self.cost(each), each) for each in fresh]

    @rule(seconds=st.sampled_from([0.5, 1.0, 5.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def a_batch_ends(self) -> None:
        self.running = max(0, self.running - 1)

    @rule()
    def give_up(self) -> None:
        assert self.batcher.clear() == [each for _, _, each in self.waiting]
        self.waiting = []

    @rule(at_most=st.one_of(st.none(), st.integers(1, 8)))
    def take(self, at_most: int | None) -> None:
        """Whatever is taken is the longest prefix that fits; nothing is taken only where that is right."""
        batch = self.batcher.take(self.now, self.running, at_most)
        limit = min(self.batching.max_messages, at_most or 100)
        taken, self.waiting = self.waiting[: len(batch)], self.waiting[len(batch) :]
        assert batch == [each for _, _, each in taken]
        assert len(batch) <= limit
        total = sum(cost for _, cost, _ in taken)
        size = sum(len(each.message.data) for each in batch)
        assert total <= self.batching.max_cost
        assert size <= self.batching.max_bytes or len(batch) == 1
        if not batch:
            assert not self.must_start()
            return
        assert self.running < self.batching.concurrency
        if self.waiting and len(batch) < limit:
            _, cost, following = self.waiting[0]
            too_dear = total + cost > self.batching.max_cost
            too_large = size + len(following.message.data) > self.batching.max_bytes
            assert too_dear or too_large, "there was room for one more"
        self.running += 1

    def must_start(self) -> bool:
        """Whether a batch has no reason left to wait."""
        if not self.waiting or self.running >= self.batching.concurrency:
            return False
        return self.running == 0 or self.full() or self.now >= self.waiting[0][0] + self.batching.max_wait

    def full(self) -> bool:
        """Whether company would not fit in any more."""
        return (
            len(self.waiting) >= self.batching.max_messages
            or sum(cost for _, cost, _ in self.waiting) >= self.batching.max_cost
            or sum(len(each.message.data) for _, _, each in self.waiting) >= self.batching.max_bytes
        )

    @invariant()
    def knows_when_to_wake(self) -> None:
        """``wake_at`` is when the batch is full or its oldest has waited enough, if it could then start."""
        if not self.waiting or self.running >= self.batching.concurrency:
            assert self.batcher.wake_at(self.running) is None
        else:
            wait = 0.0 if self.full() else self.batching.max_wait
            assert self.batcher.wake_at(self.running) == self.waiting[0][0] + wait
        assert len(self.batcher) == len(self.waiting)
        assert self.batcher.room == self.batching.max_messages - len(self.waiting)


TestBatcherMachine = BatcherMachine.TestCase
TestBatcherMachine.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)


def test_an_idle_processor_never_waits() -> None:
    """One delivery with nothing running goes at once, however long the wait may be."""
    batcher = Batcher(Batching(max_messages=64, max_wait=1000.0))
    one = delivery()
    batcher.add(0.0, [one])
    assert batcher.take(0.0, running=0) == [one]
    assert batcher.take(0.0, running=0) == []


def test_a_busy_processor_fills_up() -> None:
    """With something running a batch waits for company until it is full or its oldest has waited enough."""
    batcher = Batcher(Batching(max_messages=2, max_wait=1.0, concurrency=2))
    one, two = delivery(), delivery()
    batcher.add(0.0, [one])
    assert batcher.take(0.9, running=1) == []
    assert batcher.wake_at(1) == 1.0
    assert batcher.take(1.0, running=1) == [one]
    batcher.add(1.0, [one])
    batcher.add(1.1, [two])
    assert batcher.take(1.1, running=1) == [one, two]
    assert batcher.wake_at(1) is None


@pytest.mark.parametrize("cost", [UNMEASURABLE, -1, 11], ids=["unmeasurable", "infinite", "dear"])
def test_what_fills_a_batch_by_itself_runs_alone(cost: int) -> None:
    """A delivery whose cost cannot be found, or is over the limit, is not put among others."""
    batcher = Batcher(Batching(max_messages=10, cost=cost_of, max_cost=10.0))
    batcher.add(0.0, [delivery(1), delivery(cost), delivery(1), delivery(1)])
    sizes = [len(batcher.take(0.0, running=0)) for _ in range(3)]
    assert sizes == [1, 1, 2]


def test_a_body_over_the_byte_cap_runs_alone() -> None:
    """Bodies are put together up to ``max_bytes``; one that is larger by itself still goes, with no other."""
    batcher = Batcher(Batching(max_messages=10, max_bytes=100))
    sizes = [60, 40, 1, 101, 1, 1]
    batcher.add(0.0, [Delivery(Message(data=bytes(size)), "images", 1, NOW) for size in sizes])
    taken = []
    while batch := batcher.take(0.0, running=0):
        taken.append([len(each.message.data) for each in batch])
    assert taken == [[60, 40], [1], [101], [1, 1]]


@pytest.mark.parametrize(
    "fields",
    [
        {"max_messages": 0},
        {"concurrency": 0},
        {"max_bytes": 0},
        {"max_wait": -0.1},
        {"max_wait": math.nan},
        {"max_cost": 0},
        {"max_cost": -1.0},
        {"max_cost": math.nan},
    ],
)
def test_settings_out_of_range_are_refused(fields: dict[str, float]) -> None:
    """Each field has its range, and the error says which values it got."""
    with pytest.raises(ValueError, match="must be at least"):
        Batching(**fields)  # type: ignore[arg-type]
