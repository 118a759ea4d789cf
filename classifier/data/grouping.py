"""Coarse groups of classes, from a file."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from ..errors import DataError


def read_groups(path: Path, class_names: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Group -> its classes, in the order of the file.

    The file is JSON, ``{"group": ["class", ...]}`` or ``{"class": "group"}``, or CSV with the columns
    class and group (in this order; a heading is recognised because it is no class).

    Raises:
        DataError: unreadable, or the groups do not hold every class exactly once; names the classes.
    """
    try:
        content = path.read_text(encoding="utf-8-sig")
        pairs = list(
            _from_csv(content, class_names) if path.suffix.lower() == ".csv" else _from_json(content)
        )
    except (OSError, ValueError, csv.Error) as error:
        raise DataError(
            f"{path}: not a map of groups ({error}); write JSON such as"
            f' {{"group": ["{class_names[0]}"]}} or a CSV with the columns class,group'
        ) from error
    unknown = [name for name, _ in pairs if name not in class_names]
    if unknown:
        raise DataError(
            f"{path}: {', '.join(map(repr, unknown[:10]))} are no classes of the data set, which has"
            f" {', '.join(class_names)}"
        )
    seen = [name for name, _ in pairs]
    twice = sorted({name for name in seen if seen.count(name) > 1})
    lacking = [name for name in class_names if name not in seen]
    if twice or lacking:
        found = f"{', '.join(twice)} in several groups" if twice else f"{', '.join(lacking)} in no group"
        raise DataError(f"{path}: every class needs exactly one group, but {found}")
    groups: dict[str, tuple[str, ...]] = {}
    for name, group in pairs:
        groups[group] = (*groups.get(group, ()), name)
    return groups


def _from_json(content: str) -> Iterable[tuple[str, str]]:
    """(class, group) pairs.

    Raises:
        ValueError: not JSON, or of another form.
    """
    document = json.loads(content)
    if not isinstance(document, dict) or not document:
        raise ValueError("no object with groups")
    for key, value in document.items():
        if isinstance(value, list):
            yield from ((str(name), key) for name in value)
        elif isinstance(value, str):
            yield key, value
        else:
            raise ValueError(f"{key!r} maps to {value!r}")


def _from_csv(content: str, class_names: Sequence[str]) -> Iterable[tuple[str, str]]:
    lines = [[field.strip() for field in line] for line in csv.reader(content.splitlines()) if line]
    for at, line in enumerate(lines):
        if len(line) != 2:
            raise ValueError(f"line {at + 1} has {len(line)} columns, not two")
        if at or line[0] in class_names:
            yield line[0], line[1]
