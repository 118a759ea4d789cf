"""Ask a classifier about every row of a data set."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ..bundle import Manifest
from ..data import Dataset
from ..engines import Outputs
from ..metrics import Labels, sigmoid, softmax
from ..predict import Classifier

# Called with (what is being done, rows done, rows in all).
Report = Callable[[str, int, int], None]
_BLOCK = 1024


@dataclass(frozen=True, slots=True)
class Answers:
    """What a classifier says about N images.

    Attributes:
        logits: (N, K) raw outputs.
        probabilities: (N, K) calibrated.
        tags: (N, T) probabilities of the tags.
        outlier: (N,) higher is stranger; NaN without an outlier score.
    """

    logits: NDArray[np.float32]
    probabilities: NDArray[np.float32]
    tags: NDArray[np.float32]
    outlier: NDArray[np.float32]


def silent(what: str, done: int, total: int) -> None:
    """Report nothing."""


def ask(classifier: Classifier, data: Dataset, report: Report = silent, what: str = "images") -> Answers:
    """Run a classifier over a data set in blocks, so that a memory-mapped one never stands in memory.

    Raises:
        ValueError: the pixels have another size or other channels than the model takes.
    """
    blocks = []
    for start in range(0, len(data), _BLOCK):
        blocks.append(classifier.outputs(data.pixels(slice(start, start + _BLOCK))))
        report(what, min(start + _BLOCK, len(data)), len(data))
    return answers(classifier, Outputs(*(np.concatenate(part) for part in zip(*blocks, strict=True))))


def answers(classifier: Classifier, outputs: Outputs) -> Answers:
    """Raw outputs as probabilities."""
    probabilities = softmax(outputs.logits, classifier.manifest.temperature)
    return Answers(outputs.logits, probabilities, sigmoid(outputs.tag_logits), outputs.outlier)


def fitted(data: Dataset, manifest: Manifest) -> Dataset:
    """``data`` with labels and tags numbered as the model numbers them.

    The data set may hold fewer classes, in another order, and tags that the model does not know are
    dropped; tags that only the model knows become unknown.

    Raises:
        ValueError: a class that the model cannot name.
    """
    if unknown := [name for name in data.class_names if name not in manifest.labels]:
        raise ValueError(
            f"the data set's classes {unknown} are not the model's {list(manifest.labels)};"
            " name a model trained on them with --model, or train one: couturier train DATA"
        )
    names = tuple(tag.name for tag in manifest.tags)
    if data.class_names == manifest.labels and data.tag_names == names:
        return data
    # The last entry is what label -1 picks.
    number = np.array([*(manifest.labels.index(name) for name in data.class_names), -1], np.int64)
    tags = np.full((len(data), len(names)), -1, np.int8)
    for at, name in enumerate(data.tag_names):
        if name in names:
            tags[:, names.index(name)] = data.tags[:, at]
    return replace(data, labels=number[data.labels], class_names=manifest.labels, tags=tags, tag_names=names)


def judged_rows(data: Dataset, manifest: Manifest, limit: int | None) -> tuple[Dataset, Labels]:
    """The first ``limit`` rows, numbered as the model does, and which of them have a label.

    Raises:
        ValueError: a class that the model cannot name, no label at all, or a limit below 1.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be at least 1, got {limit}")
    if limit is not None and limit < len(data):
        data = data.take(np.arange(limit))
    data = fitted(data, manifest)
    known = np.flatnonzero(data.labels >= 0)
    if not len(known):
        raise ValueError(f"none of the {len(data)} rows has a label; name the category column with --label")
    return data, known
