"""Fetches the image that a URL names: a file of this machine, or from the web.

URLs come from whoever fills the catalogue, so nothing is taken on trust: of files only images by their name,
of hosts only those that the user named, nothing past a limit of size or time.
"""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NamedTuple
from urllib.parse import SplitResult, unquote_to_bytes, urlsplit

from .files import CONTENT_TYPES
from .web import Unfetchable, Web

# What a worker accepts at most, `Preprocessing.max_bytes`: a larger image would only become a dead letter.
MAX_IMAGE_BYTES = 16 * 1024 * 1024
MAX_URL_CHARACTERS = 8_192
_UNKNOWN = "application/octet-stream"


class Picture(NamedTuple):
    """What a URL named.

    Attributes:
        data: the bytes, whatever they are.
        content_type: what the server says, else what the name says.
    """

    data: bytes
    content_type: str


@dataclass(frozen=True, slots=True)
class Allowed:
    """Where images may come from.

    Attributes:
        hosts: as in ``client.sources.web.Web``; none: nothing comes from the web.
        folders: files below these only; none: any file whose name ends like an image's.
    """

    hosts: tuple[str, ...] = ()
    folders: tuple[Path, ...] = ()


class Fetcher:
    """Fetches images, also from several threads at once.

    Args:
        allowed: where they may come from.
        web: how they are fetched from the web; None: with the limits of ``Web``.
        tries: how often an image is tried when the fault may pass: a timeout, a broken connection, HTTP 429
            or 5xx.
        backoff_s: seconds before the second try; doubles with each.

    Raises:
        ValueError: a host or folder of ``allowed`` does not work.
    """

    def __init__(
        self, allowed: Allowed, web: Web | None = None, tries: int = 3, backoff_s: float = 0.5
    ) -> None:
        self._web = web or Web(allowed.hosts, MAX_IMAGE_BYTES)
        self._folders = [_folder(each) for each in allowed.folders]
        self._tries = tries
        self._backoff_s = backoff_s
        self._closed = threading.Event()

    def fetch(self, url: str) -> Picture:
        """Return the image that a URL names.

        Raises:
            Unfetchable: there is none, it may not be fetched, or it is too large.
        """
        parts = _parts(url)
        for failures in range(1, self._tries + 1):
            try:
                return self._read(parts) if parts.scheme == "file" else self._get(parts)
            except Unfetchable as error:
                if not error.transient or failures == self._tries:
                    raise
            if self._closed.wait(self._backoff_s * 2 ** (failures - 1)):
                break
        raise Unfetchable("stopped", "the send was stopped")

    def close(self) -> None:
        """End what is being fetched."""
        self._closed.set()
        self._web.close()

    def _get(self, parts: SplitResult) -> Picture:
        data, content_type = self._web.get(parts)
        return Picture(data, content_type or _type_of(parts.path))

    def _read(self, parts: SplitResult) -> Picture:
        if parts.netloc not in ("", "localhost"):
            raise Unfetchable("bad URL", f"file: of another machine, {parts.hostname}")
        name = Path(os.fsdecode(unquote_to_bytes(parts.path)))
        if not name.is_absolute():
            raise Unfetchable("bad URL", "file: needs a whole path, file:///folder/image.png")
        try:
            # Where links lead is what counts.
            path = name.resolve(strict=True)
            self._check(path)
            return Picture(_contents(path), _type_of(path.name))
        except FileNotFoundError as error:
            raise Unfetchable("no such file", f"{name} does not exist") from error
        except (OSError, RuntimeError, ValueError) as error:  # a loop of links; NUL in the name
            raise Unfetchable("file cannot be read", f"{name}: {error}") from error

    def _check(self, path: Path) -> None:
        if path.suffix.lower() not in CONTENT_TYPES:
            raise Unfetchable("no image by its name", f"{path} does not end in {', '.join(CONTENT_TYPES)}")
        if self._folders and not any(path.is_relative_to(folder) for folder in self._folders):
            raise Unfetchable(
                "folder not allowed", f"{path} is in no allowed folder; add --allow-folder {path.parent}"
            )


def _parts(url: str) -> SplitResult:
    if len(url) > MAX_URL_CHARACTERS:
        raise Unfetchable("bad URL", f"it has more than {MAX_URL_CHARACTERS:,} characters")
    try:
        parts = urlsplit(url.strip())
    except ValueError as error:
        raise Unfetchable("bad URL", str(error)) from error
    if parts.scheme not in ("file", "http", "https"):
        raise Unfetchable("bad URL", "it has to begin with file:///, http:// or https://")
    return parts


def _folder(path: Path) -> Path:
    if not path.is_dir():
        raise ValueError(f"--allow-folder or CATALOGUE_ALLOW_FOLDERS: {str(path)!r} is no folder")
    return path.resolve()


def _contents(path: Path) -> bytes:
    # Neither wait at a named pipe nor follow a link that was put there meanwhile.
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW)
    with open(handle, "rb") as file:  # noqa: PTH123 - a handle, not a path
        found = os.fstat(handle)
        if not stat.S_ISREG(found.st_mode):
            raise Unfetchable("file cannot be read", f"{path} is no ordinary file")
        data = b"" if found.st_size > MAX_IMAGE_BYTES else file.read(MAX_IMAGE_BYTES + 1)
        if max(found.st_size, len(data)) > MAX_IMAGE_BYTES:
            raise Unfetchable("too large", f"{path} has more than {MAX_IMAGE_BYTES:,} bytes")
        return data


def _type_of(name: str) -> str:
    return CONTENT_TYPES.get(PurePosixPath(name).suffix.lower(), _UNKNOWN)


def folder_list(text: str | Iterable[str]) -> tuple[Path, ...]:
    """Return folders, separated as in ``PATH`` or one by one."""
    names = text.split(os.pathsep) if isinstance(text, str) else text
    return tuple(Path(name).expanduser() for name in names if name)
