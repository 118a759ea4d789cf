"""Which rows a model is judged on: those its training held out, if the data are its own."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..bundle import Manifest
from ..data import DataOptions, Dataset, Form, Prepared, dataset, prepare, validation_set
from ..data.tables import is_table, open_table
from ..errors import DataError
from .answers import Report, silent

SPLITS = ("test", "val", "train", "all")


@dataclass(frozen=True, slots=True)
class Source:
    """The rows to judge.

    Attributes:
        data: the rows, with classes and tags numbered as the model numbers them.
        title: what they are, for people.
        role: what they were to the model's training: "test", "val", "train", "all", or "" if nothing says.
        facts: what :func:`classifier.data.prepare` found; {} for the shipped images.
    """

    data: Dataset
    title: str
    role: str
    facts: dict[str, Any]


def find_rows(
    manifest: Manifest,
    path: Path | None = None,
    options: DataOptions | None = None,
    split: str | None = None,
    report: Report = silent,
) -> Source:
    """Read the rows to judge.

    Args:
        manifest: of the model; how its training split the data is taken from it.
        path: the data; None for the 10,000 validation images shipped with this package.
        options: how to read a table; without a label column or tags, those of the training that the table
            has. Fractions and seed count only where the manifest records none.
        split: one of :data:`SPLITS`. None for the test split of the training's own data, all rows of other
            data, and the shipped images.
        report: called while images are read.

    Raises:
        DataError: nothing usable, or the split has no rows.
        ValueError: unknown split.
    """
    if split not in (None, *SPLITS):
        raise ValueError(f"unknown split {split!r}, choose one of {', '.join(SPLITS)}")
    if path is None and split in (None, "test"):
        shipped = validation_set()
        return Source(shipped, "Fashion-MNIST, the shipped test images", _role(manifest, shipped), {})
    recorded = manifest.raw.get("data", {}).get("split") or {}
    form = Form(manifest.preprocessing, manifest.labels, tuple(tag.name for tag in manifest.tags))
    prepared = prepare(path, _as_trained(manifest, path, options or DataOptions()), report, form)
    own = bool(recorded) and prepared.facts["split"]["sha256"] == recorded.get("sha256")
    parts = {"train": prepared.training, "val": prepared.val, "test": prepared.test}
    wanted = split or ("test" if own and prepared.test else "all")
    data = _joined(prepared) if wanted == "all" else parts[wanted]
    name = prepared.facts["source"]
    if data is None:
        sizes = ", ".join(f"{side} {len(part)}" for side, part in parts.items() if part)
        raise DataError(f"{name} has no {wanted} split ({sizes} rows); choose another with --split")
    title = f"{name}, {'all rows' if wanted == 'all' else f'the {wanted} split'}"
    return Source(data, title, wanted if own else _role(manifest, data), prepared.facts)


def _as_trained(manifest: Manifest, path: Path | None, options: DataOptions) -> DataOptions:
    """``options`` with the split of the training, and its columns where the table has them."""
    recorded = manifest.raw.get("data", {})
    split, columns = recorded.get("split") or {}, recorded.get("columns") or {}
    known: dict[str, Any] = {
        key: split[key] for key in ("seed", "val_fraction", "test_fraction") if key in split
    }
    if path is not None and path.is_file() and is_table(path):
        there = open_table(path).columns
        if options.label is None and columns.get("label") in there:
            known["label"] = columns["label"]
        if not options.tags:
            known["tags"] = tuple(tag.name for tag in manifest.tags if tag.name in there)
    return replace(options, **known)


def _role(manifest: Manifest, data: Dataset) -> str:
    """The side with this content in the training's own record."""
    recorded = manifest.raw.get("data", {}).get("sha256") or {}
    if isinstance(recorded, dict):
        for side, sha256 in recorded.items():
            if sha256 == data.sha256:
                return "train" if side == "training" else str(side)
    on = manifest.raw.get("metrics_on") or {}
    return "test" if on.get("sha256") == data.sha256 and on.get("split") in ("card", "test") else ""


def _joined(prepared: Prepared) -> Dataset:
    """All rows, held out or not."""
    parts = [part for part in (prepared.training, prepared.val, prepared.test) if part]
    if len(parts) == 1:
        return parts[0]
    return dataset(
        np.concatenate([part.images for part in parts]),
        np.concatenate([part.labels for part in parts]),
        parts[0].class_names,
        np.concatenate([part.tags for part in parts]),
        parts[0].tag_names,
        tuple(name for part in parts for name in part.names),
    )
