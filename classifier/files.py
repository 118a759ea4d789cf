"""Images from files, folders and zips, in a fixed order."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from .data.pictures import StoredPictures
from .data.rows import Rows
from .data.store import FilesBeside, ImageStore, readable
from .errors import DataError


def file_rows(paths: Iterable[str | os.PathLike[str]]) -> Rows:
    """The images in files, folders and zips as rows whose key is the path; close it after use.

    A file named directly is taken whatever its suffix; folders (recursively, sorted) and
    zips contribute their ``.png``, ``.jpg`` and ``.jpeg`` members. Names of zip members
    read ``archive.zip/member.png``. At most the decoder's byte cap plus one is read of each.

    Raises:
        DataError: a path does not exist, or a folder or zip cannot be read.
    """
    keys: list[str] = []
    refs: list[tuple[ImageStore, str] | DataError] = []
    others = Counter[str]()
    for path in map(Path, paths):
        if not path.exists():
            raise DataError(f"{path}: no such file or folder")
        if path.is_dir() or path.suffix.lower() == ".zip":
            store = ImageStore(path)
            keys += [readable(str(path / name)) for name in store.names]
            refs += [(store, name) for name in store.names]
            others += store.others
        else:
            keys.append(readable(str(path)))
            refs.append((FilesBeside(path.parent), path.name))
    return Rows(tuple(keys), "path", f"{len(keys)} images", StoredPictures(refs), others)


def iter_images(paths: Iterable[str | os.PathLike[str]]) -> Iterator[tuple[str, bytes]]:
    """Yield (name, content) for every image that :func:`file_rows` finds.

    Raises:
        DataError: as there, or one of the images cannot be read.
    """
    with file_rows(paths) as rows:
        for name, content in rows:
            if isinstance(content, DataError):
                raise content
            yield name, content
