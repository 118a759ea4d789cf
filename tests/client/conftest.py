"""Things that the client's tests share."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from client.schema import ResultRow
from tests.commands import env, run

__all__ = ["env", "row", "run"]


@pytest.fixture
def row() -> Callable[..., ResultRow]:
    """Makes a row of the results table; any column may be given."""

    def make(message_id: str = "m-1", **columns: object) -> ResultRow:
        usual = ResultRow(
            message_id=message_id,
            status="ok",
            label="Coat",
            label_index=4,
            confidence=0.9,
            runner_up="Shirt",
            runner_up_confidence=0.05,
            group_label="Upper",
            tags="[]",
            model="fashion-cnn",
            model_version="1.0.0",
            model_hash="abc",
            engine="onnx",
            key=None,
            source="/test",
            subject="a coat",
            attempt=1,
            worker="host-1",
            queue_s=0.1,
            process_s=0.2,
            latency_s=0.3,
            created_at="2026-01-02T03:04:05+00:00",
        )
        return usual._replace(**columns)

    return make
