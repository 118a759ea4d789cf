"""A table as a training set: which column is the category, which are tags, which is the split."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from .arrays import NO, UNKNOWN, YES
from .columns import Located, locate, text
from .listing import SIDE_NAMES, TRAINING, Listing
from .options import DataOptions
from .tables import Table, open_table

_YES, _NO = {"1", "1.0", "true", "yes", "y", "t"}, {"0", "0.0", "false", "no", "n", "f"}
_MISSING = {"", "null", "nan"}
_MISSING_TAG = _MISSING | {"none", "na", "n/a"}
_MAX_CLASSES = 1000  # as many as ImageNet; a column with more is hardly a category
_MAX_BAD_TAGS = 0.1  # share of a column's values; above it the column is no tag


def list_table(path: Path, options: DataOptions) -> Listing:
    """The rows of a CSV or parquet file with their images, classes, tags and split.

    Raises:
        DataError: a column is missing or cannot be told; names it and what to type next.
        MissingExtra: a parquet file, and pyarrow is not installed.
    """
    table = open_table(path)
    located = locate(table, options.images, options.key)
    notes = [located.how]
    taken = {located.column, located.key, *table.binary}
    _check_tags(table, options)
    sides, problems = _sides(table, taken - set(options.tags), options.label)
    label = _label(table, options, taken | set(options.tags), notes)
    classes = _classes(table, label, problems)
    tags = np.full((table.rows, len(options.tags)), UNKNOWN, np.int8)
    for at, tag in enumerate(options.tags):
        tags[:, at] = _tag(table, tag, notes)
    _suggest_tags(table, taken | {label, *options.tags}, notes)
    for row, detail in table.damaged.items():
        problems[row] = ("damaged row", detail)
    return Listing(
        f"{'parquet' if table.binary or path.suffix.lower() in ('.parquet', '.pq') else 'CSV'} table",
        located.pictures,
        _names(table, located),
        classes,
        sides or [None] * table.rows,
        tags,
        options.tags,
        table.class_names.get(label, ()),
        problems=problems,
        notes=notes,
        columns={"image": located.column, "key": located.key, "label": label},
    )


def _check_tags(table: Table, options: DataOptions) -> None:
    """Raises DataError for a tag that is no column, is named twice, or is the category."""
    for tag in options.tags:
        table.require(tag, "--tags")
        if tag in table.binary or tag == options.label or options.tags.count(tag) > 1:
            why = "holds images" if tag in table.binary else "is named twice"
            raise DataError(f"{table.path}: column {tag!r} {why}; leave it out of --tags")


def _names(table: Table, located: Located) -> list[str]:
    """What people call the rows; made unique by the row's number, counted from 0."""
    if located.key is None:
        return [f"row {row}" for row in range(table.rows)]
    values = [
        f"row {row}" if value is None else text(value) for row, value in enumerate(table.values(located.key))
    ]
    if all(map(os.path.isabs, values)):
        # The same files on another machine lie below another root, and must be split the same way.
        root = os.path.commonpath(values)
        values = [os.path.relpath(value, root) for value in values]
    counts = Counter(values)
    return [value if counts[value] == 1 else f"{value} (row {row})" for row, value in enumerate(values)]


def _sides(
    table: Table, taken: set[str | None], label: str | None
) -> tuple[list[str | None], dict[int, tuple[str, str]]]:
    """(side of each row or [], rows whose side cannot be told) from a column named ``split``."""
    columns = [name for name in table.columns if name.lower() == "split" and name not in taken | {label}]
    if not columns:
        return [], {}
    found = [None if value is None else text(value) for value in table.values(columns[0])]
    sides = [SIDE_NAMES.get((value or "").lower()) for value in found]
    unknown = {
        row: ("no split", f"{columns[0]} is {found[row]!r}, not train, val or test")
        for row, side in enumerate(sides)
        if side is None
    }
    return (sides, unknown) if TRAINING in sides else ([], {})


def _label(table: Table, options: DataOptions, taken: set[str | None], notes: list[str]) -> str:
    """The category column: the one named, else the only plausible one.

    Raises:
        DataError: not in the table, no category, or not exactly one plausible; lists the columns.
    """
    if options.label is not None:
        column = table.require(options.label, "--label")
        distinct = len(_known(table.values(column))) if column not in table.binary else table.rows
        if distinct > 2 and 2 * distinct > table.rows:
            raise DataError(
                f"{table.path}: column {column!r} has {distinct} distinct values in {table.rows} rows, so it"
                f" is no category; choose another with --label. {_overview(table)}"
            )
        return column
    free = [name for name in table.columns if name not in taken]
    several = [name for name in free if _plausible(table, name)]
    binary = [
        name for name in several if {value.lower() for value in _known(table.values(name))} <= _YES | _NO
    ]
    plausible = [name for name in several if name not in binary] or binary
    if len(plausible) == 1:
        notes.append(f"column {plausible[0]!r} taken as the category, the only one that looks like it")
        return plausible[0]
    images = f" --images {options.images}" if options.images else ""
    best = plausible[0] if plausible else "COLUMN"
    found = (
        f"{len(plausible)} columns could be: {', '.join(plausible)}"
        if plausible
        else "no column looks like it"
    )
    raise DataError(
        f"{table.path}: which column is the category? {found}. {_overview(table)}."
        f' Next: couturier train {table.path}{images} --label "{best}"'
    )


def _plausible(table: Table, column: str) -> bool:
    values = table.values(column)
    if any(isinstance(value, float) and not value.is_integer() for value in values):
        return False
    known = _known(values)
    if column.lower() == "split" and {value.lower() for value in known} & set(SIDE_NAMES):
        return False
    return 2 <= len(known) <= max(2, min(_MAX_CLASSES, table.rows // 2))


def _overview(table: Table) -> str:
    counts = {name: len(_known(table.values(name))) for name in table.columns if name not in table.binary}
    return "Distinct values by column: " + ", ".join(f"{name} {count}" for name, count in counts.items())


def _known(values: Sequence[Any]) -> set[str]:
    return {text(value) for value in values if not _missing(value, _MISSING)}


def _missing(value: Any, words: set[str]) -> bool:
    return value is None or text(value).strip().lower() in words


def _classes(table: Table, column: str, problems: dict[int, tuple[str, str]]) -> list[str | None]:
    """The class of each row; numbers read as the names that the file states for them."""
    values, names = table.values(column), table.class_names.get(column)
    classes = [None if _missing(value, _MISSING) else text(value).strip() for value in values]
    # Where a column of whole numbers has gaps, pandas writes 3.0 for 3.
    if all(name is None or re.fullmatch(r"-?\d+\.0", name) for name in classes):
        classes = [name and name[:-2] for name in classes]
    if names is None:
        return classes
    named: list[str | None] = []
    for row, value in enumerate(classes):
        known = value is not None and value.isdecimal() and int(value) < len(names)
        named.append(names[int(value or 0)] if known else None)
        if not known and value not in (None, "-1"):  # -1 is how Hugging Face writes "not known"
            problems[row] = ("unknown class", f"{column} is {value}, the file names {len(names)} classes")
    return named


def _tag(table: Table, column: str, notes: list[str]) -> NDArray[np.int8]:
    """(N,) 1, 0 or -1; a value that is none of the accepted ones is noted and masked.

    Raises:
        DataError: more than a tenth of the values are not accepted, or none is known.
    """
    found = np.full(table.rows, UNKNOWN, np.int8)
    bad: list[str] = []
    for row, value in enumerate(table.values(column)):
        word = "" if value is None else text(value).strip().lower()
        if word in _YES or word in _NO:
            found[row] = YES if word in _YES else NO
        elif word not in _MISSING_TAG:
            bad.append(f"row {row}: {text(value)!r}")
    known = int((found != UNKNOWN).sum())
    if not known or len(bad) > _MAX_BAD_TAGS * (known + len(bad)):
        shown = f": {', '.join(bad[:10])}" if bad else ", all are missing"
        raise DataError(
            f"{table.path}: column {column!r} is no tag, {len(bad)} of its values are not 0/1, true/false or"
            f" yes/no{shown}. Correct them, or leave the column out of --tags"
        )
    if bad:
        notes.append(
            f"tag {column!r}: {len(bad)} values are no yes or no and count as missing: {', '.join(bad[:10])}"
        )
    return found


def _suggest_tags(table: Table, taken: set[str | None], notes: list[str]) -> None:
    binary = [
        name
        for name in table.columns
        if name not in taken and _known(table.values(name)) and _looks_binary(table.values(name))
    ]
    if binary:
        notes.append(f'columns that look like tags are not used; to learn them: --tags "{",".join(binary)}"')


def _looks_binary(values: Sequence[Any]) -> bool:
    return {text(value).strip().lower() for value in values if value is not None} <= _YES | _NO | _MISSING_TAG
