"""When not to answer, and how many answers to give: thresholds and conformal sets. numpy only.

A model that answers only images like those it was fitted on draws a line through its outlier score
(:class:`Abstention`). A model that is not sure between two labels names both: split conformal
prediction (Vovk et al. 2005; Angelopoulos and Bates, arXiv:2107.07511) finds, on held-out images,
how improbable a label may be before it is left out, so that the true label is among the answers with a
promised frequency. The rule for leaving out is LAC, the least ambiguous one (Sadinle et al. 2019,
arXiv:1609.00451), per class (Mondrian) where a class has enough images.

What is promised: over many new images *of the same kind*, a true label of that class is in the set
at least that often, on average over draws of the held-out images. It is no promise for one
image, for one look of image, or for images of another kind (blurred, strange, newly fashionable).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

LEVELS = (0.90, 0.95, 0.99)
# A class gets a quantile of its own when about so many of its images may lie beyond it; with fewer the
# coverage it delivers would scatter by more than half of what it promises to miss.
_BEYOND = 4


@dataclass(frozen=True, slots=True)
class Abstention:
    """When a model declines to answer.

    Attributes:
        outlier_threshold: an image with a higher outlier score is no known kind of image; infinity: never.
        confidence_threshold: a best guess with a calibrated probability below it is unsure; 0: never.
        accepted: share of ordinary images that the outlier threshold lets pass.
    """

    outlier_threshold: float = math.inf
    confidence_threshold: float = 0.0
    accepted: float = 1.0

    def __post_init__(self) -> None:
        if math.isnan(self.outlier_threshold) or not (
            0 <= self.confidence_threshold <= 1 and 0 < self.accepted <= 1
        ):
            raise ValueError(f"impossible thresholds: {self}")

    def reasons(self, outlier: NDArray[np.float32], confidence: NDArray[np.float32]) -> list[str]:
        """Why each image is not answered: "outlier", "unsure", or "" when it is.

        Args:
            outlier: (N,) scores; NaN (the model has none) never abstains.
            confidence: (N,) calibrated probability of the best guess.
        """
        strange = outlier > self.outlier_threshold
        unsure = confidence < self.confidence_threshold
        return [str(why) for why in np.where(strange, "outlier", np.where(unsure, "unsure", ""))]

    def to_dict(self) -> dict[str, float | None]:
        """JSON form; an infinite threshold is null."""
        fields = asdict(self)
        if math.isinf(self.outlier_threshold):
            fields["outlier_threshold"] = None
        return fields

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Abstention:
        """The inverse of :meth:`to_dict`.

        Raises:
            ValueError, TypeError: unknown or impossible fields.
        """
        threshold = fields.get("outlier_threshold")
        return cls(**{**fields, "outlier_threshold": math.inf if threshold is None else float(threshold)})


def fit_abstention(
    outlier: NDArray[np.float32], accepted: float = 0.99, confidence_threshold: float = 0.0
) -> Abstention:
    """The threshold that lets a share of ordinary images pass.

    It carries the same finite-sample correction as the answer sets: with fewer images than the share
    asks for (99 for 0.99) it is the highest score seen.

    Args:
        outlier: (N,) scores of held-out ordinary images, not of those the score was fitted on.
        accepted: the share, in (0, 1].
        confidence_threshold: see :class:`Abstention`.

    Raises:
        ValueError: no scores, one that is not finite, or an impossible share.
    """
    if not len(outlier) or not np.isfinite(outlier).all():
        raise ValueError(
            f"need finite outlier scores of held-out images, got {len(outlier)}, of which"
            f" {int(np.isfinite(outlier).sum())} are finite"
        )
    if not 0 < accepted <= 1:
        raise ValueError(f"the accepted share must be in (0, 1], got {accepted}")
    rank = min(len(outlier), math.ceil((len(outlier) + 1) * accepted))
    return Abstention(float(np.sort(outlier)[rank - 1]), confidence_threshold, accepted)


def fit_conformal(
    probabilities: NDArray[np.float32], labels: NDArray[np.int64], levels: Sequence[float] = LEVELS
) -> dict[str, list[float]]:
    """Per level and class, the largest 1 - probability at which the class still belongs to the answer.

    A class with at least 4 / (1 - level) held-out images (400 for 0.99) gets a quantile of its own. The
    others share one: then the promise holds for them together, not for each. Too few even for that:
    they belong to every answer.

    Args:
        probabilities: (N, K) calibrated, of held-out images.
        labels: (N,) true classes.
        levels: wanted coverages in (0, 1).

    Returns:
        Level as text ("0.9") -> K quantiles in 0..1.

    Raises:
        ValueError: shapes or labels do not fit, or a level is not in (0, 1).
    """
    classes = probabilities.shape[1]
    if len(labels) != len(probabilities) or (len(labels) and not 0 <= labels.min() <= labels.max() < classes):
        raise ValueError(f"{len(labels)} labels do not fit {probabilities.shape} probabilities")
    if not all(0 < level < 1 for level in levels):
        raise ValueError(f"levels must lie between 0 and 1, got {list(levels)}")
    scores = 1.0 - probabilities[np.arange(len(labels)), labels].astype(np.float64)
    counts = np.bincount(labels, minlength=classes)
    found = {}
    for level in levels:
        alone = counts * (1 - level) >= _BEYOND - 1e-9  # 400 * (1 - 0.99) is not quite 4
        shared = _quantile(scores[~alone[labels]], level)
        found[f"{level:g}"] = [
            _quantile(scores[labels == k], level) if alone[k] else shared for k in range(classes)
        ]
    return found


def answer_sets(probabilities: NDArray[np.float32], quantiles: Sequence[float]) -> NDArray[np.bool_]:
    """Which labels belong to each answer: (N, K) bool. The best guess always does.

    Args:
        probabilities: (N, K) calibrated.
        quantiles: (K,) of one level of :func:`fit_conformal`.
    """
    inside = 1.0 - probabilities.astype(np.float64) <= np.asarray(quantiles)
    inside[np.arange(len(probabilities)), probabilities.argmax(1)] = True
    return np.asarray(inside)


def _quantile(scores: NDArray[np.float64], level: float) -> float:
    """The ceil((n + 1) level)-th smallest score: the finite-sample correction; 1 where n is too small."""
    rank = math.ceil((len(scores) + 1) * level - 1e-9)
    return 1.0 if rank > len(scores) else float(np.sort(scores)[rank - 1])
