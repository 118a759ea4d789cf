"""Quality without labels: how sure the answers are, what the images look like, and how far both have moved.

Everything is counted from the start, for Prometheus; beside it a window slides over the newest images, and
its shares are compared with those of the reference in the model's manifest by the population stability
index: the sum over bins of (p - q) ln(p / q), p being a bin's share in the window and q in the reference.
Below 0.1 there is no change to speak of, up to 0.2 a moderate one, above it somebody should look: the
convention of credit scoring, which invented the index (definition: Siddiqi, Credit Risk Scorecards, Wiley
2006, who draws the upper line at 0.25; 0.1 and 0.2: Wu and Olson, J. Oper. Res. Soc. 61, 2010, 179-190).

Two samples of one population differ, too. n and m images in B bins give an index distributed like
(1/n + 1/m) times chi-squared with B - 1 degrees of freedom (Yurdakul, Statistical Properties of Population
Stability Index, Western Michigan University 2018). Nothing is said until chance keeps below 0.1 in 99 cases
of 100.
"""

from __future__ import annotations

import math
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from broker import Histogram
from classifier.reference import BRIGHTNESS_BOUNDS, CONFIDENCE_BOUNDS

if TYPE_CHECKING:
    from classifier.reference import Reference

    from .engine import Answer

MODERATE = 0.1
# The last 10,000 images and the last hour: enough of both, in tenths, so that memory is bounded.
_BLOCKS, _BLOCK_IMAGES, _BLOCK_S = 10, 1000, 360.0
# 99 % of a normal distribution lie below.
_Z99 = 2.326
LOW_CONFIDENCE = 0.5
_AGAIN = ": export the model with this release"
_LOW_BINS = CONFIDENCE_BOUNDS.index(LOW_CONFIDENCE) + 1


class Counts(NamedTuple):
    """What was counted of some images; the fields are those of ``classifier.reference.Reference``."""

    images: int
    classes: dict[str, int]
    confidence: tuple[int, ...]
    brightness: tuple[int, ...]
    blank: int
    abstained: int

    def since(self, before: Counts) -> Counts:
        """What came after ``before``."""
        return Counts(
            self.images - before.images,
            {name: count - before.classes.get(name, 0) for name, count in self.classes.items()},
            tuple(new - old for new, old in zip(self.confidence, before.confidence, strict=True)),
            tuple(new - old for new, old in zip(self.brightness, before.brightness, strict=True)),
            self.blank - before.blank,
            self.abstained - before.abstained,
        )

    def ratios(self) -> dict[str, float]:
        """Shares that are worth watching; none of no images."""
        parts = {
            "low_confidence": sum(self.confidence[:_LOW_BINS]),
            "blank": self.blank,
            "abstained": self.abstained,
        }
        return {name: count / self.images for name, count in parts.items()} if self.images else {}


class Drift(NamedTuple):
    """How far the newest images are from the reference.

    Attributes:
        psi: of ``classes``, ``confidence`` and ``brightness``; one that cannot be told yet is missing.
        why_not: why some are missing, for a person; "" when none is.
        window: what was counted of the newest images.
        reference: what the model brings; None if that is nothing to compare with.
    """

    psi: dict[str, float]
    why_not: str
    window: Counts
    reference: Counts | None


class Quality:
    """Counts answers. One task counts, any thread may read.

    Args:
        clock: monotonic, seconds.

    Attributes:
        predictions: answers by label.
        abstentions: rows of status ``abstained``, by why.
        confidence: of the answers, calibrated.
        brightness: mean pixel of the images, gray levels of 0 to 255.
        blank: images on which nothing is to be seen.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.predictions: Counter[str] = Counter()
        self.abstentions: Counter[str] = Counter()
        self.confidence = Histogram(CONFIDENCE_BOUNDS)
        self.brightness = Histogram(BRIGHTNESS_BOUNDS)
        self.blank = 0
        self._clock = clock
        self._reference: Reference | None = None
        self._marks = self._fresh()

    def use(self, reference: Reference | None) -> None:
        """Compare with this from now on; another one than before starts the window anew."""
        if reference != self._reference:
            self._reference, self._marks = reference, self._fresh()

    def count(self, answers: Iterable[Answer]) -> None:
        """Count what was answered and stored."""
        confidence, brightness = self.confidence.observe, self.brightness.observe
        for answer in answers:
            self.predictions[answer.label] += 1
            confidence(answer.confidence)
            brightness(answer.brightness)
            self.blank += answer.blank
            if answer.status == "abstained":
                self.abstentions[answer.why] += 1
        marked, at = self._marks[-1]
        if self.confidence.count - marked.images >= _BLOCK_IMAGES and self._clock() - at >= _BLOCK_S:
            self._marks.append(self._mark())

    def drift(self) -> Drift:
        """Compare the newest images with the reference."""
        window = self._counts().since(self._marks[0][0])
        ours = self._reference
        if ours is None:
            return Drift({}, f"the model's manifest has no reference{_AGAIN}", window, None)
        expected = _counts_of(ours)
        bounds = (ours.confidence.bounds, ours.brightness.bounds)
        if bounds != (CONFIDENCE_BOUNDS, BRIGHTNESS_BOUNDS):
            return Drift({}, f"the model's reference has other bins{_AGAIN}", window, None)
        names = sorted(expected.classes | window.classes)
        pairs = {
            "classes": (_row(window.classes, names), _row(expected.classes, names)),
            "confidence": (window.confidence, expected.confidence),
            "brightness": (window.brightness, expected.brightness),
        }
        known = {name: psi(*pair) for name, pair in pairs.items() if by_chance(*pair) <= MODERATE}
        missing = ", ".join(name for name in pairs if name not in known)
        why = f"{missing}: {window.images} images, and {expected.images} in the reference, are too few"
        return Drift(known, why if missing else "", window, expected)

    def _fresh(self) -> deque[tuple[Counts, float]]:
        return deque([self._mark()], maxlen=_BLOCKS + 1)

    def _mark(self) -> tuple[Counts, float]:
        return self._counts(), self._clock()

    def _counts(self) -> Counts:
        return Counts(
            self.confidence.count,
            self.predictions.copy(),
            tuple(self.confidence.counts),
            tuple(self.brightness.counts),
            self.blank,
            sum(self.abstentions.copy().values()),
        )


def psi(found: Sequence[int], expected: Sequence[int]) -> float:
    """Return the population stability index of two samples, counted in the same bins.

    Half an image is added to every bin, so that an empty one costs what a sample of this size can tell of it.
    """
    p_all, q_all = sum(found) + len(found) / 2, sum(expected) + len(found) / 2
    shares = [((p + 0.5) / p_all, (q + 0.5) / q_all) for p, q in zip(found, expected, strict=True)]
    return sum((p - q) * math.log(p / q) for p, q in shares)


def by_chance(found: Sequence[int], expected: Sequence[int]) -> float:
    """Return what the index of two samples of one population exceeds once in 100 times; see above.

    The quantile of chi-squared is that of Wilson and Hilferty (PNAS 17, 1931, 684-688).
    """
    n, m = sum(found), sum(expected)
    if not n or not m:
        return math.inf
    freedom = max(1, sum(p + q > 0 for p, q in zip(found, expected, strict=True)) - 1)
    spread = 2 / (9 * freedom)
    return freedom * (1 - spread + _Z99 * math.sqrt(spread)) ** 3 * (1 / n + 1 / m)


def _row(counts: dict[str, int], names: Sequence[str]) -> list[int]:
    return [counts.get(name, 0) for name in names]


def _counts_of(reference: Reference) -> Counts:
    return Counts(
        reference.images,
        reference.classes,
        reference.confidence.counts,
        reference.brightness.counts,
        reference.blank,
        reference.abstained,
    )
