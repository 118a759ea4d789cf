"""What a worker process is told from outside: how it was started, and when to stop."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog

from .engine_process import COMMAND

log = structlog.stdlib.get_logger("worker")

DRAIN_TIMED_OUT = 75
INTERRUPTED = 130


@dataclass(frozen=True, slots=True)
class Launch:
    """What whoever started this process wants to be told, and to tell.

    Attributes:
        ready_file: is created once the worker has joined its group.
        until_stdin_closes: drain as on SIGTERM when standard input ends, so that no worker outlives its
            parent.
        engine: the command of the process that decodes and predicts.
    """

    ready_file: Path | None = None
    until_stdin_closes: bool = False
    engine: Sequence[str] = COMMAND

    def say_ready(self) -> None:
        """Tell whoever wants to know."""
        log.info("ready")
        if self.ready_file is not None:
            try:
                self.ready_file.touch()
            except OSError as error:
                log.error("the ready file cannot be made", error=str(error))


class Stop:
    """SIGTERM, SIGINT and the end of standard input: the first asks to drain, a second signal to end at once.

    Made within a running event loop.

    Args:
        launch: whether standard input counts.
        changed: called whenever one comes.

    Attributes:
        asked: set by the first.
        at_once: whether a second signal came.
    """

    def __init__(self, launch: Launch, changed: Callable[[], object]) -> None:
        self.asked = asyncio.Event()
        self.at_once = False
        self._changed = changed
        # Not `asked`: standard input that ends sets that, too, and is no signal.
        self._signalled = False
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal, number)
        if launch.until_stdin_closes:
            threading.Thread(target=self._watch_stdin, args=(loop,), name="stdin", daemon=True).start()

    def _on_signal(self, number: signal.Signals) -> None:
        if self._signalled:
            self.at_once = True
        else:
            log.info("draining; a second signal ends at once", signal=number.name)
        self._signalled = True
        self.asked.set()
        self._changed()

    def _watch_stdin(self, loop: asyncio.AbstractEventLoop) -> None:
        # Not sys.stdin: a buffered reader that is blocked when Python ends is a fatal error.
        while os.read(0, 4096):
            pass
        loop.call_soon_threadsafe(self._on_end)

    def _on_end(self) -> None:
        self.asked.set()
        self._changed()
