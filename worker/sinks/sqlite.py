"""Results in a SQLite file; any number of workers on one host may share it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from client.errors import StoreError
from client.results import ResultsWriter
from client.schema import ResultRow

from .base import SinkUnavailable, WriteReport


class SqliteSink:
    """Writes from one thread of its own, so that a slow disk does not stop the event loop.

    Args:
        path: the file.
        busy_timeout_s: longest wait for another worker's write, seconds.
    """

    def __init__(self, path: Path, busy_timeout_s: float = 2.0) -> None:
        self._path = path
        self._busy_timeout_s = busy_timeout_s
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="sink")
        self._writer: ResultsWriter | None = None

    async def open(self) -> None:
        """Open or create the file and its table."""
        self._writer = await asyncio.get_running_loop().run_in_executor(
            self._thread, ResultsWriter, self._path, self._busy_timeout_s
        )

    async def write(self, rows: Sequence[ResultRow]) -> WriteReport:
        """Store rows in one transaction, durably."""
        assert self._writer is not None, "open() comes first"
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._thread, self._writer.write, rows)
        except StoreError as error:
            raise SinkUnavailable(str(error)) from error

    async def aclose(self) -> None:
        """Close the file once the running write is done."""
        if self._writer is not None:
            writer, self._writer = self._writer, None
            await asyncio.get_running_loop().run_in_executor(self._thread, writer.close)
        self._thread.shutdown(wait=False)
