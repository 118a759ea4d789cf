"""The only place where a message's fate is settled."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime

from ..errors import BrokerError, InvalidMessage, LeaseLost, NotFound
from ..logs import log
from ..message import Delivery, Redelivery
from ..subscription import Subscription
from .dead_letter import shorter_and_shorter
from .outages import Outages, of_broker, of_dead_letters
from .verdicts import Letter, Verdicts
from .watch import Held, Watch

# Dead letters that are stored at once; they are acked together, so a crash repeats no more than these.
_AT_ONCE = 32
# Of each batch so many messages are looked at for how long they took.
_SAMPLED = 8


class DeadLetters:
    """Where a processor's dead letters go.

    Args:
        topic: stored there.
        make: creates it, with its standing group, where it is missing.
        patience: seconds until a letter is tried again that no backend would take.
    """

    def __init__(self, topic: str, make: Callable[[], Awaitable[None]], patience: float) -> None:
        self.topic = topic
        self.make = make
        self.patience = patience


class Settler:
    """Persists verdicts, however long the broker is away, and counts them.

    Args:
        subscription: open.
        outages: where it is said that the broker is away.
        watch: where it is counted.
        letters: where dead letters go; None drops them.

    Attributes:
        outages: as given.
    """

    def __init__(
        self, subscription: Subscription, outages: Outages, watch: Watch, letters: DeadLetters | None
    ) -> None:
        self._subscription = subscription
        self.outages = outages
        self._watch = watch
        self._letters = letters

    async def settle(self, verdicts: Verdicts, held: Held) -> None:
        """Persist what was decided about one batch: first what needs nothing but an ack."""
        totals = self._watch.totals
        # `x += await …` reads x before it waits, and would forget what other batches count meanwhile.
        if verdicts.acks:
            done = await self._persist(held, acks=verdicts.acks)
            totals.done += done
            self._sample(verdicts.acks)
            if verdicts.letters or verdicts.retries:
                self._watch.leave(verdicts.acks)
        if verdicts.releases:
            await self._persist(held, releases=verdicts.releases)
        if verdicts.retries:
            counted = sum(each.attempt > each.delivery.attempt for each in verdicts.retries)
            kept = await self._persist(held, retries=verdicts.retries)
            totals.retried += max(0, counted - (len(verdicts.retries) - kept))
        for first in range(0, len(verdicts.letters), _AT_ONCE):
            await self._bury(verdicts.letters[first : first + _AT_ONCE], held)

    async def _persist(
        self,
        held: Held,
        acks: Sequence[Delivery] = (),
        releases: Sequence[Delivery] = (),
        retries: Sequence[Redelivery] = (),
    ) -> int:
        """Settle, however long the broker is away; return how many verdicts held."""
        count = len(acks) + len(releases) + len(retries)
        settle = self._subscription.settle
        try:
            await self.outages.outlast(of_broker, lambda: settle(acks, releases, retries), held)
        except LeaseLost as error:
            log.warning("settled too late: %s", error)
            self._watch.totals.lost_leases += len(error.ids)
            count -= len(error.ids)
        return count

    async def _bury(self, letters: Sequence[Letter], held: Held) -> None:
        """Store dead letters, however long that takes; then, and only then, ack the messages."""
        for letter in letters:
            message_id, attempt = letter.delivery.message.id, letter.delivery.attempt
            log.warning(
                "message %s is dead (attempt %d): %s: %s", message_id, attempt, letter.reason, letter.error
            )
        stored = letters if self._letters is None else await self._store(letters, self._letters, held)
        count = await self._persist(held, acks=[each.delivery for each in stored]) if stored else 0
        if self._letters is None:
            self._watch.totals.dropped += count
        else:
            self._watch.totals.dead_lettered += count
        # Of those whose lease was lost at the last moment the letter is there all the same.
        self._watch.dead_letters.update(Counter(each.reason for each in stored))

    async def _store(self, letters: Sequence[Letter], where: DeadLetters, held: Held) -> list[Letter]:
        """Store dead letters; return those that are, whose messages may be acked."""
        stored: list[Letter] = []
        pending = list(letters)

        async def store_pending() -> None:
            nonlocal pending
            tries = (self._store_one(each, where) for each in pending)
            answers = await asyncio.gather(*tries, return_exceptions=True)
            tried, pending = list(zip(pending, answers, strict=True)), []
            away: BrokerError | None = None
            for letter, answer in tried:
                if answer is None:
                    stored.append(letter)
                elif isinstance(answer, LeaseLost):
                    self._watch.totals.lost_leases += 1
                elif isinstance(answer, InvalidMessage):
                    await self._keep(letter, where, answer, held)
                elif isinstance(answer, BrokerError):
                    pending.append(letter)
                    away = answer
                else:
                    raise answer
            if isinstance(away, NotFound):
                # Made before the first message was taken; somebody has deleted it since.
                with contextlib.suppress(BrokerError):
                    await where.make()
            if away is not None:
                raise away

        await self.outages.outlast(of_dead_letters, store_pending, held)
        return stored

    async def _store_one(self, letter: Letter, where: DeadLetters) -> None:
        """Store a dead letter with all that is to be written on it, or with as much as there is room for."""
        refused: InvalidMessage | None = None
        now = datetime.now(UTC)
        for extra in shorter_and_shorter(letter.delivery, letter.reason, letter.stage, letter.error, now):
            try:
                await self._subscription.forward(letter.delivery, where.topic, extra)
            except InvalidMessage as error:
                refused = error
                continue
            if refused is not None:
                _note_what_is_missing(letter, extra, refused)
            return
        assert refused is not None
        raise refused

    async def _keep(self, letter: Letter, where: DeadLetters, why: InvalidMessage, held: Held) -> None:
        # A letter that can never be stored must not hold up the others, nor be lost.
        delivery = letter.delivery
        log.error("no dead letter of message %s can be stored, it stays: %s", delivery.message.id, why)
        await self._persist(held, retries=[Redelivery(delivery, where.patience, delivery.attempt)])

    def _sample(self, acked: Sequence[Delivery]) -> None:
        now = datetime.now(UTC)
        observe = self._watch.end_to_end_seconds.observe
        for each in acked[:: 1 + len(acked) // _SAMPLED]:
            observe(max(0.0, (now - each.message.time).total_seconds()))


def _note_what_is_missing(letter: Letter, extra: Mapping[str, str], why: InvalidMessage) -> None:
    log.error(
        "the dead letter of message %s has no room for more than %s: %s; it failed at %s: %s: %s",
        letter.delivery.message.id, ", ".join(extra) or "what it came with", why, letter.stage, letter.reason,
        letter.error,
    )  # fmt: skip
