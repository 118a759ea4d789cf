"""Which column of a table is what: image, key, category, tags, split."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import DataError
from .pictures import ParquetPictures, Pictures, StoredPictures, spread
from .store import SUFFIXES, FilesBeside, ImageStore
from .tables import Table

# Files of other kinds are paths, too: each is then refused by its name and kind.
_PATHS = (*SUFFIXES, ".gif", ".bmp", ".webp", ".tif", ".tiff")
_LOOK_ROWS = 200  # values of a column that are looked at to tell what it is


@dataclass(frozen=True, slots=True)
class Located:
    """Where a table's images are.

    Attributes:
        pictures: one a row.
        column: the column that holds or names the images.
        key: the column that identifies the rows; None when they can only be counted.
        how: one line for people.
    """

    pictures: Pictures
    column: str
    key: str | None
    how: str


def locate(table: Table, images: str | os.PathLike[str] | None = None, key: str | None = None) -> Located:
    """Find a table's images.

    With ``images`` a column must name the files in that folder or zip (path, file name or stem);
    without, the table holds the bytes, or paths relative to the folder in which it lies.

    Args:
        table: the table.
        images: folder or zip of images, or None.
        key: the column to use for it; None finds it out.

    Raises:
        DataError: no column fits, or several do; lists the columns and the command to type.
    """
    if key is not None:
        table.require(key, "--key")
    if images is not None:
        return _in_store(table, ImageStore(Path(images)), key)
    if table.binary:
        column = key if key in table.binary else _only(table, table.binary, "bytes")
        pictures: Pictures = ParquetPictures(table.path, column, table.rows)
        name = key if key not in (None, column) else _identifier(table, column)
        return Located(pictures, column, name, f"image bytes in column {column!r}")
    return _by_path(table, key)


def _in_store(table: Table, store: ImageStore, key: str | None) -> Located:
    if not store.names:
        raise DataError(f"{store.path}: holds no PNG or JPEG file, only {dict(store.others) or 'nothing'}")
    column = key or _matching(table, store)
    refs: list[tuple[ImageStore, str] | DataError] = []
    for row, value in enumerate(table.values(column)):
        if value is None:
            refs.append(DataError(table.damaged.get(row, f"the row has no {column}")))
            continue
        found = store.find(text(value))
        refs.append(found if isinstance(found, DataError) else (store, found))
    pictures = StoredPictures(refs)
    return Located(pictures, column, column, f"images of {store.path.name} named by column {column!r}")


def _matching(table: Table, store: ImageStore) -> str:
    """The column whose values name the most images of the store, each counted once.

    Raises:
        DataError: no column names any.
    """
    scores: dict[str, int] = {}
    for column in table.columns:
        if column not in table.binary:
            values = {text(value) for value in _look(table.values(column))}
            found = {name for name in map(store.find, values) if isinstance(name, str)}
            scores[column] = len(found)
    best = max(scores, key=lambda column: scores[column], default="")
    if not scores.get(best):
        first = {column: text(next(iter(_look(table.values(column))), "")) for column in scores}
        raise DataError(
            f"{table.path}: no column names the images of {store.path}. First values: {first}; first image:"
            f" {store.names[0]!r}. Next: name the column with --key, or other images with --images"
        )
    return best


def _by_path(table: Table, key: str | None) -> Located:
    def paths(column: str) -> bool:
        values = [text(value) for value in _look(table.values(column))]
        return 2 * sum(value.lower().endswith(_PATHS) for value in values) > len(values)

    found = [column for column in table.columns if paths(column)]
    if key is not None and key in found:
        found = [key]
    if not found:
        places = [path for path in table.path.parent.glob("[!._]*") if path.suffix == ".zip" or path.is_dir()]
        place = places[0] if len(places) == 1 else "FOLDER_OR_ZIP"
        raise DataError(
            f"{table.path}: no column holds images or paths of images: {', '.join(table.columns)}."
            f" Next: name the place of the images with --images {place}"
        )
    column = _only(table, found, "paths")
    if any(text(value).lower().startswith(("http://", "https://")) for value in _look(table.values(column))):
        raise DataError(
            f"{table.path}: column {column!r} holds web addresses; download the images into a folder first"
            " and name it with --images FOLDER"
        )
    root = FilesBeside(table.path.parent)
    refs: list[tuple[ImageStore, str] | DataError] = []
    for row, value in enumerate(table.values(column)):
        if value is None:
            refs.append(DataError(table.damaged.get(row, f"the row has no {column}")))
        else:
            refs.append((root, text(value).replace("\\", "/")))
    return Located(StoredPictures(refs), column, key or column, f"image paths in column {column!r}")


def _only(table: Table, columns: Sequence[str], what: str) -> str:
    if len(columns) > 1:
        raise DataError(
            f"{table.path}: several columns hold {what} of images: {', '.join(columns)};"
            f' choose one with --key "{columns[0]}"'
        )
    return columns[0]


def _identifier(table: Table, image: str) -> str | None:
    """A column of distinct values that can name the rows, or None."""
    for column in table.columns:
        if column != image and column not in table.binary:
            values = table.values(column)
            if all(isinstance(value, str | int) for value in values) and len(set(values)) == len(values):
                return column
    return None


def _look(values: Sequence[Any]) -> list[Any]:
    """Some of the values that are not missing."""
    known = [value for value in values if value is not None]
    return [known[at] for at in spread(len(known), _LOOK_ROWS)]


def text(value: Any) -> str:
    """A value as a name: whole numbers without a decimal point, whatever the file's type is."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
