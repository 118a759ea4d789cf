"""The scripted faults of the fake Pub/Sub service, seen through Google's clients, and its end."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from google.api_core.exceptions import PermissionDenied, ResourceExhausted, ServiceUnavailable
from google.cloud import pubsub_v1
from google.cloud.pubsub_v1.subscriber.exceptions import AcknowledgeError, AcknowledgeStatus

from .fake_pubsub import FakePubSub
from .fake_pubsub_bench import Bench, OpenStream, wait_until

Message = pubsub_v1.subscriber.message.Message


def test_the_next_calls_fail_as_scripted(fake: FakePubSub, bench: Bench, topic: str, sub: str) -> None:
    """As often as told, without effect, or with it where the response is to be lost."""
    fake.fail_next("Publish", grpc.StatusCode.RESOURCE_EXHAUSTED, times=2)
    fake.fail_next("Publish", grpc.StatusCode.UNAVAILABLE, applied=True)
    for error in (ResourceExhausted, ResourceExhausted, ServiceUnavailable):
        with pytest.raises(error):
            bench.publish(topic, error.__name__)
    bench.publish(topic, "fine")

    assert list(bench.pull(sub)) == ["ServiceUnavailable", "fine"]
    assert fake.calls["Publish"] == 4


def test_a_denied_call_is_refused_until_it_is_allowed(fake: FakePubSub, bench: Bench, topic: str) -> None:
    """PERMISSION_DENIED, as without the role."""
    fake.deny("Publish")
    with pytest.raises(PermissionDenied):
        bench.publish(topic, "a")
    fake.allow("Publish")
    bench.publish(topic, "a")


def test_a_delayed_call_waits_for_the_time_of_the_service(fake: FakePubSub, bench: Bench, topic: str) -> None:
    """Others pass meanwhile."""
    fake.delay_next("Publish", 60)
    with ThreadPoolExecutor() as pool:
        slow = pool.submit(bench.publish, topic, "slow")
        wait_until(lambda: fake.calls["Publish"] == 1)
        bench.publish(topic, "quick")
        assert not slow.done()
        fake.advance(60)
        slow.result(5)


def test_dropped_connections_end_what_runs(fake: FakePubSub, bench: Bench, topic: str, sub: str) -> None:
    """Streams, pulls and delayed calls get UNAVAILABLE; a reset ends the streams alone."""
    fake.delay_next("Publish", 60)
    with ThreadPoolExecutor() as pool, OpenStream(bench, sub) as reset:
        wait_until(lambda: fake.calls["StreamingPull"] == 1)
        pull = pool.submit(bench.subscriber.pull, subscription=sub, max_messages=1, retry=None)
        publish = pool.submit(bench.publish, topic, "slow")
        wait_until(lambda: fake.calls["Publish"] and fake.calls["Pull"])
        fake.reset_streams()
        reset.wait()
        assert not pull.done()
        with OpenStream(bench, sub) as dropped:
            wait_until(lambda: fake.calls["StreamingPull"] == 2)
            fake.drop_connections()
            dropped.wait()
        errors = [reset.error, dropped.error, pull.exception(5), publish.exception(5)]

    assert [type(each) for each in errors] == [ServiceUnavailable] * 4


def test_the_streaming_client_survives_a_reset(
    fake: FakePubSub, bench: Bench, topic: str, sub: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It opens its stream again and gets the rest."""
    monkeypatch.setenv("PUBSUB_EMULATOR_HOST", fake.host)
    seen: set[bytes] = set()

    def handle(message: Message) -> None:
        seen.add(message.data)
        message.ack()

    with pubsub_v1.SubscriberClient() as subscriber:
        streaming = subscriber.subscribe(sub, handle)
        bench.publish(topic, "a")
        wait_until(lambda: seen == {b"a"})
        fake.reset_streams()
        bench.publish(topic, "b")
        wait_until(lambda: seen == {b"a", b"b"})
        streaming.cancel()
        streaming.result(10)
    assert fake.calls["StreamingPull"] == 2


def test_an_outage_keeps_the_port_and_the_messages(
    fake: FakePubSub, bench: Bench, topic: str, sub: str
) -> None:
    """While it lasts calls get UNAVAILABLE; then the same channel works again, and a lease has gone on."""
    bench.publish(topic, "leased", "waiting")
    (leased,) = bench.pull(sub, 1).values()
    fake.stop()
    with pytest.raises(ServiceUnavailable):
        bench.pull(sub)
    fake.start()
    grpc.channel_ready_future(bench.channel).result(10)
    bench.ack(sub, leased)

    assert list(bench.pull(sub)) == ["waiting"]


def test_the_client_learns_the_fate_of_an_exactly_once_ack(
    fake: FakePubSub, bench: Bench, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A good ack succeeds, also after a transient failure; one whose lease was lost is INVALID_ACK_ID."""
    sub = bench.sub(topic, enable_exactly_once_delivery=True)
    monkeypatch.setenv("PUBSUB_EMULATOR_HOST", fake.host)
    fates: dict[bytes, object] = {}

    def handle(message: Message) -> None:
        if message.data == b"transient":
            metadata = {message.ack_id: "TRANSIENT_FAILURE_INTERNAL"}
            fake.fail_next("Acknowledge", grpc.StatusCode.INTERNAL, metadata=metadata)
        elif message.data == b"lost" and message.data not in fates:
            fake.advance(3_600)
        future = message.ack_with_response()
        try:
            fates.setdefault(message.data, future.result(10))
        except AcknowledgeError as error:
            fates.setdefault(message.data, error.error_code)

    with pubsub_v1.SubscriberClient() as subscriber:
        streaming = subscriber.subscribe(sub, handle)
        for data in ("good", "transient", "lost"):
            bench.publish(topic, data)
            wait_until(lambda data=data: data.encode() in fates)
        streaming.cancel()
        streaming.result(20)

    assert fates == {
        b"good": AcknowledgeStatus.SUCCESS,
        b"transient": AcknowledgeStatus.SUCCESS,
        b"lost": AcknowledgeStatus.INVALID_ACK_ID,
    }


def test_it_stops_at_once_and_leaves_no_thread() -> None:
    """With an open stream, a waiting pull and a delayed call, in less than a second."""
    before = set(threading.enumerate())
    fake = FakePubSub()
    fake.start()
    with Bench(fake.host, fake) as bench, ThreadPoolExecutor() as pool:
        topic = bench.topic()
        sub = bench.sub(topic)
        fake.delay_next("Publish", 60)
        with OpenStream(bench, sub) as stream:
            pool.submit(bench.subscriber.pull, subscription=sub, max_messages=1, retry=None)
            pool.submit(bench.publish, topic, "slow")
            wait_until(lambda: fake.calls["StreamingPull"] and fake.calls["Publish"] and fake.calls["Pull"])
            started = time.monotonic()
            fake.stop()
            took_s = time.monotonic() - started
            stream.wait()
    wait_until(lambda: set(threading.enumerate()) <= before)

    assert isinstance(stream.error, ServiceUnavailable)
    assert took_s < 1
