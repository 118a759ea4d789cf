"""What stands on the wire of Pub/Sub, read and written by Google's own client too; and its limits."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pytest
from cloudevents.core.v1.event import CloudEvent
from google.cloud import pubsub_v1

from broker import Broker, Delivery, InvalidMessage, Message, MessageTooLarge, NotFound, PublishError
from broker.drivers.google_pubsub import PubsubDriver
from tests.services.fake_pubsub import FakePubSub

pytestmark = pytest.mark.anyio

TOPIC, GROUP = "images", "workers"
TIME = datetime(2026, 1, 2, 3, 4, 5, 678000, tzinfo=UTC)
# Names that a client may take for options of its calls, and names that are taken.
OPTIONS = {name: f"value of {name}" for name in ("timeout", "retry", "topic", "data", "ordering_key", "self")}
TAKEN = {
    "google": "Google's",
    "ce-id": "the event's",
    "couturier-retry-id": "ours",
    "content-type": "its own",
}
AWKWARD = OPTIONS | TAKEN


@dataclass(frozen=True)
class Place:
    """Our broker, and what Google's client needs to reach the same topic."""

    broker: Broker
    project: str
    publisher: pubsub_v1.PublisherClient
    subscriber: pubsub_v1.SubscriberClient

    async def publish(self, data: bytes, attributes: Mapping[str, str], key: str = "") -> str:
        """Publish with Google's client."""
        path = f"projects/{self.project}/topics/{TOPIC}"
        stored = self.publisher.publish(path, data, key, **attributes)
        return await asyncio.to_thread(stored.result, 20)

    async def receive(self) -> Any:
        """Receive one message with Google's client and ack it."""
        came: Future[Any] = Future()

        def handle(message: Any) -> None:
            message.ack()
            if not came.done():
                came.set_result(message)

        path = f"projects/{self.project}/subscriptions/{TOPIC}.{GROUP}"
        pulling = self.subscriber.subscribe(path, handle)
        try:
            return await asyncio.to_thread(came.result, 20)
        finally:
            pulling.cancel()
            await asyncio.to_thread(pulling.result, 20)

    async def take(self) -> Delivery:
        """Receive one message with ours and ack it."""
        async with self.broker.subscribe(TOPIC, group=GROUP) as subscription:
            (held,) = await subscription.receive(max_messages=1, timeout=20)
            await subscription.ack(held)
            return held


@pytest.fixture
def fake() -> Iterator[FakePubSub]:
    with FakePubSub() as fake:
        yield fake


@pytest.fixture(params=["fake", pytest.param("emulator", marks=pytest.mark.pubsub)])
async def place(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Place]:
    service = request.getfixturevalue("fake" if request.param == "fake" else "pubsub_service")
    monkeypatch.setenv("PUBSUB_EMULATOR_HOST", service.host)
    project = f"proj-{uuid.uuid4().hex[:12]}"
    ordered = pubsub_v1.types.PublisherOptions(enable_message_ordering=True)
    publisher = pubsub_v1.PublisherClient(publisher_options=ordered)
    async with Broker(PubsubDriver(project, service.host)) as broker:
        await broker.ensure(TOPIC, group=GROUP)
        with pubsub_v1.SubscriberClient() as subscriber:
            yield Place(broker, project, publisher, subscriber)
    publisher.stop()
    publisher.transport.close()


async def test_an_event_of_a_foreign_publisher_is_read(place: Place) -> None:
    """CloudEvents attributes become the fields of a message, the ordering key its key, the rest stays."""
    attributes = {
        "ce-specversion": "1.0",
        "ce-id": "A-1",
        "ce-source": "/cameras/7",
        "ce-type": "com.example.photo",
        "ce-time": "2026-01-02T03:04:05.678Z",
        "ce-subject": "door",
        "content-type": "image/png",
        "site": "7",
    }
    await place.publish(b"\x89PNG\x00", attributes, "cam-7")
    message = (await place.take()).message
    assert message == Message(
        data=b"\x89PNG\x00",
        key="cam-7",
        attributes={"site": "7"},
        id="A-1",
        content_type="image/png",
        type="com.example.photo",
        source="/cameras/7",
        subject="door",
        time=TIME,
    )


async def test_a_foreign_message_without_an_event_has_a_stable_identity(place: Place) -> None:
    """It is named after its place, the same name every time, also once a failure was counted."""
    number = await place.publish(b"plain", {"site": "7"})
    async with place.broker.subscribe(TOPIC, group=GROUP) as subscription:
        (first,) = await subscription.receive(timeout=20)
        await subscription.nack(first)
        (again,) = await subscription.receive(timeout=20)
        await subscription.ack(again)
    assert first.message.id == f"{TOPIC}/{number}"
    assert again.message == first.message
    assert again.message.attributes == {"site": "7"}
    assert (first.attempt, again.attempt) == (1, 2)


async def test_a_foreign_subscriber_reads_an_event(place: Place) -> None:
    """What it gets is a CloudEvent in binary mode, complete, beside the attributes under their own names."""
    message = Message(
        data=b"\x89PNG\x00", key="cam-7", attributes={"site": "7"}, content_type="image/png", subject="door",
        type="com.example.photo", source="/cameras/7", time=TIME,
    )  # fmt: skip
    await place.broker.publish(TOPIC, [message])
    came = await place.receive()
    attributes = dict(came.attributes)
    event = {name[3:]: attributes.pop(name) for name in list(attributes) if name.startswith("ce-")}
    assert datetime.fromisoformat(event.pop("time")) == TIME
    assert event == {
        "specversion": "1.0",
        "id": message.id,
        "source": "/cameras/7",
        "type": "com.example.photo",
        "subject": "door",
    }
    # The official SDK refuses an event that is none.
    CloudEvent(event | {"time": TIME}, came.data)
    assert attributes == {"content-type": "image/png", "site": "7"}
    assert (came.data, came.ordering_key) == (b"\x89PNG\x00", "cam-7")


async def test_what_a_foreign_subscriber_gives_back_comes_to_us(place: Place) -> None:
    """Both share one subscription; its nack counts no failure of ours."""
    await place.broker.publish(TOPIC, [Message(data=b"x")])
    path = f"projects/{place.project}/subscriptions/{TOPIC}.{GROUP}"
    pulled = await asyncio.to_thread(place.subscriber.pull, subscription=path, max_messages=1, timeout=20)
    (theirs,) = pulled.received_messages
    request = {"subscription": path, "ack_ids": [theirs.ack_id], "ack_deadline_seconds": 0}
    await asyncio.to_thread(place.subscriber.modify_ack_deadline, request)
    assert (await place.take()).attempt == 1


async def test_awkward_names_survive(place: Place) -> None:
    """Attributes that are called like options of a call travel as they are, retried and dead-lettered too."""
    await place.broker.publish(TOPIC, [Message(data=b"x", attributes=AWKWARD)])
    await place.broker.ensure("copies", group="readers")
    async with place.broker.subscribe(TOPIC, group=GROUP) as subscription:
        (first,) = await subscription.receive(timeout=20)
        await subscription.nack(first)
        (again,) = await subscription.receive(timeout=20)
        await subscription.forward(again, "copies", {"why": "test"})
        await subscription.release(again)
    async with place.broker.subscribe("copies", group="readers") as copies:
        (copy,) = await copies.receive(timeout=20)
        await copies.ack(copy)
    assert dict(first.message.attributes) == dict(again.message.attributes) == AWKWARD
    assert dict(copy.message.attributes) == {**AWKWARD, "why": "test"}


async def test_plain_names_stand_on_the_wire_as_they_are(place: Place) -> None:
    """A foreign reader finds them under their own names; those that Google keeps for itself are escaped."""
    await place.broker.publish(TOPIC, [Message(data=b"x", attributes=AWKWARD)])
    attributes = dict((await place.receive()).attributes)
    assert attributes.items() >= OPTIONS.items()
    assert attributes["ce-id"] != AWKWARD["ce-id"]
    assert not any(name.startswith("goog") for name in attributes if not name.startswith("googclient_"))


async def test_bodies_up_to_the_limit_travel(place: Place) -> None:
    """Both ways, and larger than the 4 MiB to which gRPC limits an answer unless told otherwise."""
    limit = place.broker.capabilities.max_message_bytes
    await place.broker.publish(TOPIC, [Message(data=bytes(limit)), Message(data=b"small")])
    sizes = {len((await place.take()).message.data) for _ in range(2)}
    assert sizes == {limit, 5}


async def test_the_largest_message_can_fail_and_die(fake: FakePubSub) -> None:
    """At every limit at once there is room for the attributes of a retry and of a dead letter."""
    async with Broker(PubsubDriver("proj-test", fake.host)) as broker:
        await broker.ensure(TOPIC, group=GROUP)
        await broker.ensure("copies", group="readers")
        most = broker.capabilities
        attributes = {
            f"{number:0{most.max_attribute_name_bytes}d}": "x" * most.max_attribute_bytes
            for number in range(most.max_attributes)
        }
        message = Message(
            data=bytes(most.max_message_bytes), key="k" * 1024, attributes=attributes, id="i" * 1024,
            type="t" * 1024, source="s" * 1024, subject="u" * 1024, content_type="c" * 1024,
        )  # fmt: skip
        await broker.publish(TOPIC, [message])
        async with broker.subscribe(TOPIC, group=GROUP) as subscription:
            (first,) = await subscription.receive(timeout=20)
            await subscription.nack(first)
            (again,) = await subscription.receive(timeout=20)
            assert (again.attempt, again.message) == (2, first.message)
            extra = {f"couturier-{number}": "e" * 1024 for number in range(6)}
            await subscription.forward(again, "copies", extra)
            await subscription.ack(again)
        async with broker.subscribe("copies", group="readers") as copies:
            (copy,) = await copies.receive(timeout=20)
            await copies.ack(copy)
    assert copy.message.data == message.data
    assert copy.message.attributes.items() >= attributes.items()


@pytest.mark.parametrize(
    "message",
    [
        Message(data=bytes(9_800_001)),
        Message(data=b"x", attributes={str(number): "" for number in range(81)}),
        Message(data=b"x", attributes={"n" * 257: ""}),
        Message(data=b"x", attributes={"é" * 129: ""}),
        Message(data=b"x", attributes={"name": "v" * 1025}),
        Message(data=b"x", attributes={"goog" + "n" * 250: "longer once it is escaped"}),
        Message(data=b"x", attributes={"name": "\udc80" * 400}),
        Message(data=b"x", key="é" * 513),
        Message(data=b"x", id="i" * 1025),
        Message(data=b"x", subject="s" * 1025),
        Message(data=b"x", content_type="c" * 1025),
    ],
    ids=lambda message: f"{len(message.attributes)} attributes, {len(message.data)} bytes",
)
async def test_what_breaks_a_limit_is_refused_before_any_call(fake: FakePubSub, message: Message) -> None:
    """Alone it costs no call at all; beside others it alone is refused."""
    async with Broker(PubsubDriver("proj-test", fake.host)) as broker:
        await broker.ensure(TOPIC, group=GROUP)
        before = fake.calls.copy()
        with pytest.raises(PublishError) as error:
            await broker.publish(TOPIC, [message])
        assert fake.calls == before
        (cause,) = error.value.failed.values()
        assert isinstance(cause, MessageTooLarge if len(message.data) > 1 else InvalidMessage)
        with pytest.raises(PublishError) as error:
            await broker.publish(TOPIC, [Message(data=b"a"), message, Message(data=b"b")])
        assert list(error.value.failed) == [message.id]
        assert (await broker.stats(TOPIC, GROUP)).unsettled == 2


async def test_names_and_delays_are_checked_before_any_call(fake: FakePubSub) -> None:
    """Names that Pub/Sub does not take, names of our own storage, and delays that nothing would outlive."""
    async with Broker(PubsubDriver("proj-test", fake.host)) as broker:
        await broker.ensure(TOPIC, group=GROUP)
        await broker.publish(TOPIC, [Message(data=b"x")])
        async with broker.subscribe(TOPIC, group=GROUP) as subscription:
            (held,) = await subscription.receive(timeout=20)
            before = fake.calls.copy()
            for topic, group in (("ab", None), ("google", None), ("a.retry", None), (TOPIC, "b.retry")):
                with pytest.raises(ValueError, match=r"retry|three characters"):
                    await broker.ensure(topic, group)
            with pytest.raises(NotFound):
                await broker.publish("google", [Message(data=b"x")])
            for delay in (-1.0, broker.capabilities.max_delay + 1, float("nan")):
                with pytest.raises(ValueError, match="delay"):
                    await subscription.nack(held, delay=delay)
            assert fake.calls == before
            await subscription.ack(held)
