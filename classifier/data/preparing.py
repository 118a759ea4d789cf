"""From whatever the user has to a data set ready for training.

find the source -> list its rows -> look at a sample -> decode -> find twins -> split -> say so
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from ..images import Preprocessing
from .arrays import UNKNOWN, Dataset, dataset
from .decoding import Pixels, decode_rows
from .folder import list_folder
from .grouping import read_groups
from .idx_pairs import find_idx, list_fashion_mnist, list_idx
from .labelled import list_table
from .listing import SIDES, TEST, TRAINING, VAL, Listing, in_order
from .looks import choose, look
from .options import DataOptions, Dropped, Prepared, Report, silent
from .splitting import complete, rows_of, split_sha256
from .tables import is_table
from .twins import SHOWN, differing, duplicate_facts, twin_groups, twin_ids


@dataclass(frozen=True, slots=True)
class Form:
    """What a trained model expects of data: the fields of its manifest with these names."""

    preprocessing: Preprocessing
    class_names: tuple[str, ...]
    tag_names: tuple[str, ...] = ()


def prepare(
    path: str | os.PathLike[str] | None = None,
    options: DataOptions | None = None,
    report: Report = silent,
    form: Form | None = None,
) -> Prepared:
    """Find out what ``path`` is, read it, split it, and say what was found.

    Args:
        path: a folder of classes (with train, val and test above them or not), the same as a zip, a CSV or
            parquet table, an IDX file or a folder of them; None for Fashion-MNIST with its pinned hashes.
        options: what the user chose; the rest is found out.
        report: called while images are read.
        form: brings the data into the form of a trained model, to judge it: its preprocessing, classes and
            tags in their order. With the options of the training the split is the same, too.

    Raises:
        DataError: nothing usable; names the file, column or row and what to type next.
        MissingExtra: a parquet file, and pyarrow is not installed.
    """
    options = options or DataOptions()
    if path is None and options.polarity is None:
        # Fashion-MNIST is light on dark throughout, and what its models meet often is not; the rule changes
        # none of its own images (docs/results.md).
        options = replace(options, polarity="auto")
    listing = _list(path, options)
    try:
        return _Preparation(listing, options, form, report).run(path)
    finally:
        listing.pictures.close()


def _list(path: str | os.PathLike[str] | None, options: DataOptions) -> Listing:
    if path is None:
        return list_fashion_mnist()
    where = Path(path)
    if not where.exists():
        raise DataError(f"{where}: no such file or folder; name a folder of classes, a CSV or parquet table")
    if is_table(where):
        return list_table(where, options)
    if options.label is not None or options.tags or options.images is not None:
        raise DataError(
            f"{where}: --label, --tags and --images are for CSV and parquet tables; leave them out"
        )
    if files := find_idx(where):
        return list_idx(files)
    if where.is_dir() or where.suffix.lower() == ".zip":
        return list_folder(where)
    raise DataError(
        f"{where}: not a kind of data set; accepted are a folder or zip of class folders, .csv, .tsv,"
        " .parquet, and IDX files"
    )


class _Preparation:
    """The steps of one :func:`prepare`; rows are numbered as in the listing."""

    def __init__(self, listing: Listing, options: DataOptions, form: Form | None, report: Report) -> None:
        self.listing, self.options, self.form, self.report = listing, options, form, report
        self.problems = dict(listing.problems)

    def run(self, path: str | os.PathLike[str] | None) -> Prepared:
        listing = self.listing
        class_names = self._class_names()
        rows = [row for row in range(len(listing.names)) if row not in self.problems]
        if not rows:
            raise DataError(f"{path}: no row can be used: {self._reasons()}")
        looks = look(listing.pictures, rows)
        spec = self.form.preprocessing if self.form else choose(looks, self.options)
        pixels = decode_rows(listing.pictures, rows, spec, self.options, self.report)
        self.problems |= pixels.refused
        if not len(pixels.rows):
            elsewhere = path is not None and is_table(Path(path)) and self.options.images is None
            where = "; are they in another folder, or a zip? next: --images FOLDER" if elsewhere else ""
            raise DataError(f"{path}: no image can be used: {self._reasons()}{where}")
        groups = listing.groups
        if self.options.groups is not None:
            groups = read_groups(Path(self.options.groups), class_names)
        parts, facts = self._split(pixels, class_names)
        training = parts[TRAINING]
        if training is None:
            raise DataError(f"{path}: no row is left for training; dropped: {self._reasons()}")
        facts = {
            "source": "Fashion-MNIST" if path is None else Path(path).name,
            "kind": listing.kind,
            "columns": listing.columns,
            "rows": len(listing.names),
            "used": len(pixels.rows),
            "looks": looks.to_dict(),
            "preprocessing": spec.to_dict(),
            "pixels": {"bytes": int(pixels.images.nbytes), "in": "file" if pixels.file else "memory"},
            **facts,
            "groups": {name: list(members) for name, members in groups.items()},
            "dropped": self._dropped_facts(),
            "notes": listing.notes,
        }
        dropped = tuple(Dropped(listing.names[row], *self.problems[row]) for row in sorted(self.problems))
        return Prepared(training, parts[VAL], parts[TEST], spec, groups, facts, dropped)

    def _class_names(self) -> tuple[str, ...]:
        """The classes in order; marks the rows that have none of them and no tag either.

        Raises:
            DataError: fewer than two classes.
        """
        listing = self.listing
        trained = {
            name
            for row, (name, side) in enumerate(zip(listing.classes, listing.given, strict=True))
            if name is not None and side in (None, TRAINING) and row not in self.problems
        }
        if self.form:
            names = self.form.class_names
        else:
            names = tuple(name for name in listing.class_names if name in trained) or in_order(trained)
            if len(names) < 2:
                raise DataError(
                    f"a classifier needs two classes, found {', '.join(names) or 'none'}; rows without use:"
                    f" {self._reasons()}"
                )
        known = set(names)
        for row, name in enumerate(listing.classes):
            if name is not None and name not in known:
                why = "the model does not know it" if self.form else "no row for training has it"
                self.problems.setdefault(row, ("unknown class", f"{name!r}: {why}"))
            elif name is None and not (listing.tags[row] != UNKNOWN).any():
                self.problems.setdefault(row, ("no label", "neither the class nor a tag is known"))
        return names

    def _split(
        self, pixels: Pixels, class_names: tuple[str, ...]
    ) -> tuple[dict[str, Dataset | None], dict[str, Any]]:
        """The three sides, and what is to be said about rows, classes, tags and the split."""
        listing, options = self.listing, self.options
        number = {name: index for index, name in enumerate(class_names)}
        rows = pixels.rows.tolist()
        names = [listing.names[row] for row in rows]
        classes = [listing.classes[row] for row in rows]
        given = [listing.given[row] for row in rows]
        labels = np.array([UNKNOWN if name is None else number[name] for name in classes], np.int64)
        tags = self._tags(pixels.rows)
        tag_names = self.form.tag_names if self.form else listing.tag_names
        twins = twin_ids(pixels.digests)
        fractions = (options.val_fraction, options.test_fraction)
        sides = complete(given, names, labels, twins, fractions, options.seed)
        parts: dict[str, Dataset | None] = {}
        for side in SIDES:
            index = rows_of(sides, side)
            images = pixels.part(index, options.memory_bytes) if len(index) else None
            parts[side] = (
                images
                if images is None
                else dataset(
                    images,
                    labels[index],
                    class_names,
                    tags[index],
                    tag_names,
                    tuple(names[at] for at in index),
                )
            )
        groups = twin_groups(twins)
        return parts, {
            "classes": _counts(classes, class_names),
            "unlabelled": int((labels == UNKNOWN).sum()),
            "tags": _tag_facts(tags, tag_names),
            "split": {
                "given": [side for side in SIDES if side in given],
                "seed": options.seed,
                "val_fraction": options.val_fraction,
                "test_fraction": options.test_fraction,
                **{side: sides.count(side) for side in SIDES},
                "sha256": split_sha256(names, sides),
            },
            "sha256": {side: part.sha256 for side, part in parts.items() if part is not None},
            "duplicates": duplicate_facts(groups, names),
            "conflicts": differing(groups, names, classes),
            "leaks": differing(groups, names, sides),
        }

    def _tags(self, rows: NDArray[np.int64]) -> NDArray[np.int8]:
        """(M, T) in the model's order when there is one; a tag that the data lack is not known."""
        found = self.listing.tags[rows]
        if self.form is None:
            return found
        ordered = np.full((len(rows), len(self.form.tag_names)), UNKNOWN, np.int8)
        for at, name in enumerate(self.form.tag_names):
            if name in self.listing.tag_names:
                ordered[:, at] = found[:, self.listing.tag_names.index(name)]
        return ordered

    def _reasons(self) -> str:
        facts = self._dropped_facts()
        reasons = ", ".join(f"{count} {reason}" for reason, count in facts["reasons"].items())
        return f"{reasons or 'none'}{''.join(f'; {line}' for line in facts['first'][:3])}"

    def _dropped_facts(self) -> dict[str, Any]:
        reasons = Counter(reason for reason, _ in self.problems.values())
        first = sorted(self.problems)[:SHOWN]
        return {
            "count": len(self.problems),
            "reasons": dict(reasons.most_common()),
            "first": [f"{self.listing.names[row]}: {': '.join(self.problems[row])}" for row in first],
        }


def _counts(classes: Sequence[str | None], class_names: Sequence[str]) -> dict[str, int]:
    found = Counter(classes)
    return {name: found[name] for name in class_names}


def _tag_facts(tags: NDArray[np.int8], tag_names: Sequence[str]) -> dict[str, dict[str, Any]]:
    facts: dict[str, dict[str, Any]] = {}
    for at, name in enumerate(tag_names):
        yes, no = int((tags[:, at] == 1).sum()), int((tags[:, at] == 0).sum())
        prevalence = round(yes / (yes + no), 4) if yes + no else None
        facts[name] = {"yes": yes, "no": no, "missing": len(tags) - yes - no, "prevalence": prevalence}
    return facts
