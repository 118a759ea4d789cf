"""One measurement: what is measured, and the stopwatch that every client is given.

A body is the message's number and then filler. Consumers add the numbers up, so that a message lost and
another had twice do not cancel out. Every client pays for that alike, and for building the bodies.
"""

from __future__ import annotations

import gc
import os
import resource
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

NUMBER_BYTES = 8
# How many messages one call publishes, and one call hands over, where a client has such calls.
PUBLISH_BATCH = 10_000
_BATCH_BYTES = 16_000_000
CONSUME_BATCH = 500
# How many calls are on their way at one time, where a call publishes one message.
CONCURRENCY = 500


@dataclass(frozen=True, slots=True)
class Job:
    """One client doing one thing.

    Attributes:
        backend: as in ``BROKER_BACKEND``.
        client: its name in ``kafka_clients`` or its siblings.
        task: ``publish`` or ``consume``.
        address: of the backend: ``host:port``, or a directory.
        topic: is there; empty before ``publish``, and holds ``count`` messages before ``consume``.
        group: is there on Pub/Sub; new on Kafka.
        size_bytes: of a body.
        count: of messages.
    """

    backend: str
    client: str
    task: str
    address: str
    topic: str
    group: str
    size_bytes: int
    count: int


@dataclass(slots=True)
class Result:
    """What came out.

    Attributes:
        seconds: from the first message to the last verdict.
        cpu_seconds: of this process in that time, all threads.
        rss_bytes: before the first message, after the first half, at the end.
        peak_bytes: largest resident set, imports included.
    """

    seconds: float
    cpu_seconds: float
    rss_bytes: tuple[int, int, int]
    peak_bytes: int


class Stopwatch:
    """Counts messages, time and memory.

    Args:
        job: what is measured.
    """

    def __init__(self, job: Job) -> None:
        self.job = job
        self.count = 0
        self._filler = os.urandom(job.size_bytes - NUMBER_BYTES)
        self._sum = 0
        self._began: tuple[float, float] | None = None
        self._rss = [0, 0, 0]
        self._result: Result | None = None

    def first(self) -> bytes:
        """Return the body that opens the connections, before the clock starts."""
        return self._body(0)

    def bodies(self) -> Iterator[bytes]:
        """Yield every other body; the clock starts now."""
        self.start()
        for number in range(1, self.job.count):
            if number == self.job.count // 2:
                self._rss[1] = _resident()
            yield self._body(number)

    def _body(self, number: int) -> bytes:
        return number.to_bytes(NUMBER_BYTES, "big") + self._filler

    def batches(self, size: int) -> Iterator[list[bytes]]:
        """Yield those bodies in lists of ``size``, or of 16 MB."""
        size = min(size, max(1, _BATCH_BYTES // self.job.size_bytes))
        bodies = self.bodies()
        while batch := list(islice(bodies, size)):
            yield batch

    def start(self) -> None:
        """Start the clock; what was made before, such as modules, the collector leaves alone from here on."""
        gc.collect()
        gc.freeze()
        self._rss[0] = _resident()
        self._began = (time.perf_counter(), time.process_time())

    def take(self, bodies: Iterable[bytes]) -> bool:
        """Count what was received; the clock starts with the first. Return whether that was all."""
        if self._began is None:
            self.start()
        half = self.count < self.job.count // 2
        for body in bodies:
            self.count += 1
            self._sum += int.from_bytes(body[:NUMBER_BYTES], "big")
        if half and self.count >= self.job.count // 2:
            self._rss[1] = _resident()
        return self.count >= self.job.count

    def stop(self) -> None:
        """Stop the clock: everything is stored, or settled."""
        assert self._began is not None
        seconds, cpu = time.perf_counter() - self._began[0], time.process_time() - self._began[1]
        self._rss[2] = _resident()
        self._result = Result(seconds, cpu, (self._rss[0], self._rss[1], self._rss[2]), _peak())

    def result(self) -> Result:
        """Return what came out.

        Raises:
            RuntimeError: not every message was consumed exactly once.
        """
        count = self.job.count
        if self.job.task == "consume" and (self.count, self._sum) != (count, count * (count - 1) // 2):
            raise RuntimeError(f"consumed {self.count} of {count} messages, numbers adding up to {self._sum}")
        assert self._result is not None
        return self._result


def _resident() -> int:
    statm = Path("/proc/self/statm")
    if not statm.exists():  # not Linux
        return _peak()
    return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
