"""A TCP proxy before Kafka that can cut, hold and heal the connections of single clients.

A Kafka client names itself (``client.id``) in the header of its first request: int32 size, int16 API key,
int16 version, int32 correlation id, int16 length and that many bytes of name. So the proxy knows whose
connection it carries.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any, Literal, TypeVar

HEADER_BYTES = 14
CHUNK_BYTES = 256 * 1024
ANSWER_LIMIT_S = 10.0
Rule = Literal["cut", "hold"]
T = TypeVar("T")


class _Link:
    """One connection of a client and, once it has named itself, the one to the broker behind it."""

    def __init__(self, client: asyncio.StreamWriter) -> None:
        self.name = ""
        self.open = asyncio.Event()
        self.cut = False
        self._ends = [client.transport]

    def add(self, server: asyncio.StreamWriter) -> None:
        self._ends.append(server.transport)
        if self.cut:
            server.transport.abort()

    def obey(self, rule: Rule | None) -> None:
        if rule == "hold":
            self.open.clear()
            return
        if rule == "cut":
            self.cut = True
            for end in self._ends:
                end.abort()
        self.open.set()


class KafkaProxy:
    """Forwards bytes between ``127.0.0.1:port`` and a broker, on its own thread. Methods are thread-safe.

    Rules are for prefixes of client ids and stay until healed, for new connections. ``cut`` beats ``hold``.
    A method returns when its rule is obeyed; what was handed to the kernel before still arrives.
    """

    def __init__(self, upstream: tuple[str, int], port: int = 0, host: str = "127.0.0.1") -> None:
        """Listen.

        Args:
            upstream: the broker; it need not be up.
            port: where to listen, 0 for a free one.
            host: the address to listen on.

        Raises:
            OSError: the port is taken.
        """
        self._upstream = upstream
        self._rules: dict[str, Rule] = {}
        self._links: set[_Link] = set()
        self._socket = socket.create_server((host, port), backlog=512)
        self.port: int = self._socket.getsockname()[1]
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="kafka-proxy", daemon=True)
        self._ready = threading.Event()
        self._thread.start()
        self._ready.wait(ANSWER_LIMIT_S)

    def cut(self, client_id_prefix: str) -> None:
        """Close these clients' connections and refuse new ones, as if their process had died."""
        self._call(lambda: self._set(client_id_prefix, "cut"))

    def hold(self, client_id_prefix: str) -> None:
        """Forward nothing more of these clients, close nothing: a suspended process, a half-open link.

        New connections are taken and get no answer. What was held goes on where it stopped, once healed.
        """
        self._call(lambda: self._set(client_id_prefix, "hold"))

    def heal(self, client_id_prefix: str) -> None:
        """Take back ``cut`` or ``hold`` of exactly this prefix."""
        self._call(lambda: self._set(client_id_prefix, None))

    def cut_all(self) -> None:
        """Cut everybody, connections that have not named themselves too."""
        self.cut("")

    def heal_all(self) -> None:
        """Take back every rule."""

        def clear() -> None:
            self._rules.clear()
            self._apply()

        self._call(clear)

    def clients(self) -> list[str]:
        """Return the client id of each open connection, sorted; a client has several."""
        return self._call(lambda: sorted(link.name for link in self._links if link.name and not link.cut))

    def close(self) -> None:
        """Close every connection and the port; doing it again changes nothing."""
        if self._thread.is_alive():
            with suppress(RuntimeError):  # closed by another thread meanwhile
                self._loop.call_soon_threadsafe(self._done.set)
            self._thread.join(ANSWER_LIMIT_S)

    def _call(self, action: Callable[[], T]) -> T:
        async def act() -> T:
            return action()

        work: Coroutine[Any, Any, T] = act()
        try:
            return asyncio.run_coroutine_threadsafe(work, self._loop).result(ANSWER_LIMIT_S)
        except RuntimeError:
            work.close()
            raise

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        self._done = asyncio.Event()
        server = await asyncio.start_server(self._carry, sock=self._socket, limit=CHUNK_BYTES * 4)
        self._ready.set()
        await self._done.wait()
        server.close()
        for link in self._links:
            link.obey("cut")
        while self._links:  # each carrier closes its sockets on its way out
            await asyncio.sleep(0.001)

    def _set(self, prefix: str, rule: Rule | None) -> None:
        if rule is None:
            self._rules.pop(prefix, None)
        else:
            self._rules[prefix] = rule
        self._apply()

    def _apply(self) -> None:
        for link in self._links:
            link.obey(self._rule(link.name))

    def _rule(self, name: str) -> Rule | None:
        rules = {rule for prefix, rule in self._rules.items() if name.startswith(prefix)}
        return "cut" if "cut" in rules else "hold" if "hold" in rules else None

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Carry one connection from accept to close."""
        link = _Link(writer)
        self._links.add(link)
        server: asyncio.StreamWriter | None = None
        try:
            link.obey(self._rule(""))
            header = await reader.readexactly(HEADER_BYTES)
            length = int.from_bytes(header[12:14], "big", signed=True)
            name = await reader.readexactly(max(length, 0))  # null is -1
            link.name = name.decode(errors="replace")
            link.obey(self._rule(link.name))
            await link.open.wait()
            if link.cut:
                return
            answers, server = await asyncio.open_connection(*self._upstream, limit=CHUNK_BYTES * 4)
            link.add(server)
            server.write(header + name)
            await self._pump_both(link, (reader, server), (answers, writer))
        except (OSError, asyncio.IncompleteReadError):
            pass  # either side is gone: close the other
        finally:
            for end in (writer, server):
                if end is not None:
                    end.transport.abort()
                    with suppress(OSError):
                        await end.wait_closed()
            self._links.discard(link)

    @staticmethod
    async def _pump_both(link: _Link, *ways: tuple[asyncio.StreamReader, asyncio.StreamWriter]) -> None:
        """Copy both ways until one side ends; Kafka knows no half-closed connections."""

        async def pump(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
            with suppress(OSError):
                while chunk := await source.read(CHUNK_BYTES):
                    await link.open.wait()
                    target.write(chunk)
                    await target.drain()

        tasks = [asyncio.create_task(pump(*way)) for way in ways]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
