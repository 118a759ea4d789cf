"""The real worker command with one bug planted: ``python -m tests.faults.buggy_worker BUG [OPTIONS]``."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Sequence
from typing import Any

from broker.processing.settler import Settler

# Longer than any of these workers lives.
_MUCH_LATER_S = 600.0
_tasks: set[asyncio.Task[object]] = set()


def ack_before_write() -> None:
    """Say that rows are written, and write them later."""
    import worker.main
    from client.results import WriteReport

    real = worker.main.open_sink

    class Hasty:
        """A sink that promises."""

        def __init__(self, *given: Any) -> None:
            self._sink = real(*given)

        def __getattr__(self, name: str) -> Any:
            return getattr(self._sink, name)

        async def write(self, rows: Sequence[Any]) -> WriteReport:
            async def later() -> None:
                await asyncio.sleep(_MUCH_LATER_S)
                await self._sink.write(rows)

            _tasks.add(asyncio.create_task(later()))
            return WriteReport(len(rows))

    worker.main.open_sink = Hasty  # type: ignore[assignment]


def ack_before_letter() -> None:
    """Ack what is dead, and store its letter later."""
    bury = Settler._bury

    async def hasty(self: Settler, letters: Sequence[Any], held: Any) -> None:
        await self._persist(held, acks=[each.delivery for each in letters])
        await asyncio.sleep(_MUCH_LATER_S)
        await bury(self, letters, held)

    Settler._bury = hasty  # type: ignore[method-assign]


def auto_commit() -> None:
    """Let Kafka's client commit what it has handed over."""
    from tests.broker.kafka_bugs import plant

    plant("auto_commit")


def highest_offset() -> None:
    """Commit after the last finished record, whatever is open before it."""
    from tests.broker.kafka_bugs import plant

    plant("highest_offset")


BUGS: dict[str, Callable[[], None]] = {
    each.__name__: each for each in (ack_before_write, ack_before_letter, auto_commit, highest_offset)
}


if __name__ == "__main__":
    import couturier

    BUGS[sys.argv[1]]()
    sys.argv[1] = "worker"
    couturier.main()
