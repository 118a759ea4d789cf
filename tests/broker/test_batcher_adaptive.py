"""What the batcher learns and makes of it: nearly the best throughput, and deadlines that are met."""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_batcher import NOW, delivery

from broker import Batching, Delivery, Message
from broker.processing.batcher import Batcher
from broker.processing.estimator import Estimator

COSTS = [(0.001, 0.0), (0.001, 0.002), (0.0002, 0.02), (0.0, 0.01), (0.01, 0.005), (0.00005, 0.001)]


def learned(a: float, b: float, sizes: Sequence[int], noise: float = 0.0, seed: int = 0) -> Estimator:
    """Return an estimator that saw batches of these sizes."""
    estimator, rng = Estimator(), random.Random(seed)
    for size in sizes:
        estimator.record(size, (a * size + b) * (1 + noise * rng.random()))
    return estimator


@given(
    a=st.floats(1e-6, 1.0),
    b=st.floats(0.0, 1.0),
    sizes=st.lists(st.integers(1, 4096), min_size=8, max_size=60),
)
def test_a_line_is_found_exactly(a: float, b: float, sizes: list[int]) -> None:
    """From batches without noise ``a`` and ``b`` are learned, once sizes differ."""
    if len({size.bit_length() for size in sizes}) < 2:
        sizes = [*sizes, *[max(1, sizes[0] // 4), sizes[0] * 4] * 8]
    estimator = learned(a, b, sizes * 8)
    for size in (min(sizes), max(sizes)):
        assert estimator.seconds(size) / 1.25 == pytest.approx(a * size + b, rel=0.02)


@pytest.mark.parametrize(("a", "b"), COSTS)
def test_slow_batches_now_and_then_change_little(a: float, b: float) -> None:
    """One batch in five that takes a hundred times as long moves no prediction by more than a fifth."""
    estimator, rng = Estimator(), random.Random(7)
    for _ in range(300):
        size = rng.choice([1, 5, 20, 64, 128])
        slow = 100 if rng.random() < 0.2 else 1
        estimator.record(size, (a * size + b) * slow * rng.uniform(0.95, 1.05))
    for size in (1, 20, 128):
        assert estimator.seconds(size) / 1.25 == pytest.approx(a * size + b, rel=0.2, abs=1e-4)


def test_what_changed_is_learned_anew() -> None:
    """When every batch takes three times as long, the last batches of each size count."""
    estimator = learned(0.001, 0.01, [1, 8, 64] * 30)
    for size in [1, 8, 64] * 30:
        estimator.record(size, 3 * (0.001 * size + 0.01))
    assert estimator.seconds(64) / 1.25 == pytest.approx(3 * 0.074, rel=0.02)


def test_nothing_is_promised_before_anything_is_known() -> None:
    """Without a batch there is no prediction; with batches of one size only, none of what a batch costs."""
    estimator = Estimator()
    assert (estimator.line, estimator.sure, estimator.seconds(10)) == (None, False, 0.0)
    assert estimator.worthwhile(64, 0.95) == 64
    estimator.record(10, 0.1)
    assert estimator.line == (pytest.approx(0.01), 0.0)
    assert not estimator.sure
    assert estimator.worthwhile(64, 0.95) == 64


@pytest.mark.parametrize(("a", "b"), COSTS)
@pytest.mark.parametrize("efficiency", [0.5, 0.95])
def test_a_worthwhile_batch_loses_no_more_than_allowed(a: float, b: float, efficiency: float) -> None:
    """It is the smallest with this share of the throughput of an endless batch, or the largest there is."""
    size = learned(a, b, [1, 8, 64] * 8).worthwhile(64, efficiency)

    def share(count: int) -> float:
        return count * a / (a * count + b) if a else 0.0

    assert size == 64 or share(size) >= efficiency * 0.99
    assert size == 1 or share(size - 1) <= efficiency * 1.01


@dataclass
class Line:
    """One server that takes ``a * n + b`` for a batch, and the batcher before it.

    Attributes:
        done: what became of each message: (arrived, deadline, ended, expired before it began).
        sizes: of the batches.
        most_waiting: how many waited in the batcher at the worst.
    """

    a: float
    b: float
    batching: Batching
    noise: float = 0.1
    done: list[tuple[float, float, float, bool]] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    most_waiting: int = 0

    def run(self, arrivals: list[tuple[float, float]], seed: int = 0) -> float:
        """Work off messages, (when they come, their deadline); return when the last one ended."""
        rng, estimator = random.Random(seed), Estimator()
        batcher = Batcher(self.batching, estimator)
        known = {str(n): each for n, each in enumerate(arrivals)}
        source = iter([(at, Delivery(Message(data=b"", id=n), "t", 1, NOW)) for n, (at, _) in known.items()])
        following = next(source, None)
        now, ends = 0.0, []
        while following or len(batcher) or ends:
            while following and following[0] <= now and batcher.room:
                batcher.add(now, [following[1]], now)
                following = next(source, None)
            self.most_waiting = max(self.most_waiting, len(batcher))
            while batch := batcher.take(now, len(ends)):
                late = [known[each.message.id][1] < now for each in batch]
                # The handler of what is late answers without computing, and one machine does it all.
                due = late.count(False)
                work = (self.a * due + self.b * (due > 0)) * rng.uniform(1 - self.noise, 1 + self.noise)
                end = max([now, *(end for end, *_ in ends)]) + work
                heapq.heappush(ends, (end, now, len(batch)))
                self.sizes.append(len(batch))
                self.done += [
                    (*known[each.message.id], end, is_late) for each, is_late in zip(batch, late, strict=True)
                ]
            wakes = [ends[0][0]] if ends else []
            if following and batcher.room:
                wakes.append(following[0])
            if (wake := batcher.wake_at(len(ends))) is not None:
                wakes.append(wake)
            now = max(now, min(wakes)) if wakes else now
            while ends and ends[0][0] <= now:
                end, began, count = heapq.heappop(ends)
                estimator.record(count, end - began)
        return now


@pytest.mark.parametrize(("a", "b"), COSTS)
@pytest.mark.parametrize("concurrency", [1, 2])
def test_with_a_backlog_the_throughput_is_nearly_the_best(a: float, b: float, concurrency: int) -> None:
    """Work that is all there is done in at most 1/0.9 of the time of the best fixed size."""
    count = 3000
    best = min(math.ceil(count / n) * (a * n + b) for n in (1, 2, 4, 8, 16, 32, 64))
    line = Line(a, b, Batching(max_messages=64, concurrency=concurrency), noise=0.0)
    ended = line.run([(0.0, math.inf)] * count)
    assert best / ended >= 0.9
    assert line.most_waiting <= 64
    assert len(line.done) == count


@pytest.mark.parametrize(("a", "b"), [(0.001, 0.002), (0.0002, 0.02), (0.01, 0.005)])
def test_deadlines_are_met_where_they_can_be(a: float, b: float) -> None:
    """At six tenths of what is possible nearly every deadline is met, also beside much that has none."""
    deadlines: dict[str, float] = {}
    batching = Batching(
        max_messages=64, max_wait=0.02, concurrency=2, deadline=lambda each: deadlines[each.message.id]
    )
    rng, at = random.Random(3), 0.0
    slack = 3 * (a * 16 + b) + 0.05
    arrivals = []
    for number in range(4000):
        at += rng.expovariate(0.6 * 64 / (a * 64 + b))
        urgent = rng.random() < 0.2
        arrivals.append((at, at + slack * rng.uniform(1, 2) if urgent else math.inf))
        deadlines[str(number)] = arrivals[-1][1]
    line = Line(a, b, batching)
    line.run(arrivals)
    urgent_ones = [each for each in line.done if each[1] < math.inf]
    met = sum(end <= due for _, due, end, _ in urgent_ones)
    assert met >= 0.97 * len(urgent_ones)
    # What has no deadline is passed by others, not forgotten.
    assert max(end - arrived for arrived, _, end, _ in line.done) < 1.0 + 10 * (a * 64 + b)


def test_deadlines_that_cannot_all_be_met_do_not_ruin_the_throughput() -> None:
    """With twice as much work as there is time for, batches stay large, and what is late drains away."""
    a, b = 0.001, 0.05
    deadlines: dict[str, float] = {}
    batching = Batching(max_messages=64, deadline=lambda each: deadlines[each.message.id])
    step = (a * 64 + b) / 64 / 2
    arrivals = [(n * step, n * step + 0.3) for n in range(6000)]
    deadlines.update({str(n): due for n, (_, due) in enumerate(arrivals)})
    line = Line(a, b, batching)
    ended = line.run(arrivals)
    assert sum(line.sizes) / len(line.sizes) >= 48
    assert ended <= 1.2 * arrivals[-1][0]


def test_what_is_late_is_handed_over_at_once() -> None:
    """A message past its deadline goes first and waits for no company, although another batch runs."""
    deadlines = {b"1": 90.0, b"2": None, b"3": 400.0}
    batching = Batching(
        max_messages=8, max_wait=60.0, concurrency=2, deadline=lambda each: deadlines[each.message.data]
    )
    batcher = Batcher(batching)
    two, three, one = delivery(2), delivery(3), delivery(1)
    batcher.add(0.0, [two, three], unix=100.0)
    assert batcher.take(0.0, running=1) == []
    assert batcher.wake_at(1) == 60.0
    batcher.add(1.0, [one], unix=101.0)
    assert batcher.wake_at(1) == -10.0
    assert batcher.take(1.0, running=1) == [one, two, three]


def test_a_batch_starts_early_enough_to_meet_a_deadline() -> None:
    """With something running it waits for company only as long as the most urgent one can wait."""
    batching = Batching(max_messages=64, max_wait=60.0, concurrency=2, deadline=lambda _: 110.0)
    batcher = Batcher(batching, learned(0.1, 1.0, [1, 4, 16, 64] * 8))
    batcher.add(0.0, [delivery()], unix=100.0)
    at = batcher.wake_at(1)
    assert at == pytest.approx(10.0 - 1.1 * 1.25)
    assert batcher.take(at - 0.01, running=1) == []
    assert len(batcher.take(at, running=1)) == 1


def test_a_batch_stays_small_enough_to_meet_a_deadline() -> None:
    """The most urgent goes first, with as many others as can be done by then."""
    due = {b"1": None, b"2": 104.0}
    batching = Batching(max_messages=64, deadline=lambda each: due[each.message.data])
    batcher = Batcher(batching, learned(0.1, 1.0, [1, 4, 16, 64] * 8))
    urgent = delivery(2)
    batcher.add(0.0, [*(delivery(1) for _ in range(40)), urgent], unix=100.0)
    batch = batcher.take(0.0, running=0)
    assert batch[0] is urgent
    assert (0.1 * len(batch) + 1.0) * 1.25 <= 4.0 < (0.1 * (len(batch) + 1) + 1.0) * 1.25
    assert len(batcher.take(4.0, running=0)) == 41 - len(batch)


@pytest.mark.parametrize("deadline", [None, math.nan, "broken"], ids=str)
def test_no_deadline_and_one_that_cannot_be_read_are_the_same(deadline: float | str | None) -> None:
    """Garbage in a deadline hurries nobody and stops nothing."""

    def read(each: Delivery) -> float | None:
        if isinstance(deadline, str):
            raise ValueError(deadline)
        return deadline

    batcher = Batcher(Batching(max_messages=2, max_wait=5.0, concurrency=2, deadline=read))
    batcher.add(0.0, [delivery()], unix=100.0)
    assert batcher.wake_at(1) == 5.0
    assert batcher.take(4.9, running=1) == []
    assert len(batcher.take(5.0, running=1)) == 1
