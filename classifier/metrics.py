"""What a classifier is worth: pure numpy functions of true labels and probabilities."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Labels = NDArray[np.int64]
Probabilities = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class ClassMetrics:
    """One class: shares in 0..1, ``support`` is the number of true members."""

    name: str
    precision: float
    recall: float
    f1: float
    support: int


@dataclass(frozen=True, slots=True)
class Metrics:
    """The measured quality; shares in 0..1, ``nll`` in nats an image.

    ``accuracy_low`` and ``accuracy_high`` bound the accuracy with 95 % confidence (Wilson).
    ``confusion`` is true class by predicted class. ``group_*`` judge the coarse group of the predicted label.
    """

    images: int
    accuracy: float
    accuracy_low: float
    accuracy_high: float
    balanced_accuracy: float
    macro_f1: float
    nll: float
    ece: float
    group_accuracy: float
    group_macro_f1: float
    classes: tuple[ClassMetrics, ...]
    groups: tuple[ClassMetrics, ...]
    confusion: tuple[tuple[int, ...], ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return asdict(self)

    def summary(self) -> dict[str, float]:
        """The single numbers, without tables: what a manifest keeps for every engine."""
        return {name: value for name, value in self.to_dict().items() if isinstance(value, (int, float))}


def measure(
    labels: Labels,
    probabilities: Probabilities,
    class_names: Sequence[str],
    groups: Mapping[str, Sequence[str]],
) -> Metrics:
    """Judge predictions.

    Args:
        labels: (N,) true classes, N >= 1, indexing the K ``class_names``.
        probabilities: (N, K), rows sum to 1.
        groups: coarse name -> class names; every class in exactly one.

    Raises:
        ValueError: nothing to judge, or shapes do not fit.
    """
    if len(labels) == 0 or probabilities.shape != (len(labels), len(class_names)):
        raise ValueError(f"cannot judge {probabilities.shape} probabilities against {len(labels)} labels")
    predicted = probabilities.argmax(1)
    table = confusion_matrix(labels, predicted, len(class_names))
    classes = class_metrics(table, class_names)
    group_table = _collapse(table, group_index(class_names, groups), len(groups))
    group_metrics = class_metrics(group_table, list(groups))
    low, high = wilson(int(np.trace(table)), len(labels))
    chosen = probabilities[np.arange(len(labels)), labels].astype(np.float64)
    return Metrics(
        images=len(labels),
        accuracy=float(np.trace(table)) / len(labels),
        accuracy_low=low,
        accuracy_high=high,
        balanced_accuracy=_mean(c.recall for c in classes if c.support),
        macro_f1=_mean(c.f1 for c in classes if c.support),
        nll=float(-np.log(np.maximum(chosen, 1e-12)).mean()),
        ece=expected_calibration_error(probabilities.max(1), predicted == labels),
        group_accuracy=float(np.trace(group_table)) / len(labels),
        group_macro_f1=_mean(c.f1 for c in group_metrics if c.support),
        classes=classes,
        groups=group_metrics,
        confusion=tuple(tuple(int(count) for count in row) for row in table),
    )


def confusion_matrix(labels: Labels, predicted: Labels, classes: int) -> Labels:
    """(K, K) counts, true class by predicted class."""
    return np.bincount(labels * classes + predicted, minlength=classes * classes).reshape(classes, classes)


def _collapse(confusion: Labels, group_of: Labels, groups: int) -> Labels:
    """The confusion matrix of groups, from that of classes."""
    coarse = np.zeros((groups, groups), np.int64)
    np.add.at(coarse, (group_of[:, None], group_of[None, :]), confusion)
    return coarse


def class_metrics(confusion: Labels, names: Sequence[str]) -> tuple[ClassMetrics, ...]:
    """Precision, recall and F1 per class; 0 where a denominator is 0."""
    rows = []
    for index, name in enumerate(names):
        hit, support, said = (
            int(n) for n in (confusion[index, index], confusion[index].sum(), confusion[:, index].sum())
        )
        precision, recall = _share(hit, said), _share(hit, support)
        rows.append(ClassMetrics(name, precision, recall, _share(2 * hit, said + support), support))
    return tuple(rows)


def wilson(successes: int, trials: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson's score interval for a share; z = 1.96 gives 95 % (Wilson 1927)."""
    if trials == 0:
        return 0.0, 1.0
    share, z2 = successes / trials, z * z / trials
    middle = (share + z2 / 2) / (1 + z2)
    half = z * math.sqrt(share * (1 - share) / trials + z2 / (4 * trials)) / (1 + z2)
    return max(0.0, middle - half), min(1.0, middle + half)


def expected_calibration_error(
    confidence: Probabilities, correct: NDArray[np.bool_], bins: int = 15
) -> float:
    """Mean gap between confidence and accuracy over ``bins`` bins of equal mass.

    Equal mass, not equal width, because most confidences crowd near 1 and would share one bin.
    """
    order = np.argsort(confidence, kind="stable")
    total = 0.0
    for part in np.array_split(order, min(bins, len(order))):
        total += len(part) * abs(float(confidence[part].mean(dtype=np.float64)) - float(correct[part].mean()))
    return total / len(order)


def fit_temperature(logits: Probabilities, labels: Labels) -> float:
    """The temperature in 0.2..5 that minimises NLL of softmax(logits / T) (arXiv:1706.04599).

    NLL has one minimum in 1/T, so a golden-section search finds it.
    """

    def nll(inverse: float) -> float:
        scaled = logits.astype(np.float64) * inverse
        peak = scaled.max(1)
        log_sum = peak + np.log(np.exp(scaled - peak[:, None]).sum(1))
        return float((log_sum - scaled[np.arange(len(labels)), labels]).mean())

    ratio = (math.sqrt(5) - 1) / 2
    low, high = 0.2, 5.0
    for _ in range(60):
        left, right = high - ratio * (high - low), low + ratio * (high - low)
        low, high = (low, right) if nll(left) < nll(right) else (left, high)
    return 2.0 / (low + high)


def group_index(class_names: Sequence[str], groups: Mapping[str, Sequence[str]]) -> Labels:
    """(K,) the group's position for every class.

    Raises:
        ValueError: a class is in no group or in two, or a group names an unknown class.
    """
    members = [name for names in groups.values() for name in names]
    if sorted(members) != sorted(class_names):
        raise ValueError(f"groups {dict(groups)} do not hold every class of {list(class_names)} exactly once")
    where = {name: index for index, names in enumerate(groups.values()) for name in names}
    return np.array([where[name] for name in class_names], np.int64)


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0


def _mean(values: Any) -> float:
    return float(np.mean(list(values)))
