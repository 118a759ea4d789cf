"""Results in a SQLite file; any number of workers on one host may share it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import TypeVar

from client.errors import StoreError
from client.results import ResultsWriter
from client.schema import ResultRow

from .base import SinkUnavailable, WriteReport

T = TypeVar("T")


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
        return await self._do(lambda writer: writer.write(rows))

    async def claim_pruning(self, now: datetime, every_s: float, before: datetime) -> bool:
        """Say whether it is this worker's turn to remove old rows, and if so note what will be missing."""
        return await self._do(lambda writer: writer.claim_pruning(now, every_s, before))

    async def prune(self, before: datetime, at_most: int) -> int:
        """Remove some rows that were made before a time; return how many."""
        return await self._do(lambda writer: writer.prune(before, at_most))

    async def aclose(self) -> None:
        """Close the file once the running write is done."""
        if self._writer is not None:
            writer, self._writer = self._writer, None
            await asyncio.get_running_loop().run_in_executor(self._thread, writer.close)
        self._thread.shutdown(wait=False)

    async def _do(self, job: Callable[[ResultsWriter], T]) -> T:
        assert self._writer is not None, "open() comes first"
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, job, self._writer)
        except StoreError as error:
            raise SinkUnavailable(str(error)) from error
