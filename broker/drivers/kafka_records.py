"""What stands in a Kafka record, and what its client's errors mean."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from ..errors import (
    BrokerError,
    DeadlineExceeded,
    InvalidMessage,
    NotFound,
    PermissionDenied,
    Unavailable,
)
from ..message import Delivery, Message, utc_now
from .cloudevents import IDENTITY, KAFKA, PRIVATE, Place, decode, encode, escaped

ATTEMPT = PRIVATE + "attempt"
DUE = PRIVATE + "due"
ORIGIN = PRIVATE + "origin"

Headers = list[tuple[str, bytes | None]]

_DENIED = {
    "TOPIC_AUTHORIZATION_FAILED", "GROUP_AUTHORIZATION_FAILED", "CLUSTER_AUTHORIZATION_FAILED",
    "SASL_AUTHENTICATION_FAILED", "TRANSACTIONAL_ID_AUTHORIZATION_FAILED", "SECURITY_DISABLED",
    "DELEGATION_TOKEN_AUTHORIZATION_FAILED", "UNSUPPORTED_SASL_MECHANISM", "_AUTHENTICATION", "_SSL",
}  # fmt: skip
_MISSING = {"UNKNOWN_TOPIC_OR_PART", "_UNKNOWN_TOPIC", "_UNKNOWN_PARTITION", "GROUP_ID_NOT_FOUND", "_NOENT"}
_INVALID = {"INVALID_MSG", "INVALID_MSG_SIZE", "INVALID_RECORD", "_INVALID_ARG", "INVALID_TIMESTAMP"}
_LATE = {"_TIMED_OUT", "_MSG_TIMED_OUT", "REQUEST_TIMED_OUT", "_TIMED_OUT_QUEUE"}


def mapped(error: Any, what: str) -> BrokerError:
    """Return the error of ``broker.errors`` for a ``KafkaError`` or ``KafkaException``.

    What the client calls retriable, and everything about connections, is ``Unavailable``.
    """
    if isinstance(error, Exception):
        error = error.args[0]
    if not hasattr(error, "name"):
        return BrokerError(f"{what}: {error}")
    name, text = error.name(), f"{what}: {error.str()} ({error.name()})"
    kinds: tuple[tuple[set[str], type[BrokerError]], ...] = (
        (_DENIED, PermissionDenied), (_MISSING, NotFound), (_INVALID, InvalidMessage),
        (_LATE, DeadlineExceeded),
    )  # fmt: skip
    for names, kind in kinds:
        if name in names:
            return kind(text)
    # What the client itself raises begins with "_": the broker was not asked, or did not answer.
    return Unavailable(text) if error.retriable() or name.startswith("_") else BrokerError(text)


@dataclass(slots=True, eq=False)
class Record:
    """Receipt of a delivery: a record and the assignment in which it came.

    Attributes:
        native: the client's ``confluent_kafka.Message``.
        partition: topic and number.
        epoch: of the assignment.
        attempt: recorded failures + 1.
        due: wall clock, seconds; not to be handed over before.
    """

    native: Any
    partition: tuple[str, int]
    epoch: int
    attempt: int = 1
    due: float = 0.0

    @property
    def offset(self) -> int:
        """Where it stands in its partition."""
        return int(self.native.offset())


def read(native: Any, partition: tuple[str, int], epoch: int) -> Record:
    """Return a record with what our own headers say of it."""
    record = Record(native, partition, epoch)
    if partition[0].endswith(".retry"):
        private = {name: value for name, value in native.headers() or () if name.startswith(PRIVATE)}
        record.attempt = int(private.get(ATTEMPT, b"1"))
        record.due = float(private.get(DUE, b"0"))
    return record


def delivery(record: Record, topic: str) -> Delivery:
    """Return the hand-over of a record; ``topic`` is where it was published, also for a retry."""
    return Delivery(message(record.native), topic, record.attempt, utc_now(), record)


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


def headers(message: Message) -> list[tuple[str, bytes]]:
    """Return the headers of a message to be published."""
    return [(name, _bytes(value)) for name, value in encode(message, KAFKA).items()]


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
            when, partition, offset = value.decode().split("/")
            return int(when), int(partition), int(offset)
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
    when = max(0, native.timestamp()[1])
    return Place(f"{topic}/{partition}/{offset}", f"kafka:{topic}", datetime.fromtimestamp(when / 1000, UTC))


def _text(value: bytes | str | None) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else value.decode("utf-8", "surrogateescape")


def _bytes(value: str) -> bytes:
    return value.encode("utf-8", "surrogateescape")
