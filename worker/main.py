"""Wiring and signals of one worker process."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from broker import Batching, Broker, DeadlineExceeded, RetryPolicy, connect
from broker.drivers.options import public_url
from broker.settings import broker_url

from .settings import WorkerSettings
from .sinks import Sink, open_sink

if TYPE_CHECKING:
    from .handler import ImageHandler

log = structlog.stdlib.get_logger("worker")

DRAIN_TIMED_OUT = 75
INTERRUPTED = 130
# Decoded pixels of one batch, 1 byte each or 4 for a moment: bounds what one batch of big photos takes.
_MAX_BATCH_PIXELS = 64 * 1024 * 1024
# While one batch is predicted, another is written and settled.
_OVERLAP = 2


@dataclass(frozen=True, slots=True)
class Launch:
    """What whoever started this process wants to be told, and to tell.

    Attributes:
        ready_file: is created when the worker is about to receive.
        until_stdin_closes: drain as on SIGTERM when standard input ends, so that no worker outlives its
            parent.
    """

    ready_file: Path | None = None
    until_stdin_closes: bool = False


async def run(settings: WorkerSettings, launch: Launch | None = None) -> int:
    """Work until SIGTERM or SIGINT; then finish what is held.

    Returns:
        The exit code: 0 drained, 75 the drain timed out, 130 a second signal came.

    Raises:
        ValueError: a setting does not work.
        classifier.errors.ClassifierError: the model cannot be used.
        client.errors.ClientError: the sink cannot be used.
        broker.BrokerError: the broker cannot be used. All four come before any message is taken.
    """
    stop = asyncio.Event()
    launch = launch or Launch()
    task = asyncio.current_task()
    assert task is not None
    interrupted = _on_signals(stop, task.cancel)
    if launch.until_stdin_closes:
        _watch_stdin(asyncio.get_running_loop(), stop)
    try:
        await _work(settings, launch, stop)
    except asyncio.CancelledError:
        if not interrupted.is_set():
            raise
        log.warning("interrupted; what was held comes again elsewhere")
        return INTERRUPTED
    except DeadlineExceeded as error:
        if not stop.is_set():
            raise
        log.error("drain timed out", error=str(error))
        return DRAIN_TIMED_OUT
    return 0


async def _work(settings: WorkerSettings, launch: Launch, stop: asyncio.Event) -> None:
    handler: ImageHandler
    async with (
        _opened(open_sink(settings.sink_url)) as sink,
        _handler(settings, sink) as handler,
        connect() as broker,
    ):
        if settings.create:
            await broker.ensure(settings.topic, settings.group)
        else:
            await broker.stats(settings.topic, settings.group)  # NotFound now, not later
        log.info("starting", broker=public_url(broker_url()), **_describe(settings, handler))
        _say_ready(launch)
        await _process(broker, settings, handler, stop)


async def _process(
    broker: Broker, settings: WorkerSettings, handler: ImageHandler, stop: asyncio.Event
) -> None:
    from classifier import declared_pixels

    try:
        totals = await broker.process(
            settings.topic,
            group=settings.group,
            handler=handler,
            batch=Batching(
                max_messages=settings.batch_size,
                max_wait=settings.max_wait_s,
                concurrency=_OVERLAP,
                cost=lambda delivery: declared_pixels(delivery.message.data),
                max_cost=_MAX_BATCH_PIXELS,
            ),
            retry=RetryPolicy(attempts=settings.attempts),
            stop=stop,
            drain_timeout=settings.drain_timeout_s,
        )
    finally:
        log.info("rows", **asdict(handler.tally))
    log.info("stopped", **asdict(totals))


@asynccontextmanager
async def _opened(sink: Sink) -> AsyncIterator[Sink]:
    await sink.open()
    try:
        yield sink
    finally:
        await sink.aclose()


@asynccontextmanager
async def _handler(settings: WorkerSettings, sink: Sink) -> AsyncIterator[ImageHandler]:
    from classifier import Classifier

    from .handler import ImageHandler

    # Loading takes most of a second; signals are to be heard meanwhile.
    classifier = await asyncio.to_thread(Classifier.load, settings.model, settings.engine, 1)
    # A machine that decodes or computes differently is found now; and the first image need not warm us up.
    await asyncio.to_thread(classifier.self_test)
    handler = ImageHandler(classifier, sink, settings.worker_id)
    try:
        yield handler
    finally:
        handler.close()


def _describe(settings: WorkerSettings, handler: ImageHandler) -> dict[str, object]:
    name, version, model_hash, engine = handler.model
    return {
        "topic": settings.topic,
        "group": settings.group,
        "sink": public_url(settings.sink_url),
        "model": f"{name} {version}",
        "model_hash": model_hash,
        "engine": engine,
        "batch_size": settings.batch_size,
        "worker": settings.worker_id,
    }


def _on_signals(stop: asyncio.Event, cancel: Callable[[], object]) -> asyncio.Event:
    """Drain on the first SIGTERM or SIGINT; on the second set the returned event and cancel at once."""
    interrupted = asyncio.Event()
    # Not `stop` itself: standard input that ends sets it too, and is no signal.
    signalled = asyncio.Event()

    def on_signal(number: signal.Signals) -> None:
        if signalled.is_set():
            interrupted.set()
            cancel()
            return
        log.info("draining; a second signal ends at once", signal=number.name)
        signalled.set()
        stop.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal, number)
    return interrupted


def _watch_stdin(loop: asyncio.AbstractEventLoop, stop: asyncio.Event) -> None:
    def watch() -> None:
        # Not sys.stdin: a buffered reader that is blocked when Python ends is a fatal error.
        while os.read(0, 4096):
            pass
        loop.call_soon_threadsafe(stop.set)

    threading.Thread(target=watch, name="stdin", daemon=True).start()


def _say_ready(launch: Launch) -> None:
    log.info("ready")
    if launch.ready_file is not None:
        launch.ready_file.touch()
