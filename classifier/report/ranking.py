"""How well a score ranks: average precision, areas under curves, risk against coverage. Pure numpy.

Rows of equal score are one step of every curve, so the order of the rows changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..metrics import tie_means

Scores = NDArray[Any]
Truth = NDArray[np.bool_]
Curve = NDArray[np.float64]


def _steps(scores: Scores, truth: Truth) -> tuple[Curve, Curve]:
    """(true, false) positives (S,) with everything at or above each distinct score accepted, best first."""
    order = np.argsort(-scores, kind="stable")
    ordered, hits = scores[order], truth[order].astype(np.float64)
    ends = np.flatnonzero(np.append(ordered[1:] != ordered[:-1], True))
    true = np.cumsum(hits)[ends]
    return true, ends + 1.0 - true


def precision_recall(scores: Scores, truth: Truth) -> tuple[Curve, Curve]:
    """(precision, recall), each (S,), from the strictest threshold to the loosest; needs a positive row."""
    true, false = _steps(scores, truth)
    return true / (true + false), true / true[-1]


def average_precision(scores: Scores, truth: Truth) -> float | None:
    """Precision averaged over the steps of recall, not interpolated; None without a positive row.

    Scores that say nothing give the share of positives.
    """
    if not truth.any():
        return None
    precision, recall = precision_recall(scores, truth)
    return float((np.diff(recall, prepend=0.0) * precision).sum())


def roc_auc(scores: Scores, truth: Truth) -> float | None:
    """The chance that a positive row scores above a negative one, ties half; None without one of each."""
    true, false = _steps(scores, truth)
    if not true[-1] or not false[-1]:
        return None
    width, height = np.diff(false, prepend=0.0), true - np.diff(true, prepend=0.0) / 2
    return float((width * height).sum() / (true[-1] * false[-1]))


def false_positive_rate(scores: Scores, truth: Truth, recall: float = 0.95) -> float | None:
    """Share of negatives accepted where ``recall`` of the positives is; None without one of each."""
    true, false = _steps(scores, truth)
    if not true[-1] or not false[-1]:
        return None
    return float(false[np.searchsorted(true / true[-1], recall - 1e-12)] / false[-1])


@dataclass(frozen=True, slots=True)
class RiskCoverage:
    """What answering only the surest images buys.

    Attributes:
        risk: (N,) share of mistakes among the n + 1 surest images.
        confidence: (N,) of the least sure of them.
        aurc: mean of ``risk`` (Geifman and El-Yaniv, arXiv:1705.08500); smaller is better.
        aurc_ideal: the same if every mistake were less sure than every right answer.
    """

    risk: Curve
    confidence: Curve
    aurc: float
    aurc_ideal: float

    def at(self, coverage: float) -> tuple[float, float]:
        """(accuracy, confidence of the least sure) when the surest ``coverage`` of the images is answered."""
        last = max(1, round(coverage * len(self.risk))) - 1
        return 1.0 - float(self.risk[last]), float(self.confidence[last])


def risk_coverage(confidence: Scores, correct: Truth) -> RiskCoverage:
    """Risk as a function of coverage; N >= 1."""
    order = np.argsort(-confidence, kind="stable")
    wrong = 1.0 - tie_means(confidence, correct)[order]
    answered = np.arange(1, len(order) + 1)
    risk = np.cumsum(wrong) / answered
    mistakes = int((~correct).sum())
    ideal = np.maximum(answered - (len(order) - mistakes), 0) / answered
    return RiskCoverage(risk, confidence[order].astype(np.float64), float(risk.mean()), float(ideal.mean()))
