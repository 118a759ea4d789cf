"""kombu, on Kafka and on Pub/Sub."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .measure import Job, Stopwatch

_BINARY = {"content_type": "application/data", "content_encoding": "binary"}


def kombu_kafka(job: Job, producer: Mapping[str, Any], consumer: Mapping[str, Any]) -> Any:
    """Return a kombu connection to Kafka."""
    from kombu import Connection

    return Connection(
        f"confluentkafka://{job.address}//",
        transport_options={
            "kafka_producer_config": dict(producer),
            "kafka_consumer_config": {**consumer, "group.id": job.group},
        },
    )


def kombu_pubsub(project: str) -> Any:
    """Return a kombu connection to Pub/Sub."""
    from kombu import Connection

    return Connection(f"gcpubsub://projects/{project}", transport_options={"queue_name_prefix": ""})


def publish(connection: Any, job: Job, watch: Stopwatch) -> None:
    """Publish one by one; the transport waits for each."""
    with connection, connection.SimpleQueue(_queue(job)) as queue:
        queue.put(watch.first(), **_BINARY)
        for body in watch.bodies():
            queue.put(body, **_BINARY)
        # On Pub/Sub `put` does not wait until the message is stored; stopping its publisher does.
        if publisher := getattr(queue.channel, "publisher", None):
            publisher.stop()
        watch.stop()


def consume(connection: Any, job: Job, watch: Stopwatch) -> None:
    """Consume and ack one by one."""
    with connection, connection.SimpleQueue(_queue(job)) as queue:
        done = False
        while not done:
            message = queue.get(timeout=30)
            done = watch.take([message.payload])
            message.ack()
        watch.stop()


def _queue(job: Job) -> Any:
    from kombu import Exchange, Queue

    return Queue(job.topic, exchange=Exchange(job.topic, type="direct"), routing_key=job.topic)
