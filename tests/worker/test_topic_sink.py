"""The sink that publishes results: what others receive, what it refuses, and what is nobody's fault."""

from __future__ import annotations

import json
import signal
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import pytest
from rig import PATIENCE_S, Rig

from broker import Broker, Delivery, Message, NotFound, Receipt, Unavailable, connect
from broker.drivers.memory import MemoryDriver, MemoryStore
from client import Client
from client.results import ResultsReader
from client.schema import ClassifyResult, ResultRow
from client.sources.fashion_mnist import FashionMnist
from worker.sinks import SinkUnavailable, open_sink
from worker.sinks.topic import TopicSink

pytestmark = pytest.mark.anyio

TOPIC, GROUP = "results", "readers"
Row = Callable[..., ResultRow]


@pytest.fixture
def row() -> Row:
    """Makes a row; any column may be given."""

    def make(message_id: str = "m-1", **columns: object) -> ResultRow:
        values: dict[str, object] = {
            **dict.fromkeys(ResultRow._fields),
            **{"message_id": message_id, "status": "ok", "label": "Coat", "confidence": 0.9, "tags": "[]"},
            **{"key": "cam-7", "subject": "a coat", "source": "/test", "attempt": 1, "worker": "host-1"},
            **{"queue_s": 0.1, "process_s": 0.2, "latency_s": 0.3, "created_at": "2026-01-02T03:04:05+00:00"},
        }
        return ResultRow(**{**values, **columns})  # type: ignore[arg-type]

    return make


def memory() -> Broker:
    """A broker of this test alone."""
    return connect(f"memory://{uuid4()}")


async def received(broker: Broker) -> list[Message]:
    """Take everything that the group ``GROUP`` has before it."""
    count = (await broker.stats(TOPIC, GROUP)).unsettled
    found: list[Delivery] = []
    async with broker.subscribe(TOPIC, group=GROUP) as subscription:
        while len(found) < count:
            found += await subscription.receive()
        await subscription.ack(found)
    return [each.message for each in found]


async def opened(broker: Broker) -> TopicSink:
    """A sink on an open broker whose topic has a group."""
    sink = TopicSink(TOPIC, broker=broker)
    await sink.open()
    await broker.ensure(TOPIC, GROUP)
    return sink


async def test_a_row_becomes_an_event_that_any_language_can_read(row: Row) -> None:
    """Columns as JSON; key, subject and the request's id travel outside of it."""
    async with memory() as broker:
        sink = await opened(broker)
        report = await sink.write([row("m-1"), row("m-2", label=None, status="expired")])
        first, second = await received(broker)
    assert (report.new, report.identical, report.refused) == (2, 0, {})
    assert (first.key, first.subject, first.type) == ("cam-7", "a coat", "dev.couturier.image.classified.v1")
    assert (first.content_type, dict(first.attributes)) == (
        "application/json",
        {"couturier-message-id": "m-1"},
    )
    assert json.loads(first.data) == row("m-1").to_dict()
    assert first.time.isoformat() == "2026-01-02T03:04:05+00:00"
    found = ClassifyResult.from_message(second)
    assert found is not None
    assert (found.message_id, found.status, found.label) == ("m-2", "expired", None)


async def test_a_repeat_has_the_id_of_the_first(row: Row) -> None:
    """Also from another worker and with another content; another message has another id."""
    async with memory() as broker:
        sink = await opened(broker)
        await sink.write([row("m-1"), row("m-1")])
        await sink.write([row("m-1", worker="host-2", label="Shirt"), row("m-2")])
        ids = [(each.attributes["couturier-message-id"], each.id) for each in await received(broker)]
    assert [name for name, _ in ids] == ["m-1", "m-1", "m-2"]
    assert ids[0] == ids[1] != ids[2]


async def test_what_can_never_be_stored_is_refused_and_keeps_nothing_else_out(row: Row) -> None:
    """No JSON, an attribute over the limit: named with the reason; neighbours are stored."""
    async with memory() as broker:
        sink = await opened(broker)
        long = "x" * (broker.capabilities.max_attribute_bytes + 1)
        report = await sink.write([row("m-1"), row(long), row("nan", confidence=float("nan")), row("m-2")])
        stored = [each.attributes["couturier-message-id"] for each in await received(broker)]
    assert stored == ["m-1", "m-2"]
    assert set(report.refused) == {long, "nan"}
    assert "InvalidMessage" in report.refused[long]
    assert report.new == 2


async def test_an_outage_blames_no_row_and_a_topic_that_is_gone_is_one(row: Row) -> None:
    """The same write works once the broker is back."""

    class Away(Broker):
        away = True

        async def publish(self, topic: str, messages: Sequence[Message]) -> list[Receipt]:
            if self.away:
                raise Unavailable("away")
            return await super().publish(topic, messages)

    store = MemoryStore()
    async with Away(MemoryDriver(store)) as broker:
        sink = await opened(broker)
        with pytest.raises(SinkUnavailable, match="away"):
            await sink.write([row()])
        broker.away = False
        assert (await sink.write([row()])).new == 1
        store.topics.clear()
        with pytest.raises(SinkUnavailable, match="results"):
            await sink.write([row()])


async def test_a_topic_that_is_missing_is_made_or_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """With ``COUTURIER_CREATE=false`` the error says how to make it; a new one keeps events for a week."""
    monkeypatch.setenv("BROKER_URL", f"sqlite:///{tmp_path}/queue.db")
    with pytest.raises(NotFound, match="couturier topics ensure results"):
        await open_sink("topic:results", create=False).open()
    made = open_sink("topic:results")
    await made.open()
    await made.aclose()
    found = open_sink("topic:results", create=False)
    await found.open()
    await found.aclose()
    async with connect() as broker:
        assert [each.name for each in await broker.topics()] == ["results"]
        kept = await broker._driver.admin.ensure("results", None, 1, "earliest", 3600.0)
    assert kept == 7 * 86_400.0


async def test_days_of_retention_are_those_of_a_new_topic(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A topic that is there keeps its own, and the log says so."""
    monkeypatch.setenv("BROKER_URL", f"sqlite:///{tmp_path}/queue.db")
    for days in (2.0, 3.0):
        sink = open_sink("topic:results", keep_days=days)
        await sink.open()
        await sink.aclose()
    assert [
        each.getMessage()
        for each in caplog.records
        if "keeps messages for 2 days, not 3" in each.getMessage()
    ]


async def test_a_broker_inside_this_process_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody else could read it."""
    monkeypatch.setenv("BROKER_URL", "memory://here")
    with pytest.raises(ValueError, match=r"SINK_URL='topic:results' needs a broker that others can reach"):
        await open_sink("topic:results").open()


@pytest.mark.parametrize("url", ["topic:", "topic://results", "topic:7up"])
def test_a_name_that_no_backend_takes_is_refused(url: str) -> None:
    """Before anything is connected."""
    with pytest.raises(ValueError, match="topic:NAME"):
        open_sink(url)


async def test_a_table_and_a_topic_together(
    row: Row, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """``SINK_URL`` may name both; each has every row."""
    monkeypatch.setenv("BROKER_URL", f"sqlite:///{tmp_path}/queue.db")
    async with connect() as broker:
        await broker.ensure(TOPIC, GROUP)
        sink = open_sink(f"sqlite:///{tmp_path}/results.db,topic:{TOPIC}")
        await sink.open()
        await sink.write([row("m-1"), row("m-2")])
        await sink.aclose()
        sent = [each.attributes["couturier-message-id"] for each in await received(broker)]
    with ResultsReader(tmp_path / "results.db") as reader:
        assert sorted(reader.ids()) == sent == ["m-1", "m-2"]


async def test_a_backend_without_retention_is_not_asked_for_one() -> None:
    """The topic is made all the same."""
    broker = memory()
    driver = broker._driver
    driver.capabilities = replace(driver.capabilities, retention=None)
    async with broker:
        await TopicSink(TOPIC, broker=broker).open()
        assert [each.name for each in await broker.topics()] == [TOPIC]


async def test_a_service_is_answered_by_worker_processes_one_of_which_is_killed(rig: Rig) -> None:
    """Every image is answered, correctly and in order; topics were made with the retention that was set."""
    sent = list(FashionMnist(400))
    more = {"SINK_URL": "topic:results", "COUTURIER_RETENTION": "2", "COUTURIER_DLQ_RETENTION": "30"}
    first = await rig.worker("--batch-size", "8", **more)
    async with (
        connect(rig.url) as broker,
        Client(broker, "images", results_url="topic:results") as client,
    ):
        ids = await client.submit(sent)
        await client.results(ids[:1], PATIENCE_S)
        first.kill()
        await rig.ended(first)
        assert (await rig.stats()).unsettled > 0, "the worker was killed too late"
        second = await rig.worker(**more)
        found = await client.results(ids, PATIENCE_S)
        assert [each.message_id for each in found] == ids
        assert [each.subject for each in found] == [each.request.subject for each in sent]
        assert len({each.worker for each in found}) == 2
        second.send_signal(signal.SIGTERM)
        assert await rig.ended(second) == 0, rig.log_of(second)
    with closing(sqlite3.connect(rig.directory / "queue.db")) as db:
        kept = dict(db.execute("SELECT name, seconds / 86400 FROM retentions JOIN topics USING (topic_id)"))
        groups = {name for (name,) in db.execute("SELECT name FROM groups")}
    assert kept == {"images": 2.0, "images.classifiers.dlq": 30.0, "results": 7.0}
    assert groups == {"classifiers", "operators"}
