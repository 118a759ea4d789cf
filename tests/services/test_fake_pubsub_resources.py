"""Seeks, snapshots, names and mistakes: each test runs on the fake Pub/Sub service and on the emulator."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta

import pytest
from google.api_core.exceptions import (
    AlreadyExists,
    FailedPrecondition,
    GoogleAPICallError,
    InvalidArgument,
    NotFound,
)

from .fake_pubsub_bench import BOTH, PROJECT, Bench, connect


@pytest.fixture(params=BOTH)
def bench(request: pytest.FixtureRequest) -> Iterator[Bench]:
    with connect(request) as bench:
        yield bench


def test_a_seek_to_a_time_brings_back_what_the_topic_retains(bench: Bench) -> None:
    """Into the past: the acked return; into the future: all counts as acked."""
    topic = bench.topic(message_retention_duration=timedelta(minutes=10))
    sub = bench.sub(topic)
    bench.publish(topic, "a", "b")
    received = bench.pull(sub)
    bench.ack(sub, received["a"])
    past, future = (datetime.now(UTC) + timedelta(minutes=minutes) for minutes in (-5, 5))

    bench.subscriber.seek({"subscription": sub, "time": past}, retry=None)
    assert sorted(bench.pull_all(sub, 2)) == ["a", "b"]
    bench.subscriber.seek({"subscription": sub, "time": future}, retry=None)
    assert list(bench.pull(sub)) == []


@pytest.mark.parametrize("retained", [False, True])
def test_without_topic_retention_the_subscription_decides(bench: Bench, topic: str, retained: bool) -> None:
    """``retain_acked_messages`` keeps the acked for a seek; a leased one returns in any case."""
    sub = bench.sub(topic, retain_acked_messages=retained)
    bench.publish(topic, "acked", "leased")
    bench.ack(sub, bench.pull(sub)["acked"])
    past = datetime.now(UTC) - timedelta(minutes=5)
    bench.subscriber.seek({"subscription": sub, "time": past}, retry=None)

    assert sorted(bench.pull_all(sub, 1 + retained)) == (["acked"] if retained else []) + ["leased"]


def test_a_seek_to_a_snapshot_restores_what_was_unacked(bench: Bench, topic: str, sub: str) -> None:
    """What was acked by then stays acked; what came later is unacked."""
    bench.publish(topic, "done", "open")
    received = bench.pull(sub)
    bench.ack(sub, received["done"])
    snapshot = bench.name("snapshots", "snap")
    bench.subscriber.create_snapshot(name=snapshot, subscription=sub, retry=None)
    bench.publish(topic, "later")
    bench.ack(sub, received["open"], *bench.pull(sub).values())
    bench.subscriber.seek({"subscription": sub, "snapshot": snapshot}, retry=None)
    assert sorted(bench.pull_all(sub, 2)) == ["later", "open"]

    other = bench.sub(bench.topic("elsewhere"), "elsewhere")
    with pytest.raises(FailedPrecondition):
        bench.subscriber.seek({"subscription": other, "snapshot": snapshot}, retry=None)
    bench.subscriber.delete_snapshot(snapshot=snapshot, retry=None)
    with pytest.raises(NotFound):
        bench.subscriber.seek({"subscription": sub, "snapshot": snapshot}, retry=None)


MISTAKES: dict[str, tuple[type[GoogleAPICallError], Callable[[Bench, str, str], object]]] = {
    "goog name": (InvalidArgument, lambda bench, topic, sub: bench.topic("goog-x")),
    "short name": (
        InvalidArgument,
        lambda bench, *_: bench.publisher.create_topic(name=f"{PROJECT}/topics/ab"),
    ),
    "digit first": (InvalidArgument, lambda bench, *_: bench.topic("1abc")),
    "topic twice": (AlreadyExists, lambda bench, *_: bench.topic()),
    "sub twice": (AlreadyExists, lambda bench, topic, _: bench.sub(topic)),
    "no topic": (NotFound, lambda bench, *_: bench.sub(f"{PROJECT}/topics/missing", "new")),
    "long lease": (
        InvalidArgument,
        lambda bench, topic, _: bench.sub(topic, "new", ack_deadline_seconds=601),
    ),
    "publish nowhere": (NotFound, lambda bench, *_: bench.publish(f"{PROJECT}/topics/missing", "a")),
    "publish nothing": (InvalidArgument, lambda bench, topic, _: bench.publish(topic)),
    "publish empty": (InvalidArgument, lambda bench, topic, _: bench.publish(topic, "")),
    "publish a key": (InvalidArgument, lambda bench, topic, _: bench.publish(topic, "", key="k")),
    "pull nowhere": (NotFound, lambda bench, *_: bench.pull(f"{PROJECT}/subscriptions/missing")),
    "pull none": (InvalidArgument, lambda bench, _, sub: bench.pull(sub, 0)),
    "ack nothing": (InvalidArgument, lambda bench, _, sub: bench.ack(sub)),
    "ack garbage": (
        InvalidArgument,
        lambda bench, _, sub: bench.subscriber.acknowledge(subscription=sub, ack_ids=["garbage"]),
    ),
    "seek nowhere": (InvalidArgument, lambda bench, _, sub: bench.subscriber.seek({"subscription": sub})),
    "reorder": (
        InvalidArgument,
        lambda bench, _, sub: bench.subscriber.update_subscription(
            {"subscription": {"name": sub}, "update_mask": "enableMessageOrdering"}
        ),
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_refused(bench: Bench, topic: str, sub: str, mistake: str) -> None:
    """With the same status on both."""
    error, make = MISTAKES[mistake]
    with pytest.raises(error):
        make(bench, topic, sub)


def test_topics_and_subscriptions_are_listed_changed_and_deleted(bench: Bench, topic: str, sub: str) -> None:
    """A subscription whose topic is gone says so, and keeps its messages."""
    project = {"project": PROJECT}
    bench.publish(topic, "a")
    change = {"subscription": {"name": sub, "ack_deadline_seconds": 33}, "update_mask": "ackDeadlineSeconds"}

    assert bench.subscriber.update_subscription(change, retry=None).ack_deadline_seconds == 33
    assert topic in [each.name for each in bench.publisher.list_topics(project, retry=None)]
    assert sub in [each.name for each in bench.subscriber.list_subscriptions(project, retry=None)]
    assert list(bench.publisher.list_topic_subscriptions({"topic": topic}, retry=None)) == [sub]
    bench.publisher.delete_topic(topic=topic, retry=None)
    assert bench.subscriber.get_subscription(subscription=sub, retry=None).topic == "_deleted-topic_"
    assert list(bench.pull(sub)) == ["a"]
    bench.subscriber.delete_subscription(subscription=sub, retry=None)
    with pytest.raises(NotFound):
        bench.subscriber.get_subscription(subscription=sub, retry=None)
