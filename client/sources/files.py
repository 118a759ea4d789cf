"""The user's own images: files, folders and zips.

A file that is named is sent, whatever it is; in folders and zips only files with an image's extension are.
Everything is found and checked before the first image is read, and read one by one.
"""

from __future__ import annotations

import os
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ..errors import SourceError
from ..schema import ClassifyRequest
from .base import Submission

MAX_FILE_BYTES = 32 * 1024 * 1024
# Those that workers accept, and those that people expect them to: a worker's refusal says more than silence.
CONTENT_TYPES = {
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".gif": "image/gif",
    ".bmp": "image/bmp",
    ".tif": "image/tiff",
    ".tiff": "image/tiff",
    ".webp": "image/webp",
}
_UNKNOWN = "application/octet-stream"


@dataclass(frozen=True, slots=True)
class _Place:
    """Where one image is: a file, or a member of a zip."""

    path: Path
    name: str
    member: str | None = None


class Files:
    """Images below some paths; iterate to get one ``Submission`` for each.

    Attributes:
        skipped: files in folders and zips that are left out: no image by their name, or over 32 MiB.

    Raises:
        SourceError: a path is missing, cannot be read, holds no image, or is a damaged zip.
    """

    def __init__(self, paths: Iterable[str | Path]) -> None:
        self.skipped = 0
        self._places: list[_Place] = []
        for path in paths:
            self._find(Path(path))

    def __len__(self) -> int:
        return len(self._places)

    def __iter__(self) -> Iterator[Submission]:
        """Yield the images.

        Raises:
            SourceError: a file went away meanwhile, or a member of a zip is damaged.
        """
        opened: tuple[Path, zipfile.ZipFile] | None = None
        try:
            for place in self._places:
                if place.member is None:
                    data = _read_file(place.path)
                else:
                    if opened is None or opened[0] != place.path:
                        if opened is not None:
                            opened[1].close()
                        opened = (place.path, _open_zip(place.path))
                    data = _read_member(opened[1], place)
                yield _submission(place.name, data)
        finally:
            if opened is not None:
                opened[1].close()

    def _find(self, path: Path) -> None:
        if not path.exists():
            raise SourceError(f"{path} does not exist")
        if not os.access(path, os.R_OK):
            raise SourceError(f"{path} cannot be read: permission denied")
        before = len(self._places)
        if path.is_dir():
            self._find_in_folder(path)
        elif path.suffix.lower() == ".zip":
            self._find_in_zip(path)
        elif _size(path) > MAX_FILE_BYTES:
            raise SourceError(f"{path} has {_size(path):,} bytes; at most {MAX_FILE_BYTES:,} can be sent")
        else:
            self._places.append(_Place(path, str(path)))
        if len(self._places) == before:
            raise SourceError(
                f"{path} holds no image that can be sent: looking for {', '.join(sorted(CONTENT_TYPES))},"
                f" at most {MAX_FILE_BYTES:,} bytes each"
            )

    def _find_in_folder(self, folder: Path) -> None:
        for directory, folders, names in os.walk(folder, onerror=_unreadable):
            folders.sort()
            for name in sorted(names):
                path = Path(directory) / name
                if not path.is_file():
                    continue
                if _is_image(name) and _size(path) <= MAX_FILE_BYTES:
                    self._places.append(_Place(path, str(path)))
                else:
                    self.skipped += 1

    def _find_in_zip(self, path: Path) -> None:
        with _open_zip(path) as archive:
            for member in archive.infolist():
                if member.is_dir():
                    continue
                if member.flag_bits & 1:
                    raise SourceError(f"{path} is encrypted; unpack it and send the folder")
                if _is_image(member.filename) and member.file_size <= MAX_FILE_BYTES:
                    self._places.append(_Place(path, f"{path}/{member.filename}", member.filename))
                else:
                    self.skipped += 1


def _submission(name: str, data: bytes) -> Submission:
    # A name on disk need not be Unicode; a subject must be.
    subject = os.fsencode(name).decode("utf-8", "replace")
    content_type = CONTENT_TYPES.get(PurePosixPath(name).suffix.lower(), _UNKNOWN)
    return Submission(ClassifyRequest(image=data, content_type=content_type, subject=subject))


def _is_image(name: str) -> bool:
    path = PurePosixPath(name)
    # macOS adds a shadow to every file: same extension, no image.
    shadow = path.name.startswith("._") or "__MACOSX" in path.parts
    return path.suffix.lower() in CONTENT_TYPES and not shadow


def _open_zip(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError) as error:
        raise SourceError(f"{path} cannot be opened as a zip: {error}") from error


def _read_file(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error.strerror or error}") from error


def _read_member(archive: zipfile.ZipFile, place: _Place) -> bytes:
    assert place.member is not None
    try:
        with archive.open(place.member) as stream:
            # The size that the directory states was checked; what comes out is what counts.
            data = stream.read(MAX_FILE_BYTES + 1)
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, ValueError) as error:
        raise SourceError(f"{place.name} cannot be unpacked: {error}") from error
    if len(data) > MAX_FILE_BYTES:
        raise SourceError(f"{place.name} unpacks to more than {MAX_FILE_BYTES:,} bytes")
    return data


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error.strerror or error}") from error


def _unreadable(error: OSError) -> None:
    raise SourceError(f"{error.filename} cannot be read: {error.strerror}") from error
