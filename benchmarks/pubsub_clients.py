"""The clients that are compared on Google Pub/Sub: each publishes durably, and acks after processing."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from broker import Message, connect

from .measure import CONSUME_BATCH, PUBLISH_BATCH, Job, Stopwatch

PROJECT = "couturier-bench"
_IN_FLIGHT = 1000


def raw_publish(job: Job, watch: Stopwatch) -> None:
    """The client's own publisher, with its own batches; every future looked at."""
    from google.cloud import pubsub_v1

    publisher = pubsub_v1.PublisherClient()
    path = publisher.topic_path(PROJECT, job.topic)
    publisher.publish(path, watch.first()).result(60)
    for bodies in watch.batches(PUBLISH_BATCH):
        for future in [publisher.publish(path, body) for body in bodies]:
            future.result(60)
    watch.stop()


def raw_consume(job: Job, watch: Stopwatch) -> None:
    """The client's own streaming pull: a callback that acks."""
    from google.cloud import pubsub_v1

    done, lock = threading.Event(), threading.Lock()

    def callback(message: Any) -> None:
        with lock:
            if watch.take([message.data]):
                done.set()
        message.ack()

    with pubsub_v1.SubscriberClient() as subscriber:
        pull = subscriber.subscribe(
            subscriber.subscription_path(PROJECT, f"{job.topic}.{job.group}"),
            callback,
            flow_control=pubsub_v1.types.FlowControl(max_messages=_IN_FLIGHT),
        )
        done.wait()
        watch.stop()
        pull.cancel()
        pull.result(60)


async def ours_publish(job: Job, watch: Stopwatch) -> None:
    """``Broker.publish`` with lists of messages."""
    async with connect(f"pubsub://{PROJECT}") as broker:
        await broker.publish(job.topic, [Message(watch.first())])
        for bodies in watch.batches(PUBLISH_BATCH):
            await broker.publish(job.topic, [Message(body) for body in bodies])
        watch.stop()


async def ours_consume(job: Job, watch: Stopwatch) -> None:
    """``Subscription.receive`` and ``ack`` with lists of deliveries."""
    async with (
        connect(f"pubsub://{PROJECT}") as broker,
        broker.subscribe(job.topic, group=job.group, max_in_flight=_IN_FLIGHT) as subscription,
    ):
        done = False
        while not done:
            deliveries = await subscription.receive(CONSUME_BATCH)
            if deliveries:
                done = watch.take([each.message.data for each in deliveries])
                await subscription.ack(deliveries)
        await subscription.flush()
        watch.stop()


async def repid_publish(job: Job, watch: Stopwatch) -> None:
    """``send_message``, many calls at one time."""
    from .repid_client import publish, repid_pubsub

    await publish(repid_pubsub(job, PROJECT), job, watch)


async def repid_consume(job: Job, watch: Stopwatch) -> None:
    """An actor, acked when it returns."""
    from .repid_client import consume, repid_pubsub

    await consume(repid_pubsub(job, PROJECT), job, watch)


def kombu_publish(job: Job, watch: Stopwatch) -> None:
    """A producer of the gcpubsub transport."""
    from .kombu_client import kombu_pubsub, publish

    publish(kombu_pubsub(PROJECT), job, watch)


def kombu_consume(job: Job, watch: Stopwatch) -> None:
    """A consumer of the gcpubsub transport, which pulls in bulk; each message acked."""
    from .kombu_client import consume, kombu_pubsub

    consume(kombu_pubsub(PROJECT), job, watch)


# As in `kafka_clients`.
CLIENTS: dict[str, tuple[Callable[..., Any], Callable[..., Any], float]] = {
    "raw": (raw_publish, raw_consume, 1.0),
    "ours": (ours_publish, ours_consume, 1.0),
    "repid": (repid_publish, repid_consume, 0.25),
    "kombu": (kombu_publish, kombu_consume, 0.25),
}
