"""Spans of the handler: what a batch's time went into, below the span of the whole."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from test_drift import Keeping

from broker import Delivery, Unavailable
from worker.engine import Engine
from worker.handler import ImageHandler

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


async def test_a_trace_says_what_a_batch_waited_for(
    pictures: list[bytes], deliver: Callable[..., Delivery], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Classified, then stored, each with its images; a sink that is away is the error of its own span."""
    exporter, provider = InMemorySpanExporter(), TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: provider)
    sink = Keeping()
    async with Engine() as engine:
        handler = ImageHandler(engine, sink, "host-1", sink_deadline_s=0.0)
        with provider.get_tracer("test").start_as_current_span("process images") as around:
            await handler([deliver(pictures[0]), deliver(b"no image")])
            sink.away = 2
            with pytest.raises(Unavailable):
                await handler([deliver(pictures[1])])
    provider.shutdown()
    found = [each for each in exporter.get_finished_spans() if each.name != "process images"]
    sizes = [(each.name, (each.attributes or {})["messaging.batch.message_count"]) for each in found]
    assert sizes == [("classify", 2), ("store", 1), ("classify", 1), ("store", 1)]
    assert {each.parent.span_id for each in found if each.parent} == {around.get_span_context().span_id}
    assert [(each.attributes or {}).get("error.type") for each in found] == [None, None, None, "Unavailable"]
