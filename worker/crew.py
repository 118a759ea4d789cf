"""Several worker processes on this machine, started and stopped together."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

_READY_TIMEOUT_S = 60.0


class Crew:
    """Several worker processes that end with this one.

    Args:
        count: how many.
        model: a bundle's directory; None leaves it to the environment.
        logs: directory for their logs and ready files.
        url: of the broker.
    """

    def __init__(self, count: int, model: Path | None, logs: Path, url: str) -> None:
        self._logs = logs
        logs.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "couturier", "worker", "--until-stdin-closes"]
        environment = {**os.environ, "BROKER_URL": url, "LOG_FORMAT": "json"}
        environment.pop("BROKER_BACKEND", None)
        if model is not None:
            environment["COUTURIER_MODEL"] = str(model)
        self._ready = [logs / f"worker-{number}.ready" for number in range(count)]
        self._processes: list[subprocess.Popen[bytes]] = []
        for number, ready in enumerate(self._ready):
            ready.unlink(missing_ok=True)
            with (logs / f"worker-{number}.log").open("wb") as log:
                # A session of its own keeps Ctrl-C for us; its standard input ends when we end.
                self._processes.append(
                    subprocess.Popen(  # noqa: S603 - our own command
                        [*command, "--ready-file", str(ready)],
                        env=environment,
                        stdin=subprocess.PIPE,
                        stdout=log,
                        stderr=log,
                        start_new_session=True,
                    )
                )

    async def ready(self, started: Callable[[int], None]) -> None:
        """Return once every worker receives.

        Args:
            started: called with the number of workers that do.

        Raises:
            OSError: one ended or did not get ready in time.
        """
        deadline = time.monotonic() + _READY_TIMEOUT_S
        while waiting := [path for path in self._ready if not path.exists()]:
            started(len(self._ready) - len(waiting))
            self.check()
            if time.monotonic() > deadline:
                raise OSError(f"the workers did not start within {_READY_TIMEOUT_S:g} s; see {self._logs}")
            await asyncio.sleep(0.02)
        started(len(self._ready))

    def check(self) -> None:
        """Raise ``OSError`` if every worker has ended, or one before it was ready."""
        ended = [number for number, each in enumerate(self._processes) if each.poll() is not None]
        if len(ended) == len(self._processes) or any(not self._ready[number].exists() for number in ended):
            log = self._logs / f"worker-{ended[0]}.log"
            lines = log.read_text(errors="replace").strip().splitlines()
            raise OSError(f"a worker ended: {lines[-1] if lines else 'without a word'} (all of it: {log})")

    async def stop(self) -> None:
        """Ask every worker to drain; return once all have ended."""
        for each in self._processes:
            if each.poll() is None:
                each.send_signal(signal.SIGTERM)
        for each in self._processes:
            await asyncio.to_thread(each.wait)

    def kill(self) -> None:
        """End whatever still runs."""
        for each in self._processes:
            if each.poll() is None:
                each.kill()
            each.wait()
            if each.stdin is not None:
                each.stdin.close()
