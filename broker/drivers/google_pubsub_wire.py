"""What stands in Pub/Sub: names of topics and subscriptions, and a message as attributes and a body.

A group is two subscriptions: ``<topic>.<group>``, and ``<topic>.<group>.retry`` on a topic of the same name,
which only the group uses. A failed message is stored there as a copy whose private attributes say which
attempt comes next, when, and which message it was; then the original is acked.

Limits: cloud.google.com/pubsub/quotas#resource_limits.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from ..errors import BrokerError, InvalidMessage
from ..message import Delivery, Message, utc_now
from .cloudevents import PRIVATE, PUBSUB, Place, decode, encode, escaped

MAX_REQUEST_BYTES = 10_000_000
MAX_REQUEST_MESSAGES = 1000
MAX_ATTRIBUTES = 100
MAX_NAME_BYTES = 256
MAX_VALUE_BYTES = 1024
MAX_KEY_BYTES = 1024
# Of what a message may have, so many are left for the private attributes of a retry and for a dead letter's.
_KEPT_FREE = 5 + 6
# Beside the seven that an event has at most; then there is room for ``_KEPT_FREE``.
MAX_OWN_ATTRIBUTES = 80
# A request of one message stays below 10 MB with 100 attributes of 1,280 bytes, a key and a topic's name.
MAX_BODY_BYTES = 9_800_000
# What each message, and each of its attributes, costs in a request beside its texts, at most.
_FRAME_BYTES = 16

_ATTEMPT = PRIVATE + "attempt"
_DUE = PRIVATE + "due"
_ID = PRIVATE + "id"
_TIME = PRIVATE + "time"
_KEY = PRIVATE + "key"

RETRY = ".retry"
# What Pub/Sub calls the topic of a subscription whose topic is gone.
DELETED_TOPIC = "_deleted-topic_"
_ID_OF_RESOURCE = re.compile(r"(?!goog)[A-Za-z][A-Za-z0-9._~+%-]{2,254}")


@dataclass(frozen=True, slots=True)
class Names:
    """Resource names within one project."""

    project: str

    def topic(self, topic: str) -> str:
        """Return the path of a topic."""
        return f"projects/{self.project}/topics/{topic}"

    def retry_topic(self, topic: str, group: str) -> str:
        """Return the path of the topic where a group keeps what failed."""
        return self.topic(f"{topic}.{group}{RETRY}")

    def subscription(self, topic: str, group: str) -> str:
        """Return the path of a group's subscription."""
        return f"projects/{self.project}/subscriptions/{topic}.{group}"

    def retry_subscription(self, topic: str, group: str) -> str:
        """Return the path of the subscription to a group's retry topic."""
        return self.subscription(topic, group) + RETRY


def is_name(text: str) -> bool:
    """Say whether Pub/Sub takes ``text`` as the id of a topic."""
    return bool(_ID_OF_RESOURCE.fullmatch(text))


def short(path: str) -> str:
    """Return the last part of a resource's path."""
    return path.rpartition("/")[2]


def no_topic(topic: str) -> str:
    """Return what to say when a topic does not exist."""
    return f"topic {topic!r} does not exist; create it with `await broker.ensure({topic!r})`"


def no_group(topic: str, group: str) -> str:
    """Return what to say when a group does not exist."""
    return (
        f"topic {topic!r} or its group {group!r} does not exist; create both with"
        f" `await broker.ensure({topic!r}, group={group!r})`"
    )


@dataclass(slots=True, eq=False)
class Held:
    """One hand-over, as Pub/Sub knows it; the receipt of a delivery.

    Attributes:
        ack_id: names the hand-over to the service.
        retry: came from the group's retry subscription.
        message_id: of the record in that subscription.
        attributes: as stored, private ones included.
        key: ordering key of the first record, "" for none.
        origin_id: message id of the first record, of which this one may be a retry.
        origin_ns: when that was published, nanoseconds since 1970.
        attempt: recorded failures + 1.
        due: not to be delivered before, seconds since 1970.
        body: as stored; the message of the delivery may have another one.
        until: when its lease ends, by this process's own clock, seconds.
        copies: what was stored of it already: topics, and attempts of retries.
    """

    ack_id: str
    retry: bool
    message_id: str
    attributes: dict[str, str]
    key: str
    origin_id: str
    origin_ns: int
    attempt: int
    due: float
    body: bytes
    until: float = 0.0
    copies: set[str | int] = field(default_factory=set)

    def order(self) -> tuple[int, int, str]:
        """Return what sorts records by age; ids are decimal numbers that rise with time."""
        return self.origin_ns, int(self.origin_id) if self.origin_id.isdecimal() else 0, self.origin_id


def taken(received: Any, retry: bool) -> Held:
    """Return what was received, a protobuf message, from a group's retry subscription or its main one."""
    record = received.message
    attributes = dict(record.attributes)
    published_ns = record.publish_time.seconds * 1_000_000_000 + record.publish_time.nanos
    private: Mapping[str, str] = attributes if retry else {}
    return Held(
        ack_id=received.ack_id,
        retry=retry,
        message_id=record.message_id,
        attributes=attributes,
        key=private.get(_KEY) or record.ordering_key,
        origin_id=private.get(_ID) or record.message_id,
        origin_ns=int(_number(private.get(_TIME), published_ns)),
        attempt=max(1, int(_number(private.get(_ATTEMPT), 1))),
        due=_number(private.get(_DUE), 0.0),
        body=record.data,
    )


def delivery(held: Held, project: str, topic: str) -> Delivery:
    """Return the hand-over as the application sees it."""
    place = Place(
        id=f"{topic}/{held.origin_id}",
        source=f"//pubsub.googleapis.com/projects/{project}/topics/{topic}",
        time=datetime.fromtimestamp(held.origin_ns / 1e9, UTC),
    )
    message = decode(held.attributes.items(), held.body, held.key or None, place, PUBSUB)
    return Delivery(message, topic, held.attempt, utc_now(), held)


def to_store(message: Message) -> dict[str, str] | BrokerError:
    """Return the attributes of a message, or what keeps it out of Pub/Sub.

    The limits that ``Capabilities`` states were checked before. Here it is what became of the names and
    values: escaped ones are longer, and an event's own fields have the same limits.
    """
    attributes = encode(message, PUBSUB)
    if len(attributes) > MAX_ATTRIBUTES - _KEPT_FREE:
        return InvalidMessage(
            f"{len(attributes)} attributes on the wire; Pub/Sub takes {MAX_ATTRIBUTES}, of which"
            f" {_KEPT_FREE} are kept for retries and dead letters"
        )
    for name, value in attributes.items():
        for what, text, longest in (("name", name, MAX_NAME_BYTES), ("value", value, MAX_VALUE_BYTES)):
            if (size := len(text) if text.isascii() else len(text.encode())) > longest:
                return InvalidMessage(
                    f"the {what} of {name[:64]!r} has {size:,} bytes as it travels; Pub/Sub takes {longest:,}"
                )
    if message.key is not None and (size := len(message.key.encode())) > MAX_KEY_BYTES:
        return InvalidMessage(f"the key has {size:,} bytes; Pub/Sub takes {MAX_KEY_BYTES:,}")
    return attributes


def stored_size(body: bytes, attributes: Mapping[str, str], key: str) -> int:
    """Return an upper bound of what a message takes in a request, bytes."""
    texts = sum(4 * len(name) + 4 * len(value) + _FRAME_BYTES for name, value in attributes.items())
    return len(body) + texts + 4 * len(key) + 2 * _FRAME_BYTES


def retry_copy(held: Held, attempt: int, due: float) -> dict[str, str]:
    """Return the attributes of the copy that records a failure.

    The key is one of them: messages with different ordering keys cannot be stored by one request.
    """
    private = {
        _ATTEMPT: str(attempt),
        _DUE: repr(due),
        _ID: held.origin_id,
        _TIME: str(held.origin_ns),
    }
    if held.key:
        private[_KEY] = held.key
    return {**_public(held.attributes), **private}


def forward_copy(held: Held, extra: Mapping[str, str]) -> dict[str, str]:
    """Return the attributes of a copy for another topic: those of the record, and ``extra`` wins."""
    # A name travels in one of two forms, by whether its value is text.
    replaced = {form for value in ("", "\udc80") for form in escaped(dict.fromkeys(extra, value), PUBSUB)}
    kept = {name: value for name, value in _public(held.attributes).items() if name not in replaced}
    return kept | escaped(extra, PUBSUB)


def id_chunks(helds: Iterable[Held], most: int = 1000, most_bytes: int = 500_000) -> Iterable[list[Held]]:
    """Cut into requests of ack ids; one may have 512 KiB, and the service's own client sends 1,000."""
    chunk: list[Held] = []
    size = 0
    for held in helds:
        cost = len(held.ack_id) + 4
        if chunk and (len(chunk) == most or size + cost > most_bytes):
            yield chunk
            chunk, size = [], 0
        chunk.append(held)
        size += cost
    if chunk:
        yield chunk


def _public(attributes: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in attributes.items() if not name.startswith(PRIVATE)}


def _number(text: str | None, otherwise: float) -> float:
    """Return a number that this package wrote, or ``otherwise`` if somebody else did."""
    try:
        # Nanoseconds since 1970 are more than a float can tell apart.
        number = int(text) if text is not None and text.isdecimal() else float(text or "nan")
    except ValueError:
        return otherwise
    return number if math.isfinite(number) else otherwise
