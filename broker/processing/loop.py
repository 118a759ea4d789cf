"""The processing loop: receive, batch, handle, settle; the only place where a message's fate is settled."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from ..claims import lost_claim
from ..errors import BrokerError, DeadlineExceeded, InvalidMessage, LeaseLost, Unavailable
from ..limits import MAX_IN_FLIGHT
from ..logs import log
from ..message import Delivery, Redelivery
from ..subscription import Subscription
from .batcher import Batcher, Batching
from .dead_letter import EXHAUSTED, OPERATORS, dead_letter_topic, letter_attributes
from .outcomes import Done, Outcome, Reject, Retry, RetryPolicy, describe

if TYPE_CHECKING:
    from ..connect import Broker

T = TypeVar("T")
Verdict = tuple[Delivery, Outcome]
Outage = type[BrokerError] | tuple[type[BrokerError], ...]
Handler = Callable[[Sequence[Delivery]], Awaitable[Sequence[Outcome]]]

# An outage is waited out for as long as it lasts; no attempt is counted.
_OUTAGE = RetryPolicy(attempts=1, base=0.1, cap=5.0)
_AWAY = (Unavailable, DeadlineExceeded)
# Reason and stage of a dead letter whose large body is gone for good.
CLAIM_LOST, CLAIM_CHECK = "claim-lost", "claim-check"


@dataclass(slots=True)
class Totals:
    """What became of the messages that ``process`` received.

    Attributes:
        done: acked.
        retried: failures recorded; the message comes again.
        dead_lettered: stored in the dead-letter topic and acked.
        dropped: rejected or exhausted with ``dead_letter=False``, logged and acked.
        lost_leases: settled too late; another member has them.
        batches: handler calls that succeeded or were blamed on one message.
    """

    done: int = 0
    retried: int = 0
    dead_lettered: int = 0
    dropped: int = 0
    lost_leases: int = 0
    batches: int = 0


class Processor:
    """One member of a group that runs a handler; made by ``Broker.process``."""

    def __init__(
        self, broker: Broker, topic: str, group: str, handler: Handler, batching: Batching, retry: RetryPolicy
    ) -> None:
        self._broker = broker
        self._topic = topic
        self._group = group
        self._handler = handler
        self._batching = batching
        self._retry = retry
        self._batcher = Batcher(batching)
        self._letters: str | None = None
        self._intake: asyncio.Task[list[Delivery]] | None = None
        self._running: set[asyncio.Task[None]] = set()
        self._outages = 0
        self._totals = Totals()

    async def run(self, dead_letter: bool, stop: asyncio.Event, drain_timeout: float) -> Totals:
        """Process until ``stop`` is set and everything held is finished.

        Raises:
            DeadlineExceeded: the drain took longer than ``drain_timeout`` seconds.
        """
        # As many retries may wait for their backoff; small batches must not stall on a few of them.
        held = max(MAX_IN_FLIGHT, self._batching.max_messages * (2 * self._batching.concurrency + 1))
        async with self._broker.subscribe(self._topic, group=self._group, max_in_flight=held) as subscription:
            if dead_letter:
                self._letters = dead_letter_topic(self._topic, self._group)
                await self._broker.ensure(self._letters, OPERATORS)
            stopped = asyncio.create_task(stop.wait())
            try:
                await self._take_and_start(subscription, stopped)
                await self._finish(subscription, drain_timeout)
                await subscription.flush()
            finally:
                tasks = [task for task in (stopped, self._intake, *self._running) if task is not None]
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
        return self._totals

    async def _take_and_start(self, subscription: Subscription, stopped: asyncio.Task[bool]) -> None:
        """Take deliveries in and start batches until ``stopped`` is done."""
        clock = asyncio.get_running_loop().time
        while not stopped.done():
            self._start_batches(subscription, clock())
            # One batch waits and no more: what is held here, an idle member elsewhere cannot have.
            room = self._batching.max_messages - len(self._batcher)
            if self._intake is None and not self._outages and room > 0:
                self._intake = asyncio.create_task(self._receive(subscription, room))
            await self._wait(stopped, *([self._intake] if self._intake else []))
            if self._intake is not None and self._intake.done():
                intake, self._intake = self._intake, None
                self._batcher.add(clock(), intake.result())

    async def _finish(self, subscription: Subscription, timeout: float) -> None:
        """Stop taking in and finish what is held."""
        if self._intake is not None:
            self._intake.cancel()
            await asyncio.wait({self._intake})
            if not self._intake.cancelled() and self._intake.exception() is None:
                self._batcher.add(asyncio.get_running_loop().time(), self._intake.result())
        try:
            async with asyncio.timeout(timeout):
                while self._batcher or self._running:
                    self._start_batches(subscription, asyncio.get_running_loop().time())
                    await self._wait()
        except TimeoutError:
            raise DeadlineExceeded(
                f"the drain of {self._topic!r} did not end within {timeout:g} s; {subscription.in_flight}"
                " unfinished message(s) were handed back and come again"
            ) from None

    async def _wait(self, *others: asyncio.Task[Any]) -> None:
        """Return when a batch or one of ``others`` ends, or when a waiting batch has waited enough."""
        loop = asyncio.get_running_loop()
        wake_at = self._batcher.wake_at(len(self._running))
        timeout = None if wake_at is None else max(0.0, wake_at - loop.time())
        waiting = {*self._running, *others}
        if waiting:
            await asyncio.wait(waiting, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        for task in [task for task in self._running if task.done()]:
            self._running.discard(task)
            task.result()

    async def _receive(self, subscription: Subscription, room: int) -> list[Delivery]:
        """Receive once; a failing broker is waited out."""
        failures = 0
        while True:
            try:
                return await subscription.receive(max_messages=room, timeout=1.0)
            except BrokerError as error:
                if not error.retryable:
                    raise
                failures += 1
                log.warning("receiving from %s failed: %s; trying again", self._topic, error)
                await asyncio.sleep(_OUTAGE.delay(failures))

    def _start_batches(self, subscription: Subscription, now: float) -> None:
        while batch := self._batcher.take(now, len(self._running)):
            self._running.add(asyncio.create_task(self._run_batch(subscription, batch)))

    async def _run_batch(self, subscription: Subscription, batch: list[Delivery]) -> None:
        lost = {each: why for each in batch if (why := lost_claim(each.message))}
        verdicts: list[Verdict] = [(each, Reject(CLAIM_LOST, why, CLAIM_CHECK)) for each, why in lost.items()]
        if good := [each for each in batch if each not in lost]:
            verdicts += await self._handle(good)
        self._totals.batches += 1
        await self._settle(subscription, verdicts)

    async def _handle(self, batch: list[Delivery]) -> list[Verdict]:
        """Call the handler; bisect a batch that raises, so that only the raiser is blamed."""
        try:
            outcomes = await self._outlast(Unavailable, lambda: self._handler(batch))
            _check(batch, outcomes)
            return list(zip(batch, outcomes, strict=True))
        except (Exception, asyncio.CancelledError) as error:
            task = asyncio.current_task()
            if isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling():
                raise
            if len(batch) == 1:
                log.warning("message %s failed: %s", batch[0].message.id, describe(error))
                return [(batch[0], Retry(error))]
        middle = len(batch) // 2
        return await self._handle(batch[:middle]) + await self._handle(batch[middle:])

    async def _settle(self, subscription: Subscription, verdicts: list[Verdict]) -> None:
        acks: list[Delivery] = []
        retries: list[Redelivery] = []
        letters: list[tuple[Delivery, str, str, str]] = []
        for delivery, outcome in verdicts:
            if isinstance(outcome, Done):
                acks.append(delivery)
            elif isinstance(outcome, Reject):
                detail = describe(outcome.error) or outcome.reason
                letters.append((delivery, outcome.reason, outcome.stage, detail))
            elif self._retry.exhausted(delivery.attempt):
                letters.append((delivery, EXHAUSTED, outcome.stage, describe(outcome.error)))
            else:
                delay = min(self._retry.delay(delivery.attempt), self._broker.capabilities.max_delay)
                retries.append(Redelivery(delivery, delay, delivery.attempt + 1))
        # `x += await …` reads x before it waits, and would forget what other batches count meanwhile.
        done = await self._persist(subscription, acks, [])
        self._totals.done += done
        retried = await self._persist(subscription, [], retries)
        self._totals.retried += retried
        buried = [letter[0] for letter in letters if await self._bury(subscription, *letter)]
        count = await self._persist(subscription, buried, [])
        if self._letters is None:
            self._totals.dropped += count
        else:
            self._totals.dead_lettered += count

    async def _persist(
        self, subscription: Subscription, acks: list[Delivery], retries: list[Redelivery]
    ) -> int:
        """Settle, however long the broker is away; return how many verdicts held."""
        try:
            if acks or retries:
                await self._outlast(_AWAY, lambda: subscription.settle(acks=acks, retries=retries))
        except LeaseLost as error:
            log.warning("settled too late: %s", error)
            self._totals.lost_leases += len(error.ids)
            return len(acks) + len(retries) - len(error.ids)
        return len(acks) + len(retries)

    async def _bury(
        self, subscription: Subscription, delivery: Delivery, reason: str, stage: str, error: str
    ) -> bool:
        """Store a dead letter, however long that takes; return whether the delivery may be acked."""
        message_id = delivery.message.id
        log.warning("message %s is dead (attempt %d): %s: %s", message_id, delivery.attempt, reason, error)
        if self._letters is None:
            return True
        letters, extra = self._letters, letter_attributes(delivery, reason, stage, error)
        try:
            await self._outlast(BrokerError, lambda: subscription.forward(delivery, letters, extra))
        except LeaseLost:
            self._totals.lost_leases += 1
            return False
        except InvalidMessage as refused:
            # A letter that can never be stored must not hold up the others, nor be lost.
            log.error("no dead letter of message %s can be stored, it stays: %s", message_id, refused)
            delay = min(self._retry.cap, self._broker.capabilities.max_delay)
            await self._persist(subscription, [], [Redelivery(delivery, delay, delivery.attempt)])
            return False
        return True

    async def _outlast(self, outage: Outage, call: Callable[[], Awaitable[T]]) -> T:
        """Repeat ``call`` until it raises no ``outage``; meanwhile nothing more is taken in."""
        failures = 0
        while True:
            try:
                return await call()
            except (LeaseLost, InvalidMessage):
                raise
            except outage as error:
                failures += 1
                log.warning("outage, blaming no message (try %d): %s", failures, error)
            self._outages += 1
            try:
                await asyncio.sleep(_OUTAGE.delay(failures))
            finally:
                self._outages -= 1


def _check(batch: Sequence[Delivery], outcomes: Sequence[Outcome]) -> None:
    if len(outcomes) != len(batch):
        raise TypeError(f"the handler returned {len(outcomes)} outcome(s) for {len(batch)} deliveries")
    for outcome in outcomes:
        if not isinstance(outcome, Done | Retry | Reject):
            raise TypeError(f"the handler returned {outcome!r}, which is no outcome")
