"""Images from files, folders and zips, in a fixed order."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from .errors import DataError
from .images import Preprocessing

SUFFIXES = (".png", ".jpg", ".jpeg")
# One byte past the decoder's cap: enough for it to refuse the image, without unpacking a zip bomb.
_READ_BYTES = Preprocessing().max_bytes + 1


def iter_images(paths: Iterable[str | os.PathLike[str]]) -> Iterator[tuple[str, bytes]]:
    """Yield (name, content) for every image.

    A file named directly is taken whatever its suffix; folders (recursively, sorted) and
    zips contribute their ``.png``, ``.jpg`` and ``.jpeg`` members. Names of zip members
    read ``archive.zip/member.png``. At most the decoder's byte cap plus one is read of each.

    Raises:
        DataError: a path does not exist, cannot be read, or is a damaged zip.
    """
    for path in map(Path, paths):
        if not path.exists():
            raise DataError(f"{path}: no such file or folder")
        try:
            yield from _below(path)
        except (OSError, zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
            raise DataError(f"{path}: cannot be read ({error})") from error


def _below(path: Path) -> Iterator[tuple[str, bytes]]:
    if path.is_dir():
        for file in sorted(path.rglob("*")):
            if file.is_file() and file.suffix.lower() in SUFFIXES:
                yield str(file), _read(file)
    elif path.suffix.lower() == ".zip":
        with zipfile.ZipFile(path) as archive:
            for member in sorted(archive.namelist()):
                if member.lower().endswith(SUFFIXES):
                    with archive.open(member) as packed:
                        yield f"{path}/{member}", packed.read(_READ_BYTES)
    else:
        yield str(path), _read(path)


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(_READ_BYTES)
