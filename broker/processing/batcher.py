"""When to start a batch, and with what: a pure state machine without clock, task or I/O."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice, repeat
from operator import attrgetter

from ..message import Delivery
from .estimator import Estimator

_BODY = attrgetter("message.data")
# What has no deadline, or none that can be met, is passed by others for no longer than this, seconds.
_PATIENCE_S = 1.0
# A batch that is not full waits for company only as long as that pays: with so much of the throughput of an
# endless batch there is little to win.
_ENOUGH = 0.95
# With a full batch waiting, a deadline that only a smaller batch than this could meet is let go: whoever
# hurries for one message there makes all behind it late.
_BARELY = 0.5


@dataclass(frozen=True, slots=True)
class Batching:
    """How deliveries become batches.

    Attributes:
        max_messages: most deliveries of one batch.
        max_wait: seconds that a delivery waits for company while another batch runs; an idle
            processor never waits.
        concurrency: batches that may run at once.
        cost: opaque cost of one delivery, such as decoded pixels; None counts nothing.
        max_cost: most cost of one batch; a dearer delivery counts as this much, so it runs with none but
            free ones.
        max_bytes: most bytes of the bodies of one batch; a larger body runs alone. What is held in all is
            bounded by as much again for each batch that may run, and one more.
        deadline: until when a delivery is wanted, seconds since 1970, or None. What is urgent goes first, in
            batches small enough to end in time where they can. What is late already is handed over at once.

    Raises:
        ValueError: a field is out of its range.
    """

    max_messages: int = 64
    max_wait: float = 0.02
    concurrency: int = 1
    cost: Callable[[Delivery], float] | None = None
    max_cost: float = math.inf
    max_bytes: int = 32 * 1024 * 1024
    deadline: Callable[[Delivery], float | None] | None = None

    def __post_init__(self) -> None:
        at_least_1 = (self.max_messages, self.concurrency, self.max_bytes)
        if min(at_least_1) < 1 or not self.max_wait >= 0 or not self.max_cost > 0:
            raise ValueError(
                "max_messages, concurrency and max_bytes must be at least 1, max_wait at least 0, max_cost"
                f" above 0; not {self.max_messages}, {self.concurrency}, {self.max_bytes}, {self.max_wait},"
                f" {self.max_cost}"
            )


# A delivery that waits: when it came, its cost, its bytes, until when it is wanted (infinite: always); by the
# clock of the caller. A plain tuple, since there is one for each message.
_Waiting = tuple[float, float, int, float, Delivery]


class Batcher:
    """Collects deliveries and says when a batch may start.

    Work-conserving: with nothing running it starts at once with what is there; while something runs it
    fills up, until the batch is full, or larger would hardly be faster, or its oldest delivery has waited
    ``max_wait``, or a deadline would be missed. Whoever fills it asks ``room`` first, so it stays small.

    Args:
        batching: the bounds.
        estimator: knows what a batch takes; one that learns nothing when None.
    """

    def __init__(self, batching: Batching, estimator: Estimator | None = None) -> None:
        self._batching = batching
        self._estimator = estimator or Estimator()
        self._waiting: deque[_Waiting] = deque()
        self._cost = 0.0
        self._size = 0
        self._oldest = self._earliest = math.inf

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def room(self) -> int:
        """How many more deliveries to take in: one batch waits and no more."""
        return self._batching.max_messages - len(self._waiting)

    def add(self, now: float, deliveries: Sequence[Delivery], unix: float = 0.0) -> None:
        """Take deliveries that arrived at ``now``, seconds.

        Args:
            now: of the clock that ``take`` is asked by.
            deliveries: in order.
            unix: the same moment as seconds since 1970; needed where there are deadlines.
        """
        if not deliveries:
            return
        sizes = list(map(len, map(_BODY, deliveries)))
        batching = self._batching
        costs: Iterable[float] = repeat(0.0)
        if batching.cost is not None and not math.isinf(batching.max_cost):
            costs = [self._cost_of(each) for each in deliveries]
            self._cost += sum(costs)
        dues: Iterable[float] = repeat(math.inf)
        if batching.deadline is not None:
            dues = [self._due_of(each, now - unix) for each in deliveries]
            self._earliest = min(self._earliest, *dues)
        self._waiting.extend(zip(repeat(now), costs, sizes, dues, deliveries))
        self._size += sum(sizes)
        self._oldest = min(self._oldest, now)

    def take(self, now: float, running: int, at_most: int | None = None) -> list[Delivery]:
        """Return the batch to start now, or ``[]``.

        Args:
            now: seconds.
            running: batches that run at the moment.
            at_most: messages, where fewer than usual are wanted.
        """
        if not self._waiting or running >= self._batching.concurrency:
            return []
        if running and now < self._ready_at():
            return []
        limit = self._batching.max_messages
        if self._earliest < math.inf:
            limit = self._hurry(now)
        batch = self._pop(limit if at_most is None else min(limit, at_most))
        if self._earliest < math.inf:
            self._earliest = min((due for _, _, _, due, _ in self._waiting), default=math.inf)
            self._oldest = min((each[0] for each in self._waiting), default=math.inf)
        else:
            self._oldest = self._waiting[0][0] if self._waiting else math.inf
        return batch

    def clear(self) -> list[Delivery]:
        """Give up everything that waits, and return it."""
        given_up = [each[-1] for each in self._waiting]
        self._waiting.clear()
        self._cost, self._size = 0.0, 0
        self._oldest = self._earliest = math.inf
        return given_up

    def wake_at(self, running: int) -> float | None:
        """Return when ``take`` could answer differently by time alone, seconds; None for never."""
        if not self._waiting or running >= self._batching.concurrency:
            return None
        return self._ready_at()

    def _ready_at(self) -> float:
        """When the batch at hand has waited enough for company, while another one runs."""
        batching, count = self._batching, len(self._waiting)
        full = self._cost >= batching.max_cost or self._size >= batching.max_bytes
        if full or count >= self._estimator.worthwhile(batching.max_messages, _ENOUGH):
            return self._oldest
        return min(self._oldest + batching.max_wait, self._earliest - self._estimator.seconds(count))

    def _hurry(self, now: float) -> int:
        """Put what is urgent first; return how many may go so that those of them end in time."""
        most = self._batching.max_messages
        backlog = len(self._waiting) >= most
        least = self._estimator.worthwhile(most, _BARELY) if backlog and self._estimator.sure else 1
        soonest = now + self._estimator.seconds(least)

        def urgency(each: _Waiting) -> tuple[int, float]:
            arrived, _, _, due, _ = each
            if due <= now:
                return 0, 0.0
            if arrived + _PATIENCE_S <= now:
                return 1, arrived
            return (1, due) if soonest <= due < math.inf else (2, arrived)

        self._waiting = deque(sorted(self._waiting, key=urgency))
        limit = late = 0
        earliest = math.inf
        for _, _, _, due, _ in islice(self._waiting, most):
            if due <= now:
                late += 1
            elif due >= soonest:
                earliest = min(earliest, due)
            count = limit + 1 - late
            if limit and count > least and now + self._estimator.seconds(count) > earliest:
                break
            limit += 1
        return limit

    def _pop(self, limit: int) -> list[Delivery]:
        """Remove and return the longest prefix within all bounds, at least one."""
        waiting, batching = self._waiting, self._batching
        if len(waiting) <= limit and self._cost <= batching.max_cost and self._size <= batching.max_bytes:
            return self.clear()
        batch: list[Delivery] = []
        cost, size = 0.0, 0
        while waiting and len(batch) < limit:
            _, its_cost, its_size, _, delivery = waiting[0]
            if batch and (cost + its_cost > batching.max_cost or size + its_size > batching.max_bytes):
                break
            cost += its_cost
            size += its_size
            batch.append(delivery)
            waiting.popleft()
        self._size -= size
        # Without the rounding that additions leave behind.
        self._cost = self._cost - cost if waiting else 0.0
        return batch

    def _cost_of(self, delivery: Delivery) -> float:
        most = self._batching.max_cost
        try:
            cost = self._batching.cost(delivery) if self._batching.cost else 0.0
        except Exception:
            # Garbage that cannot even be measured runs alone; the handler judges it.
            return most
        return cost if 0 <= cost <= most else most

    def _due_of(self, delivery: Delivery, offset: float) -> float:
        try:
            deadline = self._batching.deadline(delivery) if self._batching.deadline else None
        except Exception:
            # A deadline that cannot be read is none, as everywhere.
            return math.inf
        return math.inf if deadline is None or math.isnan(deadline) else deadline + offset
