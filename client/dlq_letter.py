"""A dead letter as operators see it, and which ones a command is about."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime, timedelta
from typing import Any

from broker import OPERATORS, Broker, Delivery, NotFound, dead_letter_topic

REPLAYS = "couturier-replays"
_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_AGE = re.compile(r"(\d{1,6}(?:\.\d{1,3})?)([smhdw])")
# What a class of errors is called in front of its text.
_CLASS = re.compile(r"[A-Za-z_][\w.]*")
# W3C Trace Context, 3.2: version, trace id, parent id, flags.
_TRACE = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}")
# Anybody may write to the topic: no count of ours has more digits.
_MOST_DIGITS = 9


@dataclass(frozen=True, slots=True)
class Letter:
    """One dead letter.

    Attributes:
        message_id: id of the message.
        reason: short token, such as ``invalid-image`` or ``attempts-exhausted``.
        stage: where it failed.
        attempts: how often it was tried.
        error: for a person.
        topic: where it was first published.
        failed_at: when it was given up, ISO 8601.
        replays: how often it was sent through again.
        subject: of the message.
        content_type: of the body.
        size_bytes: of the body.
        data: the body, unchanged.
        trace_id: of the trace that the message belongs to; None if it carries none.
    """

    message_id: str
    reason: str
    stage: str
    attempts: int
    error: str
    topic: str
    failed_at: str
    replays: int
    subject: str | None
    content_type: str
    size_bytes: int
    data: bytes = field(repr=False)
    trace_id: str | None = None

    @property
    def identity(self) -> tuple[str, str]:
        """What tells two letters of one message apart: its id, and when it was given up."""
        return self.message_id, self.failed_at

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the body."""
        return {each.name: getattr(self, each.name) for each in fields(self) if each.name != "data"}


@dataclass(frozen=True, slots=True)
class Choice:
    """Which letters are meant; every filter that is given must hold, and with none all are.

    Attributes:
        ids: of the messages.
        reason: exactly this one.
        stage: exactly this one.
        error: the class of the error, or any part of its text.
        since: given up then or later, aware.
        until: given up before then, aware.
    """

    ids: frozenset[str] = frozenset()
    reason: str | None = None
    stage: str | None = None
    error: str | None = None
    since: datetime | None = None
    until: datetime | None = None

    def __call__(self, letter: Letter) -> bool:
        """Whether a letter is meant; one that does not say when it was given up matches no time."""
        return (
            (not self.ids or letter.message_id in self.ids)
            and self.reason in (None, letter.reason)
            and self.stage in (None, letter.stage)
            and (self.error is None or _is_about(letter.error, self.error))
            and ((self.since or self.until) is None or self._in_time(letter.failed_at))
        )

    @property
    def everything(self) -> bool:
        """No filter is given."""
        return self == Choice()

    def _in_time(self, text: str) -> bool:
        try:
            failed_at = datetime.fromisoformat(text)
        except ValueError:
            return False
        if failed_at.tzinfo is None:
            return False
        return (self.since is None or self.since <= failed_at) and (
            self.until is None or failed_at < self.until
        )


def moment(text: str, now: datetime | None = None) -> datetime:
    """Return the time that ``text`` names: ISO 8601, in UTC unless it says otherwise, or an age.

    Args:
        text: such as ``2026-03-01``, ``2026-03-01T14:00+01:00``, ``90s``, ``45m``, ``2h``, ``3d``, ``1w``.
        now: what ages are counted from; the wall clock when None.

    Raises:
        ValueError: it is neither.
    """
    try:
        if age := _AGE.fullmatch(text):
            return (now or datetime.now(UTC)) - timedelta(seconds=float(age[1]) * _UNITS_S[age[2]])
        when = datetime.fromisoformat(text)
    except (ValueError, OverflowError):
        raise ValueError(f"{text!r} is no time: write 2026-03-01T14:00, or an age such as 2h or 3d") from None
    return when if when.tzinfo is not None else when.replace(tzinfo=UTC)


def letter_of(delivery: Delivery) -> Letter:
    """Read a dead letter; a foreign message without our attributes is shown as it is."""
    message, attributes = delivery.message, delivery.message.attributes
    return Letter(
        message_id=message.id,
        reason=attributes.get("couturier-reason", "unknown"),
        stage=attributes.get("couturier-stage", "unknown"),
        attempts=_number(attributes, "couturier-attempts"),
        error=attributes.get("couturier-error", ""),
        topic=attributes.get("couturier-topic", ""),
        failed_at=attributes.get("couturier-failed-at", ""),
        replays=_number(attributes, REPLAYS),
        subject=message.subject,
        content_type=message.content_type,
        size_bytes=len(message.data),
        data=message.data,
        trace_id=trace[1] if (trace := _TRACE.fullmatch(attributes.get("traceparent", ""))) else None,
    )


async def letters(broker: Broker, topic: str, group: str) -> AsyncIterator[Letter]:
    """Yield the letters of a group that nobody has replayed, oldest first; changes nothing.

    A group that never lost a message has no dead-letter topic and so no letters.
    """
    try:
        async for delivery in broker.browse(dead_letter_topic(topic, group), OPERATORS):
            yield letter_of(delivery)
    except NotFound:
        return


def _is_about(error: str, wanted: str) -> bool:
    """Whether ``wanted`` is the class in front of an error's text, or a part of that text."""
    name, colon, rest = error.partition(":")
    if not _CLASS.fullmatch(name):
        return wanted.casefold() in error.casefold()
    if wanted in (name, name.rpartition(".")[2]):
        return True
    return bool(colon) and wanted.casefold() in rest.casefold()


def _number(attributes: Mapping[str, str], name: str) -> int:
    text = attributes.get(name, "0")
    return int(text) if text.isascii() and text.isdigit() and len(text) <= _MOST_DIGITS else 0
