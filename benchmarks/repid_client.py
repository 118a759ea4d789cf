"""repid, on Kafka and on Pub/Sub."""

# No `from __future__ import annotations`: repid reads the annotations of a handler inside a function.
import asyncio
from typing import Any

from .measure import CONCURRENCY, Job, Stopwatch


def repid_kafka(job: Job) -> Any:
    """Return a repid server for Kafka."""
    from repid import KafkaServer

    return KafkaServer(job.address, group_id=job.group)


def repid_pubsub(job: Job, project: str) -> Any:
    """Return a repid server for Pub/Sub."""
    from repid import PubsubServer
    from repid.connections.pubsub import ChannelOverride

    override = ChannelOverride(topic=job.topic, subscription=f"{job.topic}.{job.group}")
    return PubsubServer(
        f"http://{job.address}", default_project=project, channel_overrides={job.topic: override}
    )


async def publish(server: Any, job: Job, watch: Stopwatch) -> None:
    """Send one by one, many at one time."""
    from repid import Repid

    app = Repid()
    app.servers.register_server("default", server, is_default=True)
    async with server.connection():
        await app.send_message(channel=job.topic, payload=watch.first())
        for bodies in watch.batches(CONCURRENCY):
            await asyncio.gather(*(app.send_message(channel=job.topic, payload=body) for body in bodies))
        watch.stop()


async def consume(server: Any, job: Job, watch: Stopwatch) -> None:
    """Run a worker until it has had every message."""
    from repid import Message, Repid, Router, catch_all_routing_strategy

    app, router = Repid(), Router()

    @router.actor(channel=job.topic, routing_strategy=catch_all_routing_strategy)
    async def handle(message: Message) -> None:
        if watch.take([message.payload]):
            watch.stop()

    app.servers.register_server("default", server, is_default=True)
    app.include_router(router)
    async with server.connection():
        await app.run_worker(messages_limit=job.count, tasks_limit=CONCURRENCY, register_signals=[])
