"""A sink, and how long it takes."""

from __future__ import annotations

import time
from collections.abc import Sequence

from broker import Histogram
from client.schema import ResultRow

from .base import Sink, SinkUnavailable, WriteReport

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class TimedSink:
    """Passes everything on.

    Args:
        sink: that keeps the rows.

    Attributes:
        seconds: of each write that came through.
        errors: writes that did not, every try of them.
    """

    def __init__(self, sink: Sink) -> None:
        self.seconds = Histogram(_SECONDS)
        self.errors = 0
        self._sink = sink

    async def open(self) -> None:
        """As the sink's."""
        await self._sink.open()

    async def write(self, rows: Sequence[ResultRow]) -> WriteReport:
        """As the sink's."""
        begin = time.perf_counter()
        try:
            report = await self._sink.write(rows)
        except SinkUnavailable:
            self.errors += 1
            raise
        self.seconds.observe(time.perf_counter() - begin)
        return report

    async def aclose(self) -> None:
        """As the sink's."""
        await self._sink.aclose()
