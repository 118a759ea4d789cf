"""What a batch takes, learned: so many seconds a message, so many a batch. No clock, no I/O."""

from __future__ import annotations

from collections import deque
from statistics import median

# Batches of like size (1, 2-3, 4-7, ...) are remembered together, the newest so many of each: then a long
# time at one size does not push out what was learned at others. An odd number has a middle.
_REMEMBERED = 15
# How often what was learned is put together again.
_REFIT_EVERY = 8
# A batch takes longer than half of its like; a promise has to hold for most.
_SAFETY = 1.25


class Estimator:
    """Learns ``seconds = a * n + b`` of batches of ``n`` messages.

    Of each class of like sizes the median counts, so that a few slow batches change nothing; through the
    medians goes the line whose relative errors are smallest in square. As long as all batches were of one
    class, the line goes through the origin: what a batch takes by itself is not known yet.
    """

    def __init__(self) -> None:
        self._classes: dict[int, deque[tuple[int, float]]] = {}
        self._fit: tuple[float, float] | None = None
        self._count = 0

    def record(self, count: int, seconds: float) -> None:
        """Learn from one batch that nothing disturbed.

        Args:
            count: its messages, at least 1.
            seconds: from its start until its slot was free again.
        """
        alike = self._classes.setdefault(count.bit_length(), deque(maxlen=_REMEMBERED))
        alike.append((count, max(seconds, 1e-9)))
        self._count += 1
        if self._count < _REFIT_EVERY or self._count % _REFIT_EVERY == 0:
            self._fit = _line([_middle(each) for each in self._classes.values()])

    @property
    def line(self) -> tuple[float, float] | None:
        """Seconds a message and seconds a batch; None before the first batch."""
        return self._fit

    @property
    def sure(self) -> bool:
        """Whether what a batch takes by itself is known: batches of unlike sizes were seen."""
        return len(self._classes) > 1

    def seconds(self, count: int) -> float:
        """Return what nearly every batch of ``count`` ends within, seconds; 0 before the first batch."""
        if self._fit is None:
            return 0.0
        per_message, per_batch = self._fit
        return _SAFETY * (per_message * count + per_batch)

    def worthwhile(self, limit: int, efficiency: float) -> int:
        """Return the smallest batch that loses little against one of ``limit`` messages.

        Args:
            limit: the largest batch.
            efficiency: 0 to 1, what it has of the throughput that an endless batch would have.

        Returns:
            1 to ``limit``; ``limit`` before enough is known.
        """
        if self._fit is None or not self.sure:
            return limit
        per_message, per_batch = self._fit
        # n / (a n + b) >= efficiency / a, solved for n.
        wanted = efficiency * per_batch
        room = (1.0 - efficiency) * per_message
        return limit if wanted >= room * limit else max(1, -int(-wanted // room))


def _middle(alike: deque[tuple[int, float]]) -> tuple[float, float]:
    """The median size and the median time: one grows with the other, so both are those of one batch."""
    return median(count for count, _ in alike), median(seconds for _, seconds in alike)


def _line(points: list[tuple[float, float]]) -> tuple[float, float]:
    """Fit ``(a, b)``, neither below 0, by least squares of the relative errors."""
    weights = [1.0 / seconds**2 for _, seconds in points]
    total = sum(weights)
    mean_n = sum(w * n for w, (n, _) in zip(weights, points, strict=True)) / total
    mean_s = sum(w * s for w, (_, s) in zip(weights, points, strict=True)) / total
    spread = sum(w * (n - mean_n) ** 2 for w, (n, _) in zip(weights, points, strict=True))
    if spread > 0.0:
        both = sum(w * (n - mean_n) * (s - mean_s) for w, (n, s) in zip(weights, points, strict=True))
        per_message = both / spread
        per_batch = mean_s - per_message * mean_n
        if per_message < 0.0:
            return 0.0, mean_s
        if per_batch >= 0.0:
            return per_message, per_batch
    squares = sum(w * n * n for w, (n, _) in zip(weights, points, strict=True))
    return sum(w * n * s for w, (n, s) in zip(weights, points, strict=True)) / squares, 0.0
