"""The demo on real Kafka and on the Pub/Sub emulator: the figures of the embedded default, recounted.

Each broker's own client, which knows nothing of ours, counts what is left in the queue and in the dead
letters.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from uuid import uuid4

import pytest

from .services import KafkaService, PubSubService
from .test_demo import couturier, environment

IMAGES, PLANTED = 150, 3
AGAIN, PLANTED_AGAIN = 40, 2


class Counter(Protocol):
    """Counts with the broker's own client."""

    def unsettled(self) -> int:
        """Return what the group has left, retries included."""

    def letters(self) -> int:
        """Return how many dead letters there are."""


@dataclass(frozen=True)
class Place:
    """Where a demo runs.

    Attributes:
        backend: its name.
        home: state directory.
        env: of every command.
        counter: what recounts.
    """

    backend: str
    home: Path
    env: dict[str, str]
    counter: Counter


class KafkaCounter:
    """Watermarks and committed offsets, asked with a bare consumer."""

    def __init__(self, bootstrap: str, topic: str, group: str) -> None:
        self.bootstrap, self.topic, self.group = bootstrap, topic, group

    def places(self, topic: str, group: str) -> Iterator[tuple[int, int, int]]:
        """Yield committed offset, low and high watermark of every partition."""
        from confluent_kafka import Consumer, TopicPartition

        consumer = Consumer({"bootstrap.servers": self.bootstrap, "group.id": group})
        try:
            numbers = consumer.list_topics(topic, timeout=20).topics[topic].partitions
            asked = [TopicPartition(topic, number) for number in numbers]
            for place in consumer.committed(asked, timeout=20):
                yield place.offset, *consumer.get_watermark_offsets(place, timeout=20)
        finally:
            consumer.close()

    def unsettled(self) -> int:
        topics = (self.topic, f"{self.topic}.{self.group}.retry")
        found = [place for topic in topics for place in self.places(topic, self.group)]
        assert any(high for _, _, high in found), "nothing was ever published"
        return sum(high - max(committed, low) for committed, low, high in found)

    def letters(self) -> int:
        return sum(high - low for _, low, high in self.places(f"{self.topic}.{self.group}.dlq", "operators"))


class PubSubCounter:
    """What Google's client can pull from the group's subscriptions."""

    def __init__(self, host: str, project: str, topic: str, group: str) -> None:
        self.host, self.project, self.topic, self.group = host, project, topic, group

    def pull(self, subscription: str) -> set[str]:
        """Return the ids of all messages, and hand them back."""
        import grpc  # type: ignore[import-untyped]
        from google.pubsub_v1 import SubscriberClient
        from google.pubsub_v1.services.subscriber.transports import SubscriberGrpcTransport

        with grpc.insecure_channel(self.host) as channel:
            client = SubscriberClient(transport=SubscriberGrpcTransport(channel=channel))
            path = client.subscription_path(self.project, subscription)
            assert client.get_subscription(subscription=path).name == path
            found: dict[str, str] = {}
            # The emulator answers with nothing a second before the deadline.
            while answer := client.pull(subscription=path, max_messages=1000, timeout=3.0).received_messages:
                found.update({each.message.message_id: each.ack_id for each in answer})
            if found:
                client.modify_ack_deadline(
                    subscription=path, ack_ids=list(found.values()), ack_deadline_seconds=0
                )
            return set(found)

    def unsettled(self) -> int:
        group = f"{self.topic}.{self.group}"
        return len(self.pull(group)) + len(self.pull(f"{group}.retry"))

    def letters(self) -> int:
        return len(self.pull(f"{self.topic}.{self.group}.dlq.operators"))


def kafka_place(service: KafkaService, home: Path, name: str) -> Place:
    """``BROKER_BACKEND`` and the variables that Kafka's users know."""
    topic, group = f"images-{name}", f"classifiers-{name}"
    env = environment(home, COUTURIER_TOPIC=topic, COUTURIER_GROUP=group)
    env |= {"BROKER_BACKEND": "kafka", "KAFKA_BOOTSTRAP_SERVERS": service.bootstrap}
    return Place("kafka", home, env, KafkaCounter(service.bootstrap, topic, group))


def pubsub_place(service: PubSubService, home: Path, name: str) -> Place:
    """``BROKER_URL``, and the emulator's variable."""
    env = environment(home, BROKER_URL=f"pubsub://demo-{name}", PUBSUB_EMULATOR_HOST=service.host)
    return Place("pubsub", home, env, PubSubCounter(service.host, f"demo-{name}", "images", "classifiers"))


@pytest.fixture(
    scope="module",
    params=[
        pytest.param("kafka", marks=pytest.mark.kafka),
        pytest.param("pubsub", marks=pytest.mark.pubsub),
    ],
)
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A broker with room of our own."""
    home = tmp_path_factory.mktemp(request.param)
    make = {"kafka": kafka_place, "pubsub": pubsub_place}[request.param]
    place: Place = make(request.getfixturevalue(f"{request.param}_service"), home, uuid4().hex[:8])
    return place


def demo(place: Place, images: int, planted: int, *options: str) -> dict[str, Any]:
    """Run it; return its report."""
    wanted = ("--images", str(images), "--bad-ratio", str(planted / images), "--json", *options)
    done = couturier("demo", *wanted, env=place.env)
    assert done.returncode == 0, done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    return report


@pytest.fixture(scope="module")
def report(place: Place) -> dict[str, Any]:
    """One demo."""
    return demo(place, IMAGES, PLANTED)


@pytest.fixture(scope="module")
def again(place: Place, report: dict[str, Any]) -> dict[str, Any]:
    """Another one, on the same broker, with the backend named on the command line."""
    return demo(place, AGAIN, PLANTED_AGAIN, "--backend", place.backend, "--seed", "1")


def test_the_figures_are_those_of_the_embedded_default(place: Place, report: dict[str, Any]) -> None:
    """Nothing lost, nothing doubled, exactly the planted images dead, labels as offline; all settled."""
    assert (report["backend"], report["as_planned"]) == (place.backend, True)
    assert (report["published"], report["stored"]) == (IMAGES, IMAGES - PLANTED)
    assert (report["lost"], report["duplicate_rows"], report["in_flight"]) == (0, 0, 0)
    assert (report["dead_lettered"], report["dead_letters"]) == (PLANTED, {"invalid-image": PLANTED})
    assert report["labels_unlike_offline"] == 0
    assert place.counter.unsettled() == 0
    assert place.counter.letters() == PLANTED


def test_a_second_demo_on_the_same_broker_is_as_good(place: Place, again: dict[str, Any]) -> None:
    """What the first one left behind is neither counted nor in the way, and nobody waits for its leases."""
    assert (again["published"], again["stored"], again["as_planned"]) == (AGAIN, AGAIN - PLANTED_AGAIN, True)
    assert (again["lost"], again["duplicate_rows"]) == (0, 0)
    assert place.counter.unsettled() == 0
    assert place.counter.letters() == PLANTED + PLANTED_AGAIN
    assert again["latency_ms"]["p50"] < 20_000


def test_the_audit_proves_what_it_can(place: Place, again: dict[str, Any], tmp_path: Path) -> None:
    """With the ledger: all. Without: Kafka has counts, Pub/Sub has none, and that is no proof."""
    proven = couturier("audit", "--json", env=place.env)
    assert proven.returncode == 0, proven.stderr
    books = json.loads(proven.stdout)
    assert (books["basis"], books["published"], books["lost"]) == ("ledger", IMAGES + AGAIN, 0)

    elsewhere = {"COUTURIER_HOME": str(tmp_path), "SINK_URL": f"sqlite:///{place.home}/results.db"}
    counted = couturier("audit", "--json", env={**place.env, **elsewhere})
    books = json.loads(counted.stdout)
    assert books["basis"] == "broker"
    assert (books["stored"], books["dead_lettered"]) == (
        IMAGES + AGAIN - PLANTED - PLANTED_AGAIN,
        PLANTED + PLANTED_AGAIN,
    )
    if place.backend == "kafka":
        assert (counted.returncode, books["published"], books["lost"]) == (0, IMAGES + AGAIN, 0)
    else:
        assert (counted.returncode, books["published"], books["lost"]) == (1, None, None)
        assert "no count" in books["notes"][0]
        shown = couturier("audit", env={**place.env, **elsewhere})
        assert "NOT proven" in shown.stdout


def test_dead_letters_are_listed_shown_and_sent_through_again(
    place: Place, again: dict[str, Any], tmp_path: Path
) -> None:
    """What is replayed is in the queue and no longer among the dead."""
    listed = json.loads(couturier("dlq", "list", "--json", env=place.env).stdout)
    assert len(listed) == PLANTED + PLANTED_AGAIN
    assert {"message_id", "reason", "stage", "attempts", "error"} <= set(listed[0])
    chosen = max(listed, key=lambda each: each["size_bytes"])
    shown = couturier("dlq", "show", chosen["message_id"], "--out", str(tmp_path / "body"), env=place.env)
    assert shown.returncode == 0, shown.stderr
    assert (tmp_path / "body").stat().st_size == chosen["size_bytes"]

    replayed = couturier("dlq", "replay", chosen["message_id"], "--json", env=place.env)
    assert replayed.returncode == 0, replayed.stderr
    assert json.loads(replayed.stdout)["replayed"] == [chosen["message_id"]]
    assert place.counter.unsettled() == 1
    left = json.loads(couturier("dlq", "list", "--json", env=place.env).stdout)
    assert {each["message_id"] for each in left} == {e["message_id"] for e in listed} - {chosen["message_id"]}
