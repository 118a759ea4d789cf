"""The definition of the contract: every driver, also one from elsewhere, runs these checks with one fixture.

::

    from broker.conformance import Conformance, Harness

    class MyHarness(Harness):
        lease = 10.0
        impossible = {"verdicts_survive_a_restart": "everything is kept in memory"}

        def connect(self) -> Broker:
            return Broker(MyDriver(...))

        async def advance(self, seconds: float) -> None:
            await asyncio.sleep(seconds)

    class TestMyDriver(Conformance):
        @pytest.fixture
        async def harness(self) -> MyHarness:
            return MyHarness()

pytest and this package are all it needs; ``docs/test-a-driver.md`` has a whole one. A check that a backend
cannot pass is declared in ``Harness.impossible`` and skipped with that reason; a declaration that contradicts
the backend's ``Capabilities``, in either direction, fails. ``ITEMS`` says what the suite as a whole covers.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from .bench import GROUP, Bench
    from .harness import Harness, member_of
    from .items import ITEMS
    from .suite import Conformance, check_names

__all__ = ["GROUP", "ITEMS", "Bench", "Conformance", "Harness", "check_names", "member_of"]

_HOMES = {
    "GROUP": "bench",
    "ITEMS": "items",
    "Bench": "bench",
    "Conformance": "suite",
    "Harness": "harness",
    "check_names": "suite",
    "member_of": "harness",
}

# Registered before they are imported, so that pytest shows both sides of a comparison that fails.
for _module in (
    "administration", "bench", "checks", "flow", "forwarding", "groups", "leases", "lifecycle", "ordering",
    "process_faults", "processing", "publishing", "receiving", "running", "settling", "verdicts",
):  # fmt: skip
    pytest.register_assert_rewrite(f"{__name__}.{_module}")


def __getattr__(name: str) -> object:
    # pytest imports this package wherever couturier is installed, to find its plugin; the suite itself comes
    # with the first name that is asked for.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
