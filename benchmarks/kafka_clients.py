"""The clients that are compared on Kafka: each publishes durably, and commits after processing."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from typing import Any

from broker import Message, connect

from .measure import CONCURRENCY, CONSUME_BATCH, PUBLISH_BATCH, Job, Stopwatch

_PRODUCER = {"enable.idempotence": True, "acks": "all", "linger.ms": 5}
_CONSUMER = {"enable.auto.commit": False, "auto.offset.reset": "earliest"}


def raw_publish(job: Job, watch: Stopwatch) -> None:
    """The client's own loop: idempotent, every delivery report looked at; bodies alone."""
    _raw_publish(job, watch, lambda: {})


def raw_events_publish(job: Job, watch: Stopwatch) -> None:
    """The same loop, writing what we write: CloudEvents, each with an id and a time of its own."""

    def event() -> dict[str, Any]:
        return {
            "headers": {
                "ce_specversion": "1.0",
                "ce_id": str(uuid.uuid4()),
                "ce_source": "/couturier",
                "ce_type": "dev.couturier.message.v1",
                "ce_time": datetime.now(UTC).isoformat(),
                "content-type": "application/octet-stream",
            }
        }

    _raw_publish(job, watch, event)


def _raw_publish(job: Job, watch: Stopwatch, more: Callable[[], dict[str, Any]]) -> None:
    from confluent_kafka import Producer

    producer = Producer({"bootstrap.servers": job.address, **_PRODUCER})
    stored = 0

    def report(error: Any, _: Any) -> None:
        nonlocal stored
        if error is not None:
            raise RuntimeError(str(error))
        stored += 1

    producer.produce(job.topic, watch.first(), on_delivery=report, **more())
    producer.flush()
    for number, body in enumerate(watch.bodies()):
        while True:
            try:
                producer.produce(job.topic, body, on_delivery=report, **more())
                break
            except BufferError:
                producer.poll(0.01)
        if number % CONSUME_BATCH == 0:
            producer.poll(0)
    producer.flush()
    assert stored == job.count
    watch.stop()


def raw_consume(job: Job, watch: Stopwatch) -> None:
    """The client's own loop: a batch, then an asynchronous commit of it."""
    from confluent_kafka import Consumer, KafkaException

    consumer = Consumer({"bootstrap.servers": job.address, "group.id": job.group, **_CONSUMER})
    consumer.subscribe([job.topic])
    done = False
    while not done:
        records = consumer.consume(CONSUME_BATCH, 1.0)
        if records:
            done = watch.take([_value(each) for each in records])
            consumer.commit(asynchronous=True)
    with contextlib.suppress(KafkaException):  # nothing is left to commit
        consumer.commit(asynchronous=False)
    watch.stop()
    consumer.close()


def _value(record: Any) -> bytes:
    if record.error() is not None:
        raise RuntimeError(str(record.error()))
    value: bytes = record.value()
    return value


async def ours_publish(job: Job, watch: Stopwatch) -> None:
    """``Broker.publish`` with lists of messages."""
    async with connect(f"kafka://{job.address}") as broker:
        await broker.publish(job.topic, [Message(watch.first())])
        for bodies in watch.batches(PUBLISH_BATCH):
            await broker.publish(job.topic, [Message(body) for body in bodies])
        watch.stop()


async def ours_consume(job: Job, watch: Stopwatch) -> None:
    """``Subscription.receive`` and ``ack`` with lists of deliveries."""
    async with connect(f"kafka://{job.address}") as broker:
        await broker.ensure(job.topic, group=job.group)
        async with broker.subscribe(job.topic, group=job.group) as subscription:
            done = False
            while not done:
                deliveries = await subscription.receive(CONSUME_BATCH)
                if deliveries:
                    done = watch.take([each.message.data for each in deliveries])
                    await subscription.ack(deliveries)
            await subscription.flush()
            watch.stop()


async def ours_one_consume(job: Job, watch: Stopwatch) -> None:
    """The comfortable form: ``async for``, and an ack for each."""
    async with connect(f"kafka://{job.address}") as broker:
        await broker.ensure(job.topic, group=job.group)
        async with broker.subscribe(job.topic, group=job.group) as subscription:
            async for delivery in subscription:
                done = watch.take([delivery.message.data])
                await subscription.ack(delivery)
                if done:
                    break
            await subscription.flush()
            watch.stop()


async def ours_one_publish(job: Job, watch: Stopwatch) -> None:
    """``Broker.publish`` with one message a call."""
    async with connect(f"kafka://{job.address}") as broker:
        await broker.publish(job.topic, [Message(watch.first())])
        for bodies in watch.batches(CONCURRENCY):
            await asyncio.gather(*(broker.publish(job.topic, [Message(body)]) for body in bodies))
        watch.stop()


@contextlib.asynccontextmanager
async def _faststream(job: Job) -> AsyncIterator[Any]:
    from faststream.confluent import KafkaBroker

    broker = KafkaBroker(
        job.address, enable_idempotence=True, acks="all", linger_ms=5, logger=None,
        allow_auto_create_topics=False,
    )  # fmt: skip
    try:
        yield broker
    finally:
        await broker.stop()


async def faststream_publish(job: Job, watch: Stopwatch) -> None:
    """``publish_batch``."""
    async with _faststream(job) as broker:
        await broker.start()
        await broker.publish(watch.first(), topic=job.topic)
        for bodies in watch.batches(PUBLISH_BATCH):
            await broker.publish_batch(*bodies, topic=job.topic)
        watch.stop()


async def faststream_one_publish(job: Job, watch: Stopwatch) -> None:
    """``publish``, many calls at one time."""
    async with _faststream(job) as broker:
        await broker.start()
        await broker.publish(watch.first(), topic=job.topic)
        for bodies in watch.batches(CONCURRENCY):
            await asyncio.gather(*(broker.publish(body, topic=job.topic) for body in bodies))
        watch.stop()


async def faststream_consume(job: Job, watch: Stopwatch) -> None:
    """A handler of batches, acked when it returns."""
    await _faststream_consume(job, watch, batch=True, max_records=CONSUME_BATCH)


async def faststream_one_consume(job: Job, watch: Stopwatch) -> None:
    """A handler of single messages, acked when it returns."""
    await _faststream_consume(job, watch)


async def _faststream_consume(job: Job, watch: Stopwatch, **options: Any) -> None:
    from faststream import AckPolicy

    finished = asyncio.Event()

    async def batch_handler(bodies: list[bytes]) -> None:
        if watch.take(bodies):
            watch.stop()
            finished.set()

    async def handler(body: bytes) -> None:
        await batch_handler([body])

    async with _faststream(job) as broker:
        subscriber = broker.subscriber(
            job.topic, group_id=job.group, auto_offset_reset="earliest",
            ack_policy=AckPolicy.NACK_ON_ERROR, **options,
        )  # fmt: skip
        subscriber(batch_handler if options else handler)
        await broker.start()
        await finished.wait()


async def repid_publish(job: Job, watch: Stopwatch) -> None:
    """``send_message``, many calls at one time; repid sets no idempotence."""
    from .repid_client import publish, repid_kafka

    await publish(repid_kafka(job), job, watch)


async def repid_consume(job: Job, watch: Stopwatch) -> None:
    """An actor, acked when it returns."""
    from .repid_client import consume, repid_kafka

    await consume(repid_kafka(job), job, watch)


def kombu_publish(job: Job, watch: Stopwatch) -> None:
    """A producer of the confluentkafka transport, which flushes after each message."""
    from .kombu_client import kombu_kafka, publish

    publish(kombu_kafka(job, _PRODUCER | {"linger.ms": 0}, _CONSUMER), job, watch)


def kombu_consume(job: Job, watch: Stopwatch) -> None:
    """A consumer of the confluentkafka transport, each message acked."""
    from .kombu_client import consume, kombu_kafka

    consume(kombu_kafka(job, _PRODUCER, _CONSUMER), job, watch)


# Name to publish, consume, and the share of the messages that it gets, since some are that much slower.
CLIENTS: dict[str, tuple[Callable[..., Any], Callable[..., Any], float]] = {
    "raw": (raw_publish, raw_consume, 1.0),
    "raw, CloudEvents": (raw_events_publish, raw_consume, 1.0),
    "ours": (ours_publish, ours_consume, 1.0),
    "ours, one by one": (ours_one_publish, ours_one_consume, 0.05),
    "faststream, batches": (faststream_publish, faststream_consume, 0.25),
    "faststream, one by one": (faststream_one_publish, faststream_one_consume, 0.025),
    "repid": (repid_publish, repid_consume, 0.025),
    "kombu": (kombu_publish, kombu_consume, 0.005),
}
