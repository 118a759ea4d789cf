"""Where messages go that cannot succeed, and what is written on them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime

from ..message import Delivery

OPERATORS = "operators"
REASON = "couturier-reason"
STAGE = "couturier-stage"
ATTEMPTS = "couturier-attempts"
ERROR = "couturier-error"
TOPIC = "couturier-topic"
FAILED_AT = "couturier-failed-at"
EXHAUSTED = "attempts-exhausted"
ADDED = (REASON, STAGE, ATTEMPTS, ERROR, TOPIC, FAILED_AT)
# Google Pub/Sub takes 1,024 bytes for an attribute's value: cloud.google.com/pubsub/quotas.
_MAX_VALUE_BYTES = 1024


def dead_letter_topic(topic: str, group: str) -> str:
    """Return the name of the dead-letter topic of a group."""
    return f"{topic}.{group}.dlq"


def letter_attributes(
    delivery: Delivery, reason: str, stage: str, error: str, now: datetime | None = None
) -> Mapping[str, str]:
    """Return the attributes that a dead letter gets beside its own.

    Args:
        delivery: what failed for good.
        reason: short token that operators filter by.
        stage: where it failed, one word.
        error: for a person; cut to what every backend takes.
        now: aware; the wall clock when None.
    """
    return {
        REASON: _cut(reason),
        STAGE: _cut(stage),
        ATTEMPTS: str(delivery.attempt),
        ERROR: _cut(error),
        TOPIC: delivery.topic,
        FAILED_AT: (now or datetime.now(UTC)).isoformat(),
    }


def shorter_and_shorter(
    delivery: Delivery, reason: str, stage: str, error: str, now: datetime
) -> Iterator[Mapping[str, str]]:
    """Yield what to write on a dead letter: all of it, then less, for a message that has hardly any room.

    Only a foreign one can be so full: a backend takes no more from ours than leaves room for this. Its own
    attributes are all kept, so what is left out is ours; nothing at all is the last that is tried.
    """
    yield letter_attributes(delivery, reason, stage, error, now)
    yield {REASON: _cut(reason)}
    yield {}


def _cut(text: str) -> str:
    # Lone surrogates cannot travel on every backend; NUL ends a text field in some databases.
    clean = text.replace("\0", "\\0").encode("utf-8", "backslashreplace")
    return clean[:_MAX_VALUE_BYTES].decode("utf-8", "ignore")
