"""Answers by a result topic: the same on every backend, to whoever asked, once, through faults."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker import (
    Broker,
    Closed,
    DeadlineExceeded,
    Delivery,
    Done,
    Message,
    NotFound,
    Outcome,
    Unavailable,
    connect,
)
from broker.drivers.memory import MemoryDriver, MemoryStore
from broker.message import utc_now
from client import ClassifyRequest, Client, ResultsTimeout
from client.answers import Answers, Collector, Waiter
from client.schema import CLASSIFIED, MESSAGE_ID, ClassifyResult, ResultRow
from client.sources.fashion_mnist import FashionMnist
from tests.services.kafka import KafkaService, RemoteProxy
from tests.services.pubsub import PubSubService
from worker import ImageHandler
from worker.engine import Engine
from worker.sinks.topic import TopicSink

pytestmark = pytest.mark.anyio

Row = Callable[..., ResultRow]
PATIENCE_S = 60.0


@dataclass
class Place:
    """One queue, whose names nobody else uses.

    Attributes:
        connect: makes a client's broker.
        row: makes a row.
    """

    connect: Callable[[], Broker]
    row: Row
    images: str = field(default_factory=lambda: f"images-{uuid.uuid4().hex[:8]}")
    results: str = field(default_factory=lambda: f"results-{uuid.uuid4().hex[:8]}")
    group: str = field(default_factory=lambda: f"classifiers-{uuid.uuid4().hex[:8]}")

    def client(self, broker: Broker) -> Client:
        return Client(broker, self.images, results_url=f"topic:{self.results}")

    async def ensure(self, broker: Broker) -> None:
        await broker.ensure(self.images, self.group, partitions=2)

    async def groups(self, broker: Broker) -> tuple[str, ...]:
        return next((each.groups for each in await broker.topics() if each.name == self.results), ())

    @contextlib.asynccontextmanager
    async def working(self, broker: Broker, times: int = 1) -> AsyncIterator[None]:
        """Have a worker that says each answer so many times; the body of an image is its label."""
        sink = TopicSink(self.results, broker=broker)
        await sink.open()

        async def answer(deliveries: Sequence[Delivery]) -> list[Outcome]:
            rows = [
                self.row(each.message.id, label=each.message.data.decode(), subject=each.message.subject)
                for each in deliveries
            ]
            for _ in range(times):
                await sink.write(rows)
            return [Done()] * len(deliveries)

        stop = asyncio.Event()
        work = asyncio.create_task(broker.process(self.images, group=self.group, handler=answer, stop=stop))
        try:
            yield
        finally:
            stop.set()
            await work


@pytest.fixture
def place(row: Row) -> Place:
    """A queue in this process."""
    store = MemoryStore()
    return Place(lambda: Broker(MemoryDriver(store)), row)


@pytest.fixture(
    params=[
        "memory",
        "sqlite",
        pytest.param("kafka", marks=pytest.mark.kafka),
        pytest.param("pubsub", marks=pytest.mark.pubsub),
    ]
)
def anywhere(
    request: pytest.FixtureRequest, row: Row, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Place:
    """A queue on each backend; the real ones where they are."""
    if request.param == "memory":
        place: Place = request.getfixturevalue("place")
        return place
    url = f"sqlite:///{tmp_path}/queue.db"
    if request.param == "kafka":
        service: KafkaService = request.getfixturevalue("kafka_service")
        url = f"kafka://{service.bootstrap}"
    if request.param == "pubsub":
        emulator: PubSubService = request.getfixturevalue("pubsub_service")
        monkeypatch.setenv("PUBSUB_EMULATOR_HOST", emulator.host)
        url = f"pubsub://proj-{uuid.uuid4().hex[:12]}"
    return Place(lambda: connect(url), row)


def answer(row: ResultRow, **fields: Any) -> Message:
    """The event of a row, with some fields of it replaced."""
    return replace(row.to_message(), **fields)


def requests(count: int, prefix: str = "l") -> list[ClassifyRequest]:
    return [ClassifyRequest(image=f"{prefix}{number}".encode()) for number in range(count)]


async def until(holds: Callable[[], bool | Awaitable[bool]], what: str) -> None:
    """Wait for a condition, within bounds."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        found = holds()
        if found if isinstance(found, bool) else await found:
            return
        assert time.monotonic() < deadline, what
        await asyncio.sleep(0.01)


async def test_a_service_gets_its_answers_on_every_backend(anywhere: Place) -> None:
    """In order, through ``submit`` and ``results`` or in one go; afterwards nothing of the client is left."""
    async with anywhere.connect() as broker, anywhere.connect() as elsewhere:
        await anywhere.ensure(broker)
        async with anywhere.client(broker) as client, anywhere.working(elsewhere):
            assert len(await anywhere.groups(broker)) == 1
            ids = await client.submit(requests(20))
            found = await client.results(ids, PATIENCE_S)
            assert [each.message_id for each in found] == ids
            assert [each.label for each in found] == [f"l{number}" for number in range(20)]
            again = await client.classify(requests(3, "m"), PATIENCE_S)
            assert [each.label for each in again] == ["m0", "m1", "m2"]
            assert await client.results(ids[::-1], 0.0) == found[::-1]
        assert await anywhere.groups(broker) == ()


async def test_two_clients_get_their_own_answers(anywhere: Place) -> None:
    """Each sees every event and keeps its own; repeats of a worker that died change nothing."""
    async with anywhere.connect() as one, anywhere.connect() as two:
        await anywhere.ensure(one)
        async with (
            anywhere.client(one) as first,
            anywhere.client(two) as second,
            anywhere.working(one, times=2),
        ):
            batches = [(first, "a"), (second, "b"), (first, "c"), (second, "d")]
            found = await asyncio.gather(
                *(client.classify(requests(5, prefix), PATIENCE_S) for client, prefix in batches)
            )
        for (_, prefix), results in zip(batches, found, strict=True):
            assert [each.label for each in results] == [f"{prefix}{number}" for number in range(5)]


async def test_answers_that_come_before_they_are_asked_for_are_kept(place: Place) -> None:
    """A worker may be quicker than the caller; asking twice gives the same."""
    async with place.connect() as broker:
        await place.ensure(broker)
        async with place.client(broker) as client:
            ids = await client.submit(requests(3))
            async with place.working(broker):
                await until(lambda: _settled(broker, place), "the worker answers")
                assert client._answers is not None
                group = client._answers.group
                await until(lambda: _all_taken(broker, place, group), "the client receives")
            first = await client.results(ids, 0.0)
            assert await client.results(ids, 0.0) == first


async def test_what_is_no_answer_is_passed_over(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    """Garbage, other types, other ids and later columns: only a result of the id that is named counts."""
    async with place.connect() as broker:
        await place.ensure(broker)
        async with place.client(broker) as client:
            (wanted,) = await client.submit([b"x"])
            good = place.row(wanted, label="Coat")
            mine = {MESSAGE_ID: wanted}
            await broker.publish(
                place.results,
                [
                    Message(b"\xff\x00", type=CLASSIFIED, attributes=mine),
                    Message(b"[" * 100_000, type=CLASSIFIED, attributes=mine),
                    Message(b"[]", type=CLASSIFIED, attributes=mine),
                    Message(b"{}", type=CLASSIFIED, attributes=mine),
                    answer(good, type="com.example.other"),
                    answer(place.row("other"), attributes=mine),
                    answer(place.row(wanted, status="cancelled"), attributes=mine),
                    answer(good, attributes={}),
                    answer(place.row("other")),
                    Message(b""),
                    answer(good, data=b'{"later": 1, ' + good.to_message().data[1:]),
                    answer(good._replace(label="Shirt")),
                ],
            )
            (found,) = await client.results([wanted], PATIENCE_S)
            assert found == good.result()
        assert sum("is no result" in each.getMessage() for each in caplog.records) == 7


async def test_what_is_missing_is_named_and_can_be_asked_for_again(place: Place) -> None:
    """A dead letter has no answer; what came in time, and what comes later, is there the next time."""
    async with place.connect() as broker:
        await place.ensure(broker)
        async with place.client(broker) as client:
            ids = await client.submit(requests(3))
            await broker.publish(place.results, [place.row(each).to_message() for each in ids[:2]])
            with pytest.raises(ResultsTimeout, match="couturier dlq list") as caught:
                await client.results(ids, 0.5)
            assert caught.value.missing == (ids[2],)
            await broker.publish(
                place.results, [place.row(ids[2], status="expired", label=None).to_message()]
            )
            found = await client.results(ids, PATIENCE_S)
        assert [each.message_id for each in found] == ids
        assert (found[2].status, found[2].label) == ("expired", None)


async def test_any_id_can_be_waited_for(place: Place) -> None:
    """Also one that somebody else submitted, while somebody waits."""
    async with place.connect() as broker:
        await place.ensure(broker)
        async with place.client(broker) as client:
            waiting = [asyncio.create_task(client.results(["theirs"], PATIENCE_S)) for _ in range(2)]
            await asyncio.sleep(0)
            await broker.publish(place.results, [place.row("theirs").to_message()])
            assert {each.message_id for found in await asyncio.gather(*waiting) for each in found} == {
                "theirs"
            }


async def test_a_worker_that_dies_between_answer_and_ack_answers_twice_and_is_heard_once(
    place: Place,
) -> None:
    """The image comes again elsewhere, and so does the answer."""
    async with place.connect() as broker:
        await place.ensure(broker)
        async with place.client(broker) as client:
            ids = await client.submit([b"x"])
            sink = TopicSink(place.results, broker=broker)
            await sink.open()
            async with broker.subscribe(place.images, group=place.group) as dying:
                (held,) = await dying.receive(timeout=PATIENCE_S)
                await sink.write([place.row(held.message.id, worker="dying")])
            async with place.working(broker):
                await until(lambda: _settled(broker, place), "the second worker answers")
                assert (await broker.stats(place.results, client._answers.group)).published == 2  # type: ignore[union-attr]
                (found,) = await client.results(ids, PATIENCE_S)
        assert found.worker == "dying"


class Broken(Broker):
    """A broker whose subscriptions fail while it is told so."""

    away = False
    failed = 0

    def subscribe(self, *arguments: Any, **options: Any) -> Any:
        subscription = super().subscribe(*arguments, **options)
        receive = subscription.receive

        async def fail(*arguments: Any, **options: Any) -> list[Delivery]:
            if self.away:
                self.failed += 1
                raise Unavailable("away")
            return await receive(*arguments, **options)

        subscription.receive = fail  # type: ignore[method-assign]
        return subscription


async def test_an_outage_while_waiting_is_borne(place: Place) -> None:
    """What is stored meanwhile is received afterwards."""
    async with Broken(place.connect()._driver._driver) as broker:
        await place.ensure(broker)
        async with place.client(broker) as client:
            broker.away = True
            ids = await client.submit(requests(2))
            await broker.publish(place.results, [place.row(each).to_message() for each in ids])
            await until(lambda: broker.failed > 1, "the outage is met twice")
            with pytest.raises(ResultsTimeout):
                await client.results(ids, 0.05)
            broker.away = False
            assert len(await client.results(ids, PATIENCE_S)) == 2


async def test_a_group_that_somebody_removed_is_made_again(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    """What is published meanwhile is missed, which the log says; the client goes on."""
    async with place.connect() as broker:
        await place.ensure(broker)
        async with place.client(broker) as client:
            assert client._answers is not None
            await broker.remove_group(place.results, client._answers.group)
            await until(lambda: "made again" in caplog.text, "the loss is noticed")
            await until(lambda: _has_group(broker, place, client), "the group is there again")
            async with place.working(broker):
                assert len(await client.classify(requests(2), PATIENCE_S)) == 2


async def test_who_is_refused_learns_it_while_waiting(place: Place) -> None:
    """What no waiting heals is raised at once, to everyone who waits."""

    class Refused(Broker):
        def subscribe(self, *arguments: Any, **options: Any) -> Any:
            raise Closed("refused")

    async with Refused(place.connect()._driver._driver) as broker, place.client(broker) as client:
        for _ in range(2):
            with pytest.raises(Closed, match="refused"):
                await client.results(["x"], PATIENCE_S)


async def test_a_client_that_was_not_opened_says_how(place: Place) -> None:
    """Nobody collects then; and who waits when it is closed is told."""
    async with place.connect() as broker:
        await place.ensure(broker)
        client = place.client(broker)
        with pytest.raises(Closed, match="async with Client"):
            await client.results(["x"], 1.0)
        async with client:
            waiting = asyncio.create_task(client.results(["x"], PATIENCE_S))
            await asyncio.sleep(0.05)
        with pytest.raises(Closed, match="was closed"):
            await waiting


async def test_groups_of_clients_that_were_killed_are_removed(
    anywhere: Place, caplog: pytest.LogCaptureFixture
) -> None:
    """By the next client, once they are a day old and leave lie what is an hour old; no others."""
    old = f"{utc_now().timestamp() - 2 * 86_400:.0f}"
    names = {
        "killed": f"answers-{_uuid7_at(float(old))}",
        "long-lived": f"answers-{_uuid7_at(float(old) + 1)}",
        "young": f"answers-{_uuid7_at(utc_now().timestamp() - 3600)}",
        "others": "answers-of-somebody-else",
    }
    async with anywhere.connect() as broker:
        await broker.ensure(anywhere.results, partitions=1)
        for name in names.values():
            await broker.ensure(anywhere.results, name)
        stale = anywhere.row("x", created_at=(utc_now() - timedelta(hours=2)).isoformat())
        await broker.publish(anywhere.results, [stale.to_message()])
        async with broker.subscribe(anywhere.results, group=names["long-lived"]) as alive:
            await alive.ack(await alive.receive(timeout=PATIENCE_S))
            with caplog.at_level(logging.WARNING, "client"):
                async with anywhere.client(broker):
                    await until(lambda: names["killed"] in caplog.text, "the group is removed")
        assert set(await anywhere.groups(broker)) == set(names.values()) - {names["killed"]}


async def test_a_group_that_cannot_be_looked_at_is_left_alone(place: Place) -> None:
    """A look at a busy topic takes too long, whoever the group belongs to."""
    old = f"answers-{_uuid7_at(utc_now().timestamp() - 2 * 86_400)}"

    class Busy(Broker):
        async def browse(self, topic: str, group: str) -> AsyncIterator[Delivery]:
            raise DeadlineExceeded(f"there is more in {topic} for {group}")
            yield

    async with Busy(place.connect()._driver._driver) as broker:
        await broker.ensure(place.results, old)
        async with Answers(broker, place.results) as answers:
            await answers._tasks[1]
            assert old in await place.groups(broker)


async def test_a_result_topic_that_a_client_makes_forgets_after_a_week(place: Place) -> None:
    """So what a killed client leaves behind is bounded; a topic that is there is left as it is."""
    async with place.connect() as broker:
        async with Answers(broker, place.results):
            kept = await broker._driver.admin.ensure(place.results, None, 1, "earliest", 3600.0)
        assert kept == 7 * 86_400.0
        await broker.ensure("theirs", retention=3600.0)
        async with Answers(broker, "theirs"):
            assert await broker._driver.admin.ensure("theirs", None, 1, "earliest", 3600.0) is None


async def test_the_first_place_that_can_be_read_is_where_results_come_from(
    place: Place, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A table, or a topic; unset, ``SINK_URL`` of the environment decides."""
    table = f"sqlite:///{tmp_path}/results.db"
    async with place.connect() as broker:
        for url, collects in (
            (f"jsonl:///x,topic:{place.results}", True),
            (f"{table},topic:{place.results}", False),
            (f"topic:{place.results},{table}", True),
        ):
            async with Client(broker, results_url=url) as client:
                assert (client._answers is not None) == collects
            monkeypatch.setenv("SINK_URL", url)
            async with Client(broker) as client:
                assert (client._answers is not None) == collects
        for bad, said in (("console:", "cannot be read"), ("topic:7up", "topic:NAME")):
            with pytest.raises(ValueError, match=said):
                async with Client(broker, results_url=bad):
                    pass


async def test_the_worker_answers_its_service(place: Place) -> None:
    """The shipped model behind a topic: labels come back to who asked, and expired images say so."""
    pictures = [each.request.image for each in FashionMnist(6)]
    late = utc_now() - timedelta(seconds=1)
    asked = [ClassifyRequest(image=each) for each in pictures]
    async with place.connect() as broker, Engine() as engine:
        await place.ensure(broker)
        sink, stop = TopicSink(place.results, broker=broker), asyncio.Event()
        await sink.open()
        handler = ImageHandler(engine, sink, "host-1")
        work = asyncio.create_task(
            broker.process(place.images, group=place.group, handler=handler, stop=stop)
        )
        async with place.client(broker) as client:
            found = await client.classify(
                [*asked, ClassifyRequest(image=pictures[0], expires=late)], PATIENCE_S
            )
        stop.set()
        await work
    assert [each.status for each in found] == ["ok"] * 6 + ["expired"]
    assert {each.worker for each in found} == {"host-1"}
    assert all(each.label and each.model_hash for each in found[:6])


@pytest.mark.kafka
async def test_answers_come_through_a_cut_of_the_network(
    kafka_service: KafkaService, kafka_proxy: RemoteProxy, row: Row, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is answered while the client cannot reach Kafka is there when it can again."""
    place, name = Place(lambda: connect(f"kafka://{kafka_service.bootstrap}"), row), f"c-{uuid.uuid4().hex}"
    async with place.connect() as elsewhere:
        await place.ensure(elsewhere)
        monkeypatch.setenv("KAFKA_CLIENT_CONFIG", json.dumps({"client.id": name}))
        async with (
            connect(f"kafka://{kafka_service.proxied_bootstrap}") as broker,
            place.client(broker) as client,
        ):
            ids = await client.submit(requests(5))
            assert name in await asyncio.to_thread(kafka_proxy.clients)
            await asyncio.to_thread(kafka_proxy.cut, name)
            async with place.working(elsewhere):
                await until(lambda: _settled(elsewhere, place), "the worker answers")
            with pytest.raises(ResultsTimeout):
                await client.results(ids, 0.1)
            await asyncio.to_thread(kafka_proxy.heal, name)
            assert [each.message_id for each in await client.results(ids, PATIENCE_S)] == ids


@pytest.mark.kafka
@pytest.mark.campaign
async def test_answers_come_through_a_restart_of_kafka(mortal_kafka: KafkaService, row: Row) -> None:
    """The broker goes away while a client waits, and comes back with the answer."""
    place = Place(lambda: connect(f"kafka://{mortal_kafka.bootstrap}"), row)
    async with place.connect() as broker:
        await place.ensure(broker)
        async with place.client(broker) as client:
            ids = await client.submit(requests(5))
            waiting = asyncio.create_task(client.results(ids, 3 * PATIENCE_S))
            before = await asyncio.to_thread(mortal_kafka.server_pid)
            await asyncio.to_thread(mortal_kafka.restart, True)
            assert await asyncio.to_thread(mortal_kafka.server_pid) != before or mortal_kafka.how != "native"
            async with place.connect() as elsewhere, place.working(elsewhere):
                assert [each.message_id for each in await waiting] == ids


IDS = st.sampled_from([f"m-{number}" for number in range(6)])
EVENTS = st.one_of(
    st.tuples(st.just("submit"), st.lists(IDS, max_size=4)),
    st.tuples(st.just("answer"), IDS),
    st.tuples(st.just("wait"), st.lists(IDS, min_size=1, max_size=4)),
    st.tuples(st.just("leave"), st.integers(0, 5)),
)


@settings(max_examples=300, deadline=None)
@given(events=st.lists(EVENTS, max_size=60))
def test_the_collector_hands_out_the_first_answer_to_what_was_wanted(events: list[tuple[str, Any]]) -> None:
    """Whatever the order of submits, answers, repeats and waits, against a dictionary."""
    collector = Collector()
    wanted: set[str] = set()
    first: dict[str, int] = {}
    waiters: list[tuple[Waiter, list[str], list[int]]] = []
    for number, (what, value) in enumerate(events):
        if what == "submit":
            collector.expect(value)
            wanted |= set(value)
        elif what == "answer":
            took = collector.add(_result(value, number))
            assert took == (value in wanted and value not in first)
            if took:
                first[value] = number
        elif what == "wait":
            completed: list[int] = []
            waiter = collector.wait(value, lambda number=number, to=completed: to.append(number))  # type: ignore[misc]
            wanted |= set(value)
            waiters.append((waiter, value, completed))
        elif waiters:
            collector.leave(waiters.pop(value % len(waiters))[0])
        for waiter, ids, completed in waiters:
            assert waiter.missing == set(ids) - first.keys()
            assert {each: found.attempt for each, found in waiter.found.items()} == {
                each: first[each] for each in ids if each in first
            }
            assert len(completed) <= 1
            assert not (completed and waiter.missing)
    for waiter, *_ in waiters:
        collector.leave(waiter)
    assert collector._waiters == {}


def test_the_collector_keeps_so_many_and_no_more() -> None:
    """The oldest go, of ids and of answers that nobody asked for; what is waited for is never dropped."""
    collector = Collector(unasked=10, asked=3)
    waiter = collector.wait([f"w-{number}" for number in range(50)], lambda: None)
    collector.expect(f"s-{number}" for number in range(100))
    assert not collector.wants("s-89")
    assert collector.wants("s-90")
    for number in range(50):
        assert collector.add(_result(f"w-{number}"))
    assert len(waiter.found) == 50
    assert not waiter.missing
    collector.leave(waiter)
    for number in range(90, 100):
        assert collector.add(_result(f"s-{number}"))
    sizes = [len(each) for each in (collector._expected, collector._answers, collector._given)]
    assert sizes == [0, 10, 3]


def _result(message_id: str, attempt: int = 1) -> ClassifyResult:
    return ClassifyResult.model_construct(message_id=message_id, attempt=attempt)


def _uuid7_at(seconds: float) -> uuid.UUID:
    return uuid.UUID(int=(int(seconds * 1000) << 80) | (7 << 76) | (2 << 62) | uuid.uuid4().int & (2**62 - 1))


async def _settled(broker: Broker, place: Place) -> bool:
    return (await broker.stats(place.images, place.group)).unsettled == 0


async def _all_taken(broker: Broker, place: Place, group: str) -> bool:
    stats = await broker.stats(place.results, group)
    return stats.published == 3 and stats.unsettled == 0


async def _has_group(broker: Broker, place: Place, client: Client) -> bool:
    assert client._answers is not None
    try:
        await broker.stats(place.results, client._answers.group)
    except NotFound:
        return False
    return True
