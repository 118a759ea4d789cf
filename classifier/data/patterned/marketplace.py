"""Patterned garments in the marketplace layout: a zip of JPEG files beside parquet tables."""

from __future__ import annotations

import io
import os
import uuid
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ...errors import DataError
from ..arrays import Dataset
from ..fashion_mnist import GROUPS, TRAINING, load_fashion_mnist, places, validation_set
from ..options import Report, silent
from ..tables import import_arrow, write_table
from .drawing import draw, usable
from .styles import CATEGORIES, TAGS, TRAINED, Style

MISSING = 0.03  # share of the tags that nobody filled in
HELD_OUT = 5  # every fifth silhouette is drawn for tests only
_CHUNK = 4000  # silhouettes looked at together: about 100 MB


@dataclass(frozen=True, slots=True)
class Row:
    """One garment of the set: its name, its JPEG file and what is true of it."""

    uuid: str
    jpeg: bytes
    category: str
    color: str
    tags: tuple[int, int, int]


def write_marketplace(
    directory: str | os.PathLike[str],
    rows: int,
    test_rows: int = 0,
    seed: int = 0,
    style: Style = TRAINED,
    source: Dataset | None = None,
    report: Report = silent,
) -> None:
    """Write a data set as a marketplace would hand it over.

    ``data.zip`` (every image, half of them in folders, file stem = uuid), ``data.parquet``
    (uuid, cc3, color1, one 0/1 column a tag, some of them empty), ``test.parquet`` (uuid
    alone) and ``test_truth.parquet`` (the columns of ``data.parquet``, none empty).
    The same arguments give the same bytes.

    Args:
        directory: made if missing; files in it are replaced.
        rows: rows of ``data.parquet``.
        test_rows: rows of ``test.parquet``; with 0 neither test table is written.
        seed: decides everything that ``style`` leaves open.
        style: how garments look.
        source: Fashion-MNIST images to cut out; default: the 60,000 training images where
            they are installed, else the 10,000 that ship with this package.
        report: called with ("drawing", rows done, rows in all).

    Raises:
        ValueError: a count is out of range.
        DataError: the directory cannot be written.
        MissingExtra: pyarrow is not installed.
    """
    if rows < 1 or test_rows < 0:
        raise ValueError(f"need rows >= 1 and test_rows >= 0, got {rows} and {test_rows}")
    import_arrow()
    out, source = Path(directory), source or silhouettes()
    try:
        out.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(out / "data.zip", "w") as archive:
            total = rows + test_rows
            training = _store(archive, garments(rows, seed, style, source), 0, total, report)
            test = _store(archive, garments(test_rows, seed, style, source, test=True), rows, total, report)
    except OSError as error:
        raise DataError(
            f"{out}: cannot be written ({error.strerror or error}); name another directory"
        ) from error
    write_table(out / "data.parquet", _columns(training, np.random.default_rng([seed, 2])))
    if test_rows:
        write_table(out / "test.parquet", {"uuid": [row.uuid for row in test]})
        write_table(out / "test_truth.parquet", _columns(test, None))


def garments(count: int, seed: int, style: Style, source: Dataset, test: bool = False) -> Iterator[Row]:
    """Draw ``count`` garments; those for a test never share a silhouette with the others, whatever the seed.

    Row i depends on the style, the seed and i alone, apart from its silhouette: those are used in turn,
    so that none comes twice before all of its category came once.
    """
    pools = _pools(source, test)
    for pool in pools.values():
        np.random.default_rng([seed, 3]).shuffle(pool)
    used = dict.fromkeys(pools, 0)
    for at in range(count):
        rng = np.random.default_rng([seed, int(test), at])
        category = str(rng.choice(list(CATEGORIES), p=list(CATEGORIES.values())))
        pool = pools[category]
        silhouette = source.images[pool[used[category] % len(pool)]]
        used[category] += 1
        name = str(uuid.UUID(bytes=rng.bytes(16), version=4))
        garment = draw(silhouette, style, rng)
        file = io.BytesIO()
        Image.fromarray(garment.pixels).save(file, "JPEG", quality=int(rng.integers(*style.quality)))
        yield Row(name, file.getvalue(), category, garment.color, garment.tags)


def silhouettes() -> Dataset:
    """The training images if they are on this machine, else the shipped ones; nothing is downloaded."""
    for _, directory in places():
        if directory.is_dir():
            try:
                return load_fashion_mnist(TRAINING, directory)
            except DataError:
                continue
    return validation_set()


def _pools(source: Dataset, test: bool) -> dict[str, NDArray[np.int64]]:
    """The silhouettes of each category that can carry a print, for tests or for the rest."""
    chosen = np.flatnonzero((np.arange(len(source)) % HELD_OUT == 0) == test)
    parts = [chosen[at : at + _CHUNK] for at in range(0, len(chosen), _CHUNK)]
    plain = np.concatenate([part[usable(source.images[part])] for part in parts])
    pools = {
        category: plain[np.isin(source.labels[plain], [source.class_names.index(name) for name in names])]
        for category, names in GROUPS.items()
    }
    empty = [category for category, pool in pools.items() if not len(pool)]
    if empty:
        raise DataError(
            f"among {len(source)} images none can be cut out as {', '.join(empty)}; give more images"
        )
    return pools


def _store(archive: zipfile.ZipFile, rows: Iterator[Row], done: int, total: int, report: Report) -> list[Row]:
    """Write the images as they are drawn and keep the rest of the rows."""
    kept = []
    for at, row in enumerate(rows):
        folder = f"{row.uuid[:2]}/" if at % 2 else ""
        # ZipInfo's own date is fixed, so that the same seed gives the same archive.
        archive.writestr(zipfile.ZipInfo(f"{folder}{row.uuid}.jpg"), row.jpeg)
        kept.append(Row(row.uuid, b"", row.category, row.color, row.tags))
        report("drawing", done + at + 1, total)
    return kept


def _columns(rows: Sequence[Row], forget: np.random.Generator | None) -> dict[str, list[str | int | None]]:
    """The table; ``forget`` draws the tags that are left empty."""
    lost = (
        np.zeros((len(rows), len(TAGS)))
        if forget is None
        else forget.random((len(rows), len(TAGS))) < MISSING
    )
    columns: dict[str, list[str | int | None]] = {
        "uuid": [row.uuid for row in rows],
        "cc3": [row.category for row in rows],
        "color1": [row.color for row in rows],
    }
    for at, tag in enumerate(TAGS):
        columns[tag] = [None if gone else row.tags[at] for row, gone in zip(rows, lost[:, at], strict=True)]
    return columns
