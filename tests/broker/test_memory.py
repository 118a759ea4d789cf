"""The memory backend against the contract, on a clock that moves only when told."""

from __future__ import annotations

import pytest

from broker import Broker, ManualClock
from broker.conformance import Conformance, Harness
from broker.drivers.memory import MemoryDriver, MemoryStore

ENDS_WITH_ITS_PROCESS = "the store is memory of one process and ends with it"


class MemoryHarness(Harness):
    """All clients of one harness share a store and a clock."""

    lease = 30.0
    quiet = 0.02
    impossible = {  # noqa: RUF012 - a declaration
        "messages_survive_a_restart": ENDS_WITH_ITS_PROCESS,
        "verdicts_survive_a_restart": ENDS_WITH_ITS_PROCESS,
        "a_restart_in_mid_run_loses_nothing": ENDS_WITH_ITS_PROCESS,
    }

    def __init__(self) -> None:
        self.store = MemoryStore()
        self.clock = ManualClock()

    def connect(self) -> Broker:
        return Broker(MemoryDriver(self.store, lease=self.lease, clock=self.clock))

    async def advance(self, seconds: float) -> None:
        await self.clock.advance(seconds)

    async def restart(self) -> None:
        self.store = MemoryStore()


class TestMemory(Conformance):
    """Every check of the suite."""

    @pytest.fixture
    async def harness(self) -> MemoryHarness:
        return MemoryHarness()
