"""Spans through the broker: tied together by the message, off by default, and never in the way."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from process_run import GROUP, LETTERS, TOPIC, Run

from broker import Batching, Broker, Delivery, Done, Message, Outcome, Reject, Retry, connect, tracing
from broker.drivers.memory import MemoryDriver, MemoryStore
from broker.message import uuid7

pytestmark = pytest.mark.anyio

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = f"00-{TRACE}-b7ad6b7169203331-01"


@pytest.fixture
def exported(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemorySpanExporter]:
    """A tracer provider that an application has set, for one test."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: provider)
    yield exporter
    provider.shutdown()


def named(exporter: InMemorySpanExporter, name: str) -> list[ReadableSpan]:
    return [span for span in exporter.get_finished_spans() if span.name == name]


async def process(broker: Broker, messages: Sequence[Message], judge: Any = None, **options: Any) -> Run:
    """Publish, and process until all is settled."""
    await broker.ensure(TOPIC, group=GROUP)
    before = (await broker.stats(TOPIC, GROUP)).settled or 0
    await broker.publish(TOPIC, messages)
    run = Run(broker, judge or (lambda _: Done()), **options)
    await run.until_settled(before + len(messages))
    return run


def ids(span: ReadableSpan) -> tuple[int, int]:
    assert span.context is not None
    return span.context.trace_id, span.context.span_id


@pytest.mark.parametrize(
    "url", ["memory://tracing-one", "sqlite:///{tmp}/queue.db"], ids=["memory", "sqlite"]
)
async def test_one_message_is_one_trace(url: str, tmp_path: Path, exported: InMemorySpanExporter) -> None:
    """``process`` is the child of the ``send`` that created the message, and ``settle`` its own child."""
    async with connect(url.format(tmp=tmp_path)) as broker:
        await process(broker, [Message(data=b"12345", id="m1")])
        backend = broker.capabilities.backend
    (send,) = named(exported, f"send {TOPIC}")
    (handled,) = named(exported, f"process {TOPIC}")
    (settled,) = named(exported, f"settle {TOPIC}")
    kinds = (trace.SpanKind.PRODUCER, trace.SpanKind.CONSUMER, trace.SpanKind.CLIENT)
    assert (send.kind, handled.kind, settled.kind) == kinds
    assert handled.parent is not None
    assert (handled.parent.trace_id, handled.parent.span_id) == ids(send)
    assert settled.parent is not None
    assert settled.parent.span_id == ids(handled)[1]
    assert [link.context.span_id for link in handled.links] == [ids(send)[1]]
    common = {"messaging.system": backend, "messaging.destination.name": TOPIC}
    one = {"messaging.message.id": "m1", "messaging.message.body.size": 5}
    for span, verb in ((send, "send"), (handled, "process"), (settled, "settle")):
        assert span.attributes is not None
        told = {"messaging.operation.name": verb, "messaging.operation.type": verb, **common}
        assert told.items() <= span.attributes.items()
    assert one.items() <= (send.attributes or {}).items()
    assert {**one, "messaging.consumer.group.name": GROUP}.items() <= (handled.attributes or {}).items()


async def test_a_batch_is_linked_to_all_that_created_it(exported: InMemorySpanExporter) -> None:
    """A batch of several has no parent but a link for each creation context, each once."""
    async with connect("memory://tracing-batch") as broker:
        await broker.ensure(TOPIC, group=GROUP)
        await broker.publish(TOPIC, [Message(data=b"") for _ in range(3)])
        await process(broker, [Message(data=b""), Message(data=b"", attributes={"traceparent": PARENT})])
    (handled,) = named(exported, f"process {TOPIC}")
    sends = {ids(span) for span in named(exported, f"send {TOPIC}")}
    assert handled.parent is None
    links = [(link.context.trace_id, link.context.span_id) for link in handled.links]
    assert sorted(links) == sorted([*sends, (int(TRACE, 16), 0xB7AD6B7169203331)])
    assert (handled.attributes or {})["messaging.batch.message_count"] == 5


async def test_a_context_that_a_message_carries_is_kept(exported: InMemorySpanExporter) -> None:
    """Its publisher's trace goes on; the ``send`` span is linked to it instead of replacing it."""
    got: list[str] = []

    def judge(each: Delivery) -> Outcome:
        got.append(each.message.attributes["traceparent"])
        return Done()

    async with connect("memory://tracing-kept") as broker:
        await process(
            broker, [Message(data=b"", attributes={"traceparent": PARENT, "tracestate": "a=1"})], judge
        )
    assert got == [PARENT]
    (send,) = named(exported, f"send {TOPIC}")
    (handled,) = named(exported, f"process {TOPIC}")
    assert [link.context.trace_id for link in send.links] == [int(TRACE, 16)]
    assert ids(handled)[0] == int(TRACE, 16)


async def test_googles_own_context_is_read(exported: InMemorySpanExporter) -> None:
    """A message that Google's client traced continues that trace."""
    async with Broker(MemoryDriver(MemoryStore())) as broker:
        full = {f"n{number}": "" for number in range(999)}
        await process(broker, [Message(data=b"", attributes={**full, "googclient_traceparent": PARENT})])
    (handled,) = named(exported, f"process {TOPIC}")
    assert ids(handled)[0] == int(TRACE, 16)


async def test_the_context_survives_retries_and_the_dead_letter(exported: InMemorySpanExporter) -> None:
    """All attempts, and the letter, belong to the one trace; failures are told on their span."""
    async with connect("memory://tracing-retries") as broker:

        def judge(each: Delivery) -> Outcome:
            return Retry(OSError("no disk"), "store") if each.attempt < 3 else Reject("bad", "x")

        await process(broker, [Message(data=b"")], judge)
        letters = [each.message.attributes async for each in broker.browse(LETTERS, "operators")]
    (send,) = named(exported, f"send {TOPIC}")
    handled = named(exported, f"process {TOPIC}")
    assert [ids(span)[0] for span in handled] == [ids(send)[0]] * 3
    assert letters[0]["traceparent"].split("-")[1] == f"{ids(send)[0]:032x}"
    assert [(span.attributes or {})["couturier.attempt"] for span in handled] == [1, 2, 3]
    assert [(span.attributes or {})["error.type"] for span in handled] == ["OSError", "OSError", "bad"]
    assert {span.status.status_code for span in handled} == {trace.StatusCode.ERROR}
    assert [event.name for event in handled[0].events] == ["message failed"]


async def test_what_a_handler_publishes_belongs_to_the_trace(exported: InMemorySpanExporter) -> None:
    """The ``process`` span is current while the handler runs, so what it makes are children of it."""
    async with connect("memory://tracing-nested") as broker:
        seen: list[int] = []

        def judge(_: Delivery) -> Outcome:
            seen.append(trace.get_current_span().get_span_context().span_id)
            return Done()

        await process(broker, [Message(data=b"")], judge)
    assert seen == [ids(span)[1] for span in named(exported, f"process {TOPIC}")]


async def test_a_message_without_room_is_sent_as_it_is(exported: InMemorySpanExporter) -> None:
    """Tracing never makes a message break a limit of the backend."""
    async with Broker(MemoryDriver(MemoryStore())) as broker:
        most = broker.capabilities.max_attributes
        full = {f"n{number}": "" for number in range(most)}
        run = await process(broker, [Message(data=b"", attributes=full)])
    assert run.watch.totals.done == 1
    assert len(named(exported, f"process {TOPIC}")) == 1


class BrokenExporter(SpanExporter):
    """Fails always."""

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        raise OSError("no collector")


class BrokenProcessor(SimpleSpanProcessor):
    """Fails before anything is exported."""

    def on_start(self, span: Any, parent_context: Any = None) -> None:
        raise RuntimeError("no start")

    def on_end(self, span: ReadableSpan) -> None:
        raise RuntimeError("no end")


@pytest.mark.parametrize("kind", [SimpleSpanProcessor, BrokenProcessor])
async def test_errors_of_tracing_hurt_no_message(
    kind: type[SimpleSpanProcessor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever fails in making or exporting spans, messages are published and processed as always."""
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(kind(BrokenExporter()))
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: provider)
    async with Broker(MemoryDriver(MemoryStore())) as broker:
        run = await process(broker, [Message(data=b"") for _ in range(20)], batch=Batching(max_messages=7))
    assert run.watch.totals.done == 20
    assert run.watch.totals.retried == 0


@pytest.mark.kafka
async def test_a_trace_goes_through_kafka(kafka_service: Any, exported: InMemorySpanExporter) -> None:
    """The context travels as a header; partition, offset and key are told of a message that is alone."""
    async with connect(f"kafka://{kafka_service.bootstrap}") as broker:
        topic = f"traced-{uuid7()}"
        await broker.ensure(topic, group=GROUP, partitions=1)
        await broker.publish(topic, [Message(data=b"x", key="k")])
        async with broker.subscribe(topic, group=GROUP) as subscription:
            (delivery,) = await subscription.receive(timeout=30.0)
            spans = tracing.spans()
            assert spans is not None
            with spans.process("kafka", topic, GROUP, [delivery]):
                await subscription.ack(delivery)
    (send,) = named(exported, f"send {topic}")
    (handled,) = named(exported, f"process {topic}")
    assert ids(handled)[0] == ids(send)[0]
    told = {
        "messaging.system": "kafka",
        "messaging.destination.partition.id": "0",
        "messaging.kafka.offset": 0,
        "messaging.kafka.message.key": "k",
    }
    assert told.items() <= (handled.attributes or {}).items()


_OFF = """
import asyncio, sys
from broker import Done, Message, connect, tracing
assert tracing.configure("test") is {configured}
async def main():
    stop = asyncio.Event()
    async def handler(deliveries):
        stop.set()
        return [Done()] * len(deliveries)
    async with connect("memory://off") as broker:
        await broker.ensure("t", group="g")
        await broker.publish("t", [Message(data=b"")])
        await broker.process("t", group="g", handler=handler, stop=stop)
        print([each.message.attributes async for each in broker.browse("t", "g")])
asyncio.run(main())
print("opentelemetry" in sys.modules)
"""


def run_program(configured: bool, **environment: str) -> subprocess.CompletedProcess[str]:
    """Publish and process one message in a program of its own."""
    code = _OFF.format(configured=configured)
    return subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.parametrize(
    "environment",
    [{}, {"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://localhost:1"},
     {"OTEL_TRACES_EXPORTER": "console", "OTEL_SDK_DISABLED": "true"}, {"OTEL_SERVICE_NAME": "x"}],
)  # fmt: skip
def test_nothing_is_imported_unless_it_was_asked_for(environment: dict[str, str]) -> None:
    """Without a variable that asks for spans OpenTelemetry is not even loaded."""
    ran = run_program(False, **environment)
    assert ran.stdout.splitlines()[-1:] == ["False"], ran.stderr


def test_spans_can_be_read_on_the_console() -> None:
    """``OTEL_TRACES_EXPORTER=console`` writes them to standard error, under the name of the service."""
    ran = run_program(True, OTEL_TRACES_EXPORTER="console")
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.splitlines()[-1:] == ["True"]
    for text in ('"name": "send t"', '"name": "process t"', '"name": "settle t"', '"service.name": "test"'):
        assert text in ran.stderr
    named_otherwise = run_program(True, OTEL_TRACES_EXPORTER="console", OTEL_SERVICE_NAME="other")
    assert '"service.name": "other"' in named_otherwise.stderr


def test_a_collector_that_is_not_there_holds_nothing_up() -> None:
    """With an endpoint where nobody listens the program does its work, and ends soon."""
    ran = run_program(True, OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:9")
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.splitlines()[-1:] == ["True"]


def test_an_exporter_that_is_not_known_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names the variable, the value and what would work."""
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "jaeger")
    with pytest.raises(ValueError, match="OTEL_TRACES_EXPORTER: 'jaeger' is not known here; known are otlp"):
        tracing.configure("test")
