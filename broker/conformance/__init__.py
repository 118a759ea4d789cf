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

pytest and this package are all it needs. A check that a backend cannot pass is declared in
``Harness.impossible`` and skipped with that reason; a declaration that contradicts the backend's
``Capabilities``, in either direction, fails.
"""

from __future__ import annotations

import pytest

for _module in (
    "bench", "checks", "flow", "forwarding", "groups", "leases", "lifecycle", "ordering", "process_faults",
    "processing", "publishing", "receiving", "running", "settling", "verdicts",
):  # fmt: skip
    pytest.register_assert_rewrite(f"{__name__}.{_module}")

from .bench import GROUP, Bench, Harness  # noqa: E402
from .suite import Conformance, check_names  # noqa: E402

__all__ = ["GROUP", "Bench", "Conformance", "Harness", "check_names"]
