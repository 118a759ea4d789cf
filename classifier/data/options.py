"""What a user may say about a data set, and what comes of it."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..images import Preprocessing
from .arrays import Dataset

# Called with (what is being done, rows done, rows in all) while a data set is read.
Report = Callable[[str, int, int], None]


def silent(what: str, done: int, total: int) -> None:
    """Report nothing."""


@dataclass(frozen=True, slots=True)
class DataOptions:
    """Choices about a data set; None and () mean "find it out and say so".

    Attributes:
        images: folder or zip with the images of a table.
        label: the table's category column.
        tags: the table's binary columns to be learnt beside the category.
        groups: JSON or two-column CSV file that maps classes to coarse groups.
        key: the column that names each row's image in ``images`` (path, file name or stem).
        size: side of the network's input in pixels.
        channels: 1 for gray, 3 for colour.
        polarity: see :class:`classifier.images.Preprocessing`; a set keeps its own by default.
        val_fraction, test_fraction: held-out shares, where the source does not say who is.
        seed: chooses who is held out.
        cache: directory for decoded pixels that are too large for memory;
            default ``$XDG_CACHE_HOME/couturier/decoded``.
        memory_bytes: decoded pixels above this go to a file in ``cache``.
        cache_bytes: what ``cache`` may hold; what was used longest ago makes room for new sets.
    """

    images: str | os.PathLike[str] | None = None
    label: str | None = None
    tags: tuple[str, ...] = ()
    groups: str | os.PathLike[str] | None = None
    key: str | None = None
    size: int | None = None
    channels: int | None = None
    polarity: str | None = None
    val_fraction: float = 0.1
    test_fraction: float = 0.1
    seed: int = 0
    cache: str | os.PathLike[str] | None = None
    memory_bytes: int = 1 << 30
    cache_bytes: int = 32 << 30

    def __post_init__(self) -> None:
        if isinstance(self.tags, str):
            raise ValueError(f"tags must be a tuple of column names, got the text {self.tags!r}")
        shares = (self.val_fraction, self.test_fraction)
        if min(shares) < 0 or sum(shares) >= 1:
            raise ValueError(
                f"val_fraction and test_fraction must be >= 0 and below 1 together, got {shares}"
            )
        if self.channels not in (None, 1, 3):
            raise ValueError(f"channels must be 1 (gray) or 3 (colour), got {self.channels}")
        if self.size is not None and not 8 <= self.size <= 512:
            raise ValueError(f"size must be 8 to 512 pixels, got {self.size}")


@dataclass(frozen=True, slots=True)
class Dropped:
    """One row that is not used: its name in the source, why in one word or two, and the details."""

    name: str
    reason: str
    detail: str


@dataclass(frozen=True, slots=True)
class Prepared:
    """A data set ready for training.

    Attributes:
        training: the rows to learn from.
        val: rows for choices (early stop, thresholds, temperature), or None with ``val_fraction`` 0.
        test: rows to judge the result once, or None where the source holds out none.
        preprocessing: how bytes become pixels; the bundle must record the same.
        groups: coarse groups of the classes; {} without a map.
        facts: what the manifest records about the data, JSON-ready.
        dropped: every row left out.
    """

    training: Dataset
    val: Dataset | None
    test: Dataset | None
    preprocessing: Preprocessing
    groups: dict[str, tuple[str, ...]]
    facts: dict[str, Any]
    dropped: tuple[Dropped, ...] = ()

    def describe(self) -> str:
        """What was found, in plain lines, to be echoed before training."""
        from .describing import describe

        return describe(self.facts)

    def write_dropped(self, path: Path) -> None:
        """Write every dropped row to a CSV file with the columns name, reason, detail."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(("name", "reason", "detail"))
            writer.writerows((row.name, row.reason, row.detail) for row in self.dropped)
