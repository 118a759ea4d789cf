"""Odd records and odd moments on real Kafka: one of them stops neither the group nor the client."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException, Producer
from confluent_kafka.admin import AdminClient, NewTopic
from kafka_bench import Scene, bodies, eventually, take
from test_kafka import driver_member

from broker import Done, Message, PermissionDenied, Reject, Retry, RetryPolicy
from broker.conformance.bench import GROUP
from broker.drivers.kafka_records import _place

pytestmark = [pytest.mark.anyio, pytest.mark.kafka]


@pytest.fixture
def scene(kafka_service: Any) -> Scene:
    return Scene(kafka_service.bootstrap)


def produce(scene: Scene, value: bytes) -> None:
    """Store a record that our own client would refuse."""
    producer = Producer({"bootstrap.servers": scene.bootstrap, "message.max.bytes": 4_000_000})
    producer.produce(scene.topic, value)
    assert producer.flush(20) == 0


async def large_topic(scene: Scene) -> None:
    """Make the topic with a limit that the storage of retries and the dead letters do not have."""
    admin = AdminClient({"bootstrap.servers": scene.bootstrap})
    topic = NewTopic(scene.topic, 2, 1, config={"max.message.bytes": "4000000"})
    await asyncio.to_thread(admin.create_topics([topic])[scene.topic].result, 20)


@pytest.mark.parametrize("outcome", [Retry("again"), Reject("bad")], ids=["retry", "dead letter"])
async def test_a_message_that_no_copy_can_be_stored_of_stops_nobody(
    scene: Scene, outcome: Retry | Reject, caplog: pytest.LogCaptureFixture
) -> None:
    """It stays, is tried again now and then, uncounted; all others are worked on."""
    await large_topic(scene)
    tried: list[int] = []
    done: set[bytes] = set()
    stop = asyncio.Event()

    async def handler(deliveries: Any) -> list[Any]:
        outcomes: list[Any] = []
        for each in deliveries:
            large = len(each.message.data) > 1_500_000
            if large:
                tried.append(each.attempt)
            else:
                done.add(each.message.data)
            outcomes.append(outcome if large else Done())
        if len(tried) >= 3 and len(done) == 40:
            stop.set()
        return outcomes

    async with scene.open(partitions=2) as broker:
        produce(scene, b"x" * 2_000_000)
        await broker.publish(scene.topic, [Message(data=b"%d" % n) for n in range(20)])
        async with asyncio.timeout(90):
            work = asyncio.create_task(
                broker.process(
                    scene.topic, group=GROUP, handler=handler, stop=stop,
                    retry=RetryPolicy(attempts=2, base=0.2, cap=0.3),
                )
            )  # fmt: skip
            await eventually(lambda: len(tried) >= 2, "it is tried again")
            await broker.publish(scene.topic, [Message(data=b"%d" % n) for n in range(20, 40)])
            totals = await work
    assert totals.done == 40
    assert totals.dead_lettered == 0
    assert set(tried) == {1}
    assert "is not counted" in caplog.text


async def test_polling_goes_on_where_there_is_no_room_for_bytes(scene: Scene) -> None:
    """A member at its byte cap is no busy loop and stays a member longer than the poll interval."""
    async with scene.open(partitions=1) as broker:
        await broker.publish(scene.topic, [Message(data=bytes(60_000)) for _ in range(4)])
        async with broker.subscribe(scene.topic, group=GROUP, max_bytes=100_000) as member:
            (held,) = await take(member, 1)
            work = driver_member(member).work
            partitions = dict(work.partitions)
            for _ in range(25):  # 5 s, and `max_poll` is 3 s
                assert await member.receive(timeout=0.2) == []
            assert member.holds(held)
            assert dict(work.partitions) == partitions
            await member.ack(held)
            assert len(await take(member, 1)) == 1


async def test_what_cannot_be_read_when_it_is_assigned_is_read_later(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    """A broker that does not say where to begin, for long, costs time and no message."""
    caplog.set_level(logging.WARNING)
    async with scene.open(partitions=4) as broker, scene.member() as first:
        await scene.ledger.publish(broker, scene.topic, 40)
        assignment, places = driver_member(first)._assignment, driver_member(first)._places
        refused = []

        def refuse(_: Any) -> list[Any]:
            refused.append(1)
            raise KafkaException(KafkaError(KafkaError._TRANSPORT))

        begins = places.begins
        places.begins = refuse
        await eventually(lambda: len(refused) >= 2, "it is asked and asked again")
        assert await first.receive(timeout=0.2) == []
        places.begins = begins
        assert sorted(map(int, bodies(await take(first, 40)))) == list(range(40))
        assert assignment._unread == []
    assert "wait to be read" in caplog.text


async def test_a_denial_that_passed_is_told_once(scene: Scene) -> None:
    """An error of the connection as a whole is raised, and receiving goes on when it has passed."""
    async with scene.open() as broker, broker.subscribe(scene.topic, group=GROUP) as member:
        driver = driver_member(member)._driver
        driver._note(KafkaError(KafkaError._AUTHENTICATION, "handshake ended"))
        with pytest.raises(PermissionDenied):
            await member.receive(timeout=1.0)
        await broker.publish(scene.topic, [Message(data=b"x")])
        assert bodies(await take(member, 1)) == ["x"]


async def test_commits_are_renewed_though_nothing_changes(scene: Scene) -> None:
    """A broker forgets commits that are old; those of quiet partitions are made again."""
    async with scene.open(partitions=2) as broker, scene.member() as member:
        await scene.ledger.publish(broker, scene.topic, 10)
        await member.ack(await take(member, 10))
        await member.flush()
        work, commits = driver_member(member).work, driver_member(member).commits
        assert work.uncommitted(unsure=True) == {}
        sent: list[int] = []
        send = commits._send

        def noted(news: Any, wait: bool) -> bool:
            sent.append(len(news))
            return send(news, wait)

        commits._send = noted
        commits._renew = 0.0
        await eventually(lambda: 4 in sent, "both topics' partitions are committed again")
        await eventually(lambda: work.uncommitted(unsure=True) == {}, "and the broker has them")


def test_a_time_beyond_all_calendars_is_none() -> None:
    """Microseconds where milliseconds belong, as Kafka before 4 accepts them."""

    class Native:
        def topic(self) -> str:
            return "t"

        def partition(self) -> int:
            return 0

        def offset(self) -> int:
            return 7

        def timestamp(self) -> tuple[int, int]:
            return 1, 1_700_000_000_000_000

    assert _place(Native()).time.year == 1970
