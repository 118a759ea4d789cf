"""How fast decode and predict are on their own: the limit that any pipeline around them is measured by."""

from __future__ import annotations

import multiprocessing
import signal
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Barrier
from pathlib import Path

_START_TIMEOUT_S = 60.0


def engine_rate(
    images: Sequence[bytes],
    processes: int,
    model: Path | None = None,
    engine: str = "onnx",
    seconds: float = 1.0,
    batch: int = 64,
) -> float:
    """Return images per second of decode + predict alone, summed over processes that run at once.

    Args:
        images: encoded images, at least 1; each process goes through them again and again.
        processes: each with one thread, as workers run.
        model: a bundle's directory; None for the shipped one.
        engine: as for ``Classifier.load``.
        seconds: how long each process measures, at least one round of a batch.
        batch: images of one call.

    Raises:
        RuntimeError: a process failed or did not start in time.
    """
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(processes)
    pipes, children = [], []
    for _ in range(processes):
        here, there = context.Pipe(duplex=False)
        work = (there, barrier, list(images), model, engine, seconds, batch)
        child = context.Process(target=_measure, args=work, daemon=True)
        child.start()
        there.close()
        pipes.append(here)
        children.append(child)
    try:
        return sum(_rate_from(pipe, seconds) for pipe in pipes)
    finally:
        for child in children:
            child.join(timeout=1.0)
            if child.is_alive():
                child.kill()


def _rate_from(pipe: Connection, seconds: float) -> float:
    try:
        if pipe.poll(_START_TIMEOUT_S + seconds):
            return float(pipe.recv())
    except EOFError:
        pass
    raise RuntimeError("a process that measures decode + predict failed; its error stands above")


def _measure(
    pipe: Connection,
    barrier: Barrier,
    images: list[bytes],
    model: Path | None,
    engine: str,
    seconds: float,
    batch: int,
) -> None:
    from .predict import Classifier

    # Ctrl-C reaches the whole group; the parent decides, and ends us.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    classifier = Classifier.load(model, engine)
    batches = [images[first : first + batch] for first in range(0, len(images), batch)]
    classifier.predict(batches[0])
    barrier.wait(_START_TIMEOUT_S)
    start, done = time.perf_counter(), 0
    while True:
        for each in batches:
            classifier.predict(each)
            done += len(each)
            if (elapsed := time.perf_counter() - start) >= seconds:
                pipe.send(done / elapsed)
                return
