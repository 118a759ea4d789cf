"""Images in a folder or a zip: listed in one order on every machine, found by path, name or stem."""

from __future__ import annotations

import lzma
import os
import struct
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from hashlib import sha256
from pathlib import Path

from ..errors import DataError
from ..images import Preprocessing

SUFFIXES = (".png", ".jpg", ".jpeg")
# One byte past the decoder's cap: enough for it to refuse the image, without unpacking a zip bomb.
_READ_BYTES = Preprocessing().max_bytes + 1
_NOT_FILES = {"__MACOSX", "Thumbs.db", "desktop.ini"}  # what macOS and Windows leave behind
# What zipfile and its decompressors raise for archives that are damaged, some of it undocumented.
_UNREADABLE = (
    OSError,
    EOFError,
    ValueError,
    RuntimeError,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    struct.error,
)


class ImageStore:
    """The images below a folder or in a zip. Hidden files and symbolic links are passed over.

    Attributes:
        path: the folder or zip.
        names: every image by its path inside, with ``/``, sorted.
        others: files that are no PNG or JPEG by their names, counted by suffix.

    Raises:
        DataError: the path is missing, unreadable, or no folder and no zip.
    """

    def __init__(self, path: Path) -> None:
        self.path, self._zip = path, None
        try:
            if path.is_dir():
                found = list(_walk(path))
            else:
                self._zip = zipfile.ZipFile(path)
                found = list(_members(self._zip))
        except _UNREADABLE as error:
            raise DataError(f"{path}: cannot be read as a folder or zip of images ({error})") from error
        self.names = tuple(sorted(name for name in found if _suffix(name) in SUFFIXES))
        self.others = Counter(_suffix(name) or "no suffix" for name in found if _suffix(name) not in SUFFIXES)

    def close(self) -> None:
        """Close the zip, if it is one."""
        if self._zip is not None:
            self._zip.close()

    def read(self, name: str) -> bytes | DataError:
        """The content of one image, at most one byte over the decoder's cap; or why there is none."""
        try:
            if self._zip is None:
                with (self.path / name).open("rb") as file:
                    return file.read(_READ_BYTES)
            with self._zip.open(name) as file:
                return file.read(_READ_BYTES)
        except _UNREADABLE as error:
            return DataError(f"{self.path}/{name}: cannot be read ({error})")
        except KeyError:
            return DataError(f"{self.path}/{name}: no such image")

    def find(self, value: str) -> str | DataError:
        """The image that ``value`` means: its path inside, else its file name, else its stem.

        A path may start above the folder or below it, as long as what both state is the same.

        Returns:
            A name from :attr:`names`, or why there is none: nothing fits, or more than one does.
        """
        wanted = value.replace("\\", "/").removeprefix("./")
        if wanted in self._known:
            return wanted
        fitting = self._fitting(wanted)
        if len(fitting) == 1:
            return fitting[0]
        if fitting:
            return DataError(
                f"{value!r} is both {fitting[0]} and {fitting[1]} in {self.path}; rename or remove one"
            )
        return DataError(f"no image {value!r} in {self.path}")

    def _fitting(self, wanted: str) -> Sequence[str]:
        if "/" not in wanted:
            return self._by_name.get(wanted) or self._by_stem.get(wanted) or ()
        named = self._by_name.get(_file_name(wanted), ())
        if deeper := [name for name in named if name.endswith(f"/{wanted}")]:
            return deeper
        while "/" in wanted:
            wanted = wanted.partition("/")[2]
            if wanted in self._known:
                return (wanted,)
        return ()

    def fingerprint(self, names: list[str]) -> str:
        """sha256 over sizes and times of change; equal means that nothing was written since."""
        digest = sha256()
        for name in [""] if self._zip is not None else names:
            try:
                stat = (self.path / name if name else self.path).stat()
                digest.update(
                    f"{name}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode(errors="surrogateescape")
                )
            except OSError:
                digest.update(f"{name}\0gone\n".encode(errors="surrogateescape"))
        return digest.hexdigest()

    @cached_property
    def _known(self) -> frozenset[str]:
        return frozenset(self.names)

    @cached_property
    def _by_name(self) -> dict[str, list[str]]:
        return _grouped((_file_name(name), name) for name in self.names)

    @cached_property
    def _by_stem(self) -> dict[str, list[str]]:
        return _grouped((_split(name)[0], name) for name in self.names)


class FilesBeside(ImageStore):
    """Files named by their paths from a folder; the folder is not listed."""

    def __init__(self, path: Path) -> None:
        self.path, self._zip = path, None
        self.names, self.others = (), Counter()


def readable(name: str) -> str:
    """A file's name as text that every file and terminal can hold; a name on disk need not be Unicode."""
    return os.fsencode(name).decode("utf-8", "replace")


def _grouped(pairs: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for key, name in pairs:
        groups.setdefault(key, []).append(name)
    return groups


def _walk(root: Path) -> Iterator[str]:
    """Every regular file below ``root`` as a relative path with ``/``."""

    def refuse(error: OSError) -> None:
        raise error

    for directory, folders, files in os.walk(root, onerror=refuse):
        folders[:] = [name for name in folders if _shown(name)]
        for name in files:
            path = Path(directory) / name
            if _shown(name) and not path.is_symlink() and path.is_file():
                yield path.relative_to(root).as_posix()


def _members(archive: zipfile.ZipFile) -> Iterator[str]:
    """Every file in the archive.

    Raises:
        RuntimeError: the archive is encrypted.
    """
    for member in archive.infolist():
        # Not is_dir(), which fails for the empty name of a damaged archive.
        if member.filename.endswith("/") or not all(map(_shown, member.filename.split("/"))):
            continue
        if member.flag_bits & 1:
            raise RuntimeError("it is encrypted; unpack it and name the folder")
        yield member.filename


def _shown(name: str) -> bool:
    return bool(name) and not name.startswith(".") and name not in _NOT_FILES


def _suffix(name: str) -> str:
    return _split(name)[1].lower()


def _split(name: str) -> tuple[str, str]:
    """Stem and suffix of a path, without the price of a Path object for each of a million files."""
    file = _file_name(name)
    stem, dot, ending = file.rpartition(".")
    return (stem, dot + ending) if stem else (file, "")


def _file_name(name: str) -> str:
    return name.rpartition("/")[2]
