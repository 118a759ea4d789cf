"""Measure everything the report says: a classifier and a data set in, one JSON-ready document out."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, is_dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..bundle import Manifest
from ..data import Dataset
from ..metrics import Labels, Metrics, measure
from ..predict import Classifier
from ..probes import altered, probe_sets
from ..uncertainty import Abstention
from . import sections
from .answers import Answers, Report, answers, ask, fitted, judged_rows, silent
from .speed import engine_costs, machine
from .tags import measure_tags

_CHANGED = 200  # judged images that are also shown inverted and turned: as many as a family of probes has


@dataclass(frozen=True, slots=True)
class StudyOptions:
    """How to study a model.

    Attributes:
        limit: only the first so many rows; None for all.
        against: another model with the same classes, compared on the same rows.
        source: what the data is, for the page.
        role: what these rows were to the training: "test", "val", "train", "all", or "" if nothing says.
        dropped: rows of the source that could not be used, as ``prepare`` reports them.
        gallery: pictures of each kind of mistake.
        timing: measure every engine's latency (some seconds).
        probes: measure how strange images of something else look.
    """

    limit: int | None = None
    against: Classifier | None = None
    source: str = ""
    role: str = ""
    dropped: Mapping[str, Any] = field(default_factory=dict)
    gallery: int = 24
    timing: bool = True
    probes: bool = True


@dataclass(frozen=True, slots=True)
class Study:
    """A measured model.

    Attributes:
        metrics: the category head's numbers.
        document: the whole of ``metrics.json``; plain JSON types.
        data: the judged rows, numbered as the model numbers classes and tags.
    """

    metrics: Metrics
    document: dict[str, Any]
    data: Dataset


def study(
    classifier: Classifier, data: Dataset, options: StudyOptions | None = None, report: Report = silent
) -> Study:
    """Judge a classifier in every way the report shows.

    Raises:
        ValueError: other classes or pixels than the model's, no labelled row, or a limit below 1.
    """
    options = options or StudyOptions()
    data, known = judged_rows(data, classifier.manifest, options.limit)
    found = ask(classifier, data, report)
    labels, probabilities = data.labels[known], found.probabilities[known]
    manifest = classifier.manifest
    metrics = measure(labels, probabilities, manifest.labels, manifest.groups)
    document = {
        "model": manifest.name,
        "model_version": manifest.version,
        "model_hash": manifest.hash,
        "engine": classifier.engine,
        **metrics.to_dict(),
        "data": _data(data, len(known), options),
        "intervals": sections.intervals(metrics, probabilities, labels),
        "calibration": sections.calibration(found.logits[known], labels, manifest.temperature),
        "selective": sections.selective(probabilities, labels),
        "conformal": sections.conformal(manifest.conformal, probabilities, labels, manifest.labels),
        "abstention": _abstention(classifier, found, data, known, options.probes),
        "tags": _tags(classifier, found, data),
        "mistakes": _mistakes(metrics, found, data, known, options.gallery),
        "slices": sections.slices(data.images[known], probabilities.argmax(1) == labels),
        "against": _against(found, data, known, options.against, report),
        "engines": engine_costs(classifier.bundle, data) if options.timing else [],
        "machine": machine(),
        "training": _training(manifest),
        "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    return Study(metrics, plain(document), data)


def plain(value: Any) -> Any:
    """JSON types only: dataclasses become objects, numbers that are not finite become null.

    Python would write NaN and Infinity, which no other JSON parser reads.
    """
    if is_dataclass(value) and not isinstance(value, type):
        value = asdict(value)
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _data(data: Dataset, labelled: int, options: StudyOptions) -> dict[str, Any]:
    return {
        "source": options.source,
        "role": options.role,
        "dropped": dict(options.dropped),
        "rows": len(data),
        "labelled": labelled,
        "size": data.size,
        "channels": data.channels,
        "sha256": data.sha256,
    }


def _abstention(
    classifier: Classifier, found: Answers, data: Dataset, known: Labels, with_probes: bool
) -> dict[str, Any]:
    """The shipped thresholds on these rows, and how strange each family of probe images looks."""
    shipped = classifier.manifest.abstention
    rule = shipped or Abstention()
    scored = bool(np.isfinite(found.outlier).all())
    strange = {}
    for family, images in (_probe_images(data) if with_probes else {}).items():
        pixels = np.ascontiguousarray(images[:, None] if images.ndim == 3 else images)
        strange[family] = _strangeness(answers(classifier, classifier.outputs(pixels)), scored)
    threshold = rule.outlier_threshold if scored and shipped else None
    outlier, probabilities = found.outlier[known], found.probabilities[known]
    return {
        "shipped": shipped is not None,
        **sections.abstention(rule, outlier, probabilities, data.labels[known]),
        "score": "the model's outlier score" if scored else "1 - confidence",
        "probes": sections.probes(_strangeness(found, scored), strange, threshold),
    }


def _probe_images(data: Dataset) -> dict[str, NDArray[np.uint8]]:
    """Images of something else, then the judged images themselves, changed."""
    part = np.linspace(0, len(data) - 1, min(len(data), _CHANGED)).astype(np.int64)
    return probe_sets(data.size, data.channels) | altered(data.images[part])


def _strangeness(found: Answers, scored: bool) -> NDArray[np.float32]:
    """The outlier score, or how unsure the model is where it has none."""
    return found.outlier if scored else 1.0 - found.probabilities.max(1)


def _tags(classifier: Classifier, found: Answers, data: Dataset) -> dict[str, Any] | None:
    tags = classifier.manifest.tags
    if not tags or not (data.tags >= 0).any():
        return None
    names, thresholds = [tag.name for tag in tags], [tag.threshold for tag in tags]
    return sections.tag_section(measure_tags(data.tags, found.tags, names, thresholds), data.tags, found.tags)


def _mistakes(metrics: Metrics, found: Answers, data: Dataset, known: Labels, gallery: int) -> dict[str, Any]:
    names = [data.names[row] if data.names else f"row {row}" for row in known.tolist()]
    section = sections.mistakes(metrics, found.probabilities[known], data.labels[known], names, gallery)
    for entry in (*section["surest"], *section["suspected"]):
        entry["row"] = int(known[entry["row"]])
    return section


def _against(
    found: Answers, data: Dataset, known: Labels, other: Classifier | None, report: Report
) -> dict[str, Any] | None:
    """The other model on the same rows; its labels may be numbered in another order."""
    if other is None:
        return None
    theirs = fitted(data, other.manifest)
    said = ask(other, theirs, report, "other model").logits[known].argmax(1)
    right = found.logits[known].argmax(1) == data.labels[known]
    return {
        "model": other.manifest.name,
        "model_version": other.manifest.version,
        "model_hash": other.manifest.hash,
        "engine": other.engine,
        "parameter_count": other.manifest.parameter_count,
        **sections.versus(right, said == theirs.labels[known]),
    }


def _training(manifest: Manifest) -> dict[str, Any]:
    """What the bundle says about its own making."""
    return {
        "parameter_count": manifest.parameter_count,
        "architecture": manifest.architecture,
        "data": manifest.raw.get("data", {}),
        "provenance": manifest.raw.get("provenance", {}),
    }
