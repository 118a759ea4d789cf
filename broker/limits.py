"""Limits: of a message, checked before anything is sent, and of what a subscription may hold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from .errors import BrokerError, InvalidMessage, MessageTooLarge
from .message import Capabilities, Message

MAX_IN_FLIGHT = 1000
MAX_BYTES = 256 * 1024 * 1024
DAY_S = 86_400.0


@dataclass(frozen=True, slots=True)
class Limits:
    """How much one subscription may hold.

    Attributes:
        max_in_flight: unsettled deliveries; as many again may wait for the delay of a ``nack``.
        max_bytes: bodies of unsettled deliveries. One larger message still comes, alone.
    """

    max_in_flight: int = MAX_IN_FLIGHT
    max_bytes: int = MAX_BYTES

    def __post_init__(self) -> None:
        if self.max_in_flight < 1 or self.max_bytes < 1:
            raise ValueError(f"max_in_flight and max_bytes must be at least 1, not {self}")


def check_message(message: Message, capabilities: Capabilities) -> BrokerError | None:
    """Return what keeps ``message`` out of the backend, or None.

    Text that is not UTF-8 (a lone surrogate) is allowed in attributes alone: there it stands for the
    raw bytes of a foreign producer.
    """
    if not isinstance(message.data, bytes):
        return InvalidMessage(f"data must be bytes, not {type(message.data).__name__}")
    if len(message.data) > capabilities.max_message_bytes:
        return MessageTooLarge(len(message.data), capabilities.max_message_bytes)
    # Most messages have none of the one and are plain in the other; looking at each field costs more.
    problem = _check_attributes(message.attributes, capabilities) if message.attributes != {} else None
    return problem or (None if _is_plain(message) else _check_fields(message))


def days(count: float | None) -> float | None:
    """Return so many days in seconds; None is None."""
    return None if count is None else count * DAY_S


def check_retention(seconds: float, capabilities: Capabilities) -> None:
    """Return if topics of the backend can be told to keep messages for so long.

    Raises:
        ValueError: they cannot.
    """
    backend, bounds = capabilities.backend, capabilities.retention
    said = (
        f"a retention of {seconds / DAY_S:g} days (COUTURIER_RETENTION, COUTURIER_DLQ_RETENTION, --retention)"
    )
    if bounds is None:
        raise ValueError(f"{said}: the {backend} backend cannot be told how long to keep messages; unset it")
    if not bounds[0] <= seconds <= bounds[1]:
        least, most = (f"{each / DAY_S:.3g}" for each in bounds)
        raise ValueError(f"{said}: the {backend} backend can keep messages for {least} to {most} days")


def _is_plain(message: Message) -> bool:
    """Whether every field is fine at first sight; if not, ``_check_fields`` says what is wrong, if any."""
    key, subject = message.key, message.subject
    texts = (
        message.id, message.content_type, message.type, message.source,
        "" if key is None else key, "" if subject is None else subject,
    )  # fmt: skip
    try:
        ascii_only = "".join(texts).isascii()
    except TypeError:
        return False
    return ascii_only and bool(message.id) and getattr(message.time, "tzinfo", None) is UTC


def _check_attributes(attributes: Mapping[str, str], capabilities: Capabilities) -> BrokerError | None:
    if not isinstance(attributes, Mapping):
        return InvalidMessage(f"attributes must be a mapping, not {type(attributes).__name__}")
    backend = capabilities.backend
    if len(attributes) > capabilities.max_attributes:
        return InvalidMessage(
            f"{len(attributes)} attributes; the {backend} backend takes {capabilities.max_attributes}"
        )
    for name, value in attributes.items():
        if not isinstance(name, str) or not isinstance(value, str):
            return InvalidMessage(f"attribute {name!r}={value!r}: names and values must be text")
        if not (_is_text(name) and _is_text(value)):
            return InvalidMessage(f"attribute {name!r}={value[:64]!r} is not valid Unicode text")
        for what, text, longest in (
            ("name", name, capabilities.max_attribute_name_bytes),
            ("value", value, capabilities.max_attribute_bytes),
        ):
            if _size(text) > longest:
                return InvalidMessage(
                    f"the {what} of attribute {name[:64]!r} has {_size(text):,} bytes;"
                    f" the {backend} backend takes {longest:,}"
                )
    return None


def _check_fields(message: Message) -> BrokerError | None:
    if not message.id:
        return InvalidMessage("id must not be empty")
    if not isinstance(message.time, datetime) or message.time.tzinfo is None:
        return InvalidMessage(f"time must be a datetime with a time zone, not {message.time!r}")
    for name in ("id", "key", "content_type", "type", "source", "subject"):
        value = getattr(message, name)
        if value is None and name in ("key", "subject"):
            continue
        if not isinstance(value, str):
            return InvalidMessage(f"{name} must be text, not {type(value).__name__}")
        if not _is_text(value, errors="strict"):
            return InvalidMessage(f"{name} {value[:64]!r} is not valid Unicode text")
    return None


def _size(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogateescape"))


def _is_text(text: str, errors: str = "surrogateescape") -> bool:
    if text.isascii():
        return True
    try:
        text.encode("utf-8", errors)
    except UnicodeEncodeError:
        return False
    return True
