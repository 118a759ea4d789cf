"""Results on stdout: short lines for people on a terminal, JSON lines in a pipe."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections.abc import Sequence
from typing import TextIO

from client.schema import ResultRow

from .base import SinkUnavailable, WriteReport


class ConsoleSink:
    """Prints every row it is given; a message that comes again is printed again.

    Args:
        stream: where to; None means stdout.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stdout
        self._form = _short if self._stream.isatty() else _json

    async def open(self) -> None:
        """Nothing to do."""

    async def write(self, rows: Sequence[ResultRow]) -> WriteReport:
        """Print rows and flush; when nobody reads stdout any more, end this process, as every filter does."""
        text = "".join(f"{self._form(row)}\n" for row in rows)
        try:
            await asyncio.to_thread(self._print, text)
        except OSError as error:
            if isinstance(error, BrokenPipeError) and self._stream is sys.__stdout__:
                # Only now: a socket whose other end is gone must not end us.
                signal.signal(signal.SIGPIPE, signal.SIG_DFL)
                signal.raise_signal(signal.SIGPIPE)
            raise SinkUnavailable(f"stdout: {error.strerror or error}") from error
        return WriteReport(len(rows))

    async def aclose(self) -> None:
        """Nothing to do."""

    def _print(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()


def _json(row: ResultRow) -> str:
    return json.dumps(row.to_dict())


def _short(row: ResultRow) -> str:
    confidence = "" if row.confidence is None else f"{row.confidence:.1%}"
    text = f"{row.label or row.status:<12} {confidence:>6}  {row.subject or row.message_id}"
    # Subjects come from strangers; a terminal obeys control characters.
    return text if text.isprintable() else ascii(text)
