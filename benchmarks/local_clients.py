"""The embedded queue: nobody to compare with, but a figure to hold on to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from broker import Message, connect

from .measure import CONSUME_BATCH, PUBLISH_BATCH, Job, Stopwatch


async def publish(job: Job, watch: Stopwatch) -> None:
    """``Broker.publish`` with lists of messages, each list on disk when it returns."""
    async with connect(f"sqlite:///{job.address}") as broker:
        await broker.publish(job.topic, [Message(watch.first())])
        for bodies in watch.batches(PUBLISH_BATCH):
            await broker.publish(job.topic, [Message(body) for body in bodies])
        watch.stop()


async def consume(job: Job, watch: Stopwatch) -> None:
    """``Subscription.receive`` and ``ack`` with lists of deliveries."""
    async with (
        connect(f"sqlite:///{job.address}") as broker,
        broker.subscribe(job.topic, group=job.group) as subscription,
    ):
        done = False
        while not done:
            if deliveries := await subscription.receive(CONSUME_BATCH):
                done = watch.take([each.message.data for each in deliveries])
                await subscription.ack(deliveries)
        await subscription.flush()
        watch.stop()


# As in `kafka_clients`.
CLIENTS: dict[str, tuple[Callable[..., Any], Callable[..., Any], float]] = {"ours": (publish, consume, 1.0)}
