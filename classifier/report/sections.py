"""The parts of ``metrics.json``: each function turns answers into one JSON-ready object."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..metrics import (
    Labels,
    Metrics,
    Probabilities,
    brier_score,
    expected_calibration_error,
    log_loss,
    reliability,
    softmax,
    wilson,
)
from ..uncertainty import Abstention, answer_sets
from .mistakes import brightness_contrast, confident_mistakes, suspected_labels, thirds, top_confusions
from .ranking import false_positive_rate, precision_recall, risk_coverage, roc_auc
from .resampling import (
    ROUNDS,
    basic_interval,
    bootstrap,
    calibration_error,
    macro_f1,
    mcnemar,
    percentile_interval,
)
from .tags import TagReport

Section = dict[str, Any]
BINS = 15
_CURVE_POINTS = 200


def intervals(metrics: Metrics, probabilities: Probabilities, labels: Labels) -> Section:
    """95 % intervals where no closed form exists."""
    predicted, confidence = probabilities.argmax(1), probabilities.max(1)
    f1 = bootstrap(macro_f1(labels, predicted, probabilities.shape[1]), labels)
    ece = bootstrap(calibration_error(confidence, predicted == labels, BINS), labels)
    return {
        "macro_f1": percentile_interval(f1),
        "ece": basic_interval(ece, metrics.ece),
        "resamples": ROUNDS,
        "method": "bootstrap within each class; ECE mirrored at its estimate",
    }


def calibration(logits: Probabilities, labels: Labels, temperature: float) -> Section:
    """Reliability before (temperature 1) and after temperature scaling, and the histogram of confidence."""
    section: Section = {"temperature": temperature, "bins": BINS, "binning": "equal mass"}
    for when, value in (("before", 1.0), ("after", temperature)):
        probabilities = softmax(logits, value)
        confidence, correct = probabilities.max(1), probabilities.argmax(1) == labels
        section[when] = {
            "ece": expected_calibration_error(confidence, correct, BINS),
            "nll": log_loss(probabilities, labels),
            "brier": brier_score(probabilities, labels),
            "reliability": [asdict(bin) for bin in reliability(confidence, correct, BINS)],
        }
    edges = np.linspace(0.0, 1.0, 21)
    section["histogram"] = {
        "edges": edges.round(2).tolist(),
        "right": np.histogram(confidence[correct], edges)[0].tolist(),
        "wrong": np.histogram(confidence[~correct], edges)[0].tolist(),
    }
    return section


def selective(probabilities: Probabilities, labels: Labels) -> Section:
    """Risk against coverage, and the accuracy when the least sure images go to a person."""
    curve = risk_coverage(probabilities.max(1), probabilities.argmax(1) == labels)
    points = np.unique(np.linspace(1, len(labels), min(_CURVE_POINTS, len(labels))).round().astype(int))
    at = []
    for coverage in (1.0, 0.95, 0.9, 0.8, 0.7):
        accuracy, confidence = curve.at(coverage)
        at.append({"coverage": coverage, "accuracy": accuracy, "confidence": confidence})
    return {
        "aurc": curve.aurc,
        "aurc_ideal": curve.aurc_ideal,
        "curve": [[float(n / len(labels)), float(curve.risk[n - 1])] for n in points],
        "at": at,
    }


def conformal(
    quantiles: Mapping[str, Sequence[float]],
    probabilities: Probabilities,
    labels: Labels,
    names: Sequence[str],
) -> list[Section]:
    """Per promised coverage: what the answer sets deliver here, and how large they are."""
    found = []
    for level in sorted(quantiles, key=float):
        sets = answer_sets(probabilities, quantiles[level])
        covered = sets[np.arange(len(labels)), labels]
        low, high = wilson(int(covered.sum()), len(labels))
        sizes = sets.sum(1)
        present = np.unique(labels)
        per_class = np.array([covered[labels == label].mean() for label in present])
        pairs, counts = np.unique(sets[sizes == 2], axis=0, return_counts=True)
        common = [
            {"labels": [names[at] for at in np.flatnonzero(pairs[row]).tolist()], "images": int(counts[row])}
            for row in np.argsort(-counts, kind="stable")[:3]
        ]
        found.append(
            {
                "level": float(level),
                "coverage": float(covered.mean()),
                "coverage_low": low,
                "coverage_high": high,
                "mean_size": float(sizes.mean()),
                "single": float((sizes == 1).mean()),
                "worst_class": names[int(present[per_class.argmin()])],
                "worst_class_coverage": float(per_class.min()),
                "common_pairs": common,
            }
        )
    return found


def abstention(
    rule: Abstention, outlier: NDArray[np.float32], probabilities: Probabilities, labels: Labels
) -> Section:
    """How often the shipped thresholds decline, and what they let pass."""
    confidence, correct = probabilities.max(1), probabilities.argmax(1) == labels
    why = np.array(rule.reasons(outlier, confidence))
    answered = why == ""
    return {
        **rule.to_dict(),
        "outlier": float((why == "outlier").mean()),
        "unsure": float((why == "unsure").mean()),
        "answered": float(answered.mean()),
        "answered_accuracy": float(correct[answered].mean()) if answered.any() else None,
        "declined_accuracy": float(correct[~answered].mean()) if not answered.all() else None,
    }


def probes(
    known: NDArray[np.float32], strange: Mapping[str, NDArray[np.float32]], threshold: float | None
) -> list[Section]:
    """How well a strangeness score tells images of no known class from the test images.

    Args:
        known: (N,) scores of the test images, higher is stranger.
        strange: family -> (M,) scores of images that are nothing the model knows.
        threshold: the shipped one, or None.
    """
    rows = []
    for family, scores in strange.items():
        both = -np.concatenate([known, scores])
        truth = np.arange(len(both)) < len(known)
        rows.append(
            {
                "family": family,
                "images": len(scores),
                "auroc": roc_auc(both, truth),
                "accepted_at_95": false_positive_rate(both, truth),
                "rejected": None if threshold is None else float((scores > threshold).mean()),
            }
        )
    return rows


def tag_section(report: TagReport, tags: NDArray[np.int8], probabilities: Probabilities) -> Section:
    """The tag report with its precision-recall curves."""
    section = asdict(report)
    for at, entry in enumerate(section["tags"]):
        known = tags[:, at] >= 0
        truth = tags[known, at] == 1
        entry["curve"] = []
        if truth.any():
            precision, recall = precision_recall(probabilities[known, at], truth)
            picked = np.unique(np.linspace(0, len(recall) - 1, min(_CURVE_POINTS, len(recall))).astype(int))
            entry["curve"] = [[float(recall[n]), float(precision[n])] for n in picked]
    return section


def mistakes(
    metrics: Metrics, probabilities: Probabilities, labels: Labels, rows: Sequence[str], gallery: int
) -> Section:
    """Confused pairs, the surest mistakes, suspected label errors.

    Args:
        rows: the name of every image, for people who want to look it up.
        gallery: entries of each kind.
    """
    names = [row.name for row in metrics.classes]
    doubtful, seems = suspected_labels(probabilities, labels)
    wrong = confident_mistakes(probabilities, labels)[:gallery]
    shown = set(wrong.tolist())

    def entry(row: int, other: int) -> Section:
        return {
            "row": row,
            "name": rows[row],
            "label": names[labels[row]],
            "predicted": names[other],
            "confidence": float(probabilities[row, other]),
            "label_probability": float(probabilities[row, labels[row]]),
        }

    others = [
        (row, at) for row, at in zip(doubtful.tolist(), seems.tolist(), strict=True) if row not in shown
    ]
    pairs = Counter(zip(labels[doubtful].tolist(), seems.tolist(), strict=True))
    return {
        "pairs": [asdict(pair) for pair in top_confusions(metrics.confusion, names)],
        "surest": [entry(row, int(probabilities[row].argmax())) for row in wrong.tolist()],
        "suspected_labels": len(doubtful),
        "suspected_above": len(doubtful) - len(others),
        "suspected_pairs": [
            {"label": names[label], "seems": names[other], "images": count}
            for (label, other), count in pairs.most_common(5)
        ],
        "suspected": [entry(row, at) for row, at in others[:gallery]],
    }


def slices(images: NDArray[np.uint8], correct: NDArray[np.bool_]) -> list[Section]:
    """Accuracy by thirds of brightness and of contrast."""
    brightness, contrast = brightness_contrast(images)
    found = thirds("brightness", brightness, correct) + thirds("contrast", contrast, correct)
    return [asdict(each) for each in found]


def versus(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> Section:
    """The model ("first") against another on the same rows: difference, its 95 % interval, McNemar."""
    test = mcnemar(first, second)
    count = len(first)
    difference = (test.only_first - test.only_second) / count
    # Of paired shares: the variance counts the disagreements alone.
    spread = 1.959964 * ((test.only_first + test.only_second) / count - difference**2) ** 0.5 / count**0.5
    return {
        **asdict(test),
        "accuracy": float(first.mean()),
        "other_accuracy": float(second.mean()),
        "difference": difference,
        "difference_low": difference - spread,
        "difference_high": difference + spread,
    }
