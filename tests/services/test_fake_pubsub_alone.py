"""What the fake Pub/Sub service does and Google's emulator does not: rules of the real service."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest
from google.api_core.exceptions import (
    InvalidArgument,
    NotFound,
)
from google.cloud import pubsub_v1
from google.pubsub_v1 import types

from .fake_pubsub_bench import Bench, OpenStream, wait_until

Message = pubsub_v1.subscriber.message.Message


TOO_MUCH: dict[str, dict[str, Any]] = {
    "bytes": {"messages": [{"data": b"x" * 10_000_000}]},
    "messages": {"messages": [{"data": b"x"}] * 1_001},
    "attributes": {"messages": [{"attributes": {str(number): "" for number in range(101)}}]},
    "key bytes": {"messages": [{"attributes": {"é" * 129: ""}}]},
    "value bytes": {"messages": [{"attributes": {"a": "x" * 1_025}}]},
    "empty attribute key": {"messages": [{"attributes": {"": "x"}}]},
    "reserved": {"messages": [{"attributes": {"googclient_x": "x"}}]},
    "ordering key bytes": {"messages": [{"data": b"x", "ordering_key": "x" * 1_025}]},
    "two keys": {"messages": [{"data": b"x", "ordering_key": "a"}, {"data": b"x", "ordering_key": "b"}]},
}
AS_MUCH_AS_ALLOWED: dict[str, dict[str, Any]] = {
    "bytes": {"messages": [{"data": b"x" * 9_999_900}]},
    "messages": {"messages": [{"data": b"x"}] * 1_000},
    "attributes": {"messages": [{"attributes": {f"{number:0256}": "x" * 1_024 for number in range(100)}}]},
    "ordering key bytes": {"messages": [{"data": b"x", "ordering_key": "x" * 1_024}]},
}


@pytest.mark.parametrize("what", TOO_MUCH)
def test_a_publish_over_a_limit_is_refused(bench: Bench, topic: str, what: str) -> None:
    """INVALID_ARGUMENT, and nothing is published."""
    sub = bench.sub(topic)
    with pytest.raises(InvalidArgument):
        bench.publisher.publish(topic=topic, retry=None, **TOO_MUCH[what])

    assert bench.pull(sub) == {}


@pytest.mark.parametrize("what", AS_MUCH_AS_ALLOWED)
def test_a_publish_at_a_limit_passes(bench: Bench, topic: str, what: str) -> None:
    """Limits are inclusive."""
    bench.publisher.publish(topic=topic, retry=None, **AS_MUCH_AS_ALLOWED[what])


def test_requests_and_leases_out_of_bounds_are_refused(bench: Bench, topic: str, sub: str) -> None:
    """Acks above 512 KiB, leases of a subscription outside 10 to 600 s, extensions above 600 s."""
    bench.publish(topic, "a")
    received = bench.pull(sub)["a"]
    with pytest.raises(InvalidArgument):
        bench.ack(sub, *[received] * 4_000)
    with pytest.raises(InvalidArgument):
        bench.extend(sub, received, 601)
    with pytest.raises(InvalidArgument):
        bench.sub(topic, "short", ack_deadline_seconds=9)


def test_time_moves_as_the_test_says(bench: Bench, topic: str, sub: str) -> None:
    """A lease of 10 s ends when 10 s are advanced; a waiting pull sees it."""
    bench.publish(topic, "a")
    bench.pull(sub)
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(bench.subscriber.pull, subscription=sub, max_messages=1, retry=None)
        wait_until(lambda: bench.fake and bench.fake.calls["Pull"] == 2)
        bench.sleep(9)
        assert not waiting.done()
        bench.sleep(1.5)

        assert len(waiting.result(5).received_messages) == 1


def test_a_pull_without_messages_ends_empty(bench: Bench, sub: str) -> None:
    """After ten seconds of the service's time."""
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(bench.subscriber.pull, subscription=sub, max_messages=1, retry=None)
        wait_until(lambda: bench.fake and bench.fake.calls["Pull"] == 1)
        bench.sleep(10)

        assert not waiting.result(5).received_messages


def test_a_message_is_buried_after_its_last_attempt(bench: Bench, topic: str) -> None:
    """Attempts count from 1 with a dead-letter policy; the copy says where it comes from."""
    dead = bench.topic("dead")
    policy = types.DeadLetterPolicy(dead_letter_topic=dead, max_delivery_attempts=5)
    sub, morgue = bench.sub(topic, dead_letter_policy=policy), bench.sub(dead, "morgue")
    bench.publish(topic, "a", colour="red")
    attempts = []
    while received := bench.pull(sub):
        attempts.append(received["a"].delivery_attempt)
        bench.extend(sub, received["a"], 0)
    buried = bench.pull(morgue)["a"].message.attributes

    assert attempts == [1, 2, 3, 4, 5]
    assert buried["colour"] == "red"
    assert buried["CloudPubSubDeadLetterSourceDeliveryCount"] == "5"
    assert buried["CloudPubSubDeadLetterSourceSubscription"] == sub.split("/")[-1]


def test_a_retry_policy_delays_the_next_delivery(bench: Bench, topic: str) -> None:
    """From its minimum, doubling, from the end of the lease on; others are not held back."""
    policy = types.RetryPolicy(minimum_backoff=timedelta(seconds=20))
    sub = bench.sub(topic, retry_policy=policy)
    bench.publish(topic, "a", "b")
    received = bench.pull(sub, 1)
    bench.extend(sub, received["a"], 0)
    assert list(bench.pull(sub)) == ["b"]
    bench.sleep(19)
    assert list(bench.pull(sub)) == []
    bench.sleep(2)
    assert list(bench.pull(sub)) == ["a"]
    bench.sleep(9.5)
    assert list(bench.pull(sub)) == ["b"]


def test_a_nack_replays_what_followed_it_in_its_key(bench: Bench, topic: str) -> None:
    """Successors return too, the acknowledged with them, and in order; predecessors do not."""
    sub = bench.sub(topic, enable_message_ordering=True)
    bench.publish(topic, "k0", "k1", "k2", "k3", key="k")
    first = bench.pull(sub)
    bench.ack(sub, first["k0"], first["k2"])
    bench.extend(sub, first["k1"], 0)
    bench.ack(sub, first["k3"])

    assert list(bench.pull(sub)) == ["k1", "k2", "k3"]


def test_a_new_subscription_gets_what_its_topic_retains_by_a_seek_only(bench: Bench) -> None:
    """The emulator delivers it without one; the documents of the service say nothing of the kind."""
    topic = bench.topic(message_retention_duration=timedelta(minutes=10))
    bench.publish(topic, "old")
    sub = bench.sub(topic)
    assert bench.pull(sub) == {}
    bench.subscriber.seek({"subscription": sub, "time": {"seconds": 1}}, retry=None)
    assert list(bench.pull(sub)) == ["old"]
    bench.sleep(601)
    bench.subscriber.seek({"subscription": sub, "time": {"seconds": 1}}, retry=None)
    assert list(bench.pull(sub)) == ["old"]  # unacked: the subscription keeps it for seven days
    bench.sleep(7 * 86_400)
    assert bench.pull(sub) == {}


def test_a_snapshot_serves_all_subscriptions_of_its_topic_until_it_expires(bench: Bench, topic: str) -> None:
    """Seven days, counted from the oldest unacked message."""
    sub = bench.sub(topic)
    bench.publish(topic, "a")
    bench.sleep(86_400)
    snapshot = bench.name("snapshots", "snap")
    bench.subscriber.create_snapshot(name=snapshot, subscription=sub, retry=None)
    other = bench.sub(topic, "other")
    bench.subscriber.seek({"subscription": other, "snapshot": snapshot}, retry=None)
    assert list(bench.pull(other)) == ["a"]
    bench.sleep(6 * 86_400)
    with pytest.raises(NotFound):
        bench.subscriber.get_snapshot(snapshot=snapshot, retry=None)


def test_a_stream_keeps_to_its_flow_control(bench: Bench, topic: str, sub: str) -> None:
    """Never more than ``max_outstanding_messages`` out; an ack makes room."""
    bench.publish(topic, *"abcde")
    with OpenStream(bench, sub, max_outstanding_messages=2) as stream:
        wait_until(lambda: stream.texts == ["a", "b"])
        stream.send(ack_ids=[stream.received[0].ack_id])
        wait_until(lambda: stream.texts == ["a", "b", "c"])
    with OpenStream(bench, sub, max_outstanding_bytes=1) as stream:
        wait_until(lambda: stream.texts == ["d"])


@pytest.mark.parametrize("over", ["a call", "the stream"])
def test_an_exactly_once_subscription_names_the_ids_it_refuses(bench: Bench, topic: str, over: str) -> None:
    """The valid ones of the same request are settled, and an ack may be repeated within its lease."""
    sub = bench.sub(topic, enable_exactly_once_delivery=True)
    bench.publish(topic, "stale", "good")
    received = bench.pull(sub)
    bench.extend(sub, received["good"], 60)
    bench.sleep(11)
    ids = [received["good"].ack_id, received["stale"].ack_id]
    if over == "a call":
        with pytest.raises(InvalidArgument) as caught:
            bench.subscriber.acknowledge(subscription=sub, ack_ids=ids, retry=None)
        assert (caught.value.reason, caught.value.metadata) == (
            "EXACTLY_ONCE_ACKID_FAILURE",
            {ids[1]: "PERMANENT_FAILURE_INVALID_ACK_ID"},
        )
    else:
        with OpenStream(bench, sub) as stream:
            stream.send(ack_ids=ids)
            wait_until(lambda: any(each.acknowledge_confirmation.ack_ids for each in stream.responses))
            stream.finish()
        (confirmed,) = [each for each in stream.responses if each.acknowledge_confirmation.ack_ids]
        assert list(confirmed.acknowledge_confirmation.ack_ids) == ids[:1]
        assert list(confirmed.acknowledge_confirmation.invalid_ack_ids) == ids[1:]
        bench.sleep(11)
    bench.ack(sub, received["good"])

    assert list(bench.pull(sub)) == ["stale"]
