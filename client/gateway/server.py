"""Runs the gateway until SIGTERM or Ctrl-C; then what has begun is finished."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
from collections.abc import Generator
from contextlib import AsyncExitStack

import uvicorn

from broker import Broker, connect, tracing

from ..ledger import Ledger
from ..settings import ClientSettings
from ..workers import bracketed
from .app import application
from .companion import Companion
from .intake import Intake
from .outcomes import Outcomes
from .parts import Gateway
from .settings import GatewaySettings, listen

log = logging.getLogger("client.gateway")

INTERRUPTED = 130
# Connections, and requests, at a time; one more is answered 503.
_AT_ONCE = 1000
_HEAD_BYTES = 64 * 1024
_IDLE_S = 15
# Nothing takes longer: bodies, the broker and the results have deadlines, and who waits is hurried.
_FINISH_S = 60


class _Server(uvicorn.Server):
    """Leaves signals to us: uvicorn would end the process by the signal that it got."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield


async def serve(found: GatewaySettings, client: ClientSettings, companion: Companion | None) -> int:
    """Serve until a signal comes; return the exit code.

    Args:
        found: where to listen, and to whom.
        client: which topic, group and results.
        companion: a worker that runs beside the gateway.

    Raises:
        ValueError: something is configured wrongly.
        BrokerError: the broker is not there, or refuses us.
        OSError: the companion does not get ready.
    """
    from importlib.metadata import version

    with listen(found) as sock:
        async with AsyncExitStack() as stack:
            gateway = await _gateway(stack, found, client)
            server = _Server(
                uvicorn.Config(
                    application(version("couturier"), gateway),
                    http="h11",
                    ws="none",
                    lifespan="off",
                    log_config=None,
                    access_log=False,
                    server_header=False,
                    limit_concurrency=_AT_ONCE,
                    h11_max_incomplete_event_size=_HEAD_BYTES,
                    timeout_keep_alive=_IDLE_S,
                    timeout_graceful_shutdown=_FINISH_S,
                )
            )
            return await _run(server, sock, gateway, companion)


async def _gateway(stack: AsyncExitStack, found: GatewaySettings, client: ClientSettings) -> Gateway:
    tracing.configure("couturier-gateway")
    url = client.results_url()
    broker: Broker = await stack.enter_async_context(connect())
    if client.create:
        await client.ensure(broker)
    writing = stack.enter_context(Ledger())
    reading = stack.enter_context(Ledger(writing.path, read_only=True))
    intake = await stack.enter_async_context(Intake(broker, client.topic, writing))
    outcomes = await stack.enter_async_context(Outcomes(broker, client.topic, client.group, url))
    largest = min(found.max_bytes, broker.capabilities.max_message_bytes)
    return Gateway(broker, client.topic, intake, outcomes, reading, largest, found.secret)


async def _run(server: _Server, sock: socket.socket, gateway: Gateway, companion: Companion | None) -> int:
    signals = _Signals(server, gateway, companion)
    beside = asyncio.create_task(companion.run()) if companion else None
    if beside:
        beside.add_done_callback(lambda _: signals.stop())
    host, port = sock.getsockname()[:2]
    log.info("serving http://%s:%d, described at /docs", bracketed(host), port)
    try:
        await server.serve(sockets=[sock])
        if companion and beside:
            await companion.stop()
            await beside
    finally:
        if companion and beside:
            companion.kill()
            beside.cancel()
            await asyncio.gather(beside, return_exceptions=True)
    return INTERRUPTED if signals.at_once else 0


class _Signals:
    """The first SIGTERM or SIGINT asks to finish, a second one to end at once."""

    def __init__(self, server: _Server, gateway: Gateway, companion: Companion | None) -> None:
        self.at_once = False
        self._asked = False
        self._server = server
        self._gateway = gateway
        self._companion = companion
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal, number)

    def stop(self) -> None:
        """Take nothing new, finish what has begun."""
        self._asked = True
        self._gateway.outcomes.hurry()
        self._server.should_exit = True

    def _on_signal(self, number: signal.Signals) -> None:
        if not self._asked:
            log.info("%s: finishing what has begun; a second signal ends at once", number.name)
            self.stop()
            return
        self.at_once = self._server.force_exit = True
        if self._companion:
            self._companion.kill()
