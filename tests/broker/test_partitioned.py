"""The suite is fit for a backend where a partition belongs to one member and members join slowly."""

from __future__ import annotations

import pytest
from partitioned import PartitionedHarness

from broker.conformance import Conformance


class TestPartitioned(Conformance):
    """Every check of the suite, on memory that behaves like a partitioned log."""

    @pytest.fixture
    async def harness(self) -> PartitionedHarness:
        return PartitionedHarness()
