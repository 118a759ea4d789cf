"""Results in several places at once."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AsyncExitStack

from client.schema import ResultRow

from .base import Sink, WriteReport


class SeveralSinks:
    """Writes to one sink after the other; a row is stored once all of them have it.

    After an outage of one the whole write is repeated, which changes nothing in those that have it. A row
    that one refuses is not offered to those behind it; those before it keep it.

    Args:
        sinks: at least 1, in the order of writing.
    """

    def __init__(self, sinks: Sequence[Sink]) -> None:
        self._sinks = sinks
        self._open = AsyncExitStack()

    async def open(self) -> None:
        """Open all; when one cannot be opened, none stays open."""
        async with AsyncExitStack() as stack:
            for sink in self._sinks:
                stack.push_async_callback(sink.aclose)
                await sink.open()
            self._open = stack.pop_all()

    async def write(self, rows: Sequence[ResultRow]) -> WriteReport:
        """Store rows everywhere."""
        new = 0
        conflicts: dict[str, None] = {}
        refused: dict[str, str] = {}
        left = rows
        for sink in self._sinks:
            if not left:
                break
            report = await sink.write(left)
            # What is new in the last place is new, though the first may have it from before an outage.
            new = max(new, report.new)
            conflicts.update(dict.fromkeys(report.conflicts))
            if report.refused:
                refused |= report.refused
                left = [row for row in left if row.message_id not in refused]
        new = min(new, len(left))
        told = [row for row in left if row.message_id in conflicts]
        return WriteReport(new, max(0, len(left) - new - len(told)), tuple(conflicts), refused)

    async def aclose(self) -> None:
        """Close all."""
        await self._open.aclose()
