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
    """One class: shares in 0..1, ``support`` is the number of true members.

    ``recall_low`` and ``recall_high`` bound the recall with 95 % confidence (Wilson).
    """

    name: str
    precision: float
    recall: float
    f1: float
    support: int
    recall_low: float
    recall_high: float


@dataclass(frozen=True, slots=True)
class Metrics:
    """The measured quality; shares in 0..1, ``nll`` in nats an image, ``brier`` in 0..2.

    ``accuracy_low`` and ``accuracy_high`` bound the accuracy with 95 % confidence (Wilson).
    ``top2_accuracy``: the truth is among the two likeliest. ``brier`` is the squared distance between the
    probabilities and the truth, summed over classes (Brier 1950). ``confusion`` is true class by predicted
    class. ``group_*`` judge the group with the largest sum of its classes' probabilities. Classes and groups
    without a member take no part in the means over classes.
    """

    images: int
    accuracy: float
    accuracy_low: float
    accuracy_high: float
    top2_accuracy: float
    balanced_accuracy: float
    macro_f1: float
    nll: float
    brier: float
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
    group_of = group_index(class_names, groups)
    coarse = group_probabilities(probabilities, group_of, len(groups))
    group_table = confusion_matrix(group_of[labels], coarse.argmax(1), len(groups))
    group_metrics = class_metrics(group_table, list(groups))
    low, high = wilson(int(np.trace(table)), len(labels))
    return Metrics(
        images=len(labels),
        accuracy=float(np.trace(table)) / len(labels),
        accuracy_low=low,
        accuracy_high=high,
        top2_accuracy=float(among_top(probabilities, labels, 2).mean()),
        balanced_accuracy=_mean(c.recall for c in classes if c.support),
        macro_f1=_mean(c.f1 for c in classes if c.support),
        nll=log_loss(probabilities, labels),
        brier=brier_score(probabilities, labels),
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


def group_probabilities(probabilities: Probabilities, group_of: Labels, groups: int) -> Probabilities:
    """(N, G): the summed probabilities of every group's classes; ``group_of`` is :func:`group_index`."""
    member = np.zeros((len(group_of), groups), np.float32)
    member[np.arange(len(group_of)), group_of] = 1.0
    return probabilities @ member


def among_top(probabilities: Probabilities, labels: Labels, count: int) -> NDArray[np.bool_]:
    """(N,): whether the true class is one of the ``count`` likeliest; of equals the first class wins."""
    order = np.argsort(-probabilities, axis=1, kind="stable")[:, :count]
    return np.asarray((order == labels[:, None]).any(1))


def brier_score(probabilities: Probabilities, labels: Labels) -> float:
    """Mean over images of the squared error summed over classes: 0 is perfect, 2 is sure and wrong."""
    errors = probabilities.astype(np.float64)
    errors[np.arange(len(labels)), labels] -= 1.0
    return float((errors**2).sum(1).mean())


def log_loss(probabilities: Probabilities, labels: Labels) -> float:
    """Mean surprise at the truth in nats; a probability of 0 counts as 1e-12, so the sum stays finite."""
    chosen = probabilities[np.arange(len(labels)), labels].astype(np.float64)
    return float(-np.log(np.maximum(chosen, 1e-12)).mean())


def class_metrics(confusion: Labels, names: Sequence[str]) -> tuple[ClassMetrics, ...]:
    """Precision, recall and F1 per class; 0 where a denominator is 0."""
    rows = []
    for index, name in enumerate(names):
        hit, support, said = (
            int(n) for n in (confusion[index, index], confusion[index].sum(), confusion[:, index].sum())
        )
        precision, recall = _share(hit, said), _share(hit, support)
        f1 = _share(2 * hit, said + support)
        rows.append(ClassMetrics(name, precision, recall, f1, support, *wilson(hit, support)))
    return tuple(rows)


def wilson(successes: int, trials: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson's score interval for a share; z = 1.96 gives 95 % (Wilson 1927)."""
    if trials == 0:
        return 0.0, 1.0
    share, z2 = successes / trials, z * z / trials
    middle = (share + z2 / 2) / (1 + z2)
    half = z * math.sqrt(share * (1 - share) / trials + z2 / (4 * trials)) / (1 + z2)
    return max(0.0, middle - half), min(1.0, middle + half)


@dataclass(frozen=True, slots=True)
class Bin:
    """One bar of a reliability plot: images, their mean confidence, their accuracy."""

    images: int
    confidence: float
    accuracy: float


def reliability(confidence: Probabilities, correct: NDArray[np.bool_], bins: int = 15) -> tuple[Bin, ...]:
    """Confidence against accuracy in at most ``bins`` bins of equal mass, least confident first.

    Equal mass, not equal width, because most confidences crowd near 1 and would share one bin. Images of
    equal confidence share their accuracy, so that the order of the rows changes nothing.
    """
    order = np.argsort(confidence, kind="stable")
    shared = tie_means(confidence, correct)
    return tuple(
        Bin(len(part), float(confidence[part].mean(dtype=np.float64)), float(shared[part].mean()))
        for part in np.array_split(order, min(bins, len(order)))
    )


def expected_calibration_error(
    confidence: Probabilities, correct: NDArray[np.bool_], bins: int = 15
) -> float:
    """Mean gap between confidence and accuracy over the bins of :func:`reliability` (arXiv:1706.04599)."""
    found = reliability(confidence, correct, bins)
    return sum(bin.images * abs(bin.confidence - bin.accuracy) for bin in found) / len(confidence)


def tie_means(score: NDArray[Any], value: NDArray[Any]) -> NDArray[np.float64]:
    """(N,) ``value``, averaged over the rows of equal ``score``."""
    _, where, counts = np.unique(score, return_inverse=True, return_counts=True)
    sums = np.bincount(where, weights=value.astype(np.float64))
    return np.asarray(sums[where] / counts[where])


def fit_temperature(logits: Probabilities, labels: Labels) -> float:
    """The temperature in 0.2..5 that makes softmax(logits / T) honest (arXiv:1706.04599).

    It minimises the summed NLL plus 2 (ln T)^2: without that, a handful of images that are all named
    rightly would ask for the lowest temperature there is. It weighs as much as a few images, so with
    hundreds it changes nothing. The sum has one minimum, which a golden-section search in ln T finds.

    Args:
        logits: (N, K).
        labels: (N,) true classes; none: the temperature is 1.
    """
    exact = logits.astype(np.float64)
    chosen = exact[np.arange(len(labels)), labels]

    def cost(log_t: float) -> float:
        scaled = exact * math.exp(-log_t)
        peak = scaled.max(1)
        log_sum = peak + np.log(np.exp(scaled - peak[:, None]).sum(1))
        return float((log_sum - chosen * math.exp(-log_t)).sum()) + 2 * log_t**2

    ratio = (math.sqrt(5) - 1) / 2
    low, high = math.log(0.2), math.log(5.0)
    for _ in range(40):
        left, right = high - ratio * (high - low), low + ratio * (high - low)
        low, high = (low, right) if cost(left) < cost(right) else (left, high)
    return math.exp((low + high) / 2)


def softmax(logits: Probabilities, temperature: float = 1.0) -> Probabilities:
    """(N, K) probabilities of (N, K) logits divided by ``temperature``."""
    scaled = logits / np.float32(temperature)
    weights = np.exp(scaled - scaled.max(1, keepdims=True))
    return np.asarray(weights / weights.sum(1, keepdims=True), np.float32)


def sigmoid(logits: Probabilities) -> Probabilities:
    """Probabilities of independent yes/no answers; exact at both ends, where ``exp`` alone would overflow."""
    return np.asarray(0.5 * (1.0 + np.tanh(0.5 * logits)), np.float32)


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
