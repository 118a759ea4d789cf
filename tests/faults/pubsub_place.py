"""A topic on Google's emulator and its dead letters, read by Google's own client."""

from __future__ import annotations

import contextlib
import uuid
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from broker import connect_blocking
from broker.blocking import BlockingBroker

from .brokers import GROUP, Letter, ensure, letter_of, new_topic


class PubsubPlace:
    """A project of its own on the emulator; a spy's subscription sees every dead letter.

    Args:
        host: ``host:port`` for us.
        workers_host: for the workers, where that differs.
        lease_s: of deliveries.
    """

    name = "pubsub"

    def __init__(self, host: str, workers_host: str | None = None, lease_s: float = 10.0) -> None:
        self._host = host
        self._project = f"proj-{uuid.uuid4().hex[:12]}"
        self.topic = new_topic()
        self.url = f"pubsub://{self._project}?lease={lease_s:g}"
        self.env = {"PUBSUB_EMULATOR_HOST": workers_host or host}
        self.lease_s = lease_s
        self.versions: dict[str, str] = {}
        self._letters: dict[str, Letter] = {}

    def open(self, partitions: int) -> None:
        """Make topic, group, dead-letter topic and the spy's subscription to it."""
        from importlib.metadata import version

        self.versions = {"google-cloud-pubsub": version("google-cloud-pubsub"), "grpcio": version("grpcio")}
        ensure(self, partitions)
        spy = {"name": self._path("spy"), "topic": self._dlq}
        self._subscriber.create_subscription(request=spy, timeout=20)

    @contextlib.contextmanager
    def client(self) -> Iterator[BlockingBroker]:
        """Open a client of ours that takes no proxy."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("PUBSUB_EMULATOR_HOST", self._host)
            with connect_blocking(self.url) as broker:
                patch.undo()  # the host has been read
                yield broker

    def unsettled(self) -> int:
        """Ask our own client: the emulator itself does not say."""
        with self.client() as broker:
            return broker.stats(self.topic, GROUP).unsettled

    def letters(self) -> list[Letter]:
        """Return what the spy has seen so far; two of one id stay two."""
        quiet = 0
        while quiet < 3:
            asked = {"subscription": self._path("spy"), "max_messages": 1000, "return_immediately": True}
            with warnings.catch_warnings(action="ignore"):  # the flag is deprecated, and without it we wait
                received = self._subscriber.pull(request=asked, timeout=20).received_messages
            quiet = 0 if received else quiet + 1
            for each in received:
                headers = [(name, value.encode()) for name, value in each.message.attributes.items()]
                self._letters[each.message.message_id] = letter_of(headers, each.message.data, "ce-id")
            if received:
                done = {"subscription": self._path("spy"), "ack_ids": [each.ack_id for each in received]}
                self._subscriber.acknowledge(request=done, timeout=20)
        return list(self._letters.values())

    def produce(self, data: bytes, attributes: Mapping[str, str]) -> None:
        """Store a message as a foreign publisher does."""
        import grpc
        from google.pubsub_v1 import PublisherClient
        from google.pubsub_v1.services.publisher.transports import PublisherGrpcTransport

        with grpc.insecure_channel(self._host) as channel:
            client = PublisherClient(transport=PublisherGrpcTransport(channel=channel))
            topic = f"projects/{self._project}/topics/{self.topic}"
            message = {"data": data, "attributes": dict(attributes)}
            client.publish(request={"topic": topic, "messages": [message]}, timeout=20)

    def close(self) -> None:
        """Let the connection go."""
        if "_channel" in self.__dict__:
            self._channel.close()

    @property
    def _dlq(self) -> str:
        return f"projects/{self._project}/topics/{self.topic}.{GROUP}.dlq"

    def _path(self, subscription: str) -> str:
        return f"projects/{self._project}/subscriptions/{subscription}"

    @property
    def _subscriber(self) -> Any:
        import grpc
        from google.pubsub_v1 import SubscriberClient
        from google.pubsub_v1.services.subscriber.transports import SubscriberGrpcTransport

        if "_client" not in self.__dict__:
            self._channel = grpc.insecure_channel(self._host, [("grpc.max_receive_message_length", -1)])
            self._client = SubscriberClient(transport=SubscriberGrpcTransport(channel=self._channel))
        return self._client
