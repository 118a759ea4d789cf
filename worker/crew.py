"""Worker processes on this machine that end with the process that started them."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

_READY_TIMEOUT_S = 60.0


class WorkerProcess:
    """One ``couturier worker``.

    Args:
        ready: a file that it makes once it has joined its group.
        environment: of the process.
        log: where its output goes; None leaves it to go where ours goes.
    """

    def __init__(self, ready: Path, environment: Mapping[str, str], log: Path | None = None) -> None:
        self._ready = ready
        ready.unlink(missing_ok=True)
        ours = {"COUTURIER_PROCESSES": "1", "COUTURIER_UNTIL_STDIN_CLOSES": "true"}
        output = None if log is None else log.open("wb")
        try:
            # A session of its own keeps Ctrl-C for us; its standard input ends when we end.
            self._process = subprocess.Popen(  # noqa: S603 - our own command
                [sys.executable, "-m", "couturier", "worker", "--ready-file", str(ready)],
                env={**environment, **ours},
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        finally:
            if output is not None:
                output.close()

    @property
    def pid(self) -> int:
        """Its number."""
        return self._process.pid

    @property
    def ready(self) -> bool:
        """Whether it has joined its group, now or before it ended."""
        return self._ready.exists()

    @property
    def code(self) -> int | None:
        """Its exit code, negative for a signal; None while it runs."""
        return self._process.poll()

    def stop(self) -> None:
        """Ask it to drain; the second time, to end."""
        if self.code is None:
            self._process.send_signal(signal.SIGTERM)

    def wait(self) -> int:
        """Wait until it has ended; return its exit code."""
        return self._process.wait()

    def kill(self) -> None:
        """End it if it still runs."""
        if self.code is None:
            self._process.kill()
        self._process.wait()
        if self._process.stdin is not None:
            self._process.stdin.close()


class Crew:
    """Several workers, started and stopped together; none is started again.

    Args:
        count: how many.
        model: a bundle's directory; None leaves it to the environment.
        logs: directory for their logs and ready files.
        url: of the broker.
    """

    def __init__(self, count: int, model: Path | None, logs: Path, url: str) -> None:
        self._logs = logs
        logs.mkdir(parents=True, exist_ok=True)
        environment = {**os.environ, "BROKER_URL": url, "LOG_FORMAT": "json"}
        environment.pop("BROKER_BACKEND", None)
        environment.pop("COUTURIER_HTTP_PORT", None)  # they cannot all have the same
        if model is not None:
            environment["COUTURIER_MODEL"] = str(model)
        self._workers = [
            WorkerProcess(logs / f"worker-{number}.ready", environment, logs / f"worker-{number}.log")
            for number in range(count)
        ]

    async def ready(self, started: Callable[[int], None]) -> None:
        """Return once every worker receives.

        Args:
            started: called with the number of workers that do.

        Raises:
            OSError: one ended or did not get ready in time.
        """
        deadline = time.monotonic() + _READY_TIMEOUT_S
        while (ready := sum(worker.ready for worker in self._workers)) < len(self._workers):
            started(ready)
            self.check()
            if time.monotonic() > deadline:
                raise OSError(f"the workers did not start within {_READY_TIMEOUT_S:g} s; see {self._logs}")
            await asyncio.sleep(0.02)
        started(ready)

    def check(self) -> None:
        """Raise ``OSError`` if every worker has ended, or one before it was ready."""
        ended = [number for number, worker in enumerate(self._workers) if worker.code is not None]
        if len(ended) == len(self._workers) or any(not self._workers[number].ready for number in ended):
            log = self._logs / f"worker-{ended[0]}.log"
            lines = log.read_text(errors="replace").strip().splitlines()
            raise OSError(f"a worker ended: {lines[-1] if lines else 'without a word'} (all of it: {log})")

    async def stop(self) -> None:
        """Ask every worker to drain; return once all have ended."""
        for worker in self._workers:
            worker.stop()
        for worker in self._workers:
            await asyncio.to_thread(worker.wait)

    def kill(self) -> None:
        """End whatever still runs."""
        for worker in self._workers:
            worker.kill()
