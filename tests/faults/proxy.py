"""A TCP proxy that goes down, holds its breath, or keeps the answers to itself; counts what it did."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import Self


class Proxy:
    """Forwards to one address from a thread of its own; a context manager.

    Args:
        upstream: ``host:port``.

    Attributes:
        address: ``127.0.0.1:PORT``, where it listens.
        accepted: connections so far.
        refused: connections that were turned away while it was down.
        cut: connections that were reset while they were open.
        muted_bytes: of the server's answers, kept back.
    """

    def __init__(self, upstream: str) -> None:
        host, port = upstream.rsplit(":", 1)
        self._upstream = (host, int(port))
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._open: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._down = False
        self._flowing = asyncio.Event()
        self._mute_from: bytes | None = None
        self.address = ""
        self.accepted = self.refused = self.cut = self.muted_bytes = 0

    def __enter__(self) -> Self:
        self._thread.start()
        self._flowing.set()
        self._server = self._call(self._listen)
        self.address = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    def __exit__(self, *_: object) -> None:
        self._call(self._end)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def down(self) -> int:
        """Reset what is open and turn new connections away; return how many were reset."""

        async def down() -> int:
            self._down = True
            return self._reset()

        return self._call(down)

    def up(self) -> None:
        """Forward again, whatever was done before."""

        async def up() -> None:
            self._down, self._mute_from = False, None
            self._flowing.set()

        self._call(up)

    def reset(self) -> int:
        """Reset what is open, once; return how many."""

        async def reset() -> int:
            return self._reset()

        return self._call(reset)

    def hold(self) -> None:
        """Forward nothing more and close nothing, as a half-open line; ``up`` ends it."""

        async def hold() -> None:
            self._flowing.clear()

        self._call(hold)

    def mute(self, token: bytes) -> None:
        """Keep back the next answer of the server that holds ``token``, and reset its connection."""

        async def mute() -> None:
            self._mute_from = token

        self._call(mute)

    def _call(self, make: Callable[[], object]) -> object:
        return asyncio.run_coroutine_threadsafe(make(), self._loop).result(30)  # type: ignore[arg-type]

    async def _listen(self) -> asyncio.Server:
        return await asyncio.start_server(self._serve, "127.0.0.1", 0)

    async def _end(self) -> None:
        self._server.close()
        self._flowing.set()
        self._reset()
        if self._tasks:
            await asyncio.wait(self._tasks)
        await self._server.wait_closed()

    def _reset(self) -> int:
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
        try:
            if self._down:
                raise ConnectionRefusedError
            up_reader, up_writer = await asyncio.open_connection(*self._upstream)
        except OSError:
            self.refused += 1
            writer.transport.abort()
            return
        self._open.add(writer)
        pumps = {
            asyncio.create_task(self._pump(reader, up_writer, False)),
            asyncio.create_task(self._pump(up_reader, writer, True)),
        }
        await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        for each in (writer, up_writer):
            each.transport.abort()
        for pump in pumps:
            pump.cancel()
        await asyncio.wait(pumps)
        self._open.discard(writer)

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, is_answer: bool
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65_536):
                await self._flowing.wait()
                if is_answer and self._mute_from is not None and self._mute_from in data:
                    self._mute_from = None
                    self.muted_bytes += len(data)
                    self.cut += 1
                    return
                writer.write(data)
                await writer.drain()
