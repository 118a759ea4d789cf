"""What every kind of source is turned into before an image is decoded."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from .pictures import Pictures

TRAINING, VAL, TEST = "training", "val", "test"
SIDES = (TRAINING, VAL, TEST)
# What people call the parts of a split, in folders and in columns.
SIDE_NAMES = {
    **dict.fromkeys(("train", "training"), TRAINING),
    **dict.fromkeys(("val", "valid", "validation", "dev"), VAL),
    **dict.fromkeys(("test", "testing"), TEST),
}


@dataclass(slots=True)
class Listing:
    """The rows of a source.

    Attributes:
        kind: the kind of source, for people.
        pictures: the image of each row.
        names: a unique name of each row, the same on every machine.
        classes: the class of each row, None where not known.
        given: the side of each row (one of :data:`SIDES`), None where the source does not say.
        tags: (N, T) int8, 1 yes, 0 no, -1 not known.
        tag_names: the T tags.
        class_names: the classes in order, where the source states them; () otherwise.
        groups: coarse groups that come with the source.
        problems: rows that cannot be used, with (reason, detail).
        notes: what was found out or passed over, one line each.
        columns: of a table, which one is the "image", the "key" and the "label".
    """

    kind: str
    pictures: Pictures
    names: list[str]
    classes: list[str | None]
    given: list[str | None]
    tags: NDArray[np.int8]
    tag_names: tuple[str, ...] = ()
    class_names: tuple[str, ...] = ()
    groups: dict[str, tuple[str, ...]] = field(default_factory=dict)
    problems: dict[int, tuple[str, str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    columns: dict[str, str | None] = field(default_factory=dict)


def no_tags(rows: int) -> NDArray[np.int8]:
    """(rows, 0) int8."""
    return np.empty((rows, 0), np.int8)


def in_order(names: Iterable[str]) -> tuple[str, ...]:
    """Distinct names, by number when all are whole numbers, else by the alphabet."""
    distinct = sorted(set(names))
    try:
        return tuple(sorted(distinct, key=int))
    except ValueError:
        return tuple(distinct)
