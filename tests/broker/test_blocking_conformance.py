from __future__ import annotations

import pytest
from blocking_face import BlockingHarness

from broker.conformance import Conformance


class TestBlocking(Conformance):
    @pytest.fixture
    async def harness(self, monkeypatch: pytest.MonkeyPatch) -> BlockingHarness:
        return BlockingHarness(monkeypatch)
