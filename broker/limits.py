"""Limits of a message, checked before anything is sent."""

from __future__ import annotations

from .errors import BrokerError, InvalidMessage, MessageTooLarge
from .message import Capabilities, Message


def check_message(message: Message, capabilities: Capabilities) -> BrokerError | None:
    """Return what keeps ``message`` out of the backend, or None.

    Text that is not UTF-8 (a lone surrogate) is allowed in attributes alone: there it stands for the
    raw bytes of a foreign producer.
    """
    if not isinstance(message.data, bytes):
        return InvalidMessage(f"data must be bytes, not {type(message.data).__name__}")
    if len(message.data) > capabilities.max_message_bytes:
        return MessageTooLarge(len(message.data), capabilities.max_message_bytes)
    if len(message.attributes) > capabilities.max_attributes:
        return InvalidMessage(
            f"{len(message.attributes)} attributes; the {capabilities.backend} backend takes"
            f" {capabilities.max_attributes}"
        )
    for name, value in message.attributes.items():
        if not isinstance(name, str) or not isinstance(value, str):
            return InvalidMessage(f"attribute {name!r}={value!r}: names and values must be text")
        longest = max(_size(name), _size(value))
        if longest > capabilities.max_attribute_bytes:
            return InvalidMessage(
                f"attribute {name[:64]!r} has {longest:,} bytes; the {capabilities.backend} backend takes"
                f" {capabilities.max_attribute_bytes:,}"
            )
    return _check_fields(message)


def _check_fields(message: Message) -> BrokerError | None:
    if not message.id:
        return InvalidMessage("id must not be empty")
    if message.time.tzinfo is None:
        return InvalidMessage(f"time {message.time.isoformat()} has no time zone")
    for name in ("id", "key", "content_type", "type", "source", "subject"):
        value = getattr(message, name)
        if value is None and name in ("key", "subject"):
            continue
        if not isinstance(value, str):
            return InvalidMessage(f"{name} must be text, not {type(value).__name__}")
        if not value.isascii() and not _is_utf8(value):
            return InvalidMessage(f"{name} {value[:64]!r} is not valid Unicode text")
    return None


def _size(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogateescape"))


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
