"""Old results are removed, so that the table does not grow for ever."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Protocol

import structlog

from broker.message import utc_now
from client.schema import ResultRow

from .base import Sink, SinkUnavailable, WriteReport

log = structlog.stdlib.get_logger("worker")

_EVERY_S = 3600.0
# Small enough that a write that waits meanwhile waits for some milliseconds.
_AT_ONCE = 500
_PAUSE_S = 0.02


class Prunable(Sink, Protocol):
    """A sink that can remove old rows."""

    async def claim_pruning(self, now: datetime, every_s: float, before: datetime) -> bool:
        """Say whether it is this worker's turn to remove old rows, and if so note what will be missing.

        Args:
            now: aware, UTC.
            every_s: somebody's last turn is at least so long ago, seconds.
            before: rows made earlier are about to go, aware, UTC.

        Raises:
            SinkUnavailable: an outage.
        """
        ...

    async def prune(self, before: datetime, at_most: int) -> int:
        """Remove some rows that were made before a time; return how many.

        Raises:
            SinkUnavailable: an outage; nothing was removed.
        """
        ...


class KeptForDays:
    """A sink whose old rows one worker removes, once an hour, a few at a time, beside the writes.

    Args:
        sink: where the rows are.
        days: how long a row is kept.
        every_s: at most so often, all workers together, seconds.
    """

    def __init__(self, sink: Prunable, days: float, every_s: float = _EVERY_S) -> None:
        self._sink = sink
        self._days = days
        self._every_s = every_s
        self._task: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Open the sink and begin."""
        await self._sink.open()
        self._task = asyncio.create_task(self._keep_pruning(), name="retention")

    async def write(self, rows: Sequence[ResultRow]) -> WriteReport:
        """Store rows."""
        return await self._sink.write(rows)

    async def aclose(self) -> None:
        """End, and close the sink."""
        if self._task is not None:
            task, self._task = self._task, None
            task.cancel()
            await asyncio.wait({task})
        await self._sink.aclose()

    async def _keep_pruning(self) -> None:
        while True:
            try:
                await self._prune()
            except Exception as error:
                # Whatever it was: the worker goes on, and the next turn may go well.
                expected = isinstance(error, SinkUnavailable)
                log.warning("old results are not removed for now", reason=str(error), exc_info=not expected)
            # Workers that start together need not ask together.
            await asyncio.sleep(self._every_s * random.uniform(1.0, 1.1))  # noqa: S311 - no secret

    async def _prune(self) -> None:
        now = utc_now()
        before = now - timedelta(days=self._days)
        if not await self._sink.claim_pruning(now, self._every_s, before):
            return
        removed = 0
        while count := await self._sink.prune(before, _AT_ONCE):
            removed += count
            await asyncio.sleep(_PAUSE_S)
        if removed:
            log.info("old results removed", count=removed, made_before=before.isoformat())
