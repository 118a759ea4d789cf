"""The resources of the fake Pub/Sub service: what each call does, apart from how it arrives.

Most methods are RPCs in snake case: they take the protobuf request and return the protobuf response, or raise
``Refused``. Waiting, streaming and scripted faults are in ``FakePubSub``. Pure and unlocked, as ``Backlog``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from google.protobuf.empty_pb2 import Empty
from google.protobuf.field_mask_pb2 import FieldMask
from google.pubsub_v1 import types
from grpc import StatusCode

from .fake_pubsub_backlog import Backlog, Record, Topic
from .fake_pubsub_limits import (
    check_ack_ids,
    check_name,
    check_publish,
    check_retention,
    need,
    refuse_ack_ids,
)

DELETED_TOPIC = "_deleted-topic_"
SNAPSHOT_LIFE_S = 7 * 86_400.0
DEFAULT_RETENTION_S = 7 * 86_400
MUTABLE_TOPIC = {"labels", "message_retention_duration"}
MUTABLE_SUBSCRIPTION = {
    "ack_deadline_seconds",
    "labels",
    "retain_acked_messages",
    "message_retention_duration",
} | {
    "dead_letter_policy",
    "retry_policy",
    "enable_exactly_once_delivery",
    "expiration_policy",
}


@dataclass
class Snapshot:
    """The unacked messages of one moment; ``mark`` is the newest message of that moment."""

    pb: Any
    topic: Topic
    records: list[Record]
    mark: int
    expires: float


class Store:
    """All resources of all projects. ``clock`` returns seconds since 1970."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._seq = 0
        self._topics: dict[str, Topic] = {}
        self._subscriptions: dict[str, Backlog] = {}
        self._snapshots: dict[str, Snapshot] = {}

    def topic(self, name: str) -> Topic:
        """Return a topic by its full name."""
        check_name(name, "topics")
        need(name in self._topics, f"Resource not found (resource={name}).", StatusCode.NOT_FOUND)
        return self._topics[name]

    def subscription(self, name: str) -> Backlog:
        """Return a subscription by its full name."""
        check_name(name, "subscriptions")
        need(name in self._subscriptions, f"Resource not found (resource={name}).", StatusCode.NOT_FOUND)
        return self._subscriptions[name]

    def snapshot(self, name: str) -> Snapshot:
        """Return a snapshot that has not expired by its full name."""
        check_name(name, "snapshots")
        for expired in [key for key, each in self._snapshots.items() if each.expires <= self._clock()]:
            self._forget(expired)
        need(name in self._snapshots, f"Resource not found (resource={name}).", StatusCode.NOT_FOUND)
        return self._snapshots[name]

    def create_topic(self, request: Any) -> Any:
        check_name(request.name, "topics")
        need(request.name not in self._topics, "Topic already exists", StatusCode.ALREADY_EXISTS)
        check_retention(request)
        self._topics[request.name] = Topic(_copy(request), self._clock)
        return request

    def get_topic(self, request: Any) -> Any:
        return self.topic(request.topic).pb

    def list_topics(self, request: Any) -> Any:
        found = [each.pb for name, each in sorted(self._topics.items()) if _in_project(name, request)]
        page, token = _page(found, request)
        return types.ListTopicsResponse.pb()(topics=page, next_page_token=token)

    def update_topic(self, request: Any) -> Any:
        topic = self.topic(request.topic.name)
        topic.pb = _merged(request.topic, topic.pb, request.update_mask, MUTABLE_TOPIC)
        return topic.pb

    def delete_topic(self, request: Any) -> Any:
        """Subscriptions and snapshots keep their messages and show ``_deleted-topic_``."""
        topic = self.topic(request.topic)
        del self._topics[request.topic]
        users: list[Backlog | Snapshot] = [*self._subscriptions.values(), *self._snapshots.values()]
        for each in users:
            if each.topic is topic:
                each.pb.topic = DELETED_TOPIC
        return Empty()

    def list_topic_subscriptions(self, request: Any) -> Any:
        topic = self.topic(request.topic)
        names = sorted(name for name, each in self._subscriptions.items() if each.topic is topic)
        page, token = _page(names, request)
        return types.ListTopicSubscriptionsResponse.pb()(subscriptions=page, next_page_token=token)

    def publish(self, request: Any) -> Any:
        topic = self.topic(request.topic)
        check_publish(request)
        return types.PublishResponse.pb()(
            message_ids=[self._append(topic, each) for each in request.messages]
        )

    def create_subscription(self, request: Any) -> Any:
        check_name(request.name, "subscriptions")
        need(
            request.name not in self._subscriptions, "Subscription already exists", StatusCode.ALREADY_EXISTS
        )
        topic = self.topic(request.topic)
        pb = _copy(request)
        pb.ack_deadline_seconds = pb.ack_deadline_seconds or 10
        if not pb.HasField("message_retention_duration"):
            pb.message_retention_duration.seconds = DEFAULT_RETENTION_S
        self._check_subscription(pb)
        self._subscriptions[pb.name] = Backlog(pb, topic, self._clock, self._bury)
        return pb

    def get_subscription(self, request: Any) -> Any:
        return self.subscription(request.subscription).pb

    def list_subscriptions(self, request: Any) -> Any:
        found = [each.pb for name, each in sorted(self._subscriptions.items()) if _in_project(name, request)]
        page, token = _page(found, request)
        return types.ListSubscriptionsResponse.pb()(subscriptions=page, next_page_token=token)

    def update_subscription(self, request: Any) -> Any:
        backlog = self.subscription(request.subscription.name)
        pb = _merged(request.subscription, backlog.pb, request.update_mask, MUTABLE_SUBSCRIPTION)
        self._check_subscription(pb)
        backlog.pb = pb
        return pb

    def delete_subscription(self, request: Any) -> Any:
        self.subscription(request.subscription)
        del self._subscriptions[request.subscription]
        return Empty()

    def acknowledge(self, request: Any) -> Any:
        check_ack_ids(request)
        refuse_ack_ids(self.subscription(request.subscription).ack(request.ack_ids))
        return Empty()

    def modify_ack_deadline(self, request: Any) -> Any:
        check_ack_ids(request)
        backlog = self.subscription(request.subscription)
        refuse_ack_ids(backlog.modify(request.ack_ids, request.ack_deadline_seconds))
        return Empty()

    def create_snapshot(self, request: Any) -> Any:
        """Keep the unacked messages, and those published from now on, for at most seven days."""
        check_name(request.name, "snapshots")
        need(request.name not in self._snapshots, "Snapshot already exists", StatusCode.ALREADY_EXISTS)
        backlog = self.subscription(request.subscription)
        records, now = backlog.unacked(), self._clock()
        expires = SNAPSHOT_LIFE_S + min([each.published for each in records], default=now)
        pb = types.Snapshot.pb()(name=request.name, topic=backlog.pb.topic, labels=request.labels)
        pb.expire_time.FromNanoseconds(int(expires * 1e9))
        backlog.topic.snapshots += 1
        self._snapshots[request.name] = Snapshot(pb, backlog.topic, records, self._seq, expires)
        return pb

    def get_snapshot(self, request: Any) -> Any:
        return self.snapshot(request.snapshot).pb

    def list_snapshots(self, request: Any) -> Any:
        found = [each.pb for name, each in sorted(self._snapshots.items()) if _in_project(name, request)]
        page, token = _page(found, request)
        return types.ListSnapshotsResponse.pb()(snapshots=page, next_page_token=token)

    def delete_snapshot(self, request: Any) -> Any:
        self.snapshot(request.snapshot)
        self._forget(request.snapshot)
        return Empty()

    def seek(self, request: Any) -> Any:
        """Make unacked what the target says; leases end, and what is not retained stays gone."""
        backlog = self.subscription(request.subscription)
        target = request.WhichOneof("target")
        need(target, "Must specify either a time or a snapshot")
        if target == "time":
            since = request.time.ToNanoseconds() / 1e9
            backlog.reset([each for each in backlog.replayable() if each.published >= since])
            return types.SeekResponse.pb()()
        snapshot = self.snapshot(request.snapshot)
        same = snapshot.topic is backlog.topic
        need(same, "The snapshot is of a different topic", StatusCode.FAILED_PRECONDITION)
        later = [each for each in snapshot.topic.log if each.seq > snapshot.mark]
        backlog.reset([*snapshot.records, *later])
        return types.SeekResponse.pb()()

    def _append(self, topic: Topic, message: Any) -> str:
        self._seq += 1
        stored = _copy(message)
        stored.message_id = str(self._seq)
        stored.publish_time.FromNanoseconds(int(self._clock() * 1e9))
        published = stored.publish_time.ToNanoseconds() / 1e9
        record = Record(self._seq, stored, published, message.ByteSize())
        topic.append(record)
        for backlog in self._subscriptions.values():
            if backlog.topic is topic:
                backlog.add(record)
        return str(stored.message_id)

    def _bury(self, subscription: Any, record: Record, attempts: int) -> bool:
        """Publish to the dead-letter topic; False if it is gone, then the message goes on being delivered."""
        topic = self._topics.get(subscription.dead_letter_policy.dead_letter_topic)
        if topic is None:
            return False
        copy = _copy(record.message)
        _, project, _, name = subscription.name.split("/")
        copy.attributes["CloudPubSubDeadLetterSourceDeliveryCount"] = str(attempts)
        copy.attributes["CloudPubSubDeadLetterSourceSubscription"] = name
        copy.attributes["CloudPubSubDeadLetterSourceSubscriptionProject"] = project
        copy.attributes["CloudPubSubDeadLetterSourceTopicPublishTime"] = (
            record.message.publish_time.ToJsonString()
        )
        self._append(topic, copy)
        return True

    def _check_subscription(self, pb: Any) -> None:
        need(10 <= pb.ack_deadline_seconds <= 600, "ack_deadline_seconds must be from 10 to 600")
        check_retention(pb)
        unknown = pb.filter or pb.push_config.push_endpoint
        need(not unknown, "the fake has neither filters nor push", StatusCode.UNIMPLEMENTED)
        for backoff in (pb.retry_policy.minimum_backoff, pb.retry_policy.maximum_backoff):
            need(0 <= backoff.seconds <= 600, "a backoff must be from 0s to 600s")
        if pb.HasField("dead_letter_policy"):
            policy = pb.dead_letter_policy
            policy.max_delivery_attempts = policy.max_delivery_attempts or 5
            need(5 <= policy.max_delivery_attempts <= 100, "max_delivery_attempts must be from 5 to 100")
            self.topic(policy.dead_letter_topic)

    def _forget(self, name: str) -> None:
        self._snapshots.pop(name).topic.snapshots -= 1


def _copy(message: Any) -> Any:
    copy = type(message)()
    copy.CopyFrom(message)
    return copy


def _merged(source: Any, target: Any, mask: FieldMask, mutable: Iterable[str]) -> Any:
    need(mask.paths, "The update_mask must be set, and must contain a non-empty paths list.")
    for path in mask.paths:
        need(path in mutable, f"Invalid update_mask: {path} is unknown or not mutable")
    merged = _copy(target)
    mask.MergeMessage(source, merged, replace_message_field=True, replace_repeated_field=True)
    check_retention(merged)
    return merged


def _page(found: Sequence[Any], request: Any) -> tuple[Sequence[Any], str]:
    start, size = int(request.page_token or 0), request.page_size or 100
    return found[start : start + size], str(start + size) if start + size < len(found) else ""


def _in_project(name: str, request: Any) -> bool:
    return name.startswith(f"{request.project}/")
