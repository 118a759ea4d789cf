"""Stops a real worker at a stage of its work, seen from outside: the page that its engine shares with it."""

from __future__ import annotations

import os
import signal
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .fleet import Worker, process_state, until

# ``worker.engine_child.Cell``: number of the request, stage, index of the image.
IDLE, READING, DECODING, PREDICTING = range(4)
_WORDS = struct.Struct("=III")


def engine_pid(worker: Worker) -> int:
    """Return the process id of a worker's engine."""
    found: list[int] = []

    def look() -> bool:
        found[:] = [pid for pid in worker.children() if b"engine" in _command(pid)]
        return len(found) == 1

    until(look, f"worker {worker.pid} has one engine")
    return found[0]


def read_cell(pid: int) -> tuple[int, int, int]:
    """Return the number of the request that an engine works at, its stage, and the index of the image."""
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(OSError):
            if "couturier-engine" in str(descriptor.readlink()):
                with descriptor.open("rb") as page:
                    return _WORDS.unpack(page.read(_WORDS.size))
    raise AssertionError(f"process {pid} shares no page")


@contextmanager
def frozen_engine(worker: Worker) -> Iterator[int]:
    """Freeze the engine of a worker before anything is sent; yield its process id."""
    pid = engine_pid(worker)
    _freeze(pid)
    try:
        yield pid
    finally:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


def freeze_at(worker: Worker, stage: int, send: Callable[[], object], patience_s: float = 60.0) -> int:
    """Freeze the engine of a worker while it is at a stage; return its process id.

    Args:
        worker: whose.
        stage: of ``Cell``.
        send: gives it work; called again and again until the engine was caught.
        patience_s: seconds.
    """
    pid = engine_pid(worker)
    deadline = time.monotonic() + patience_s
    while True:
        send()
        until_s = time.monotonic() + 2.0
        while time.monotonic() < until_s:
            if read_cell(pid)[1] != stage:
                continue
            _freeze(pid)
            # What was seen before it froze may be over.
            if read_cell(pid)[1] == stage:
                return pid
            os.kill(pid, signal.SIGCONT)
        assert time.monotonic() < deadline, f"the engine was not met at stage {stage}"


def _freeze(pid: int) -> None:
    os.kill(pid, signal.SIGSTOP)
    until(lambda: process_state(pid) == "T", "the engine is frozen", pause_s=0.0005)


def _command(pid: int) -> bytes:
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""
