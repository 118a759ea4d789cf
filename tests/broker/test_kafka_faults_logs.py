"""What happens to the log under a running group: it grows, is cut, is deleted and made again."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Any

import pytest
from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient, NewPartitions, NewTopic
from kafka_bench import QUICK, Scene, bodies, eventually, take
from test_kafka import driver_member

from broker import Broker, Message, Subscription, connect
from broker.conformance.bench import GROUP
from broker.drivers.kafka import KafkaDriver

pytestmark = [pytest.mark.anyio, pytest.mark.kafka]


@pytest.fixture
def scene(kafka_service: Any, monkeypatch: pytest.MonkeyPatch) -> Scene:
    # How often members look is a matter of seconds in production; here it may be quicker.
    monkeypatch.setattr("broker.drivers.kafka_places._LOOK_S", 0.5)
    return Scene(kafka_service.bootstrap)


@pytest.fixture
def admin(kafka_service: Any) -> AdminClient:
    return AdminClient(
        {"bootstrap.servers": kafka_service.bootstrap}, logger=logging.getLogger("tests.books")
    )


async def publish(broker: Broker, topic: str, values: Sequence[str]) -> None:
    """Publish bodies, each with a key of its own."""
    await broker.publish(topic, [Message(data=value.encode(), key=value) for value in values])


async def take_and_ack(member: Subscription, count: int) -> list[str]:
    """Receive, finish and commit exactly ``count`` messages; return their bodies, sorted."""
    deliveries = await take(member, count)
    await member.ack(deliveries)
    await member.flush()
    return sorted(bodies(deliveries))


async def make_again(admin: AdminClient, topic: str, partitions: int) -> None:
    """Delete a topic and create it again under its name."""
    await asyncio.to_thread(admin.delete_topics([topic])[topic].result, 20)

    def created() -> bool:
        future = admin.create_topics([NewTopic(topic, partitions, 1)])[topic]
        return future.exception(20) is None

    await eventually(created, "the topic is there again")


async def test_partitions_that_are_added_are_read(scene: Scene, admin: AdminClient) -> None:
    """A running member finds new partitions by itself, reads them from their beginning and can commit."""
    config = {"topic.metadata.refresh.interval.ms": 500}
    driver = KafkaDriver(scene.bootstrap, 2.0, max_poll=3.0, group_id="{topic}.{group}", config=config)
    async with scene.open(partitions=1) as broker, Broker(driver) as consumer:
        await publish(broker, scene.topic, ["before"])
        async with consumer.subscribe(scene.topic, group=GROUP) as member:
            assert await take_and_ack(member, 1) == ["before"]
            grown = admin.create_partitions([NewPartitions(scene.topic, 4)])[scene.topic]
            await asyncio.to_thread(grown.result, 20)
            async with connect(scene.url) as publisher:
                values = sorted(str(number) for number in range(40))
                await publish(publisher, scene.topic, values)
            assert await take_and_ack(member, 40) == values
            assert sum(offset > 0 for offset in scene.books.committed().values()) > 1
            assert scene.books.balanced()


@pytest.mark.parametrize("count", [5, 30], ids=["shorter", "longer"])
async def test_a_topic_that_is_made_again_is_read_from_its_beginning(
    scene: Scene, admin: AdminClient, caplog: pytest.LogCaptureFixture, count: int
) -> None:
    """No record of the new topic is skipped, however many there are, and the log says what happened."""
    async with scene.open(partitions=1) as broker, scene.member() as member:
        await publish(broker, scene.topic, [f"old-{number}" for number in range(20)])
        await take_and_ack(member, 20)
        work = driver_member(member).work
        await eventually(
            lambda: all(each.begin.topic for each in work.partitions.values()), "topics are known"
        )
        await make_again(admin, scene.topic, 1)
        async with connect(scene.url) as publisher:
            await publish(publisher, scene.topic, [f"new-{number}" for number in range(count)])
        seen: set[str] = set()
        async with asyncio.timeout(60):
            while len(seen) < count:
                came = await member.receive(timeout=1.0)
                seen |= set(bodies(came))
                await scene.ledger.ack(member, came)
        assert seen == {f"new-{number}" for number in range(count)}
        await member.flush()
        await eventually(scene.books.balanced, "all is committed")
    assert (
        f"topic {scene.topic} was deleted and made again" in caplog.text or "the log was cut" in caplog.text
    )


async def test_a_commit_of_an_old_topic_counts_for_nothing(scene: Scene, admin: AdminClient) -> None:
    """A member that starts later tells by the commit itself that the topic was another one."""
    async with scene.open(partitions=1) as broker:
        await publish(broker, scene.topic, [f"old-{number}" for number in range(10)])
        async with scene.member() as member:
            work = driver_member(member).work
            await eventually(
                lambda: bool(work.partitions) and all(each.begin.topic for each in work.partitions.values()),
                "topics are known",
            )
            await take_and_ack(member, 10)
            ((_, progress),) = [(key, each.progress()) for key, each in work.partitions.items()
                                if key[0] == scene.topic]  # fmt: skip
        await make_again(admin, scene.topic, 1)
        consumer = scene.books._consumer
        place = TopicPartition(scene.topic, 0, progress.position, progress.metadata())
        # As by a member that never noticed, and died.
        await eventually(
            lambda: bool(consumer.commit(offsets=[place], asynchronous=False)), "it is committed"
        )
        async with connect(scene.url) as publisher:
            await publish(publisher, scene.topic, [f"new-{number}" for number in range(15)])
        async with scene.member() as successor:
            seen: set[str] = set()
            async with asyncio.timeout(60):
                while len(seen) < 15:
                    came = await successor.receive(timeout=1.0)
                    seen |= set(bodies(came))
                    await scene.ledger.ack(successor, came)
        assert seen == {f"new-{number}" for number in range(15)}


async def test_records_deleted_before_they_were_read_are_reported(
    scene: Scene, admin: AdminClient, caplog: pytest.LogCaptureFixture
) -> None:
    """Below the start of the log: reading goes on at what is left, and the log names what is gone."""
    async with scene.open(partitions=1) as broker:
        await publish(broker, scene.topic, [str(number) for number in range(20)])
        async with scene.member() as member:
            (first,) = await take(member, 1)
            await member.ack(first)
        gone = admin.delete_records([TopicPartition(scene.topic, 0, 12)])
        for future in gone.values():
            await asyncio.to_thread(future.result, 20)
        async with scene.member() as member:
            assert await take_and_ack(member, 8) == sorted(str(number) for number in range(12, 20))
        assert scene.books.balanced()
    assert "offsets 1 to 11 were deleted before they were read" in caplog.text


async def test_a_batch_is_full_though_the_handler_is_slow(scene: Scene) -> None:
    """What trickles in between two requests is no reason to hand over that alone."""
    async with scene.open(partitions=1) as broker, scene.member() as member:
        await publish(broker, scene.topic, [str(number) for number in range(400)])
        sizes = []
        for _ in range(6):
            came = await member.receive(max_messages=50, timeout=20.0)
            sizes.append(len(came))
            await asyncio.sleep(0.12)
            await member.ack(came)
    assert sorted(sizes)[1:] == [50] * 5, sizes


async def test_an_empty_new_partition_keeps_nobody_from_committing(scene: Scene, admin: AdminClient) -> None:
    """Of a partition without commit and without records there is nothing to commit, and a flush returns."""
    async with scene.open(partitions=1):
        grown = admin.create_partitions([NewPartitions(scene.topic, 3)])[scene.topic]
        await asyncio.to_thread(grown.result, 20)
        async with scene.member() as member:
            work = driver_member(member).work
            await eventually(lambda: len([key for key in work.partitions if key[0] == scene.topic]) == 3, "3")
            async with asyncio.timeout(5):
                await member.flush()
    assert QUICK in scene.url
