"""Foreign programs on the same topics: Kafka's own console tools and the plain client, both ways."""

from __future__ import annotations

import asyncio
import logging
from datetime import UTC, datetime
from typing import Any

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from kafka_bench import Scene, eventually, take

from broker import Delivery, LeaseLost, Message, Subscription, connect
from broker.conformance.bench import GROUP, unique_name

pytestmark = [pytest.mark.anyio, pytest.mark.kafka]

TOOLS = "org.apache.kafka.tools"
TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
BINARY = bytes(range(256))


@pytest.fixture
def scene(kafka_service: Any) -> Scene:
    return Scene(kafka_service.bootstrap)


def produce(scene: Scene, value: bytes | None, key: bytes | None, headers: Any) -> None:
    """Store one record by the plain client."""
    producer = Producer({"bootstrap.servers": scene.bootstrap}, logger=logging.getLogger("tests.foreign"))
    errors: list[Any] = []
    producer.produce(
        scene.topic, value=value, key=key, headers=headers, on_delivery=lambda error, _: errors.append(error)
    )
    assert producer.flush(20) == 0
    assert errors == [None]


def consume(scene: Scene, topic: str) -> Any:
    """Read the first record of partition 0 by the plain client."""
    config = {"bootstrap.servers": scene.bootstrap, "group.id": unique_name("foreign")}
    consumer = Consumer(config, logger=logging.getLogger("tests.foreign"))
    try:
        consumer.assign([TopicPartition(topic, 0, 0)])
        native = consumer.poll(20)
        assert native is not None
        assert native.error() is None
        return native
    finally:
        consumer.close()


async def test_the_plain_client_reads_what_we_publish(scene: Scene) -> None:
    """A CloudEvent in Kafka's binary binding: context in ``ce_`` headers, the body as it is."""
    when = datetime(2026, 2, 3, 4, 5, 6, 789000, UTC)
    message = Message(
        data=BINARY,
        key="cam-7",
        attributes={"traceparent": TRACE, "größe": "42 ²"},
        content_type="image/png",
        type="dev.example.taken.v1",
        source="/cameras/7",
        subject="shelf-3",
        time=when,
    )
    async with scene.open(partitions=1) as broker:
        await broker.publish(scene.topic, [message])
        native = await asyncio.to_thread(consume, scene, scene.topic)
    assert (native.value(), native.key()) == (BINARY, b"cam-7")
    headers = dict(native.headers())
    assert datetime.fromisoformat(headers.pop("ce_time").decode()) == when
    assert headers == {
        "ce_specversion": b"1.0",
        "ce_id": message.id.encode(),
        "ce_type": b"dev.example.taken.v1",
        "ce_source": b"/cameras/7",
        "ce_subject": b"shelf-3",
        "content-type": b"image/png",
        "traceparent": TRACE.encode(),
        "größe": "42 ²".encode(),
    }


async def test_we_read_what_the_plain_client_publishes(scene: Scene) -> None:
    """The same event, written by another program, comes with every field in its place."""
    headers = [
        ("ce_specversion", b"1.0"),
        ("ce_id", b"a-1"),
        ("ce_type", b"dev.example.taken.v1"),
        ("ce_source", b"/cameras/7"),
        ("ce_subject", b"shelf-3"),
        ("ce_time", b"2026-02-03T04:05:06.789Z"),
        ("content-type", b"image/png"),
        ("traceparent", TRACE.encode()),
    ]
    async with scene.open(partitions=1), scene.member() as member:
        await asyncio.to_thread(produce, scene, BINARY, b"cam-7", headers)
        (came,) = await take(member, 1)
        assert came.message == Message(
            data=BINARY,
            key="cam-7",
            attributes={"traceparent": TRACE},
            id="a-1",
            content_type="image/png",
            type="dev.example.taken.v1",
            source="/cameras/7",
            subject="shelf-3",
            time=datetime(2026, 2, 3, 4, 5, 6, 789000, UTC),
        )
        await member.ack(came)


async def test_a_foreign_record_keeps_every_byte(scene: Scene) -> None:
    """No CloudEvent, binary key and header, a header twice, no body: it has one identity, also as a copy."""
    odd = [("tag", b"\xff\x00one"), ("tag", b"two"), ("empty", None)]
    async with scene.open(partitions=1) as broker, scene.member() as member:
        await broker.ensure(f"{scene.topic}.copies", group=GROUP, partitions=1)
        await asyncio.to_thread(produce, scene, None, b"\xfe\xff", odd)
        (came,) = await take(member, 1)
        assert (came.message.data, came.message.id) == (b"", f"{scene.topic}/0/0")
        assert came.message.key is not None
        assert came.message.key.encode("utf-8", "surrogateescape") == b"\xfe\xff"
        assert came.message.attributes == {"tag": "two", "empty": ""}
        await member.nack(came)
        (again,) = await take(member, 1)
        assert (again.message.id, again.attempt) == (came.message.id, 2)
        await member.forward(again, f"{scene.topic}.copies", {"why": "test"})
        await member.ack(again)
        copy = await asyncio.to_thread(consume, scene, f"{scene.topic}.copies")
    assert (copy.value(), copy.key()) == (None, b"\xfe\xff")
    assert copy.headers() == [*odd, ("couturier-id", came.message.id.encode()), ("why", b"test")]


async def test_javas_console_consumer_reads_what_we_publish(scene: Scene, kafka_service: Any) -> None:
    """Key, headers and body as Kafka's own tool prints them."""
    message = Message(data=b"hello from here", key="cam-7", attributes={"traceparent": TRACE})
    async with scene.open(partitions=1) as broker:
        await broker.publish(scene.topic, [message])
        options = [
            "print.key=true",
            "print.headers=true",
            "print.partition=true",
            "key.separator=|",
            "headers.separator=;",
        ]
        formatted = [word for option in options for word in ("--formatter-property", option)]
        printed = await asyncio.to_thread(
            kafka_service.run_tool, f"{TOOLS}.consumer.ConsoleConsumer",
            "--bootstrap-server", kafka_service.bootstrap, "--topic", scene.topic,
            "--from-beginning", "--max-messages", "1", "--timeout-ms", "30000", *formatted,
        )  # fmt: skip
    line = next(line for line in printed.splitlines() if "hello from here" in line)
    _, headers, key, body = line.split("|")
    assert (key, body) == ("cam-7", "hello from here")
    assert f"ce_id:{message.id}" in headers.split(";")
    assert f"traceparent:{TRACE}" in headers.split(";")


async def test_we_read_what_javas_console_producer_publishes(scene: Scene, kafka_service: Any) -> None:
    """Our driver hashes keys as Java does, so that one key is in one partition, whoever wrote it."""
    options = ["parse.key=true", "parse.headers=true", "key.separator=|", "headers.delimiter=~"]
    properties = [word for option in options for word in ("--reader-property", option)]
    keys = [f"key-{number}" for number in range(8)]
    lines = "".join(
        f"ce_id:java-{key},ce_type:t.v1,ce_source:/java,color:red~{key}|body-{key}\n" for key in keys
    )
    async with scene.open(partitions=4) as broker, scene.member() as member:
        await asyncio.to_thread(
            kafka_service.run_tool, f"{TOOLS}.ConsoleProducer",
            "--bootstrap-server", kafka_service.bootstrap, "--topic", scene.topic, *properties, stdin=lines,
        )  # fmt: skip
        theirs = {each.message.key: each for each in await take(member, 8)}
        for key in keys:
            message = theirs[key].message
            assert (message.id, message.data) == (f"java-{key}", f"body-{key}".encode())
            assert (message.type, message.source, message.attributes) == ("t.v1", "/java", {"color": "red"})
        await broker.publish(scene.topic, [Message(data=b"ours", key=key) for key in keys])
        ours = {each.message.key: each for each in await take(member, 8)}
        assert {key: ours[key].receipt.partition for key in keys} == {
            key: theirs[key].receipt.partition for key in keys
        }


async def test_foreign_records_in_the_storage_of_retries_stop_nobody(scene: Scene) -> None:
    """Headers that only look like ours count for nothing."""
    async with scene.open(partitions=1) as broker, scene.member() as member:
        retries = Producer({"bootstrap.servers": scene.bootstrap}, logger=logging.getLogger("tests.foreign"))
        odd = [("couturier-retry-attempt", b"many"), ("couturier-retry-origin", b"x/y")]
        retries.produce(f"{scene.group_id}.retry", b"odd", headers=odd)
        assert await asyncio.to_thread(retries.flush, 20) == 0
        assert [each.message.data async for each in broker.browse(scene.topic, GROUP)] == [b"odd"]
        (came,) = await take(member, 1)
        assert (came.message.data, came.attempt) == (b"odd", 1)
        await member.ack(came)


async def test_ensure_while_the_group_works_elsewhere(kafka_service: Any) -> None:
    """With the default ``group.id`` all topics of a group rebalance together; ``ensure`` joins to commit."""
    group, topics = unique_name("group"), [unique_name("one"), unique_name("two")]
    url = f"kafka://{kafka_service.bootstrap}?session=2&max_poll=3"
    async with connect(url) as broker, connect(url) as second:
        await broker.ensure(topics[0], group=group, partitions=2)
        await broker.publish(topics[0], [Message(data=b"first")])
        async with broker.subscribe(topics[0], group=group) as one:
            (held,) = await take(one, 1)
            # Two programs start at once.
            await asyncio.gather(
                *(each.ensure(topics[1], group=group, partitions=2) for each in (broker, second))
            )
            await broker.ensure(topics[1], group=group, partitions=2)
            await broker.publish(topics[1], [Message(data=b"second")])
            async with second.subscribe(topics[1], group=group) as two:
                (other,) = await take(two, 1)
                assert other.message.data == b"second"
                await two.ack(other)
                await two.flush()
            await one.ack(await take(one, 1) if await lost(one, held) else [])
            await one.flush()

        async def finished() -> bool:
            return all([(await broker.stats(topic, group)).unsettled == 0 for topic in topics])

        await eventually(finished, "both are finished")


async def lost(member: Subscription, delivery: Delivery) -> bool:
    """Ack a delivery that may have moved; return whether it had."""
    try:
        await member.ack(delivery)
    except LeaseLost:
        return True
    return False
