"""The fake Pub/Sub service does what Google's emulator does: each test runs on both."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import grpc
import pytest
from google.api_core.exceptions import (
    InvalidArgument,
    NotFound,
)
from google.cloud import pubsub_v1
from google.pubsub_v1 import SubscriberAsyncClient
from google.pubsub_v1.services.subscriber.transports import SubscriberGrpcAsyncIOTransport

from .fake_pubsub_bench import BOTH, PROJECT, Bench, OpenStream, connect, wait_until


@pytest.fixture(params=BOTH)
def bench(request: pytest.FixtureRequest) -> Iterator[Bench]:
    with connect(request) as bench:
        yield bench


def test_a_subscription_sees_what_is_published_after_its_creation(bench: Bench, topic: str) -> None:
    """Messages arrive with id, time, key and attributes; earlier ones do not."""
    bench.publish(topic, "early")
    sub = bench.sub(topic)
    (message_id,) = bench.publish(topic, "late", key="k", colour="red")

    received = bench.pull(sub)["late"]

    assert (received.message.message_id, received.delivery_attempt) == (message_id, 0)
    assert (received.message.ordering_key, dict(received.message.attributes)) == ("k", {"colour": "red"})
    assert abs(received.message.publish_time.timestamp() - time.time()) < 60


def test_a_pull_without_messages_ends_empty_before_its_deadline(bench: Bench, sub: str) -> None:
    """A second before it, and not with DEADLINE_EXCEEDED."""
    started = time.monotonic()
    received = bench.subscriber.pull(subscription=sub, max_messages=1, retry=None, timeout=2.0)

    assert not received.received_messages
    assert time.monotonic() - started >= 0.9


def test_an_acknowledged_message_does_not_return(bench: Bench, topic: str, sub: str) -> None:
    """A second ack of it is no error; another subscription has its own copy."""
    other = bench.sub(topic, "other")
    bench.publish(topic, "a")
    received = bench.pull(sub)["a"]
    bench.ack(sub, received)
    bench.ack(sub, received)
    bench.sleep(11 if bench.fake else 0)

    assert (list(bench.pull(sub)), list(bench.pull(other))) == ([], ["a"])


def test_a_nacked_message_returns_and_its_old_ack_id_is_void(bench: Bench, topic: str, sub: str) -> None:
    """Deadline 0 is a nack; the id of that delivery settles nothing any more."""
    bench.publish(topic, "a")
    received = bench.pull(sub)["a"]
    bench.extend(sub, received, 0)
    bench.ack(sub, received)

    assert bench.pull_all(sub, 1) == ["a"]


def test_an_expired_lease_returns_the_message(bench: Bench, topic: str, sub: str) -> None:
    """The ack of the old delivery is ignored once there is a new one."""
    bench.publish(topic, "a")
    first = bench.pull(sub)["a"]
    bench.extend(sub, first, 2)
    assert list(bench.pull(sub)) == []
    bench.sleep(2.5)
    wait_until(lambda: (second := bench.pull(sub)) and second["a"].ack_id != first.ack_id)
    bench.ack(sub, first)
    bench.sleep(11)

    assert bench.pull_all(sub, 1) == ["a"]


def test_a_late_ack_counts_while_nobody_has_the_message(bench: Bench, topic: str, sub: str) -> None:
    """The same goes for a late extension."""
    bench.publish(topic, "a", "b")
    received = bench.pull(sub)
    for each in received.values():
        bench.extend(sub, each, 1)
    bench.sleep(2)
    bench.ack(sub, received["a"])
    bench.extend(sub, received["b"], 30)

    assert list(bench.pull(sub)) == []


def test_an_extension_holds_the_lease(bench: Bench, topic: str, sub: str) -> None:
    """A message that is extended is not given to others."""
    bench.publish(topic, "a")
    received = bench.pull(sub)["a"]
    bench.extend(sub, received, 2)
    bench.extend(sub, received, 30)
    bench.sleep(3)

    assert list(bench.pull(sub)) == []


def test_a_pull_waits_for_the_first_message(bench: Bench, topic: str, sub: str) -> None:
    """Without ``return_immediately`` it ends when there is one."""
    publishing = threading.Timer(0.3, bench.publish, (topic, "a"))
    publishing.start()
    response = bench.subscriber.pull(subscription=sub, max_messages=5, retry=None, timeout=10)
    publishing.join()

    assert [each.message.data for each in response.received_messages] == [b"a"]


def test_only_one_pull_holds_messages_of_an_ordering_key(bench: Bench, topic: str) -> None:
    """The rest of the key follows when what is out is acknowledged."""
    sub = bench.sub(topic, enable_message_ordering=True)
    for each in ("k0", "k1", "k2"):
        bench.publish(topic, each, key="k")
    first = bench.pull(sub, 2)
    bench.publish(topic, "other", key="l")
    assert list(first) == ["k0", "k1"]
    assert list(bench.pull(sub)) == ["other"]
    assert list(bench.pull(sub)) == []
    bench.ack(sub, *first.values())

    assert bench.pull_all(sub, 1) == ["k2"]


def test_a_stream_receives_a_key_in_order_and_settles(bench: Bench, topic: str) -> None:
    """Acks, nacks and properties travel on the stream."""
    sub = bench.sub(topic, enable_message_ordering=True)
    with OpenStream(bench, sub) as stream:
        for each in ("k0", "k1", "k2"):
            bench.publish(topic, each, key="k")
        wait_until(lambda: len(stream.received) == 3)
        assert stream.texts == ["k0", "k1", "k2"]
        assert stream.responses[0].subscription_properties.message_ordering_enabled
        stream.send(ack_ids=[each.ack_id for each in stream.received])
        bench.publish(topic, "k3", key="k")
        wait_until(lambda: stream.texts[3:] == ["k3"])


def test_a_nack_on_a_stream_returns_the_message(bench: Bench, topic: str, sub: str) -> None:
    """Deadline 0 on the stream, as the client sends it."""
    with OpenStream(bench, sub) as stream:
        bench.publish(topic, "a")
        wait_until(lambda: stream.texts == ["a"])
        stream.send(modify_deadline_ack_ids=[stream.received[0].ack_id], modify_deadline_seconds=[0])
        wait_until(lambda: stream.texts == ["a", "a"])


def test_what_a_stream_delivered_stays_leased_when_it_ends(bench: Bench, topic: str, sub: str) -> None:
    """A stream that the client ends closes with OK; its messages wait for the end of their leases."""
    with OpenStream(bench, sub) as stream:
        bench.publish(topic, "a")
        wait_until(lambda: stream.texts == ["a"])
        stream.finish()
    assert stream.error is None
    assert list(bench.pull(sub)) == []
    bench.sleep(11)

    assert bench.pull_all(sub, 1) == ["a"]


@pytest.mark.parametrize(
    "request_",
    [
        {"ack_ids": ["garbage"]},
        {"subscription": f"{PROJECT}/subscriptions/other"},
        {"modify_deadline_ack_ids": ["one"], "modify_deadline_seconds": []},
    ],
    ids=["malformed-ack-id", "subscription-again", "lengths-differ"],
)
def test_a_wrong_request_ends_its_stream(bench: Bench, sub: str, request_: dict[str, object]) -> None:
    """INVALID_ARGUMENT."""
    with OpenStream(bench, sub) as stream:
        stream.send(**request_)
        stream.wait()
    assert isinstance(stream.error, InvalidArgument)


def test_a_stream_ends_with_its_subscription(bench: Bench, sub: str) -> None:
    """NOT_FOUND, also at the start; too short a lease is INVALID_ARGUMENT."""
    with OpenStream(bench, sub) as stream, OpenStream(bench, sub, stream_ack_deadline_seconds=5) as short:
        short.wait()
        bench.publish(bench.publisher.get_topic(topic=bench.name("topics", "topic"), retry=None).name, "a")
        wait_until(lambda: stream.texts == ["a"])
        bench.subscriber.delete_subscription(subscription=sub, retry=None)
        stream.wait()
    with OpenStream(bench, sub) as late:
        late.wait()

    assert isinstance(short.error, InvalidArgument)
    assert isinstance(stream.error, NotFound)
    assert isinstance(late.error, NotFound)


def test_a_stale_ack_fails_with_exactly_once_delivery(bench: Bench, topic: str) -> None:
    """INVALID_ARGUMENT once there is a newer delivery; only the fake says which id."""
    sub = bench.sub(topic, enable_exactly_once_delivery=True)
    bench.publish(topic, "a")
    received = bench.pull(sub)["a"]
    bench.extend(sub, received, 1)
    bench.sleep(2)
    assert bench.pull_all(sub, 1) == ["a"]

    with pytest.raises(InvalidArgument):
        bench.ack(sub, received)


def test_the_streaming_client_works(
    bench: Bench, topic: str, sub: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batches, a callback, leases and acks of the hand-written client, through PUBSUB_EMULATOR_HOST."""
    monkeypatch.setenv("PUBSUB_EMULATOR_HOST", bench.host)
    publisher = pubsub_v1.PublisherClient()
    futures = [publisher.publish(topic, str(number).encode()) for number in range(200)]
    seen: set[bytes] = set()

    def handle(message: pubsub_v1.subscriber.message.Message) -> None:
        seen.add(message.data)
        message.ack()

    with pubsub_v1.SubscriberClient() as subscriber:
        streaming = subscriber.subscribe(sub, handle)
        wait_until(lambda: len(seen) == 200)
        assert len({future.result(10) for future in futures}) == 200
        streaming.cancel()
        streaming.result(10)
    publisher.stop()
    publisher.transport.close()


@pytest.mark.anyio
async def test_the_asyncio_client_works(bench: Bench, topic: str, sub: str) -> None:
    """The generated client over grpc.aio: one call and one stream."""
    bench.publish(topic, "a", "b")
    async with grpc.aio.insecure_channel(bench.host) as channel:
        client = SubscriberAsyncClient(transport=SubscriberGrpcAsyncIOTransport(channel=channel))
        response = await client.pull(subscription=sub, max_messages=10, retry=None, timeout=10)
        ids = [each.ack_id for each in response.received_messages]
        await client.acknowledge(subscription=sub, ack_ids=ids, retry=None)

    assert len(ids) == 2
