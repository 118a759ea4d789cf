"""Answers from a result topic, on any backend.

A topic tells everyone everything, more than once if need be. So each client has a private group there, from
before its first image on, and a ``Collector`` keeps what the client wants of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self
from uuid import UUID

from broker import (
    Broker,
    BrokerError,
    Closed,
    DeadlineExceeded,
    LeaseLost,
    NotFound,
    RetryPolicy,
    Subscription,
)
from broker.message import utc_now, uuid7

from .errors import ResultsTimeout
from .schema import MESSAGE_ID, RESULTS_KEPT_S, ClassifyResult

log = logging.getLogger("client")

PREFIX = "answers-"
_OUTAGE = RetryPolicy(base=0.1, cap=5.0)
# Ids, and answers, that nobody has asked for yet; then answers that were asked for, in case they are again.
_UNASKED = 100_000
_ASKED = 10_000
_BATCH = 256
# A group that is older, with something unsettled that is so old, has lost its client.
_OLD_S = 86_400.0
_IDLE_S = 3600.0


@dataclass(slots=True, eq=False)
class Waiter:
    """Someone who waits.

    Attributes:
        missing: ids without an answer yet.
        found: id to answer.
        complete: called once nothing is missing any more.
    """

    missing: set[str]
    found: dict[str, ClassifyResult]
    complete: Callable[[], object]


class Collector:
    """Decides which answers are kept: the first to each id that was submitted or is waited for.

    No clock, no task, no broker. Memory is bounded by what callers wait for and by the limits.

    Args:
        unasked: most ids without an answer, and most answers, that nobody has asked for; the oldest go.
        asked: most answers that are kept after they were handed out.
    """

    def __init__(self, unasked: int = _UNASKED, asked: int = _ASKED) -> None:
        self._unasked = unasked
        self._asked = asked
        self._expected: dict[str, None] = {}
        self._answers: dict[str, ClassifyResult] = {}
        self._given: dict[str, ClassifyResult] = {}
        self._waiters: dict[str, list[Waiter]] = {}

    def expect(self, ids: Iterable[str]) -> None:
        """Keep the answers to these messages."""
        for each in ids:
            if each not in self._answers and each not in self._given:
                self._expected[each] = None
        self._trim(self._expected, self._unasked)

    def forget(self, ids: Iterable[str]) -> None:
        """Expect no answer to these any more."""
        for each in ids:
            self._expected.pop(each, None)

    def wants(self, message_id: str | None) -> bool:
        """Return whether the answer to a message would be kept."""
        return message_id in self._expected or message_id in self._waiters

    def add(self, answer: ClassifyResult) -> bool:
        """Take an answer in; return False if nobody wants it, or it has come before."""
        message_id = answer.message_id
        if not self.wants(message_id):
            return False
        self._expected.pop(message_id, None)
        self._answers[message_id] = answer
        self._trim(self._answers, self._unasked)
        for waiter in self._waiters.pop(message_id, ()):
            waiter.missing.discard(message_id)
            waiter.found[message_id] = answer
            if not waiter.missing:
                waiter.complete()
        return True

    def wait(self, ids: Iterable[str], complete: Callable[[], object]) -> Waiter:
        """Note someone who waits for these answers, with those that are there already; ``leave`` ends it."""
        found: dict[str, ClassifyResult] = {}
        missing: set[str] = set()
        for each in ids:
            answer = self._answers.get(each) or self._given.get(each)
            if answer is None:
                missing.add(each)
            else:
                found[each] = answer
        waiter = Waiter(missing, found, complete)
        for each in missing:
            self._waiters.setdefault(each, []).append(waiter)
        return waiter

    def leave(self, waiter: Waiter) -> None:
        """Forget someone who waited. What was missing is still expected, for whoever asks again."""
        for each in waiter.missing:
            others = self._waiters[each]
            others.remove(waiter)
            if not others:
                del self._waiters[each]
        self.expect(waiter.missing)
        if not waiter.missing:
            for message_id, answer in waiter.found.items():
                self._answers.pop(message_id, None)
                self._given[message_id] = answer
            self._trim(self._given, self._asked)

    @staticmethod
    def _trim(kept: dict[str, Any], limit: int) -> None:
        while len(kept) > limit:
            del kept[next(iter(kept))]


class Answers:
    """A private group on a result topic, and what it collects. Open it with ``async with``.

    Leaving removes the group. That of a client that was killed is removed, a day later at the earliest, by
    the next client that opens the topic.

    Args:
        broker: open.
        topic: made if it is missing, to keep a week of answers.
    """

    def __init__(self, broker: Broker, topic: str) -> None:
        self.group = f"{PREFIX}{uuid7()}"
        self.collector = Collector()
        self._broker = broker
        self._topic = topic
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        await self._ensure()
        self._tasks = [asyncio.create_task(self._collect()), asyncio.create_task(self._remove_abandoned())]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        try:
            await self._broker.remove_group(self._topic, self.group)
        except BrokerError as problem:
            log.warning("group %s of %s is left behind: %s", self.group, self._topic, problem)

    async def results(self, ids: Sequence[str], timeout: float) -> list[ClassifyResult]:
        """Return the answers to these messages, in order, as soon as all are there.

        Args:
            ids: of messages whose answers may be on their way; what came before the client was opened is
                not seen.
            timeout: seconds.

        Raises:
            ResultsTimeout: some are still missing.
            BrokerError: the broker cannot be used; an outage is borne until the timeout.
        """
        complete = asyncio.Event()
        waiter = self.collector.wait(ids, complete.set)
        try:
            if waiter.missing:
                await self._wait(complete, timeout)
            if waiter.missing:
                raise ResultsTimeout(sorted(waiter.missing), timeout)
            return [waiter.found[each] for each in ids]
        finally:
            self.collector.leave(waiter)

    async def _wait(self, complete: asyncio.Event, timeout: float) -> None:
        collecting, waiting = self._tasks[0], asyncio.create_task(complete.wait())
        try:
            await asyncio.wait({collecting, waiting}, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        finally:
            waiting.cancel()
        if complete.is_set():
            return
        if collecting.cancelled():
            raise Closed(f"the client stopped collecting from {self._topic!r}: it was closed")
        if collecting.done():
            collecting.result()

    async def _ensure(self) -> None:
        is_there = any(each.name == self._topic for each in await self._broker.topics())
        kept = None if is_there or not self._broker.capabilities.retention else RESULTS_KEPT_S
        await self._broker.ensure(self._topic, self.group, partitions=1, start="latest", retention=kept)

    async def _collect(self) -> None:
        """Receive for as long as the client is open, through outages and the loss of the group."""
        failures = 0
        while True:
            try:
                async with self._broker.subscribe(self._topic, group=self.group) as subscription:
                    while True:
                        await self._take(subscription)
                        failures = 0
            except NotFound as error:
                log.warning("%s; made again, and what came meanwhile is missed", error)
                await self._outlast(self._ensure)
            except BrokerError as error:
                if not error.retryable:
                    raise
                log.warning("receiving from %s failed: %s; trying again", self._topic, error)
            failures += 1
            await asyncio.sleep(_OUTAGE.delay(failures))

    async def _take(self, subscription: Subscription) -> None:
        deliveries = await subscription.receive(_BATCH, timeout=1.0)
        for delivery in deliveries:
            message = delivery.message
            # Most are for others: a look at one attribute spares reading them.
            if self.collector.wants(message.attributes.get(MESSAGE_ID)):
                answer = ClassifyResult.from_message(message)
                if answer is None:
                    log.warning("message %s on %s is no result", message.id, self._topic)
                else:
                    self.collector.add(answer)
        with contextlib.suppress(LeaseLost):
            await subscription.ack(deliveries)

    async def _outlast(self, call: Callable[[], Any]) -> None:
        """Repeat ``call`` through outages."""
        failures = 0
        while True:
            try:
                await call()
                return
            except BrokerError as error:
                if not error.retryable:
                    raise
                failures += 1
                log.warning("%s; trying again", error)
                await asyncio.sleep(_OUTAGE.delay(failures))

    async def _remove_abandoned(self) -> None:
        """Remove the groups of clients that were killed; a failure leaves them to the next client."""
        try:
            for topic in await self._broker.topics():
                if topic.name == self._topic:
                    for group in filter(_is_old, topic.groups):
                        if await self._is_idle(group):
                            await self._broker.remove_group(self._topic, group)
                            log.warning("removed group %s of %s: its client is gone", group, self._topic)
        except BrokerError as error:
            log.debug("looking for groups whose clients are gone: %s", error)

    async def _is_idle(self, group: str) -> bool:
        """Whether what a group has not settled is too old for a client that settles at once."""
        try:
            unsettled: Any = self._broker.browse(self._topic, group)
            async with contextlib.aclosing(unsettled):
                async for delivery in unsettled:
                    return bool((utc_now() - delivery.message.time).total_seconds() > _IDLE_S)
        except NotFound:
            return True  # the broker has forgotten the group, and what is left of it serves nobody
        except DeadlineExceeded:
            pass  # a look at a busy topic may find no end: that says nothing about the client
        return False


def _is_old(group: str) -> bool:
    """Whether a group is a client's, and so old that the client may be gone; its name says when it began."""
    if not group.startswith(PREFIX):
        return False
    try:
        began_ms = UUID(group.removeprefix(PREFIX)).int >> 80
    except ValueError:
        return False
    return utc_now().timestamp() - began_ms / 1000 > _OLD_S
