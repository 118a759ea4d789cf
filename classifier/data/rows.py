"""The rows of any source for prediction: in input order, each with its image or why there is none."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from ..errors import DataError
from .columns import locate
from .pictures import Pictures, StoredPictures
from .store import ImageStore, readable
from .tables import is_table, open_table


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows to classify; close it, or use it as a context manager.

    Attributes:
        keys: what identifies each row, in input order, with the type the table gives it.
        key_name: the column they come from; "row" when they are only counted (from 0), "path" for files.
        how: one line that says where the images are.
        others: files beside them that are no PNG or JPEG by their names, counted by suffix.
    """

    keys: tuple[Any, ...]
    key_name: str
    how: str
    _pictures: Pictures
    others: Mapping[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.keys)

    def __iter__(self) -> Iterator[tuple[Any, bytes | DataError]]:
        """Yield (key, encoded image or why there is none); memory holds a few at a time.

        Raises:
            DataError: the source itself went away or is damaged.
        """
        return zip(self.keys, self._pictures.read(range(len(self))), strict=True)

    def __enter__(self) -> Rows:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the files."""
        self._pictures.close()


def open_rows(
    path: str | os.PathLike[str], images: str | os.PathLike[str] | None = None, key: str | None = None
) -> Rows:
    """Open a table (CSV, parquet), a folder or a zip of images; labels are neither needed nor read.

    Args:
        path: the source.
        images: folder or zip with the images of a table that only names them.
        key: the column that names (with ``images``) or identifies the rows; None finds it out.

    Raises:
        DataError: missing, unreadable, or no column fits; says what to type next.
        MissingExtra: a parquet file, and pyarrow is not installed.
    """
    path = Path(path)
    if not path.exists():
        raise DataError(f"{path}: no such file or folder")
    if not is_table(path):
        store = ImageStore(path)
        keys = tuple(map(readable, store.names))
        return Rows(
            keys, "path", f"{len(keys)} images", StoredPictures([(store, name) for name in store.names])
        )
    table = open_table(path)
    found = locate(table, images, key)
    if found.key is None:
        return Rows(tuple(range(table.rows)), "row", found.how, found.pictures)
    return Rows(tuple(table.values(found.key)), found.key, found.how, found.pictures)
