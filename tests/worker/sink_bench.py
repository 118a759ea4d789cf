"""What tests of sinks share: rows, opened sinks, and a proxy before PostgreSQL that can misbehave."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Self
from urllib.parse import urlsplit, urlunsplit

from client.schema import ResultRow
from worker import Sink

LIMIT_S = 30.0


def row(message_id: str, **columns: object) -> ResultRow:
    usual = ResultRow._make([None] * len(ResultRow._fields))._replace(
        status="ok",
        label="Coat",
        tags="[]",
        model_hash="abc",
        source="/test",
        attempt=1,
        worker="host-1",
        queue_s=0.1,
        process_s=0.2,
        latency_s=0.3,
        created_at="2026-01-02T03:04:05+00:00",
    )
    return usual._replace(message_id=message_id, **columns)


@asynccontextmanager
async def opened(sink: Sink) -> AsyncIterator[Sink]:
    await sink.open()
    try:
        yield sink
    finally:
        await sink.aclose()


class PostgresProxy:
    """Forwards to a server and reads along; an async context manager.

    Attributes:
        url: what to connect to.
        statements: how many were sent to the server.
        connections: how many were made.
        lost: replies of statements that were carried out, and of which the client heard nothing.
        held: bytes that were swallowed while the line was dead.
    """

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._upstream = parts.hostname or "", parts.port or 5432
        self._parts = parts
        self._streams: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._dead: set[asyncio.StreamWriter] = set()
        self._lose = 0
        self._frozen = False
        self.url = ""
        self.statements = self.connections = self.lost = self.held = 0

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        port = self._server.sockets[0].getsockname()[1]
        user = self._parts.netloc.rpartition("@")[0]
        plain = "sslmode=disable&gssencmode=disable"  # what is encrypted cannot be counted
        self.url = urlunsplit(self._parts._replace(netloc=f"{user}@127.0.0.1:{port}", query=plain))
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        self.reset()
        for each in self._tasks:
            each.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        await self._server.wait_closed()

    def lose_replies(self, count: int) -> None:
        """Cut the line when the server has answered, so many times."""
        self._lose = count

    def freeze(self) -> None:
        """Let every open connection go silent for good: nothing passes, nothing is closed."""
        self._frozen = True
        self._dead |= self._streams

    def thaw(self) -> None:
        """Let new connections pass; those that went silent stay so."""
        self._frozen = False

    def reset(self) -> None:
        """Reset every connection."""
        for each in tuple(self._streams):
            each.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        self.connections += 1
        up_reader, up_writer = await asyncio.open_connection(*self._upstream)
        pair = {writer, up_writer}
        self._streams |= pair
        if self._frozen:
            self._dead |= pair
        pumps = {
            asyncio.create_task(self._pump(reader, up_writer, _Messages())),
            asyncio.create_task(self._pump(up_reader, writer, None)),
        }
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for each in pair:
                each.transport.abort()
            self._streams -= pair
            for pump in pumps:
                pump.cancel()
            await asyncio.wait(pumps)

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, words: _Messages | None
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65_536):
                if writer in self._dead:
                    self.held += len(data)
                    continue
                if words is not None:
                    self.statements += sum(kind in b"EQ" for kind in words.kinds(data))
                elif self._lose and data.endswith(b"Z\0\0\0\x05I") and b"INSERT 0 " in data:
                    self._lose -= 1
                    self.lost += 1
                    return
                writer.write(data)
                await writer.drain()


class _Messages:
    """Takes what a client sends apart. Source: PostgreSQL 17, section 53.7, message formats."""

    def __init__(self) -> None:
        self._left = b""
        self._greeted = False

    def kinds(self, data: bytes) -> bytes:
        """Return the first byte of every message that is whole now."""
        self._left += data
        found = b""
        while True:
            header = 1 if self._greeted else 0
            if len(self._left) < header + 4:
                return found
            size = header + int.from_bytes(self._left[header : header + 4])
            if len(self._left) < size:
                return found
            found += self._left[:header]
            self._left = self._left[size:]
            self._greeted = True


async def until(true: object, what: str) -> None:
    """Wait until ``true()`` is."""
    deadline = asyncio.get_running_loop().time() + LIMIT_S
    while not true():  # type: ignore[operator]
        assert asyncio.get_running_loop().time() < deadline, what
        await asyncio.sleep(0.01)
