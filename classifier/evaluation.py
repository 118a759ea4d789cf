"""Evaluate a classifier on a data set, and show the result as text."""

from __future__ import annotations

from .data import Dataset
from .metrics import Metrics, measure
from .predict import Classifier
from .report.answers import ask, judged_rows


def evaluate(classifier: Classifier, dataset: Dataset, limit: int | None = None) -> Metrics:
    """Judge a classifier on the rows that have a label.

    :func:`classifier.write_report` measures more and makes a page of it.

    Args:
        classifier: a loaded model.
        dataset: images of the model's size; its classes may be fewer than the model's, in any order.
        limit: only the first so many rows; None for all.

    Raises:
        ValueError: a class the model cannot name, other image size, no label, or a limit below 1.
    """
    data, rows = judged_rows(dataset, classifier.manifest, limit)
    probabilities = ask(classifier, data).probabilities[rows]
    return measure(data.labels[rows], probabilities, data.class_names, classifier.manifest.groups)


def text_report(metrics: Metrics, title: str) -> str:
    """A plain-text page: headline numbers, class table, groups if there are any, confusion matrix."""
    m = metrics
    grouped = [row.name for row in m.groups] != [row.name for row in m.classes]
    groups = f"group accuracy     {m.group_accuracy:8.2%}   macro F1 {m.group_macro_f1:.4f}"
    lines = [
        title,
        "",
        f"accuracy           {m.accuracy:8.2%}   95 % interval {m.accuracy_low:.2%} .. {m.accuracy_high:.2%},"
        f" {m.images} images",
        f"top-2 accuracy     {m.top2_accuracy:8.2%}",
        f"balanced accuracy  {m.balanced_accuracy:8.2%}   macro F1 {m.macro_f1:.4f}",
        *([groups] if grouped else []),
        f"calibration (ECE)  {m.ece:8.4f}   NLL {m.nll:.4f}   Brier {m.brier:.4f}",
        "",
        f"{'class':<14}{'precision':>10}{'recall':>10}{'F1':>10}{'images':>9}",
    ]
    for row in (*m.classes, *((None, *m.groups) if grouped else ())):
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
