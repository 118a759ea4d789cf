"""``couturier worker --processes N``: starts N workers, and starts again what dies."""

from __future__ import annotations

import asyncio
import math
import os
import signal
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import structlog

from .crew import WorkerProcess
from .engine_process import how_it_ended
from .launch import DRAIN_TIMED_OUT, INTERRUPTED, Launch, Stop
from .settings import WorkerSettings

log = structlog.stdlib.get_logger("worker.supervisor")

FAILED, WRONG_USE, WRONG_CONFIGURATION, UNAVAILABLE = 1, 2, 78, 69
# Of several exit codes the first of these is ours; any other code is worse than all of them.
_RANK = (FAILED, WRONG_USE, WRONG_CONFIGURATION, UNAVAILABLE, DRAIN_TIMED_OUT, INTERRUPTED, 0)
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.5, 30.0
# Who ran for so long starts again at once.
_STEADY_S = 60.0
# So many ends before a worker was ready, and there is no point in going on.
_TRIES = 3
# A worker keeps its own deadline; this much later we end it.
_GRACE_S = 5.0
_LOOK_S, _IDLE_S = 0.05, 5.0


@dataclass(slots=True)
class Restarts:
    """When a worker that ended is started again: pure.

    Attributes:
        failures: ends in a row, none of which came after a long run.
        ends: all of them.
    """

    failures: int = 0
    ends: int = 0

    def wait_s(self, ran_s: float) -> float:
        """Note an end; return how long to wait, seconds.

        Args:
            ran_s: how long it had run, seconds.
        """
        self.ends += 1
        self.failures = 1 if ran_s >= _STEADY_S else self.failures + 1
        return min(_LONGEST_WAIT_S, _FIRST_WAIT_S * 2.0 ** min(self.failures - 1, 20))

    def hopeless(self, code: int) -> bool:
        """Whether a worker that was never ready will not get ready by trying on."""
        return code in (WRONG_USE, WRONG_CONFIGURATION) or self.failures >= _TRIES


def worst(codes: Sequence[int]) -> int:
    """Return the exit code that says most about what went wrong; a signal counts as a failure."""
    plain = [FAILED if code < 0 else code for code in codes]
    return min(plain, key=lambda code: _RANK.index(code) if code in _RANK else -1, default=0)


class Supervisor:
    """Keeps so many workers running until it is asked to stop.

    Args:
        count: how many.
        environment: of the workers; each gets the next port after ``COUTURIER_HTTP_PORT``, if that is set.
        drain_timeout_s: of the workers, seconds.
        directory: for their ready files.
    """

    def __init__(
        self, count: int, environment: Mapping[str, str], drain_timeout_s: float, directory: Path
    ) -> None:
        self._environment = environment
        self._drain_timeout_s = drain_timeout_s
        self._directory = directory
        self._restarts = [Restarts() for _ in range(count)]
        self._workers: list[WorkerProcess | None] = [None] * count
        self._due = [0.0] * count
        self._started = [0.0] * count
        self._ever_ready = False
        self.wake = asyncio.Event()

    @property
    def ready(self) -> bool:
        """Whether every worker has joined its group."""
        return all(worker is not None and worker.code is None and worker.ready for worker in self._workers)

    def look(self) -> int | None:
        """Start who is due, note who ended; return an exit code where it is no use to go on."""
        now = time.monotonic()
        for number, worker in enumerate(self._workers):
            if worker is None:
                if now >= self._due[number]:
                    self._start(number, now)
                continue
            self._ever_ready = self._ever_ready or worker.ready
            if worker.code is not None and (code := self._ended(number, worker, now)) is not None:
                return code
        return None

    async def wait(self, at_most: float = math.inf) -> None:
        """Return when it is time to look again, after ``at_most`` seconds."""
        now = time.monotonic()
        dues = [due - now for due, worker in zip(self._due, self._workers, strict=True) if worker is None]
        starting = any(worker is not None and not worker.ready for worker in self._workers)
        with suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, min([_LOOK_S if starting else _IDLE_S, at_most, *dues]))):
                await self.wake.wait()
        self.wake.clear()

    async def drain(self, stop: Stop) -> int:
        """Ask all to drain and wait for them; a second signal ends them. Returns the exit code."""
        self._due = [math.inf] * len(self._due)  # nobody is started any more
        running = [worker for worker in self._workers if worker is not None]
        unready = [worker for worker in running if not worker.ready]
        for worker in running:
            worker.stop()
        deadline = time.monotonic() + self._drain_timeout_s + _GRACE_S
        hurried = False
        while any(worker.code is None for worker in running):
            if stop.at_once and not hurried:
                hurried, deadline = True, time.monotonic() + _GRACE_S
                for worker in running:
                    worker.stop()
            if time.monotonic() > deadline:
                log.error("workers did not end in time and are killed")
                self.kill()
                return INTERRUPTED if hurried else DRAIN_TIMED_OUT
            await self.wait(deadline - time.monotonic())
        # Who had not begun yet knows no signals, and held nothing.
        codes = [
            0 if worker in unready and worker.code == -signal.SIGTERM else worker.code or 0
            for worker in running
        ]
        return INTERRUPTED if hurried else worst(codes)

    def kill(self) -> None:
        """End whatever still runs."""
        for worker in self._workers:
            if worker is not None:
                worker.kill()

    def _start(self, number: int, now: float) -> None:
        environment = dict(self._environment)
        if port := int(environment.get("COUTURIER_HTTP_PORT") or 0):
            environment["COUTURIER_HTTP_PORT"] = str(port + number)
        try:
            worker = WorkerProcess(self._directory / f"worker-{number}.ready", environment)
        except OSError as error:
            if not self._ever_ready:
                raise
            # The machine is short of something, and the other workers go on.
            wait_s = self._restarts[number].wait_s(0.0)
            self._due[number] = now + wait_s
            log.error("a worker cannot be started", number=number, error=str(error), again_in_s=wait_s)
            return
        self._workers[number], self._started[number] = worker, now
        log.info("worker started", number=number, pid=worker.pid, restarts=self._restarts[number].ends)

    def _ended(self, number: int, worker: WorkerProcess, now: float) -> int | None:
        restarts, code = self._restarts[number], worker.code or 0
        wait_s = restarts.wait_s(now - self._started[number])
        log.error(
            "worker ended",
            number=number,
            pid=worker.pid,
            how=how_it_ended(code),
            ends=restarts.ends,
            again_in_s=wait_s,
        )
        worker.kill()
        self._workers[number], self._due[number] = None, now + wait_s
        # Once one was ready the settings work, and what is away now will come back.
        if not self._ever_ready and restarts.hopeless(code):
            return worst([code])
        return None


async def supervise(settings: WorkerSettings, environment: Mapping[str, str], launch: Launch) -> int:
    """Keep ``settings.processes`` workers running until SIGTERM or SIGINT; then let them drain.

    Args:
        settings: of each worker.
        environment: of each worker; says the same as ``settings``.
        launch: what whoever started us wants to be told, and to tell.

    Returns:
        The worst exit code of the workers: 0 drained, 75 a drain timed out, 130 a second signal came, or
        why no worker can start.
    """
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    if settings.processes * settings.threads > cores:
        log.warning(
            "more threads than cores: fewer workers would do as much",
            processes=settings.processes,
            threads=settings.threads,
            cores=cores,
        )
    loop = asyncio.get_running_loop()
    with tempfile.TemporaryDirectory(prefix="couturier-") as directory:
        supervisor = Supervisor(settings.processes, environment, settings.drain_timeout_s, Path(directory))
        stop = Stop(launch, supervisor.wake.set)
        loop.add_signal_handler(signal.SIGCHLD, supervisor.wake.set)
        told = False
        try:
            while not stop.asked.is_set():
                code = supervisor.look()
                if code is not None:
                    log.error("no worker gets ready", code=code)
                    await supervisor.drain(stop)
                    return code
                if supervisor.ready and not told:
                    told = True
                    launch.say_ready()
                await supervisor.wait()
            return await supervisor.drain(stop)
        finally:
            loop.remove_signal_handler(signal.SIGCHLD)
            supervisor.kill()
