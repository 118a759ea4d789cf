"""The dead-letter workbench: see what could not be classified and why, and send it through again."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from broker import OPERATORS, Broker, Delivery, NotFound, dead_letter_topic

from .errors import ReplayIncomplete

_REPLAYS = "couturier-replays"
# All letters are held while the chosen ones are sent on, so that none is met twice.
_MOST_HELD = 1_000_000
_MOST_HELD_BYTES = 2 * 1024**3
# What a replay that was killed still holds comes back when its lease ends; a little later we give up.
_PATIENCE_S = 2.0


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

    @property
    def identity(self) -> tuple[str, str]:
        """What tells two letters of one message apart: its id, and when it was given up."""
        return self.message_id, self.failed_at

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the body."""
        return {name: value for name, value in asdict(self).items() if name != "data"}


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
        replays=_number(attributes, _REPLAYS),
        subject=message.subject,
        content_type=message.content_type,
        size_bytes=len(message.data),
        data=message.data,
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


async def replay(broker: Broker, topic: str, group: str, chosen: Callable[[Letter], bool]) -> list[Letter]:
    """Send the chosen letters back to where they came from, with key, attributes and id.

    A letter is removed once its copy is stored. Interrupted at any point, it can be repeated: no letter is
    lost, and the results table keeps one row per id.

    Returns:
        The letters that were sent.

    Raises:
        NotFound: the topic that a letter names no longer exists; what was sent before stays sent.
        ReplayIncomplete: someone else holds some of them.
    """
    # A letter that fails again while we work is a new one; it is not among these.
    waiting = {each.identity async for each in letters(broker, topic, group) if chosen(each)}
    sent: list[Letter] = []
    if not waiting:
        return sent
    name = dead_letter_topic(topic, group)
    patience = broker.capabilities.lease + _PATIENCE_S
    async with broker.subscribe(
        name, group=OPERATORS, max_in_flight=_MOST_HELD, max_bytes=_MOST_HELD_BYTES
    ) as subscription:
        while waiting:
            deliveries = await subscription.receive(timeout=patience)
            if not deliveries:
                raise ReplayIncomplete([each.message_id for each in sent], len(waiting))
            for delivery in deliveries:
                letter = letter_of(delivery)
                if letter.identity in waiting:
                    waiting.discard(letter.identity)
                    extra = {_REPLAYS: str(letter.replays + 1)}
                    await subscription.forward(delivery, letter.topic or topic, extra)
                    await subscription.ack(delivery)
                    sent.append(letter)
    return sent


def _number(attributes: Mapping[str, str], name: str) -> int:
    text = attributes.get(name, "0")
    return int(text) if text.isascii() and text.isdigit() else 0
