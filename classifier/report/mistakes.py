"""Where a classifier goes wrong: confused pairs, sure mistakes, suspected label errors, weak slices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..metrics import Labels, Probabilities, wilson


@dataclass(frozen=True, slots=True)
class Confusion:
    """Images of class ``true`` that were named ``predicted``; ``share`` of all images of that class."""

    true: str
    predicted: str
    images: int
    share: float


@dataclass(frozen=True, slots=True)
class Slice:
    """A third of the images, by one property of their pixels; accuracy with its Wilson interval."""

    name: str
    low: float
    high: float
    images: int
    accuracy: float
    accuracy_low: float
    accuracy_high: float


def top_confusions(
    confusion: Sequence[Sequence[int]], names: Sequence[str], count: int = 10
) -> list[Confusion]:
    """The ``count`` most frequent mistakes, most frequent first."""
    table = np.array(confusion)
    wrong = table - np.diag(np.diag(table))
    best = np.argsort(-wrong, axis=None, kind="stable")[:count]
    return [
        Confusion(
            names[true], names[said], int(wrong[true, said]), float(wrong[true, said] / table[true].sum())
        )
        for true, said in zip(*np.unravel_index(best, table.shape), strict=True)
        if wrong[true, said]
    ]


def confident_mistakes(probabilities: Probabilities, labels: Labels) -> Labels:
    """(M,) rows that were named wrongly, the surest first."""
    wrong = np.flatnonzero(probabilities.argmax(1) != labels)
    return wrong[np.argsort(-probabilities[wrong].max(1), kind="stable")]


def suspected_labels(probabilities: Probabilities, labels: Labels) -> tuple[Labels, Labels]:
    """(rows, the class each seems to be), the most doubtful label first.

    Confident learning (Northcutt et al., arXiv:1911.00068): class j's threshold is the mean probability of j
    over the images labelled j. An image is suspected if another class reaches its own threshold, more
    probable than any other class that does. The probabilities must come from a model that was not trained
    on these images. A suspicion is a question for a person, not a verdict.
    """
    classes = probabilities.shape[1]
    counts = np.bincount(labels, minlength=classes)
    own = probabilities[np.arange(len(labels)), labels].astype(np.float64)
    thresholds = np.bincount(labels, own, classes) / np.maximum(counts, 1)
    # A class without an image has no threshold to reach.
    sure = (probabilities >= thresholds) & (counts > 0)
    seems = np.where(sure, probabilities, -1.0).argmax(1)
    rows = np.flatnonzero(sure.any(1) & (seems != labels))
    margin = own[rows] - probabilities[rows, seems[rows]]
    rows = rows[np.argsort(margin, kind="stable")]
    return rows, seems[rows].astype(np.int64)


def brightness_contrast(
    images: NDArray[np.uint8], block: int = 4096
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(mean, standard deviation) of each image's pixels, (N,) each, in gray values 0..255.

    ``images`` may be a memory map: it is read in blocks.
    """
    flat = [
        images[at : at + block].reshape(len(images[at : at + block]), -1)
        for at in range(0, len(images), block)
    ]
    mean = np.concatenate([part.mean(1) for part in flat])
    deviation = np.concatenate([part.std(1) for part in flat])
    return mean, deviation


def thirds(name: str, value: NDArray[np.float64], correct: NDArray[np.bool_]) -> list[Slice]:
    """The three slices of equal size by ``value`` (N,), smallest first; fewer when values are equal."""
    edges = np.quantile(value, (1 / 3, 2 / 3))
    which = np.searchsorted(edges, value, side="left")
    slices = []
    for at in range(3):
        inside = which == at
        if inside.any():
            hits, size = int(correct[inside].sum()), int(inside.sum())
            span = float(value[inside].min()), float(value[inside].max())
            slices.append(Slice(name, *span, size, hits / size, *wilson(hits, size)))
    return slices
