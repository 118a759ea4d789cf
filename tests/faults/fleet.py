"""Worker processes as an operator runs them, and what can be done to them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from tests.services.engines import free_ports, tied

ROOT = Path(__file__).resolve().parents[2]
COMMAND = ("-m", "couturier", "worker")
PATIENCE_S = 90.0
_SAMPLE_S = 0.25
_OURS = ("BROKER_", "SINK_", "COUTURIER_", "KAFKA_", "PUBSUB_", "GOOGLE_", "TEST_")


def until(
    holds: Callable[[], object], what: str, patience_s: float = PATIENCE_S, pause_s: float = 0.02
) -> float:
    """Wait for a condition; return how long that took, seconds.

    Raises:
        AssertionError: it did not come in time.
    """
    begin = time.monotonic()
    while not holds():
        assert time.monotonic() - begin < patience_s, f"not within {patience_s:g} s: {what}"
        time.sleep(pause_s)
    return time.monotonic() - begin


class Worker:
    """One worker command.

    Attributes:
        process: its handle.
        log: the file with all that it said.
        port: of its HTTP server.
        peak_bytes: most resident memory, its children included.
        noted: what it counted when it was asked last.
    """

    def __init__(self, process: subprocess.Popen[bytes], log: Path, ready: Path, port: int) -> None:
        self.process = process
        self.log = log
        self.port = port
        self.peak_bytes = 0
        self.noted: dict[str, Any] = {}
        self._ready = ready

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.process.pid

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        return self.process.poll() is None

    @property
    def is_ready(self) -> bool:
        """Whether it said that it is about to receive.

        Raises:
            AssertionError: it ended before.
        """
        assert self.alive or self._ready.exists(), self.text
        return self._ready.exists()

    @property
    def text(self) -> str:
        """All that it said."""
        return self.log.read_text(errors="replace")

    def events(self, event: str) -> list[dict[str, Any]]:
        """Return the lines of its log with this event."""
        lines = [
            json.loads(line) for line in self.text.splitlines() if line.startswith("{") and line.endswith("}")
        ]
        return [line for line in lines if line.get("event") == event]

    def status(self) -> dict[str, Any]:
        """Return what its ``/status`` says."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/status", timeout=5) as answer:
            found: dict[str, Any] = json.load(answer)
        return found

    def children(self) -> list[int]:
        """Return the process ids of its children."""
        with suppress(OSError):
            return [
                int(each) for each in Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
            ]
        return []

    def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        """Send a signal; with SIGKILL, wait for the end and see that it was the cause."""
        assert self.alive, f"worker {self.pid} had ended before: {self.text[-2000:]}"
        self.process.send_signal(number)
        if number is signal.SIGKILL:
            assert self.process.wait(30) == -signal.SIGKILL

    def freeze(self) -> None:
        """Stop it and its children, as a laptop's lid does."""
        for pid in (self.pid, *self.children()):
            os.kill(pid, signal.SIGSTOP)
        until(lambda: process_state(self.pid) == "T", "the worker is frozen")

    def thaw(self) -> None:
        """Let it go on."""
        for pid in (self.pid, *self.children()):
            os.kill(pid, signal.SIGCONT)

    def ended(self, patience_s: float = PATIENCE_S) -> int:
        """Wait for its end; return its exit code."""
        return self.process.wait(patience_s)

    def sample(self) -> None:
        """Look at its memory."""
        now = sum(resident_bytes(pid) for pid in (self.pid, *self.children()))
        self.peak_bytes = max(self.peak_bytes, now)

    def note(self) -> None:
        """Keep what it counts, in case it is killed before it can say so."""
        with suppress(OSError, ValueError, KeyError):
            self.noted = self.status()["rows"]

    def counted(self, field: str) -> int:
        """Return one of its counts of rows: as it said in the end, or when it was asked last."""
        said = self.events("rows")
        return int((said[-1] if said else self.noted).get(field, 0))


class Fleet:
    """Workers with one environment; a context manager that leaves none behind.

    Args:
        directory: for logs, ready files and state directories.
        env: of all workers, beside what every process has.
    """

    def __init__(self, directory: Path, env: dict[str, str]) -> None:
        self.workers: list[Worker] = []
        self._directory = directory
        clean = {name: value for name, value in os.environ.items() if not name.startswith(_OURS)}
        self._env = {**clean, "LOG_FORMAT": "json", **env}
        self._stopped = threading.Event()
        self._sampler = threading.Thread(target=self._sample, name="sampler", daemon=True)

    def __enter__(self) -> Fleet:
        self._sampler.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._sampler.join()
        for each in self.workers:
            children = each.children()
            if each.alive:
                with suppress(ProcessLookupError):
                    each.thaw()
                each.process.kill()
            each.process.wait()
            for pid in children:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    @property
    def alive(self) -> list[Worker]:
        """Those that run."""
        return [each for each in self.workers if each.alive]

    def start(self, *options: str, command: Sequence[str] = COMMAND, wait: bool = True, **env: str) -> Worker:
        """Start a worker; return when it is about to receive, or at once."""
        number = len(self.workers)
        ready, log = self._directory / f"ready-{number}", self._directory / f"worker-{number}.log"
        (port,) = free_ports(1)
        own = {
            "COUTURIER_HOME": str(self._directory / f"home-{number}"),
            "COUTURIER_HTTP_PORT": str(port),
            "PYTHONPATH": str(ROOT),
        }
        with log.open("wb") as file:
            process = subprocess.Popen(
                # The kernel ends it when this test process ends in any way.
                tied([sys.executable, *command, "--ready-file", str(ready), *options]),
                env={**self._env, **own, **env},
                cwd=self._directory,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
            )
        self.workers.append(Worker(process, log, ready, port))
        if wait:
            until(lambda: self.workers[number].is_ready, f"worker {number} is ready")
        return self.workers[number]

    def start_all(self, count: int, *options: str, **env: str) -> list[Worker]:
        """Start workers together; return when all are about to receive."""
        started = [self.start(*options, wait=False, **env) for _ in range(count)]
        until(lambda: all(each.is_ready for each in started), f"{count} workers are ready")
        return started

    def stop(self) -> list[int]:
        """Ask all that run to drain; return their exit codes."""
        running = self.alive
        for each in running:
            each.process.send_signal(signal.SIGTERM)
        return [each.ended() for each in running]

    def total(self, field: str) -> int:
        """Add up a count of rows over all workers."""
        return sum(each.counted(field) for each in self.workers)

    @property
    def peak_bytes(self) -> int:
        """Most memory of any worker."""
        return max((each.peak_bytes for each in self.workers), default=0)

    def _sample(self) -> None:
        while not self._stopped.wait(_SAMPLE_S):
            for each in tuple(self.workers):
                if each.alive:
                    each.sample()


def resident_bytes(pid: int) -> int:
    """Return the resident memory of a process; 0 when it is gone."""
    with suppress(OSError, IndexError):
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return 0


def process_state(pid: int) -> str:
    """Return the letter that the kernel has for what a process does; "" when it is gone."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    return ""
