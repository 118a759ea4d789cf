"""What turns a network's outputs into answers, fitted on images it never saw. numpy only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .data import Dataset
from .engines import Outputs
from .metrics import fit_temperature, softmax
from .uncertainty import Abstention, fit_abstention, fit_conformal


@dataclass(frozen=True, slots=True)
class Calibration:
    """How outputs become answers.

    Attributes:
        temperature: logits are divided by it before softmax. The default was fitted on the held-out images
            of a run with the default settings; below 1 because label smoothing makes a network less
            sure than it may be.
        tag_thresholds: a tag is there from this probability on; () for one half each.
        abstention: when not to answer; None: always answer.
        conformal: see :func:`classifier.uncertainty.fit_conformal`; {} for no answer sets.
    """

    temperature: float = 0.68
    tag_thresholds: tuple[float, ...] = ()
    abstention: Abstention | None = None
    conformal: dict[str, list[float]] | None = None


def fit_calibration(
    outputs: Outputs, held_out: Dataset, accepted: float, confidence_threshold: float
) -> Calibration:
    """Fit everything on held-out images.

    Args:
        outputs: of the network, for the N held-out images.
        held_out: their labels and tags; rows without a label, or without a tag, take no part in its fit.
        accepted: share of ordinary images that the outlier threshold lets pass.
        confidence_threshold: a best guess less probable than this is unsure.
    """
    known = held_out.labels >= 0
    scored = bool(len(held_out)) and not np.isnan(outputs.outlier).any()
    abstention = None
    if scored:
        abstention = fit_abstention(outputs.outlier, accepted, confidence_threshold)
    elif confidence_threshold > 0:
        abstention = Abstention(confidence_threshold=confidence_threshold)
    thresholds = tuple(
        best_threshold(outputs.tag_logits[:, at], held_out.tags[:, at])
        for at in range(len(held_out.tag_names))
    )
    if not known.any():
        return Calibration(1.0, thresholds, abstention, {})
    logits, labels = outputs.logits[known], held_out.labels[known]
    temperature = round(fit_temperature(logits, labels), 4)
    return Calibration(
        temperature, thresholds, abstention, fit_conformal(softmax(logits, temperature), labels)
    )


def best_threshold(logits: NDArray[np.float32], tags: NDArray[np.int8]) -> float:
    """The probability from which on a tag is said to be there: the one with the highest F1.

    Candidates lie halfway, in logits, between neighbouring images; of equally good ones the one
    nearest to one half wins. Without a yes and a no among the known answers it is one half.

    Args:
        logits: (N,) of the tag.
        tags: (N,) 1 yes, 0 no, -1 not known.
    """
    order = np.argsort(logits[tags >= 0], kind="stable")
    scores, truth = logits[tags >= 0][order].astype(np.float64), tags[tags >= 0][order] == 1
    gaps = np.flatnonzero(np.diff(scores) > 0)
    if not len(gaps) or truth.all() or not truth.any():
        return 0.5
    # Cutting behind place i says yes to the n - 1 - i images above it.
    hits = truth.sum() - np.cumsum(truth)[gaps]
    f1 = 2 * hits / (len(scores) - 1 - gaps + truth.sum())
    middles = (scores[gaps] + scores[gaps + 1]) / 2
    best = middles[f1 == f1.max()]
    return float(1 / (1 + np.exp(-best[np.abs(best).argmin()])))


def tag_entries(names: Sequence[str], calibration: Calibration) -> list[dict[str, object]]:
    """The tags as the manifest lists them."""
    thresholds = calibration.tag_thresholds or (0.5,) * len(names)
    return [{"name": name, "threshold": at} for name, at in zip(names, thresholds, strict=True)]
