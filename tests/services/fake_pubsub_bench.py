"""What the tests of the fake Pub/Sub service do with it or the emulator, through Google's own client."""

from __future__ import annotations

import queue
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Self

import grpc
import pytest
from google.api_core.exceptions import GoogleAPICallError, from_grpc_error
from google.pubsub_v1 import PublisherClient, SubscriberClient, types
from google.pubsub_v1.services.publisher.transports import PublisherGrpcTransport
from google.pubsub_v1.services.subscriber.transports import SubscriberGrpcTransport

from .fake_pubsub import FakePubSub

PROJECT = "projects/proj-test"
LIMIT_S = 10.0
BOTH = ["fake", pytest.param("emulator", marks=pytest.mark.pubsub)]


class Bench:
    """A generated publisher and subscriber of one service; the names of the resources are its own.

    Attributes:
        fake: the service where it is the fake, else None.
    """

    def __init__(self, host: str, fake: FakePubSub | None = None) -> None:
        """Connect."""
        self.host, self.fake = host, fake
        self._run = uuid.uuid4().hex[:8]
        options = [("grpc.max_receive_message_length", -1), ("grpc.max_metadata_size", 4 * 2**20)]
        self.channel = grpc.insecure_channel(host, options=options)
        self.publisher = PublisherClient(transport=PublisherGrpcTransport(channel=self.channel))
        self.subscriber = SubscriberClient(transport=SubscriberGrpcTransport(channel=self.channel))

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the channel."""
        self.channel.close()

    def sleep(self, seconds: float) -> None:
        """Let so much of the service's time pass: at once on the fake."""
        if self.fake:
            self.fake.advance(seconds)
        else:
            time.sleep(seconds)

    def name(self, kind: str, name: str) -> str:
        """Return a full name: ``kind`` is topics, subscriptions or snapshots."""
        return f"{PROJECT}/{kind}/{name}-{self._run}"

    def topic(self, name: str = "topic", **settings: Any) -> str:
        """Create a topic and return its full name."""
        request = types.Topic(name=self.name("topics", name), **settings)
        return self.publisher.create_topic(request, retry=None).name

    def sub(self, topic: str, name: str = "sub", **settings: Any) -> str:
        """Create a subscription and return its full name."""
        request = types.Subscription(name=self.name("subscriptions", name), topic=topic, **settings)
        return self.subscriber.create_subscription(request, retry=None).name

    def publish(self, topic: str, *data: str, key: str = "", **attributes: str) -> list[str]:
        """Publish one request and return the ids."""
        messages = [
            types.PubsubMessage(data=each.encode(), ordering_key=key, attributes=attributes) for each in data
        ]
        return list(self.publisher.publish(topic=topic, messages=messages, retry=None).message_ids)

    def pull(self, sub: str, limit: int = 100, timeout: float = LIMIT_S) -> dict[str, types.ReceivedMessage]:
        """Return what one Pull gives by its text, in order; an empty one does not wait."""
        request = types.PullRequest(subscription=sub, max_messages=limit, return_immediately=True)
        # The client's own method warns that the flag is deprecated.
        call = self.channel.unary_unary(
            "/google.pubsub.v1.Subscriber/Pull", types.PullRequest.serialize, types.PullResponse.deserialize
        )
        try:
            received = call(request, timeout=timeout).received_messages
        except grpc.RpcError as error:
            raise from_grpc_error(error) from error  # type: ignore[no-untyped-call]
        return {each.message.data.decode(): each for each in received}

    def pull_all(self, sub: str, count: int) -> list[str]:
        """Return the texts of ``count`` messages, which may come in several pulls, in order."""
        texts: list[str] = []

        def enough() -> bool:
            texts.extend(self.pull(sub))
            return len(texts) >= count

        wait_until(enough)
        return texts

    def ack(self, sub: str, *received: types.ReceivedMessage) -> None:
        """Acknowledge."""
        ids = [each.ack_id for each in received]
        self.subscriber.acknowledge(subscription=sub, ack_ids=ids, retry=None)

    def extend(self, sub: str, received: types.ReceivedMessage, seconds: int) -> None:
        """Set the rest of a lease; 0 is a nack."""
        request = {"subscription": sub, "ack_ids": [received.ack_id], "ack_deadline_seconds": seconds}
        self.subscriber.modify_ack_deadline(request, retry=None)


class OpenStream:
    """A StreamingPull that a test writes and reads; ``error`` is how it ended, None for OK or not yet."""

    def __init__(self, bench: Bench, sub: str, **settings: Any) -> None:
        """Open."""
        self.received: list[types.ReceivedMessage] = []
        self.responses: list[types.StreamingPullResponse] = []
        self.error: GoogleAPICallError | None = None
        self._requests: queue.SimpleQueue[types.StreamingPullRequest | None] = queue.SimpleQueue()
        self.send(subscription=sub, **{"stream_ack_deadline_seconds": 10, **settings})
        call = bench.channel.stream_stream(
            "/google.pubsub.v1.Subscriber/StreamingPull",
            types.StreamingPullRequest.serialize,
            types.StreamingPullResponse.deserialize,
        )
        self._call = call(iter(self._requests.get, None))
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Cancel and wait."""
        self._call.cancel()
        self._requests.put(None)
        self.wait()

    @property
    def texts(self) -> list[str]:
        """What has arrived, in order."""
        return [each.message.data.decode() for each in self.received]

    def send(self, **request: Any) -> None:
        """Send a request."""
        self._requests.put(types.StreamingPullRequest(**request))

    def finish(self) -> None:
        """Send no more; the stream then ends."""
        self._requests.put(None)
        self.wait()

    def wait(self) -> None:
        """Wait for its end."""
        self._thread.join(LIMIT_S)
        assert not self._thread.is_alive()

    def _read(self) -> None:
        try:
            for response in self._call:
                self.responses.append(response)
                self.received.extend(response.received_messages)
        except grpc.RpcError as error:
            self.error = from_grpc_error(error)  # type: ignore[no-untyped-call]
        self._requests.put(None)


@contextmanager
def connect(request: pytest.FixtureRequest) -> Iterator[Bench]:
    """Yield a bench of the one of ``BOTH`` that a fixture's parameter names."""
    if request.param == "fake":
        with FakePubSub() as fake, Bench(fake.host, fake) as bench:
            yield bench
    else:
        with Bench(request.getfixturevalue("pubsub_service").host) as bench:
            yield bench


def wait_until(holds: Callable[[], object], limit_s: float = LIMIT_S) -> None:
    """Return once it holds; fail after the limit."""
    deadline = time.monotonic() + limit_s
    while not holds():
        if time.monotonic() > deadline:
            pytest.fail(f"not within {limit_s} s")
        time.sleep(0.01)
