"""Results as JSON lines in a file: one object a line, one line per message id."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from client.errors import StoreError
from client.results.table import Content, content, judge
from client.schema import ResultRow

from .base import SinkUnavailable, WriteReport

_READ_BYTES = 1024 * 1024
_LOCK_TIMEOUT_S = 2.0
_LOCK_POLL_S = 0.002


class JsonlSink:
    """Appends to a file that several workers on one host may share.

    The ids in the file are kept in memory, about 200 bytes each: for millions of rows use a database.

    Args:
        path: the file; missing directories are made.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="sink")
        self._file = -1
        self._known_bytes = 0
        self._seen: dict[str, Content] = {}

    async def open(self) -> None:
        """Open or create the file and read the ids in it."""
        await asyncio.get_running_loop().run_in_executor(self._thread, self._open)

    async def write(self, rows: Sequence[ResultRow]) -> WriteReport:
        """Append the rows that are not there yet, and see them to the disk."""
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._thread, self._write, rows)
        except (OSError, StoreError) as error:
            raise SinkUnavailable(f"{self._path}: {error}") from error

    async def aclose(self) -> None:
        """Close the file once the running write is done."""
        await asyncio.get_running_loop().run_in_executor(self._thread, self._close)
        self._thread.shutdown(wait=False)

    def _open(self) -> None:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            with _Locked(self._file):
                self._catch_up()
            _sync_directory(self._path.parent)
        except OSError as error:
            raise StoreError(f"{self._path} cannot be used: {error.strerror or error}") from error

    def _close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _write(self, rows: Sequence[ResultRow]) -> WriteReport:
        with _Locked(self._file):
            self._catch_up()
            refused: dict[str, str] = {}
            fresh: dict[str, Content] = {}
            lines: list[bytes] = []
            for row in rows:
                if row.message_id in self._seen or row.message_id in fresh or row.message_id in refused:
                    continue
                try:
                    lines.append(json.dumps(row.to_dict(), allow_nan=False).encode() + b"\n")
                    fresh[row.message_id] = content(row)
                except (ValueError, TypeError) as error:
                    refused[row.message_id] = f"{type(error).__name__}: {error}"
            self._append(b"".join(lines))
            self._seen.update(fresh)
        return judge(rows, len(fresh), self._seen, refused)

    def _append(self, data: bytes) -> None:
        """Write at the end, all or nothing."""
        start = self._known_bytes
        try:
            while data:
                written = os.pwrite(self._file, data, self._known_bytes)
                self._known_bytes += written
                data = data[written:]
            os.fsync(self._file)
        except OSError:
            self._known_bytes = start
            os.ftruncate(self._file, start)
            raise

    def _catch_up(self) -> None:
        """Read what others appended; cut off a line that a crash left unfinished."""
        rest = b""
        while chunk := os.pread(self._file, _READ_BYTES, self._known_bytes + len(rest)):
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                self._known_bytes += len(line) + 1
                self._learn(line)
        if rest:
            os.ftruncate(self._file, self._known_bytes)

    def _learn(self, line: bytes) -> None:
        try:
            row = json.loads(line)
            self._seen.setdefault(row["message_id"], (row.get("label"), row.get("model_hash")))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise StoreError(f"{self._path} holds a line that is no result: {line[:80]!r}") from error


class _Locked:
    """Holds the file for one process."""

    def __init__(self, file: int) -> None:
        self._file = file

    def __enter__(self) -> None:
        deadline = time.monotonic() + _LOCK_TIMEOUT_S
        while True:
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                # A stopped worker may hold it for good; the caller tries again, and can be drained meanwhile.
                if time.monotonic() > deadline:
                    raise
                time.sleep(_LOCK_POLL_S)

    def __exit__(self, *_: object) -> None:
        fcntl.flock(self._file, fcntl.LOCK_UN)


def _sync_directory(directory: Path) -> None:
    """See the file's name to the disk too."""
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
