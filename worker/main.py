"""Wiring of one worker process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict

import structlog

from broker import (
    OPERATORS,
    Batching,
    Broker,
    DeadlineExceeded,
    Delivery,
    Processor,
    RetryPolicy,
    Watch,
    connect,
    dead_letter_topic,
    tracing,
)
from broker.drivers.options import public_url
from broker.limits import days
from broker.settings import broker_url
from classifier.headers import declared_pixels
from client.results import public_urls
from client.schema import expires_at

from .engine import Engine
from .engine_process import EngineOptions
from .handler import ImageHandler
from .http import observed
from .launch import DRAIN_TIMED_OUT, INTERRUPTED, Launch, Stop
from .settings import WorkerSettings
from .sinks import Sink, open_sink

log = structlog.stdlib.get_logger("worker")

# Decoded pixels of one batch, 1 byte each or 4 for a moment: bounds what one batch of big photos takes.
_MAX_BATCH_PIXELS = 64 * 1024 * 1024
# While one batch is predicted, another is written and settled.
_OVERLAP = 2
_LOOK_S = 0.02


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
    launch = launch or Launch()
    tracing.configure("couturier-worker")
    task = asyncio.current_task()
    assert task is not None
    stop = Stop(launch, lambda: stop.at_once and task.cancel())
    try:
        await _work(settings, launch, stop.asked)
    except asyncio.CancelledError:
        if not stop.at_once:
            raise
        log.warning("interrupted; what was held comes again elsewhere")
        return INTERRUPTED
    except DeadlineExceeded as error:
        if not stop.asked.is_set():
            raise
        log.error("drain timed out", error=str(error))
        return DRAIN_TIMED_OUT
    return 0


async def _work(settings: WorkerSettings, launch: Launch, stop: asyncio.Event) -> None:
    async with (
        _opened(open_sink(settings.sink_url, settings.results_days, settings.create)) as sink,
        _engine(settings, launch) as engine,
        connect() as broker,
    ):
        handler = ImageHandler(engine, sink, settings.worker_id)
        if settings.create:
            letters = dead_letter_topic(settings.topic, settings.group)
            await broker.ensure(settings.topic, settings.group, retention=days(settings.retention_days))
            await broker.ensure(letters, OPERATORS, retention=days(settings.letters_days))
        log.info("starting", broker=public_url(broker_url()), **_describe(settings, handler))
        processor = _processor(broker, settings, handler)
        async with observed(settings, processor.watch, handler, engine, broker):
            ready = asyncio.create_task(_say_ready(processor.watch, launch))
            try:
                totals = await processor.run(stop=stop, drain_timeout=settings.drain_timeout_s)
            finally:
                ready.cancel()
                log.info("rows", **asdict(handler.tally))
            log.info("stopped", **asdict(totals))


def _processor(broker: Broker, settings: WorkerSettings, handler: ImageHandler) -> Processor:
    batching = Batching(
        max_messages=settings.batch_size,
        max_wait=settings.max_wait_s,
        concurrency=_OVERLAP,
        cost=lambda delivery: declared_pixels(delivery.message.data),
        max_cost=_MAX_BATCH_PIXELS,
        deadline=_deadline,
    )
    retry = RetryPolicy(attempts=settings.attempts)
    return Processor(broker, settings.topic, settings.group, handler, batching, retry)


def _deadline(delivery: Delivery) -> float | None:
    expires = expires_at(delivery.message)
    return expires.timestamp() if expires is not None else None


@asynccontextmanager
async def _opened(sink: Sink) -> AsyncIterator[Sink]:
    try:
        await sink.open()
        yield sink
    finally:
        await sink.aclose()


def _engine(settings: WorkerSettings, launch: Launch) -> Engine:
    options = EngineOptions(
        model=None if settings.model is None else str(settings.model),
        engine=settings.engine,
        threads=settings.threads,
        timeout_s=settings.predict_timeout_s,
        memory_mb=settings.memory_mb,
        abstain=settings.abstain,
    )
    return Engine(options, settings.crashes, launch.engine)


def _describe(settings: WorkerSettings, handler: ImageHandler) -> dict[str, object]:
    name, version, model_hash, engine = handler.model
    return {
        "topic": settings.topic,
        "group": settings.group,
        "sink": public_urls(settings.sink_url),
        "model": f"{name} {version}",
        "model_hash": model_hash,
        "engine": engine,
        "batch_size": settings.batch_size,
        "worker": settings.worker_id,
    }


async def _say_ready(watch: Watch, launch: Launch) -> None:
    """Say so once the group is joined."""
    while watch.state == "starting":  # noqa: ASYNC110 - it is made of plain figures
        await asyncio.sleep(_LOOK_S)
    launch.say_ready()
