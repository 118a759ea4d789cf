"""The values that cross the contract: what is published, what is handed over, what a backend can do."""

from __future__ import annotations

import os
import random
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import repeat
from typing import TYPE_CHECKING, Any, TypeVar

T = TypeVar("T")

# Ours alone, so that a program that seeds `random` repeats no ids. Asking the kernel each time is slow.
_random = random.Random()  # noqa: S311 - unique, not secret
os.register_at_fork(after_in_child=_random.seed)


# The millisecond that ids were last made in, and how they begin: as text, that costs more than the rest.
_begin = (-1, "")


def uuid7() -> str:
    """Return a new UUIDv7: 48 bits of Unix milliseconds, then 72 random bits (of the 74 that may be).

    Ids made later sort later, to the millisecond.

    Source: RFC 9562, section 5.7; the standard library has it from Python 3.14.
    """
    global _begin  # noqa: PLW0603 - replaced as a whole, so threads may share it
    millisecond = time.time_ns() // 1_000_000
    known, begin = _begin
    if millisecond != known:
        digits = f"{millisecond & (1 << 48) - 1:012x}"
        begin = f"{digits[:8]}-{digits[8:]}-7"
        _begin = (millisecond, begin)
    digits = _random.getrandbits(72).to_bytes(9, "big").hex()
    return f"{begin}{digits[:3]}-8{digits[3:6]}-{digits[6:]}"


def utc_now() -> datetime:
    """Return the wall clock as an aware datetime in UTC."""
    return datetime.now(UTC)


class _Deferred:
    """The part of a message that is decoded when it is first asked for: most consumers read the body alone.

    A field that is not set yet is not found, which brings Python to ``__getattr__``.
    """

    __slots__ = ("_decode", "_record")

    if not TYPE_CHECKING:  # a type checker would take it for leave to ask for anything

        def __getattr__(self, name: str) -> Any:
            if name in Message.__dataclass_fields__ and (record := self._record) is not None:
                whole = self._decode(record)
                for each in Message.__dataclass_fields__:
                    object.__setattr__(self, each, getattr(whole, each))
                object.__setattr__(self, "_record", None)
            # Again, since another thread may have been first; an unknown name raises here.
            return object.__getattribute__(self, name)


@dataclass(frozen=True, slots=True)
class Message(_Deferred):
    """One CloudEvents 1.0 event in binary mode.

    Attributes:
        data: the body, any bytes, may be empty.
        key: messages with one key keep their order where ``subscribe(order="key")`` is used.
        attributes: the application's own headers, text to text.
        id: identity for deduplication; a UUIDv7 unless given.
        content_type: media type of ``data``.
        type: what happened, in reverse-DNS style.
        source: who published it, a URI reference.
        subject: what it is about, within ``source``.
        time: when it happened, aware.
    """

    data: bytes
    key: str | None = None
    attributes: Mapping[str, str] = field(default_factory=dict)
    id: str = field(default_factory=uuid7)
    content_type: str = "application/octet-stream"
    type: str = "dev.couturier.message.v1"
    source: str = "/couturier"
    subject: str | None = None
    time: datetime = field(default_factory=utc_now)

    @staticmethod
    def deferred(
        bodies: Sequence[bytes], decode: Callable[[Any], Message], records: Iterable[Any]
    ) -> list[Message]:
        """Return messages whose bodies are there, and whose other fields ``decode(record)`` yields on use."""
        return made(Message, len(bodies), data=bodies, _decode=repeat(decode), _record=records)


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class Delivery:
    """One hand-over of a message to one member of a group. Two hand-overs are never equal.

    Attributes:
        message: what was published.
        topic: where it was received.
        attempt: recorded failures + 1. A crash, an expired lease or ``release`` records nothing.
        received_at: when this process took it, aware.
        receipt: the driver's own handle; opaque.
    """

    message: Message
    topic: str
    attempt: int
    received_at: datetime
    receipt: Any = field(repr=False, default=None)

    def native(self, kind: type[T]) -> T:
        """Return the backend's own record of this message, for what the contract does not cover.

        A program that uses it is bound to that backend. The record is for reading: settle the delivery.

        Args:
            kind: the type that the backend's page names, such as ``confluent_kafka.Message``.

        Raises:
            TypeError: the backend keeps no record, or one of another type; the text names it.
        """
        native = getattr(self.receipt, "native", None)
        if native is None:
            raise TypeError(f"a delivery of {self.topic!r} has no native record on this backend")
        if not isinstance(native, kind):
            raise TypeError(f"the native record is a {_type_name(type(native))}, not a {_type_name(kind)}")
        return native


@dataclass(frozen=True, slots=True)
class Receipt:
    """Proof that the broker stored a message.

    Attributes:
        message_id: the message's id.
        topic: where it is stored.
        position: the backend's own coordinate, as text.
    """

    message_id: str
    topic: str
    position: str


@dataclass(frozen=True, slots=True)
class Redelivery:
    """A recorded failure for the driver to persist.

    Attributes:
        delivery: what failed.
        delay: comes again not before this many seconds.
        attempt: the attempt number it then has.
    """

    delivery: Delivery
    delay: float
    attempt: int


@dataclass(frozen=True, slots=True)
class GroupStats:
    """How far one group has come.

    Attributes:
        published: messages this group is to see, settled ones included; None where the backend keeps no
            such count (``capabilities.counts``).
        settled: of those, finished (acked here, or dead-lettered and acked); None likewise.
        in_flight: held by a member under a lease; on Kafka and Pub/Sub by a member of this client, since
            those brokers do not say what others hold: that counts as ready.
        delayed: failed before, waiting for their delay.
        ready: could be received now.
    """

    published: int | None
    settled: int | None
    in_flight: int
    delayed: int
    ready: int

    @property
    def unsettled(self) -> int:
        """Messages that are not finished: in flight, delayed or ready."""
        return self.in_flight + self.delayed + self.ready


@dataclass(frozen=True, slots=True)
class TopicInfo:
    """A topic, as ``Broker.topics`` lists it.

    Attributes:
        name: as ``ensure`` made it.
        partitions: how many it has; None on a backend without partitions.
        groups: ensured on it, sorted.
    """

    name: str
    partitions: int | None
    groups: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Lag:
    """What one group has before it in one part of a topic.

    Attributes:
        partition: its number; None on a backend without partitions.
        unsettled: messages that are not finished.
        position: how far the group has come, in the backend's own coordinate, as text; "" if it has none.
        end: the coordinate of the newest message, as text; "" likewise.
    """

    partition: int | None
    unsettled: int
    position: str = ""
    end: str = ""


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a backend promises. Asking for more fails when the subscription is opened or before a send.

    Attributes:
        backend: its name, as in ``BROKER_BACKEND``.
        shared: several processes can use one queue.
        durable: what was stored survives the death of every process.
        history: a group ensured later also sees what was stored before it.
        counts: ``stats`` knows how many messages were published and settled.
        order: the values that ``subscribe(order=...)`` takes.
        lease: seconds after which an unsettled delivery of a dead member comes again.
        max_delay: longest ``nack`` delay, seconds.
        max_message_bytes: largest body.
        max_attributes: most attributes of one message.
        max_attribute_bytes: longest attribute value, UTF-8.
        max_attribute_name_bytes: longest attribute name, UTF-8.
        retention: shortest and longest ``ensure(retention=...)``, seconds; None: a topic cannot be given one.
    """

    backend: str
    shared: bool
    durable: bool
    history: bool
    counts: bool
    order: frozenset[str]
    lease: float
    max_delay: float
    max_message_bytes: int
    max_attributes: int
    max_attribute_bytes: int
    max_attribute_name_bytes: int
    retention: tuple[float, float] | None = None


def made(kind: type[T], count: int, **columns: Iterable[Any]) -> list[T]:
    """Return ``count`` objects of a frozen class with slots, made column by column.

    What a hot path makes by the hundred: a third of the time of calling the class for each.

    Args:
        kind: a dataclass with ``slots=True``.
        count: how many.
        columns: every field's values, in order.
    """
    objects = list(map(object.__new__, repeat(kind, count)))
    for name, values in columns.items():
        deque(map(getattr(kind, name).__set__, objects, values), maxlen=0)
    return objects


def _type_name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"
