"""Yes/no tags: how well each is found, with missing answers left out, never counted as no."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..metrics import wilson
from .ranking import average_precision, roc_auc
from .resampling import bootstrap, mean_precision, percentile_interval


@dataclass(frozen=True, slots=True)
class TagMetrics:
    """One tag, over the rows that say yes or no.

    Attributes:
        known, positives: rows with an answer; rows that say yes.
        prevalence: ``positives / known``, also the average precision of a guesser.
        average_precision, roc_auc: of the ranking; None where one answer never occurs.
        average_precision_low, average_precision_high: 95 % bootstrap interval.
        threshold: a probability at or above it means yes.
        precision, recall, f1: at the threshold; ``recall_low``, ``recall_high`` by Wilson.
        f1_always_yes: of one who says yes to everything.
    """

    name: str
    known: int
    positives: int
    prevalence: float
    average_precision: float | None
    average_precision_low: float | None
    average_precision_high: float | None
    roc_auc: float | None
    threshold: float
    precision: float
    recall: float
    recall_low: float
    recall_high: float
    f1: float
    f1_always_yes: float


@dataclass(frozen=True, slots=True)
class TagReport:
    """All tags.

    Attributes:
        tags: one entry per tag.
        mean_average_precision: over the tags that have one; None without any.
        exact_match: share of the fully answered rows on which every tag is right; None without such rows.
        exact_match_rows: the number of those rows.
        exact_match_baseline: the same share for saying no to everything.
    """

    tags: tuple[TagMetrics, ...]
    mean_average_precision: float | None
    exact_match: float | None
    exact_match_rows: int
    exact_match_baseline: float | None


def measure_tags(
    tags: NDArray[np.int8],
    probabilities: NDArray[np.float32],
    names: Sequence[str],
    thresholds: Sequence[float],
) -> TagReport:
    """Judge tags.

    Args:
        tags: (N, T): 1 yes, 0 no, -1 not known.
        probabilities: (N, T).
        names, thresholds: T each.

    Raises:
        ValueError: shapes do not fit.
    """
    if tags.shape != probabilities.shape or tags.shape[1:] != (len(names),) or len(names) != len(thresholds):
        raise ValueError(
            f"cannot judge {probabilities.shape} tag probabilities against {tags.shape} tags named {names}"
        )
    said = probabilities >= np.asarray(thresholds, np.float32)
    each = tuple(
        _measure(name, tags[:, at], probabilities[:, at], said[:, at], float(thresholds[at]))
        for at, name in enumerate(names)
    )
    precisions = [tag.average_precision for tag in each if tag.average_precision is not None]
    full = (tags >= 0).all(1) & bool(len(names))
    right, no = (said[full] == (tags[full] == 1)).all(1), (tags[full] == 0).all(1)
    return TagReport(
        each,
        float(np.mean(precisions)) if precisions else None,
        float(right.mean()) if full.any() else None,
        int(full.sum()),
        float(no.mean()) if full.any() else None,
    )


def _measure(
    name: str,
    tags: NDArray[np.int8],
    probabilities: NDArray[np.float32],
    said: NDArray[np.bool_],
    threshold: float,
) -> TagMetrics:
    known = tags >= 0
    truth, scores, yes = tags[known] == 1, probabilities[known], said[known]
    positives, hits = int(truth.sum()), int((truth & yes).sum())
    low, high = None, None
    if positives:
        draws = bootstrap(mean_precision(scores, truth), truth.astype(np.int64))
        low, high = percentile_interval(draws)
    prevalence = positives / len(truth) if len(truth) else 0.0
    recall_low, recall_high = wilson(hits, positives)
    return TagMetrics(
        name=name,
        known=len(truth),
        positives=positives,
        prevalence=prevalence,
        average_precision=average_precision(scores, truth),
        average_precision_low=low,
        average_precision_high=high,
        roc_auc=roc_auc(scores, truth) if len(truth) else None,
        threshold=threshold,
        precision=hits / max(1, int(yes.sum())),
        recall=hits / max(1, positives),
        recall_low=recall_low,
        recall_high=recall_high,
        f1=2 * hits / max(1, positives + int(yes.sum())),
        f1_always_yes=2 * prevalence / (1 + prevalence),
    )
