"""Taking chosen letters out of a dead-letter topic, among others that stay, in bounded memory."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import Self

from broker import (
    OPERATORS,
    Broker,
    BrokerError,
    Delivery,
    InvalidMessage,
    LeaseLost,
    MessageTooLarge,
    Subscription,
)
from broker.message import Redelivery

from .dlq_letter import letter_of
from .errors import ReplayIncomplete

OnProgress = Callable[[int], None]
Identity = tuple[str, str]

_AT_ONCE = 64
_RECEIVED = 256
# Letters that stay are held while the chosen ones are looked for, so that none is met twice. Beyond these
# limits they are put aside: the broker shows them again later, with their attempts as they were.
_MOST_HELD = 50_000
_MOST_HELD_BYTES = 256 * 1024**2
_ASIDE_S = 20.0
# As much again may arrive in one go.
_INTAKE_BYTES = 2 * _MOST_HELD_BYTES
_INTAKE = 1_000_000
# What a replay that was killed still holds comes back when its lease ends; a little later we give up.
_PATIENCE_S = 2.0
# A Kafka partition takes no more in once its finished ranges, with gaps between, fill the commit's metadata.
_MANY_GAPS = 500


@dataclass(frozen=True, slots=True)
class Removed:
    """What became of the chosen letters.

    Attributes:
        done: message ids of those that were taken out, in that order.
        refused: message id to the reason why nothing could be stored for it; these letters stay.
    """

    done: list[str] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Stored:
    """For which letters something was stored, so that they may go.

    Attributes:
        safe: these.
        refused: can never be stored; the letter stays.
        outage: what kept all others from it, if it was not their lease.
    """

    safe: Sequence[Delivery]
    refused: Sequence[tuple[Delivery, BrokerError]] = ()
    outage: BaseException | None = None

    @classmethod
    def of(cls, answers: Iterable[tuple[Delivery, BaseException | object]]) -> Self:
        """Sort out answers: anything but an error means that it is stored."""
        safe: list[Delivery] = []
        refused: list[tuple[Delivery, BrokerError]] = []
        outage: BaseException | None = None
        for delivery, answer in answers:
            if isinstance(answer, InvalidMessage | MessageTooLarge):
                refused.append((delivery, answer))
            elif isinstance(answer, LeaseLost):
                continue  # it comes again, to us or to another
            elif isinstance(answer, BaseException):
                outage = outage or answer
            else:
                safe.append(delivery)
        return cls(safe, refused, outage)


Store = Callable[[Subscription, Sequence[Delivery]], Awaitable[Stored]]


class Removal:
    """Takes letters out: ``store`` first, then ack.

    Args:
        broker: open.
        topic: the dead-letter topic.
        targets: identities of the letters to take out.
        store: keeps for good what a letter must leave behind.
    """

    def __init__(self, broker: Broker, topic: str, targets: AbstractSet[Identity], store: Store) -> None:
        self._broker = broker
        self._topic = topic
        self._targets = targets
        self._store = store
        self._waiting = set(targets)
        self._removed = Removed()
        self._held: list[Delivery] = []
        self._held_bytes = 0

    async def run(self, seen: int, rate: float | None, progress: OnProgress | None) -> Removed:
        """Work until every target is done or refused.

        Args:
            seen: letters in the topic, targets or not, when they were looked for.
            rate: letters a second, at most; None sets no limit.
            progress: called with the number of letters done so far.

        Raises:
            ReplayIncomplete: someone else holds some targets, and has not taken them out.
            BrokerError: an outage; what was done before stays done.
        """
        patience = self._broker.capabilities.lease + _PATIENCE_S
        pace = _Pace(rate)
        passed, most_passed = 0, 3 * seen + _RECEIVED
        async with self._broker.subscribe(
            self._topic, group=OPERATORS, max_in_flight=_INTAKE, max_bytes=_INTAKE_BYTES
        ) as subscription:
            while self._waiting:
                deliveries = await subscription.receive(_RECEIVED, patience)
                wanted = [each for each in deliveries if letter_of(each).identity in self._targets]
                for first in range(0, len(wanted), pace.step):
                    chunk = wanted[first : first + pace.step]
                    await pace.wait(len(chunk))
                    await self._take_out(subscription, chunk)
                    if progress is not None:
                        progress(len(self._removed.done))
                passed = 0 if wanted else passed + len(deliveries)
                self._hold([each for each in deliveries if each not in wanted])
                gaps = not deliveries and len(self._held) > _MANY_GAPS
                if gaps or len(self._held) > _MOST_HELD or self._held_bytes > _MOST_HELD_BYTES:
                    await self._put_aside(subscription)
                elif not deliveries or passed > most_passed:
                    break
        if self._waiting and (left := await self._still_there()):
            raise ReplayIncomplete(self._removed.done, left)
        return self._removed

    async def _still_there(self) -> int:
        """Return how many targets nobody has taken out yet, neither we nor another."""
        letters = self._broker.browse(self._topic, OPERATORS)
        there = {letter_of(each).identity async for each in letters}
        return len(self._waiting & there)

    async def _take_out(self, subscription: Subscription, chunk: Sequence[Delivery]) -> None:
        stored = await self._store(subscription, chunk)
        for delivery, why in stored.refused:
            self._removed.refused[delivery.message.id] = str(why)
            self._waiting.discard(letter_of(delivery).identity)
            self._hold([delivery])
        # Whose ack is too late comes again and is stored again; by its id that makes no difference.
        late: frozenset[str] = frozenset()
        try:
            await subscription.ack(stored.safe)
        except LeaseLost as error:
            late = frozenset(error.ids)
        for each in stored.safe:
            identity = letter_of(each).identity
            if each.message.id not in late and identity in self._waiting:
                self._waiting.discard(identity)
                self._removed.done.append(each.message.id)
        if stored.outage is not None:
            raise stored.outage

    def _hold(self, deliveries: Sequence[Delivery]) -> None:
        self._held += deliveries
        self._held_bytes += sum(len(each.message.data) for each in deliveries)

    async def _put_aside(self, subscription: Subscription) -> None:
        delay = min(_ASIDE_S, self._broker.capabilities.max_delay)
        # What is no longer held is not ours to settle: a rebalance brought, or brings, it again.
        with contextlib.suppress(LeaseLost):
            await subscription.settle(retries=[Redelivery(each, delay, each.attempt) for each in self._held])
        self._held, self._held_bytes = [], 0


class _Pace:
    """Spreads work over time: ``step`` letters at once, no more of them a second than ``rate``."""

    def __init__(self, rate: float | None) -> None:
        self._rate = rate
        self._due = 0.0
        self.step = _AT_ONCE if rate is None else max(1, min(_AT_ONCE, int(rate / 4)))

    async def wait(self, count: int) -> None:
        """Return when ``count`` more may go."""
        if self._rate is not None:
            now = asyncio.get_running_loop().time()
            await asyncio.sleep(max(0.0, self._due - now))
            self._due = max(self._due, now) + count / self._rate
