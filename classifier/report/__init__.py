"""Judge a model in every way that matters before it is used, as numbers and as a page.

    from classifier import load, validation_set, write_report
    report = write_report(load(), validation_set(), "evaluation")

:mod:`.study` measures and gives one JSON document; :mod:`.page` draws it. The measuring needs numpy
alone; the page needs the extra ``train`` (matplotlib, jinja2).
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..data import Dataset
from ..errors import MissingExtra
from ..metrics import Metrics
from ..predict import Classifier
from .answers import Report as Progress
from .answers import silent
from .study import StudyOptions, study

__all__ = ["Report", "StudyOptions", "study", "write_report"]


@dataclass(frozen=True, slots=True)
class Report:
    """A written report.

    Attributes:
        metrics: the category head's numbers.
        document: what ``metrics.json`` holds.
        numbers: the path of ``metrics.json``.
        page: the path of ``report.html``, or None.
        missing: why there is no page; "" if there is one.
    """

    metrics: Metrics
    document: dict[str, Any]
    numbers: Path
    page: Path | None
    missing: str


def write_report(
    classifier: Classifier,
    dataset: Dataset,
    out: str | os.PathLike[str],
    options: StudyOptions | None = None,
    progress: Progress = silent,
) -> Report:
    """Measure a model and write ``metrics.json`` and ``report.html``.

    Args:
        classifier: a loaded model.
        dataset: images of the model's size; its classes may be fewer than the model's, in any order.
        out: the directory to write into; made if missing.
        options: what to measure, and what to compare with.
        progress: called with (what, rows done, rows in all).

    Raises:
        ValueError: other classes or pixels than the model's, no labelled row, or a limit below 1.
        OSError: ``out`` cannot be written.
    """
    done = study(classifier, dataset, options, progress)
    directory = Path(out)
    directory.mkdir(parents=True, exist_ok=True)
    numbers = directory / "metrics.json"
    numbers.write_text(json.dumps(done.document, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    try:
        from .page import render

        text = render(done.document, done.data)
    except MissingExtra as error:
        return Report(done.metrics, done.document, numbers, None, str(error))
    page = directory / "report.html"
    page.write_text(text, encoding="utf-8")
    return Report(done.metrics, done.document, numbers, page, "")
