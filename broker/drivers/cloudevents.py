"""A message as a CloudEvents 1.0 event in binary mode: what stands in a record's headers, and back.

Kafka and Pub/Sub differ in the prefix of the context attributes and in what a value may hold. The
application's own attributes travel under their own names, so that any consumer finds them. A name that the
transport could not carry, or that means something else there, travels escaped; ``decode`` undoes it.

Names are case-sensitive, as the specification writes them. Readers that are not, such as the Python SDK,
must not take an attribute of ours for one of theirs, so names are escaped whatever their case. An event in
structured mode (``application/cloudevents+json``) is handed over as it came, the whole event in its body;
the bindings allow that.

Sources: CloudEvents Kafka protocol binding 1.0.2, section 3.2; Google Cloud Pub/Sub protocol binding for
CloudEvents, section 3.1; cloud.google.com/pubsub/docs/publisher (attribute keys must not begin with "goog").
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from urllib.parse import quote_from_bytes, unquote_to_bytes

from ..message import Message

# What a record without a CloudEvents id is taken for.
FOREIGN_TYPE = "dev.couturier.foreign.v1"
# The id of a foreign message, on copies of it: a copy stands at another place.
IDENTITY = "couturier-id"
# Written by drivers on copies in storage that is private to a group; never shown to the application.
PRIVATE = "couturier-retry-"
# Neither may begin with the other, or an attribute called "name-x" would come back as another.
_ESCAPED = "couturier-escaped-"
_ESCAPED_NAME = _ESCAPED + "name-"
_ESCAPED_BOTH = _ESCAPED + "both-"
_CONTENT_TYPE = "content-type"
_OCTETS = "application/octet-stream"
_SPEC_VERSION = "1.0"
_MINUTE = timedelta(minutes=1)
# The context attributes that have a field of their own; extensions stay attributes, under their wire name.
# Pub/Sub's examples write `ce-datacontenttype` where its text demands `content-type`: both are read.
_CONTEXT = ("specversion", "id", "source", "type", "time", "subject", "datacontenttype")
# An extension's name: CloudEvents 1.0.2, "Naming Conventions". `data` is taken.
_EXTENSION = re.compile(r"(?!data$)[a-z0-9]+")


@dataclass(frozen=True, slots=True)
class Binding:
    """How one transport carries an event.

    Attributes:
        prefix: of the context attributes.
        reserved: other beginnings of names that the transport keeps for itself, lower case.
        raw: values may be any bytes; otherwise they must be valid Unicode text.
        context: header name to context attribute, made from ``prefix``.
        names: of the headers for the context attributes in ``_CONTEXT``, in that order.
        taken: beginnings of names that the application cannot have as they are, lower case.
    """

    prefix: str
    reserved: tuple[str, ...] = ()
    raw: bool = True
    context: Mapping[str, str] = field(init=False)
    names: tuple[str, ...] = field(init=False)
    taken: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        context = {self.prefix + name: name for name in _CONTEXT} | {_CONTENT_TYPE: _CONTENT_TYPE}
        object.__setattr__(self, "context", context)
        object.__setattr__(self, "names", tuple(self.prefix + name for name in _CONTEXT))
        object.__setattr__(self, "taken", (self.prefix, IDENTITY, PRIVATE, _ESCAPED, *self.reserved))


KAFKA = Binding("ce_")
PUBSUB = Binding("ce-", reserved=("goog",), raw=False)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a record stands, for what a foreign one does not say.

    Attributes:
        id: stable identity made from its place in the log.
        source: a URI reference for the log.
        time: when the broker stored it, aware.
    """

    id: str
    source: str
    time: datetime


def encode(message: Message, binding: Binding) -> dict[str, str]:
    """Return the headers of ``message``; bytes that are not UTF-8 stay ``surrogateescape`` text."""
    specversion, id_, source, type_, time, subject, _ = binding.names
    headers = {
        specversion: _SPEC_VERSION,
        id_: message.id,
        source: message.source,
        type_: message.type,
        time: _rfc3339(message.time),
        _CONTENT_TYPE: message.content_type,
    }
    if message.subject is not None:
        headers[subject] = message.subject
    if message.attributes:
        headers.update(escaped(message.attributes, binding))
    return headers


def escaped(attributes: Mapping[str, str], binding: Binding) -> dict[str, str]:
    """Return the application's attributes under names, and with values, that the transport can carry."""
    return dict(_escape(name, value, binding) for name, value in attributes.items())


def decode(
    headers: Iterable[tuple[str, str]], data: bytes, key: str | None, place: Place, binding: Binding
) -> Message:
    """Return the message in a record; the last of repeated headers counts."""
    context: dict[str, str] = {}
    attributes: dict[str, str] = {}
    known = binding.context
    for name, value in headers:
        if (own := known.get(name)) is not None:
            context[own] = value if value.isascii() else _readable(value)
        elif not name.startswith("couturier-"):
            attributes[name] = value
        elif name == IDENTITY:
            context[name] = value
        elif not name.startswith(PRIVATE):
            plain_name, plain_value = _unescape(name, value)
            attributes[plain_name] = plain_value
    return Message(
        data=data,
        key=key,
        attributes=attributes,
        id=context.get("id") or context.get(IDENTITY) or place.id,
        content_type=context.get(_CONTENT_TYPE, context.get("datacontenttype", _OCTETS)),
        type=context.get("type", FOREIGN_TYPE),
        source=context.get("source", place.source),
        subject=context.get("subject"),
        time=_time(context.get("time"), place.time),
    )


def _escape(name: str, value: str, binding: Binding) -> tuple[str, str]:
    if not binding.raw and not _is_text(value):
        return _ESCAPED_BOTH + _quote(name), _quote(value)
    if _needs_escape(name, value, binding):
        return _ESCAPED_NAME + _quote(name), value
    return name, value


def _needs_escape(name: str, value: str, binding: Binding) -> bool:
    lower = name.lower()
    if lower.startswith(binding.taken) or lower == _CONTENT_TYPE:
        return not _is_extension(name, value, binding)
    return not name or "\0" in name or not _is_text(name)


def _is_extension(name: str, value: str, binding: Binding) -> bool:
    """Whether this is a valid CloudEvents extension, such as ``ce_partitionkey``; it travels as it is."""
    prefix = binding.prefix
    if not name.startswith(prefix) or name in binding.context:
        return False
    return _EXTENSION.fullmatch(name, len(prefix)) is not None and bool(value) and _is_text(value)


def _unescape(name: str, value: str) -> tuple[str, str]:
    if name.startswith(_ESCAPED_NAME):
        return _unquote(name[len(_ESCAPED_NAME) :]), value
    if name.startswith(_ESCAPED_BOTH):
        return _unquote(name[len(_ESCAPED_BOTH) :]), _unquote(value)
    return name, value


def _quote(text: str) -> str:
    return quote_from_bytes(text.encode("utf-8", "surrogateescape"), safe="")


def _unquote(text: str) -> str:
    return unquote_to_bytes(text.encode("utf-8", "surrogateescape")).decode("utf-8", "surrogateescape")


def _is_text(text: str) -> bool:
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _readable(text: str) -> str:
    """Return text that any database takes: where it stands for bytes that are not UTF-8, ``\\xff``."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _rfc3339(time: datetime) -> str:
    """Return RFC 3339 text; its offsets have whole minutes, those of historic time zones may not."""
    if time.tzinfo is UTC:
        return _utc_text(time)
    if (time.utcoffset() or _MINUTE) % _MINUTE:
        with suppress(OverflowError):  # In the first and last hours of the calendar; then as it is.
            return time.astimezone(UTC).isoformat()
    return time.isoformat()


# The second that was last written, and its text: messages come many to a second, and `isoformat` is slow.
_second = (datetime.min.replace(tzinfo=UTC), "")


def _utc_text(time: datetime) -> str:
    """Return ``time.isoformat()`` of a time in UTC."""
    global _second  # noqa: PLW0603 - replaced as a whole, so threads may share it
    begin, text = _second
    since = time - begin
    if since.days or since.seconds:
        begin = time.replace(microsecond=0)
        since, text = time - begin, begin.isoformat()[:19]
        _second = (begin, text)
    return f"{text}.{since.microseconds:06}+00:00" if since.microseconds else f"{text}+00:00"


def _time(text: str | None, otherwise: datetime) -> datetime:
    """Return the time that a header says, or ``otherwise`` if it says none that RFC 3339 knows."""
    if text is None:
        return otherwise
    try:
        parsed = datetime.fromisoformat(text.upper())
    except ValueError:
        return otherwise
    return parsed if parsed.tzinfo is not None else otherwise
