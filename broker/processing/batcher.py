"""When to start a batch, and with what: a pure state machine without clock, task or I/O."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from ..message import Delivery


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

    Raises:
        ValueError: a field is out of its range.
    """

    max_messages: int = 64
    max_wait: float = 0.02
    concurrency: int = 1
    cost: Callable[[Delivery], float] | None = None
    max_cost: float = math.inf

    def __post_init__(self) -> None:
        if self.max_messages < 1 or self.concurrency < 1 or self.max_wait < 0 or self.max_cost <= 0:
            raise ValueError(
                "max_messages and concurrency must be at least 1, max_wait at least 0, max_cost above 0; not"
                f" {self.max_messages}, {self.concurrency}, {self.max_wait}, {self.max_cost}"
            )


class Batcher:
    """Collects deliveries and says when a batch may start.

    Work-conserving: with nothing running it starts at once with what is there; while something runs it
    fills up, until the batch is full or its oldest delivery has waited ``max_wait``.
    """

    def __init__(self, batching: Batching) -> None:
        self._batching = batching
        self._waiting: deque[tuple[float, float, Delivery]] = deque()
        self._cost = 0.0

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, now: float, deliveries: Iterable[Delivery]) -> None:
        """Take deliveries that arrived at ``now``, seconds."""
        for delivery in deliveries:
            cost = self._cost_of(delivery)
            self._waiting.append((now, cost, delivery))
            self._cost += cost

    def take(self, now: float, running: int) -> list[Delivery]:
        """Return the batch to start now, or ``[]``.

        Args:
            now: seconds.
            running: batches that run at the moment.
        """
        if not self._waiting or running >= self._batching.concurrency:
            return []
        full = len(self._waiting) >= self._batching.max_messages or self._cost >= self._batching.max_cost
        if running and not full and now < self._waiting[0][0] + self._batching.max_wait:
            return []
        batch: list[Delivery] = []
        total = 0.0
        while self._waiting and len(batch) < self._batching.max_messages:
            cost = self._waiting[0][1]
            if batch and total + cost > self._batching.max_cost:
                break
            total += cost
            batch.append(self._waiting.popleft()[2])
        self._cost = self._cost - total if self._waiting else 0.0
        return batch

    def wake_at(self, running: int) -> float | None:
        """Return when ``take`` could answer differently by time alone, seconds; None for never."""
        if not self._waiting or running >= self._batching.concurrency:
            return None
        return self._waiting[0][0] + self._batching.max_wait

    def _cost_of(self, delivery: Delivery) -> float:
        if self._batching.cost is None or math.isinf(self._batching.max_cost):
            return 0.0
        try:
            cost = self._batching.cost(delivery)
        except Exception:
            # Garbage that cannot even be measured runs alone; the handler judges it.
            return self._batching.max_cost
        return cost if 0 <= cost <= self._batching.max_cost else self._batching.max_cost
