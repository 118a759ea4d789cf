"""One measurement in a process of its own: ``python -m benchmarks.client`` with a job as JSON on stdin."""

from __future__ import annotations

import asyncio
import inspect
import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from importlib import import_module
from typing import Any

from .measure import Job, Stopwatch

MODULES = {"kafka": "kafka_clients", "pubsub": "pubsub_clients", "sqlite": "local_clients"}


def clients(backend: str) -> dict[str, tuple[Callable[..., Any], Callable[..., Any], float]]:
    """Return the clients of a backend: publish, consume, share of the messages."""
    found: dict[str, Any] = import_module(f".{MODULES[backend]}", __package__).CLIENTS
    return found


def main() -> None:
    """Do the job; print the result as JSON."""
    job = Job(**json.load(sys.stdin))
    publish, consume, _ = clients(job.backend)[job.client]
    watch = Stopwatch(job)
    run = (publish if job.task == "publish" else consume)(job, watch)
    if inspect.isawaitable(run):
        asyncio.run(run)  # type: ignore[arg-type]
    print(json.dumps(asdict(watch.result())))


if __name__ == "__main__":
    main()
