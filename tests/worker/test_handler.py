"""The worker's handler: one outcome for every image, and nobody is blamed for another's fault."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import timedelta
from pathlib import Path

import pytest
from odd_engine import COMMAND, marked

from broker import (
    Batching,
    Broker,
    Delivery,
    Done,
    Message,
    Outcome,
    Reject,
    RetryPolicy,
    Totals,
    Unavailable,
    connect,
    dead_letter_topic,
)
from broker.message import utc_now
from classifier import Classifier, Prediction
from client.results import ResultsReader, WriteReport
from client.schema import ClassifyRequest, ResultRow
from worker import ImageHandler, Sink
from worker.engine import Engine
from worker.sinks import SinkUnavailable
from worker.sinks.sqlite import SqliteSink

pytestmark = pytest.mark.anyio

Deliver = Callable[..., Delivery]
TOPIC, GROUP = "images", "classifiers"


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
async def engine() -> AsyncIterator[Engine]:
    """The real one, in its process, which obeys marks on images."""
    async with Engine(crashes=2, command=COMMAND) as engine:
        yield engine


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "results.db"


@pytest.fixture
async def sink(path: Path) -> AsyncIterator[SqliteSink]:
    sink = SqliteSink(path, busy_timeout_s=0.01)
    await sink.open()
    yield sink
    await sink.aclose()


def rows_of(path: Path) -> dict[str, ResultRow]:
    with ResultsReader(path) as reader:
        return {row.message_id: row for row in reader.rows()}


async def test_outcomes_come_in_the_order_of_the_deliveries(
    engine: Engine,
    classifier: Classifier,
    sink: SqliteSink,
    path: Path,
    pictures: list[bytes],
    deliver: Deliver,
) -> None:
    """Good and bad mixed: a row with the offline label for each good one, a reason for each bad one."""
    images = [b"" if place % 5 == 0 else pictures[place] for place in range(64)]
    deliveries = [deliver(image) for image in images]
    handler = ImageHandler(engine, sink, "host-1")
    outcomes = await handler(deliveries)
    assert outcomes[0] == Reject("invalid-image", "empty: no bytes", stage="decode")
    assert [isinstance(each, Reject) for each in outcomes] == [not image for image in images]
    stored = rows_of(path)
    for delivery, answer in zip(deliveries, classifier.predict(images), strict=True):
        row = stored.pop(delivery.message.id, None)
        if isinstance(answer, Prediction):
            assert row is not None
            assert (row.label, row.runner_up, row.group_label) == (
                answer.label,
                answer.runner_up,
                answer.group_label,
            )
        else:
            assert row is None
    assert not stored
    assert (handler.tally.rows, handler.tally.invalid) == (51, 13)


async def test_a_row_says_where_it_comes_from(
    engine: Engine,
    classifier: Classifier,
    sink: SqliteSink,
    path: Path,
    pictures: list[bytes],
    deliver: Deliver,
) -> None:
    """Who asked, which model answered, which attempt it was, and how long everything took."""
    delivery = deliver(pictures[0], attempt=3, key="cam-7", subject="a shoe", source="/shop", id="m-1")
    handler = ImageHandler(engine, sink, "host-1")
    assert await handler([delivery]) == [Done()]
    row = rows_of(path)["m-1"].result()
    assert (row.key, row.subject, row.source, row.attempt, row.worker) == (
        "cam-7",
        "a shoe",
        "/shop",
        3,
        "host-1",
    )
    manifest = classifier.manifest
    assert (row.model, row.model_version, row.model_hash, row.engine) == (
        manifest.name,
        manifest.version,
        manifest.hash,
        "onnx",
    )
    (offline,) = classifier.predict([pictures[0]])
    assert isinstance(offline, Prediction)
    assert row.status == ("abstained" if offline.abstained else "ok")
    assert row.queue_s == pytest.approx(1.0)
    assert row.process_s > 0
    assert row.latency_s == pytest.approx(row.queue_s + row.process_s)
    assert row.created_at - delivery.message.time == pytest.approx(
        timedelta(seconds=row.latency_s), abs=timedelta(milliseconds=1)
    )


async def test_an_image_past_its_deadline_ends_as_a_row_without_a_label(
    engine: Engine, sink: SqliteSink, path: Path, pictures: list[bytes], deliver: Deliver
) -> None:
    """Even one that could not be decoded: nobody waits for it any more."""
    past, future = utc_now() - timedelta(seconds=1), utc_now() + timedelta(hours=1)
    deliveries = [
        deliver(pictures[0], id="late", expires=past),
        deliver(pictures[1], id="early", expires=future),
        deliver(b"", id="late-and-bad", expires=past),
    ]
    handler = ImageHandler(engine, sink, "host-1")
    assert await handler(deliveries) == [Done()] * 3
    stored = rows_of(path)
    assert {each: row.status for each, row in stored.items()} == {
        "late": "expired",
        "early": "ok",
        "late-and-bad": "expired",
    }
    assert stored["late"].label is None
    assert (handler.tally.expired, handler.tally.invalid) == (2, 0)


async def test_one_id_twice_in_a_batch_is_one_row(
    engine: Engine,
    classifier: Classifier,
    sink: SqliteSink,
    path: Path,
    pictures: list[bytes],
    deliver: Deliver,
) -> None:
    """All of them are done; another picture under the same id is reported and changes nothing."""
    labels = [each.label for each in classifier.predict(pictures) if isinstance(each, Prediction)]
    other = next(place for place, label in enumerate(labels) if label != labels[0])
    deliveries = [deliver(pictures[place], id="m-1") for place in (0, 0, other)]
    handler = ImageHandler(engine, sink, "host-1")
    assert await handler(deliveries) == [Done()] * 3
    assert rows_of(path)["m-1"].label == labels[0]
    assert (handler.tally.rows, handler.tally.replays, handler.tally.conflicts) == (1, 1, 1)


async def test_a_row_that_the_sink_refuses_is_the_fault_of_its_message_alone(
    engine: Engine, sink: SqliteSink, path: Path, pictures: list[bytes], deliver: Deliver
) -> None:
    """A foreign id that is no text cannot be stored; its neighbours can."""
    foreign = Message(data=pictures[0], id="\udc80")
    deliveries = [deliver(pictures[1]), deliver(b"", message=foreign), deliver(pictures[2])]
    handler = ImageHandler(engine, sink, "host-1")
    first, second, third = await handler(deliveries)
    assert first == third == Done()
    assert isinstance(second, Reject)
    assert (second.reason, second.stage) == ("row-refused", "store")
    assert len(rows_of(path)) == 2


async def test_foreign_text_that_is_no_unicode_becomes_question_marks(
    engine: Engine, sink: SqliteSink, path: Path, pictures: list[bytes], deliver: Deliver
) -> None:
    """Key, source and subject describe a message; they are no reason to lose it."""
    foreign = Message(data=pictures[0], id="m-1", key="\udcff", source="/caf\udce9", subject="caf\u00e9")
    handler = ImageHandler(engine, sink, "host-1")
    assert await handler([deliver(b"", message=foreign)]) == [Done()]
    row = rows_of(path)["m-1"]
    assert (row.key, row.source, row.subject) == ("?", "/caf?", "caf\u00e9")


async def test_a_locked_sink_blames_nobody(
    engine: Engine, sink: SqliteSink, path: Path, pictures: list[bytes], deliver: Deliver
) -> None:
    """It is retried for a while, then it is an outage; afterwards the same batch is stored."""
    deliveries = [deliver(each) for each in pictures[:8]]
    handler = ImageHandler(engine, sink, "host-1", sink_deadline_s=0.1)
    blocker = sqlite3.connect(path, isolation_level=None)
    blocker.execute("BEGIN IMMEDIATE")
    with pytest.raises(Unavailable, match="locked"):
        await handler(deliveries)
    blocker.execute("ROLLBACK")
    blocker.close()
    assert await handler(deliveries) == [Done()] * 8
    assert len(rows_of(path)) == 8


async def test_the_event_loop_is_free_while_a_batch_is_predicted(
    engine: Engine, sink: SqliteSink, pictures: list[bytes], deliver: Deliver, tmp_path: Path
) -> None:
    """Leases are renewed there; this loop itself ends the prediction that it waits for."""
    go = tmp_path / "go"
    handler = ImageHandler(engine, sink, "host-1")
    running = asyncio.create_task(handler([deliver(marked(pictures[0], f"decode:wait={go}"))]))
    for _ in range(10):
        await asyncio.sleep(0.01)
    assert not running.done()
    go.touch()
    assert await running == [Done()]


class Held:
    """A sink whose writes end when the test says so."""

    def __init__(self) -> None:
        self.started: asyncio.Queue[int] = asyncio.Queue()
        self.go = asyncio.Event()

    async def open(self) -> None:
        """Nothing to do."""

    async def write(self, rows: Sequence[ResultRow]) -> WriteReport:
        self.started.put_nowait(len(rows))
        await self.go.wait()
        return WriteReport(len(rows))

    async def aclose(self) -> None:
        """Nothing to do."""


async def test_a_batch_is_predicted_while_another_is_written(
    engine: Engine, pictures: list[bytes], deliver: Deliver
) -> None:
    """A slow disk costs no throughput as long as it keeps up."""
    held = Held()
    handler = ImageHandler(engine, held, "host-1")
    batches = [[deliver(each) for each in pictures[start : start + 4]] for start in (0, 4)]
    running = [asyncio.create_task(handler(batch)) for batch in batches]
    assert [await held.started.get() for _ in running] == [4, 4]
    held.go.set()
    assert await asyncio.gather(*running) == [[Done()] * 4] * 2


class Flaky:
    """A sink that is away for its first writes."""

    def __init__(self, inner: Sink, outages: int) -> None:
        self.inner = inner
        self.outages = outages

    async def open(self) -> None:
        """The inner one is open."""

    async def write(self, rows: Sequence[ResultRow]) -> WriteReport:
        if self.outages:
            self.outages -= 1
            raise SinkUnavailable("away")
        return await self.inner.write(rows)

    async def aclose(self) -> None:
        """The inner one is closed elsewhere."""


async def process_all(broker: Broker, handler: ImageHandler, attempts: int = 2) -> Totals:
    """Run the real loop until nothing is left."""
    stop = asyncio.Event()

    async def watch() -> None:
        while (await broker.stats(TOPIC, GROUP)).unsettled:
            await asyncio.sleep(0.01)
        stop.set()

    batch, retry = Batching(max_messages=16, concurrency=2), RetryPolicy(attempts=attempts, base=0.0)
    totals, _ = await asyncio.gather(
        broker.process(TOPIC, group=GROUP, handler=handler, batch=batch, retry=retry, stop=stop), watch()
    )
    return totals


async def publish(broker: Broker, images: Sequence[bytes]) -> list[str]:
    await broker.ensure(TOPIC, GROUP)
    messages = [ClassifyRequest(image=each).to_message() for each in images]
    await broker.publish(TOPIC, messages)
    return [each.id for each in messages]


@pytest.mark.parametrize("stage", ["decode", "predict"])
async def test_an_image_that_makes_the_engine_raise_leaves_alone_at_every_index(
    engine: Engine, sink: SqliteSink, path: Path, pictures: list[bytes], tmp_path: Path, stage: str
) -> None:
    """The loop bisects the batch; all others are stored at their first attempt."""
    handler, poison = ImageHandler(engine, sink, "host-1"), marked(pictures[0], f"{stage}:raise")
    async with connect(f"memory://{tmp_path}") as broker:
        for index in range(16):
            ids = await publish(broker, [*pictures[:index], poison, *pictures[index + 1 : 16]])
            totals = await process_all(broker, handler, attempts=1)
            assert (totals.done, totals.dead_lettered, totals.batches) == (15, 1, 1)
            stored = rows_of(path)
            assert set(ids) - set(stored) == {ids[index]}
            assert {stored[each].attempt for each in ids if each in stored} == {1}
        letters = [each async for each in broker.browse(dead_letter_topic(TOPIC, GROUP), "operators")]
    assert {each.message.data for each in letters} == {poison}
    assert len(letters) == 16
    assert "the engine failed" in letters[0].message.attributes["couturier-error"]


async def test_an_image_that_kills_the_engine_is_a_dead_letter_that_says_so(
    engine: Engine, sink: SqliteSink, path: Path, pictures: list[bytes], tmp_path: Path
) -> None:
    """Without an attempt; its neighbours have rows, and nothing was counted against them."""
    handler = ImageHandler(engine, sink, "host-1")
    images = [*pictures[:20], marked(pictures[20], "predict:SIGSEGV"), *pictures[21:40]]
    images[30] = marked(images[30], "decode:abort")
    async with connect(f"memory://{tmp_path}") as broker:
        ids = await publish(broker, images)
        totals = await process_all(broker, handler)
        letters = {
            each.message.id: each.message.attributes
            async for each in broker.browse(dead_letter_topic(TOPIC, GROUP), "operators")
        }
    assert (totals.done, totals.dead_lettered, totals.retried) == (38, 2, 0)
    assert set(letters) == {ids[20], ids[30]}
    for message_id, stage, how in ((ids[20], "predict", "SIGSEGV"), (ids[30], "decode", "SIGABRT")):
        attributes = letters[message_id]
        assert attributes["couturier-reason"] == "crashed"
        assert attributes["couturier-stage"] == stage
        assert attributes["couturier-attempts"] == "1"
        assert how in attributes["couturier-error"]
    stored = rows_of(path)
    assert set(stored) == set(ids) - set(letters)
    assert {row.attempt for row in stored.values()} == {1}
    assert (handler.tally.crashed, handler.tally.invalid, handler.tally.rows) == (2, 0, 38)


async def test_an_outage_of_the_sink_costs_no_attempt_and_no_message(
    engine: Engine, sink: SqliteSink, path: Path, pictures: list[bytes], tmp_path: Path
) -> None:
    """However often it fails: no dead letter, no counted attempt, one row each."""
    async with connect(f"memory://{tmp_path}") as broker:
        ids = (await publish(broker, [b"rubbish", *pictures[:40]]))[1:]
        handler = ImageHandler(engine, Flaky(sink, 5), "host-1", sink_deadline_s=0.0)
        totals = await process_all(broker, handler)
    assert (totals.done, totals.retried, totals.dead_lettered) == (40, 0, 1)
    assert (handler.tally.rows, handler.tally.invalid) == (40, 1)  # not once for every try
    stored = rows_of(path)
    assert set(stored) == set(ids)
    assert {row.attempt for row in stored.values()} == {1}


async def test_a_batch_of_rubbish_writes_nothing(engine: Engine, deliver: Deliver) -> None:
    """The sink is not even asked."""
    handler = ImageHandler(engine, Held(), "host-1")
    outcomes: list[Outcome] = await handler([deliver(b"?"), deliver(b"GIF89a")])
    assert [each.reason for each in outcomes if isinstance(each, Reject)] == ["invalid-image"] * 2
