"""The dead-letter workbench: see what could not be classified and why, send it through again, or remove it.

``letters`` only looks. ``replay`` and ``purge`` take letters out: first something is stored for a letter (its
copy in the topic, or a note that it was purged), then the letter is acked. Interrupted at any point, both can
be repeated.
"""

from __future__ import annotations

import asyncio
import contextlib
import getpass
import json
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from broker import (
    OPERATORS,
    Broker,
    BrokerError,
    Delivery,
    InvalidMessage,
    Message,
    MessageTooLarge,
    NotFound,
    PublishError,
    Subscription,
    dead_letter_topic,
)

from .dlq_letter import REPLAYS, Choice, Letter, letter_of, letters, moment
from .dlq_removal import OnProgress, Removal, Removed, Store, Stored

__all__ = [
    "Choice",
    "Letter",
    "Picked",
    "Removed",
    "letter_of",
    "letters",
    "moment",
    "pick",
    "purge",
    "purged_ids",
    "purged_topic",
    "replay",
]

PURGED = "dev.couturier.letter.purged.v1"
_SOURCE = "/couturier/dlq"
# What a note keeps of a text that anybody may have written.
_NOTED_CHARACTERS = 200


@dataclass(frozen=True, slots=True)
class Picked:
    """The letters that a replay or a purge is about; without their bodies, which may not fit into memory.

    Attributes:
        identities: of the letters, oldest first.
        worn: message ids of letters that were meant, and left out by the loop guard.
        seen: how many letters there were in all.
    """

    identities: Mapping[tuple[str, str], None]
    worn: Sequence[str] = ()
    seen: int = 0

    @property
    def ids(self) -> list[str]:
        """Their message ids."""
        return [message_id for message_id, _ in self.identities]


async def pick(
    broker: Broker,
    topic: str,
    group: str,
    chosen: Callable[[Letter], bool],
    limit: int | None = None,
    max_replays: int | None = None,
) -> Picked:
    """Look for the letters that are meant; changes nothing.

    Args:
        broker: open.
        topic: that the workers read.
        group: theirs.
        chosen: a ``Choice``, or any other test.
        limit: at most so many, the oldest.
        max_replays: leave out those that were replayed so often; None takes all.
    """
    identities: dict[tuple[str, str], None] = {}
    worn: list[str] = []
    seen = 0
    async for each in letters(broker, topic, group):
        seen += 1
        if (limit is not None and len(identities) >= limit) or not chosen(each):
            continue
        if max_replays is not None and each.replays >= max_replays:
            worn.append(each.message_id)
        else:
            identities[each.identity] = None
    return Picked(identities, worn, seen)


async def replay(
    broker: Broker,
    topic: str,
    group: str,
    chosen: Callable[[Letter], bool] | Picked,
    rate: float | None = None,
    progress: OnProgress | None = None,
) -> Removed:
    """Send the chosen letters through again, with id, key, body and attributes; attempts start at 1.

    A letter is removed once its copy is stored in ``topic``, whatever the letter says of its origin.
    Interrupted at any point, it can be repeated: no letter is lost, and the results table keeps one row per
    id. What fails again meanwhile is a new letter and stays.

    Args:
        broker: open.
        topic: that the workers read.
        group: theirs.
        chosen: which letters, or what ``pick`` returned.
        rate: letters a second, at most; None sets no limit.
        progress: called with the number of letters done so far.

    Raises:
        NotFound: the topic no longer exists; what was sent before stays sent.
        ReplayIncomplete: someone else holds some of them.
    """
    picked = chosen if isinstance(chosen, Picked) else await pick(broker, topic, group, chosen)

    async def send(subscription: Subscription, delivery: Delivery) -> None:
        try:
            await subscription.forward(delivery, topic, {REPLAYS: str(letter_of(delivery).replays + 1)})
        except (InvalidMessage, MessageTooLarge):
            # A foreign message may be so full that not even the count has room.
            await subscription.forward(delivery, topic, {})

    async def send_on(subscription: Subscription, deliveries: Sequence[Delivery]) -> Stored:
        answers = await asyncio.gather(
            *(send(subscription, each) for each in deliveries), return_exceptions=True
        )
        return Stored.of(zip(deliveries, answers, strict=True))

    return await _remove(broker, topic, group, picked, send_on, rate, progress)


async def purge(
    broker: Broker,
    topic: str,
    group: str,
    chosen: Callable[[Letter], bool] | Picked,
    create: bool = True,
    retention: float | None = None,
    progress: OnProgress | None = None,
) -> Removed:
    """Remove the chosen letters for good. Of each a note stays, so that ``audit`` does not miss it.

    The notes are in ``<topic>.<group>.purged``, whose standing group is ``operators``: who purged what, and
    why it had died; no body. A letter goes once its note is stored. Interrupted, it can be repeated.

    Args:
        broker: open.
        topic: that the workers read.
        group: theirs.
        chosen: which letters, or what ``pick`` returned.
        create: make the topic of the notes if it is missing.
        retention: of that topic, seconds; None means the backend's own. When a note is gone, so is the proof.
        progress: called with the number of letters done so far.

    Raises:
        NotFound: there is no topic for the notes, and ``create`` is false.
        ReplayIncomplete: someone else holds some of them.
    """
    picked = chosen if isinstance(chosen, Picked) else await pick(broker, topic, group, chosen)
    notes, by = purged_topic(topic, group), _operator()
    if create and picked.identities:
        await broker.ensure(notes, OPERATORS, partitions=1, retention=retention)

    async def note(_: Subscription, deliveries: Sequence[Delivery]) -> Stored:
        messages = [_note(letter_of(each), by) for each in deliveries]
        failed: Mapping[str, BrokerError] = {}
        try:
            await broker.publish(notes, messages)
        except PublishError as error:
            failed = error.failed
        return Stored.of(
            (each, failed.get(message.id)) for each, message in zip(deliveries, messages, strict=True)
        )

    return await _remove(broker, topic, group, picked, note, None, progress)


async def purged_ids(broker: Broker, topic: str, group: str) -> set[str]:
    """Return the message ids of all letters that were purged; what is no note of ours is passed over."""
    found: set[str] = set()
    with contextlib.suppress(NotFound):
        async for delivery in broker.browse(purged_topic(topic, group), OPERATORS):
            if (message_id := _noted_id(delivery.message.data)) is not None:
                found.add(message_id)
    return found


def purged_topic(topic: str, group: str) -> str:
    """Return the name of the topic that says what was purged."""
    return f"{topic}.{group}.purged"


async def _remove(
    broker: Broker,
    topic: str,
    group: str,
    picked: Picked,
    store: Store,
    rate: float | None,
    progress: OnProgress | None,
) -> Removed:
    if not picked.identities:
        return Removed()
    removal = Removal(broker, dead_letter_topic(topic, group), picked.identities.keys(), store)
    return await removal.run(picked.seen, rate, progress)


def _note(letter: Letter, by: str) -> Message:
    facts = {
        "message_id": letter.message_id,
        "reason": letter.reason[:_NOTED_CHARACTERS],
        "stage": letter.stage[:_NOTED_CHARACTERS],
        "failed_at": letter.failed_at[:_NOTED_CHARACTERS],
        "purged_at": datetime.now(UTC).isoformat(),
        "by": by,
    }
    body = json.dumps(facts).encode()
    return Message(data=body, content_type="application/json", type=PURGED, source=_SOURCE)


def _noted_id(body: bytes) -> str | None:
    try:
        facts = json.loads(body)
    except (ValueError, RecursionError):
        return None
    message_id = facts.get("message_id") if isinstance(facts, dict) else None
    return message_id if isinstance(message_id, str) else None


def _operator() -> str:
    try:
        user = getpass.getuser()
    except (OSError, KeyError, ImportError):  # a container's user need not have a name
        user = "unknown"
    return f"{user}@{socket.gethostname()}"
