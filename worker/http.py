"""A worker's small HTTP server: ``/livez``, ``/readyz``, ``/metrics`` and ``/status``.

It has a thread of its own and only reads, so that it answers while the event loop does not. A client can
cost it no more than a few threads for a few seconds: a request has a deadline and a size, only so many are
answered at a time, and where one more comes the oldest is ended.
"""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from http.server import BaseHTTPRequestHandler
from io import BytesIO
from socketserver import ThreadingTCPServer
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

import structlog

from client.workers import Listed, bracketed, listing

from .backlog import poll
from .observation import Observation

if TYPE_CHECKING:
    from broker import Broker, Watch

    from .engine import Engine
    from .handler import ImageHandler
    from .settings import WorkerSettings

log = structlog.stdlib.get_logger("worker")

Page = Callable[[Mapping[str, list[str]]], tuple[int, str, bytes]]

_JSON, _TEXT = "application/json", "text/plain; charset=utf-8"
# All of a request, and all of an answer.
_REQUEST_S = 2.0
_ANSWER_S = 5.0
_REQUEST_BYTES = 16 * 1024
_AT_ONCE = 16
_POLL_S = 0.2
# On Pub/Sub counting means to receive a copy of everything: only where it is asked for.
_LAG_INTERVAL_S = 15.0
_TICK_S = 0.5


@asynccontextmanager
async def observed(
    settings: WorkerSettings, watch: Watch, handler: ImageHandler, engine: Engine, broker: Broker
) -> AsyncIterator[str]:
    """Serve what this worker does, and list it for ``couturier status``, while the block runs.

    Yields:
        The URL of the server.

    Raises:
        ValueError: ``COUTURIER_HTTP_HOST`` and ``COUTURIER_HTTP_PORT`` cannot be listened on.
    """
    seen = Observation(settings, watch, handler, engine, broker.capabilities)
    server = Server(settings.http_host, settings.http_port, pages(seen))
    interval_s = settings.lag_interval_s
    if interval_s is None:
        interval_s = _LAG_INTERVAL_S if broker.capabilities.counts else 0.0
    tasks = [asyncio.create_task(_tick(seen))]
    if interval_s:
        tasks.append(
            asyncio.create_task(poll(broker, settings.topic, settings.group, seen.backlog, interval_s))
        )
    async with AsyncExitStack() as stack:
        stack.push_async_callback(_end, tasks)
        stack.push_async_callback(asyncio.to_thread, server.close)
        entry = Listed(
            settings.worker_id,
            socket.gethostname(),
            server.url,
            seen.pid,
            seen.started,
            settings.topic,
            settings.group,
        )
        try:
            stack.enter_context(listing(entry))
        except OSError as error:
            log.warning("`couturier status` on this machine will not find this worker", error=str(error))
        log.info("serving", url=server.url, pages=sorted(pages(seen)))
        yield server.url


async def _tick(seen: Observation) -> None:
    while True:
        seen.tick(time.monotonic())
        await asyncio.sleep(_TICK_S)


async def _end(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def pages(seen: Observation) -> dict[str, Page]:
    """Return what is served, by path."""
    from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector
    from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

    from .metrics import WorkerCollector

    registry = CollectorRegistry(auto_describe=False)
    registry.register(WorkerCollector(seen))
    for collector in (ProcessCollector, PlatformCollector, GCCollector):
        collector(registry=registry)

    def probe(look: Callable[[float], str]) -> Page:
        def page(_: Mapping[str, list[str]]) -> tuple[int, str, bytes]:
            why = look(time.monotonic())
            return (503 if why else 200), _TEXT, f"{why or 'ok'}\n".encode()

        return page

    def status(query: Mapping[str, list[str]]) -> tuple[int, str, bytes]:
        found = seen.status(time.monotonic(), query.get("message", [None])[0])
        return 200, _JSON, json.dumps(found).encode()

    return {
        "/livez": probe(seen.why_not_live),
        "/readyz": probe(seen.why_not_ready),
        "/metrics": lambda _: (200, CONTENT_TYPE_LATEST, generate_latest(registry)),
        "/status": status,
    }


class Server(ThreadingTCPServer):
    """Serves pages from a thread of its own until it is closed.

    Args:
        host: name or address to listen on.
        port: 0 or None takes any that is free.
        pages: what is served, by path.

    Raises:
        ValueError: host and port cannot be listened on; the text names their variables.
    """

    daemon_threads = True
    block_on_close = False
    allow_reuse_address = True
    request_queue_size = 64

    def __init__(self, host: str, port: int | None, pages: Mapping[str, Page]) -> None:
        self.pages = pages
        self._open: dict[socket.socket, None] = {}
        self._turn = threading.Lock()
        try:
            info = socket.getaddrinfo(host, port or 0, type=socket.SOCK_STREAM)[0]
            self.address_family = info[0]
            super().__init__((host, port or 0), _Request)
        except OSError as error:
            raise ValueError(
                f"cannot serve /livez and /metrics on {host}:{port or 0}: {error.strerror or error}; set"
                " COUTURIER_HTTP_PORT to a free port, or unset it to take any, and COUTURIER_HTTP_HOST to an"
                " address of this machine"
            ) from error
        shown = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - read, not bound
        self.url = f"http://{bracketed(shown)}:{self.server_address[1]}"
        self._thread = threading.Thread(target=self.serve_forever, args=(_POLL_S,), name="http", daemon=True)
        self._thread.start()

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._turn:
            while len(self._open) >= _AT_ONCE:
                oldest = next(iter(self._open))
                del self._open[oldest]
                with suppress(OSError):
                    oldest.shutdown(socket.SHUT_RDWR)
            self._open[request] = None
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        with self._turn:
            self._open.pop(request, None)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002 - of the base class
        log.debug("a request failed", exc_info=True)

    def close(self) -> None:
        """Stop listening."""
        self.shutdown()
        self._thread.join()
        self.server_close()


class _Request(BaseHTTPRequestHandler):
    """One request, of which nothing but the first lines is read."""

    server: Server
    server_version = "couturier"
    sys_version = ""

    def setup(self) -> None:
        super().setup()
        # Parsed only when it is complete: a client that drips must not renew its time with every byte.
        self.rfile = BytesIO(_head(self.connection))
        self.connection.settimeout(_ANSWER_S)

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        page = self.server.pages.get(parts.path)
        if page is None:
            known = ", ".join(sorted(self.server.pages))
            self._answer(404, _TEXT, f"there are {known}\n".encode())
            return
        self._answer(*page(parse_qs(parts.query, max_num_fields=10)))

    do_HEAD = do_GET  # noqa: N815 - looked up by this name

    def _answer(self, code: int, kind: str, body: bytes) -> None:
        self.send_response(code)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Stay silent: probes come every second."""


def _head(connection: socket.socket) -> bytes:
    """Return the head of a request, or its beginning where it is too large; nothing if it does not come."""
    deadline = time.monotonic() + _REQUEST_S
    data = b""
    while b"\r\n\r\n" not in data and b"\n\n" not in data and len(data) < _REQUEST_BYTES:
        connection.settimeout(max(0.001, deadline - time.monotonic()))
        try:
            more = connection.recv(4096)
        except OSError:
            return b""
        if not more or time.monotonic() > deadline:
            return b""
        data += more
    return data
