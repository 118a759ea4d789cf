"""What stands in a Kafka record."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import repeat
from math import isfinite
from typing import Any

from ..message import Delivery, Message, made, utc_now
from .cloudevents import IDENTITY, KAFKA, PRIVATE, Place, decode, encode, escaped

ATTEMPT = PRIVATE + "attempt"
DUE = PRIVATE + "due"
ORIGIN = PRIVATE + "origin"

Headers = list[tuple[str, bytes | None]]


@dataclass(slots=True, eq=False)
class Record:
    """Receipt of a delivery: a record and the assignment in which it came.

    Attributes:
        native: the client's ``confluent_kafka.Message``.
        partition: topic and number.
        epoch: of the assignment.
        offset: where it stands in its partition.
        attempt: recorded failures + 1.
        due: wall clock, seconds; not to be handed over before.
    """

    native: Any
    partition: tuple[str, int]
    epoch: int
    offset: int
    attempt: int = 1
    due: float = 0.0


def is_retry(topic: str) -> bool:
    """Whether a topic is, by its name, where a group keeps what failed."""
    return topic.endswith(".retry")


def read_private(record: Record) -> Record:
    """Return a record of a group's own storage with what our headers say of it."""
    private = {name: value for name, value in record.native.headers() or () if name.startswith(PRIVATE)}
    # A topic of this name need not be ours, and anybody may write to one that is.
    with suppress(LookupError, TypeError, ValueError):
        record.attempt = max(1, int(private[ATTEMPT]))
        due = float(private[DUE])
        record.due = due if isfinite(due) else 0.0
    return record


def read(native: Any, partition: tuple[str, int], epoch: int) -> Record:
    """Return a record with what our own headers say of it."""
    record = Record(native, partition, epoch, native.offset())
    return read_private(record) if is_retry(partition[0]) else record


def deliveries(records: Sequence[Record], topic: str) -> list[Delivery]:
    """Return the hand-overs of records; ``topic`` is where they were published, also for a retry."""
    natives = [each.native for each in records]
    return made(
        Delivery,
        len(records),
        message=Message.deferred([each.value() or b"" for each in natives], message, natives),
        topic=repeat(topic),
        attempt=[each.attempt for each in records],
        received_at=repeat(utc_now()),
        receipt=records,
    )


def message(native: Any) -> Message:
    """Return the message in a record; a tombstone has an empty body."""
    key = native.key()
    return decode(
        ((name, _text(value)) for name, value in native.headers() or ()),
        native.value() or b"",
        None if key is None else _text(key),
        _place(native),
        KAFKA,
    )


def headers(message: Message) -> Mapping[str, str | bytes]:
    """Return the headers of a message to be published."""
    found = encode(message, KAFKA)
    text = "".join(found.values())
    if text.isascii() and "\0" not in text:
        return found  # the client encodes it, faster; but only up to a NUL
    return {name: _bytes(value) for name, value in found.items()}


def copied(record: Record, extra: Mapping[str, str]) -> Headers:
    """Return the headers of a copy in another topic: the original's, byte for byte, and ``extra``."""
    added = escaped(extra, KAFKA)
    # A name may be written escaped or not, by us or by others: the old value goes either way.
    kept = _without(record, {*added, *extra})
    return [*kept, *((name, _bytes(value)) for name, value in added.items())]


def retried(record: Record, attempt: int, due: float) -> Headers:
    """Return the headers of a copy that waits in the group's own storage."""
    native = record.native
    here = f"{native.timestamp()[1]}/{native.partition()}/{native.offset()}"
    origin = next((value for name, value in native.headers() or () if name == ORIGIN), here.encode())
    private = [(ATTEMPT, str(attempt).encode()), (DUE, repr(due).encode()), (ORIGIN, origin)]
    return [*_without(record, set()), *private]


def origin(native: Any) -> tuple[int, int, int]:
    """Return when and where a message was first stored: milliseconds, partition, offset."""
    for name, value in native.headers() or ():
        if name == ORIGIN and value is not None:
            with suppress(ValueError):
                when, partition, offset = map(int, value.decode().split("/"))
                return when, partition, offset
    return int(native.timestamp()[1]), int(native.partition()), int(native.offset())


def _without(record: Record, names: Iterable[str]) -> Headers:
    """Return the original's headers without those ``names`` and ours; a foreign one gets its identity."""
    dropped = set(names)
    found: Headers = [
        (name, value)
        for name, value in record.native.headers() or ()
        if name not in dropped and not name.startswith(PRIVATE)
    ]
    if not any(name in ("ce_id", IDENTITY) for name, _ in found):
        found.append((IDENTITY, _place(record.native).id.encode()))
    return found


def _place(native: Any) -> Place:
    topic, partition, offset = native.topic(), native.partition(), native.offset()
    try:
        when = datetime.fromtimestamp(max(0, native.timestamp()[1]) / 1000, UTC)
    except (ValueError, OverflowError, OSError):  # microseconds, for instance, which Kafka before 4 accepts
        when = datetime.fromtimestamp(0, UTC)
    return Place(f"{topic}/{partition}/{offset}", f"kafka:{topic}", when)


def _text(value: bytes | str | None) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else value.decode("utf-8", "surrogateescape")


def _bytes(value: str) -> bytes:
    return value.encode("utf-8", "surrogateescape")
