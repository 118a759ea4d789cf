"""Evaluate a classifier on a data set, and show the result as text."""

from __future__ import annotations

import numpy as np

from .data import Dataset
from .metrics import Metrics, measure
from .predict import Classifier


def evaluate(classifier: Classifier, dataset: Dataset, limit: int | None = None) -> Metrics:
    """Judge a classifier.

    Args:
        classifier: a loaded model with the data set's class names in the same order.
        dataset: (N, size, size) images with labels.
        limit: only the first so many images; None for all.

    Raises:
        ValueError: other class names than the model's, other image size, or a limit below 1.
    """
    manifest = classifier.manifest
    if dataset.class_names != manifest.labels:
        raise ValueError(
            f"the data set's classes {dataset.class_names} are not the model's {manifest.labels}"
        )
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be at least 1, got {limit}")
    images = np.ascontiguousarray(dataset.images[:limit, None])  # (N, 1, H, W)
    return measure(
        dataset.labels[:limit], classifier.predict_tensor(images), manifest.labels, manifest.groups
    )


def text_report(metrics: Metrics, title: str) -> str:
    """A plain-text page: headline numbers, class table, groups, confusion matrix."""
    m = metrics
    lines = [
        title,
        "",
        f"accuracy           {m.accuracy:8.2%}   95 % interval {m.accuracy_low:.2%} .. {m.accuracy_high:.2%},"
        f" {m.images} images",
        f"balanced accuracy  {m.balanced_accuracy:8.2%}   macro F1 {m.macro_f1:.4f}",
        f"group accuracy     {m.group_accuracy:8.2%}   macro F1 {m.group_macro_f1:.4f}",
        f"calibration (ECE)  {m.ece:8.4f}   NLL {m.nll:.4f}",
        "",
        f"{'class':<14}{'precision':>10}{'recall':>10}{'F1':>10}{'images':>9}",
    ]
    for row in (*m.classes, None, *m.groups):
        if row is None:
            lines.append("")
            continue
        lines.append(
            f"{row.name:<14}{row.precision:>10.4f}{row.recall:>10.4f}{row.f1:>10.4f}{row.support:>9}"
        )
    lines += ["", "confusion, true class down, predicted class across"]
    lines.append(" " * 14 + "".join(f"{c.name[:7]:>8}" for c in m.classes))
    lines += [
        f"{c.name:<14}" + "".join(f"{count:>8}" for count in row)
        for c, row in zip(m.classes, m.confusion, strict=True)
    ]
    return "\n".join(lines)
