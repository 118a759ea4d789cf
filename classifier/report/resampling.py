"""How far a number would move on another sample: bootstrap intervals, and McNemar's test for two models."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..metrics import Labels, Probabilities

ROUNDS = 1000
_CELLS = 2_000_000  # of one block of resamples: 16 MB
Draws = NDArray[np.int64]
Statistic = Callable[[Draws], NDArray[np.float64]]


def bootstrap(
    statistic: Statistic, strata: Labels, rounds: int = ROUNDS, seed: int = 0
) -> NDArray[np.float64]:
    """``rounds`` values of a statistic, each on a stratified resample.

    Args:
        statistic: row indices (B, N) -> values (B,).
        strata: (N,) each stratum keeps its size, as the classes of a test set do.
        rounds: resamples.
        seed: the same seed, the same values.
    """
    return np.concatenate([statistic(draws) for draws in _draws(strata, rounds, seed)])


def percentile_interval(values: NDArray[np.float64]) -> tuple[float, float]:
    """The middle 95 % of the resamples (Efron 1979)."""
    low, high = np.percentile(values, (2.5, 97.5))
    return float(low), float(high)


def basic_interval(values: NDArray[np.float64], estimate: float) -> tuple[float, float]:
    """The same, mirrored at the estimate, within 0..1 (Davison and Hinkley 1997, 5.2).

    For the calibration error: it is a mean of absolute gaps, so the noise of resampling pushes it up, and
    the plain interval lies above the truth.
    """
    low, high = percentile_interval(values)
    return max(0.0, 2 * estimate - high), min(1.0, max(0.0, 2 * estimate - low))


def macro_f1(labels: Labels, predicted: Labels, classes: int) -> Statistic:
    """Macro-F1 over the classes that occur among ``labels``."""
    codes, cells = labels * classes + predicted, classes * classes
    present = np.bincount(labels, minlength=classes) > 0

    def values(draws: Draws) -> NDArray[np.float64]:
        offset = np.arange(len(draws))[:, None] * cells
        counts = np.bincount((codes[draws] + offset).ravel(), minlength=len(draws) * cells)
        tables = counts.reshape(len(draws), classes, classes)
        hits = np.diagonal(tables, axis1=1, axis2=2)
        sizes = tables.sum(1) + tables.sum(2)
        return np.asarray((2 * hits / np.maximum(sizes, 1))[:, present].mean(1))

    return values


def calibration_error(confidence: Probabilities, correct: NDArray[np.bool_], bins: int = 15) -> Statistic:
    """:func:`classifier.metrics.expected_calibration_error` of resamples."""
    order = np.argsort(confidence, kind="stable")
    rank = np.empty(len(order), np.int32)
    rank[order] = np.arange(len(order), dtype=np.int32)
    # A bin's gap, times its size, is the sum of these.
    gap = confidence[order].astype(np.float64) - correct[order]
    parts = np.array_split(np.arange(len(order)), min(bins, len(order)))
    starts = np.array([part[0] for part in parts])

    def values(draws: Draws) -> NDArray[np.float64]:
        sums = np.add.reduceat(gap[np.sort(rank[draws], axis=1)], starts, axis=1)
        return np.asarray(np.abs(sums).sum(1) / len(order))

    return values


def mean_precision(scores: Probabilities, truth: NDArray[np.bool_]) -> Statistic:
    """:func:`classifier.report.ranking.average_precision` of resamples; needs a positive row."""
    _, block = np.unique(-scores, return_inverse=True)  # equal scores share a block, best first
    blocks = int(block.max()) + 1

    def values(draws: Draws) -> NDArray[np.float64]:
        cells = block[draws] + np.arange(len(draws))[:, None] * blocks
        size = len(draws) * blocks
        seen = np.bincount(cells.ravel(), minlength=size).reshape(len(draws), blocks)
        true = np.bincount(cells.ravel(), truth[draws].ravel(), size).reshape(len(draws), blocks)
        precision = np.cumsum(true, 1) / np.maximum(np.cumsum(seen, 1), 1)
        return np.asarray((true * precision).sum(1) / true.sum(1))

    return values


@dataclass(frozen=True, slots=True)
class McNemar:
    """Two models on the same images.

    Attributes:
        both, only_first, only_second, neither: images that each got right.
        p: chance of a split of the disagreements at least as uneven if both were equally good, two-sided.
    """

    both: int
    only_first: int
    only_second: int
    neither: int
    p: float


def mcnemar(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> McNemar:
    """The exact test (McNemar 1947, binomial form) on (N,) "was right" of two models."""
    only_first, only_second = int((first & ~second).sum()), int((~first & second).sum())
    discordant, fewer = only_first + only_second, min(only_first, only_second)
    term = total = 1
    for k in range(fewer):
        term = term * (discordant - k) // (k + 1)
        total += term
    # Whole numbers to the end: 2**discordant is far outside the floats.
    p = min(1.0, 2 * total / 2**discordant)
    return McNemar(int((first & second).sum()), only_first, only_second, int((~first & ~second).sum()), p)


def _draws(strata: Labels, rounds: int, seed: int) -> Iterator[Draws]:
    rng = np.random.default_rng(seed)
    members = [np.flatnonzero(strata == stratum) for stratum in np.unique(strata)]
    block = max(1, _CELLS // len(strata))
    for start in range(0, rounds, block):
        size = min(block, rounds - start)
        yield np.concatenate([m[rng.integers(0, len(m), (size, len(m)))] for m in members], axis=1)
