"""The SQLite backend against the contract, on a clock that moves only when told."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

from broker import Broker, Closed, ManualClock
from broker.conformance import Conformance, Harness
from broker.drivers.sqlite import SqliteDriver


class SqliteHarness(Harness):
    """All clients of one harness share a file and a clock."""

    lease = 30.0
    quiet = 0.05
    volume = 10_000

    def __init__(self, path: Path) -> None:
        self.path = path
        self.clock = ManualClock()
        self.drivers: list[SqliteDriver] = []

    def connect(self) -> Broker:
        self.drivers.append(SqliteDriver(self.path, lease=self.lease, clock=self.clock))
        return Broker(self.drivers[-1])

    async def advance(self, seconds: float) -> None:
        """Move in steps shorter than a lease, and let every client's thread finish what a step woke."""
        while seconds > 0:
            step = min(seconds, self.lease / 6)
            await self.clock.advance(step)
            for driver in self.drivers:
                with contextlib.suppress(Closed):
                    await driver.run(lambda _: None)
            await self.clock.advance(0)
            seconds -= step


class TestSqlite(Conformance):
    """Every check of the suite."""

    @pytest.fixture
    async def harness(self, tmp_path: Path) -> SqliteHarness:
        return SqliteHarness(tmp_path / "queue.db")
