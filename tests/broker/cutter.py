"""A TCP proxy that resets connections, for tests."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Self


class Cutter:
    """Forwards to one address; an async context manager.

    Attributes:
        host: ``127.0.0.1:PORT``, where it listens.
        accepted: connections so far.
        cut: connections that were reset while they were open.
    """

    def __init__(self, upstream: str) -> None:
        self._upstream = upstream.rsplit(":", 1)
        self._open: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self.host = ""
        self.accepted = 0
        self.cut = 0

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.host = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        self.reset()
        if self._tasks:
            await asyncio.wait(self._tasks)
        await self._server.wait_closed()

    def reset(self) -> int:
        """Reset every open connection; return how many there were."""
        count = len(self._open)
        for each in tuple(self._open):
            each.transport.abort()
        self._open.clear()
        self.cut += count
        return count

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        self.accepted += 1
        self._open.add(writer)
        try:
            up_reader, up_writer = await asyncio.open_connection(self._upstream[0], int(self._upstream[1]))
        except OSError:
            writer.transport.abort()
            return
        pumps = {
            asyncio.create_task(_pump(reader, up_writer)),
            asyncio.create_task(_pump(up_reader, writer)),
        }
        await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        for each in (writer, up_writer):
            each.transport.abort()
        await asyncio.wait(pumps)
        self._open.discard(writer)


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()
