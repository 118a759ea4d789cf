"""One member of a Kafka consumer group. One thread owns the consumer; everything else asks it.

Every method of the client's ``Consumer`` waits for the one that runs (measured: a ``commit`` beside
``poll(2.0)`` waited the rest of it), so the thread polls briefly and commits between polls. Verdicts are
noted under a lock by whoever gives them and committed here, at the latest a quarter of a second later.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from operator import methodcaller
from typing import TYPE_CHECKING, Any

from ..errors import BrokerError, Closed, DeadlineExceeded, InvalidMessage, LeaseLost
from ..message import Delivery, Redelivery
from .base import Room
from .kafka_assignment import Assignment
from .kafka_commits import Commits
from .kafka_errors import mapped
from .kafka_places import Places
from .kafka_records import Record, copied, deliveries, retried
from .kafka_work import Work

if TYPE_CHECKING:
    from .kafka import KafkaDriver

log = logging.getLogger("broker")

_POLL_S = 0.05
_CALL_S = 10.0
# Without a request for so long, partitions are paused: polling must go on, taking in must not.
_IDLE_S = 0.3
# Retries that wait for their time are held in memory up to here; then their partitions are paused.
_MAX_WAITING = 1000
_ERROR = methodcaller("error")


class KafkaMember:
    """A consumer in its own thread; made by ``KafkaDriver.subscribe``.

    Args:
        driver: the connection, for copies.
        topic: what the application subscribed to.
        group: likewise.
        consumer: configured and not subscribed yet; this object closes it.
    """

    def __init__(self, driver: KafkaDriver, topic: str, group: str, consumer: Any) -> None:
        self.topic = topic
        self.group = group
        self.work = Work()
        self._driver = driver
        self._retries = driver.retry_topic(topic, group)
        self._consumer = consumer
        self._loop = asyncio.get_running_loop()
        self._calls: queue.SimpleQueue[tuple[Callable[[], Any], asyncio.Future[Any] | None]]
        self._calls = queue.SimpleQueue()
        self.commits = Commits(consumer, self.work, f"{topic}/{group}")
        self._places = Places(
            consumer, self.work, topic, self._retries, driver.admin.describe_topics, driver.admin.numbers
        )
        self._assignment = Assignment(consumer, self.work, self._places, self.commits)
        self._reading_ahead = False
        self._failure: BrokerError | None = None
        # Whoever was silent for so long may have been evicted without knowing it yet.
        self._doubt_s = driver.silence / 2
        self._alive = time.monotonic()
        self._last_request = time.monotonic()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name=f"kafka {topic}/{group}", daemon=True)

    def start(self) -> None:
        """Join the group."""
        self._consumer.subscribe(
            [self.topic],
            on_assign=self._assignment.assigned,
            on_revoke=self._assignment.revoked,
            on_lost=self._assignment.lost,
        )
        self._thread.start()

    # What the portable layer calls, on the event loop.

    async def receive(self, limit: Room, timeout: float) -> list[Delivery]:
        found = self._read_ahead(limit)
        if not found:
            deadline = time.monotonic() + timeout
            found = await self._ask(lambda: self._take(limit, deadline))
        if found and not self._reading_ahead:
            # While the application works the owner thread fetches what it will ask for next.
            self._reading_ahead = True
            self._calls.put((lambda: self._fill(limit.messages), None))
        return found

    def _read_ahead(self, limit: Room) -> list[Delivery]:
        """Return what was fetched before it was asked for, unless there is something to be told first."""
        if self._closing or self._failure is not None or self._driver.failure is not None:
            return []
        self._last_request = time.monotonic()
        return deliveries(self.work.hand_over(limit, self._driver.clock.now()), self.topic)

    async def settle(
        self, acks: Sequence[Delivery], releases: Sequence[Delivery], retries: Sequence[Redelivery]
    ) -> list[Delivery]:
        work = self.work
        if time.monotonic() - self._alive > self._doubt_s:
            # The owner thread finds out first whether this is still a member.
            await self._ask(lambda: self._fetch(1, 0.0))
        uncopied = await self._copy([retry for retry in retries if work.holds(retry.delivery.receipt)])
        retries = [retry for retry in retries if retry.delivery.receipt not in uncopied]
        done = [*acks, *(retry.delivery for retry in retries)]
        ended = work.finish([each.receipt for each in done])
        lost = [each for each in done if each.receipt in ended] if ended else []
        return lost + [each for each in releases if not work.give_back(each.receipt)]

    async def _copy(self, retries: Sequence[Redelivery]) -> set[Record]:
        """Store copies for the retries; keep for later, and return, what no copy can be stored of."""
        now = self._driver.clock.now()
        copies = [
            (each.delivery.receipt, retried(each.delivery.receipt, each.attempt, now + each.delay))
            for each in retries
        ]
        uncopied = set()
        for each, answer in zip(retries, await self._driver.copies(self._retries, copies), strict=True):
            record: Record = each.delivery.receipt
            if isinstance(answer, InvalidMessage):
                log.warning("the attempt at %s is not counted: %s", each.delivery.message.id, answer)
                self.work.postpone(record, now + each.delay)
                uncopied.add(record)
            elif isinstance(answer, BrokerError):
                raise answer
        return uncopied

    async def extend(self, deliveries: Sequence[Delivery]) -> list[Delivery]:
        return [each for each in deliveries if not self.work.holds(each.receipt)]

    async def forward(self, delivery: Delivery, topic: str, extra: Mapping[str, str]) -> None:
        record: Record = delivery.receipt
        if not self.work.holds(record):
            raise LeaseLost([delivery.message.id])
        (answer,) = await self._driver.copies(topic, [(record, copied(record, extra))])
        if isinstance(answer, BrokerError):
            raise answer

    async def flush(self) -> None:
        deadline = time.monotonic() + _CALL_S
        while not await self._ask(self.commits.now):
            if time.monotonic() > deadline:
                raise DeadlineExceeded(
                    f"the commit of {self.topic}/{self.group} did not pass in {_CALL_S:g} s"
                )
            await asyncio.sleep(_POLL_S)

    async def aclose(self) -> None:
        self._closing = True
        await asyncio.to_thread(self._thread.join, 3 * _CALL_S)
        self._driver.members.discard(self)

    async def _ask(self, call: Callable[[], Any]) -> Any:
        """Have the owner thread do something between two polls."""
        if self._closing or not self._thread.is_alive():
            raise Closed(f"the consumer of {self.topic}/{self.group} is closed")
        answer: asyncio.Future[Any] = self._loop.create_future()
        self._calls.put((call, answer))
        return await answer

    # What the owner thread does.

    def _run(self) -> None:
        try:
            while not self._closing:
                self._turn()
        finally:
            self._end()

    def _turn(self) -> None:
        try:
            call, answer = self._calls.get(timeout=_POLL_S)
        except queue.Empty:
            call, answer = self._idle, None
        result: Any = None
        error: BrokerError | None = None
        try:
            self._look_around()
            result = call()
        except BaseException as failure:
            error = self._mapped(failure)
            self._reading_ahead = False
        if answer is not None:
            self._answer(answer, result, error)
        elif error is not None:
            log.warning("%s", error)
            self._failure = error

    def _look_around(self) -> None:
        """Before anything else: commit what is due, and see that the ground still holds."""
        if time.monotonic() - self._alive > self._doubt_s:
            self.commits.confirm_membership()
        self._alive = time.monotonic()
        self.commits.when_due()
        self._places.check()
        self._assignment.try_again()

    def _mapped(self, error: BaseException) -> BrokerError:
        from confluent_kafka import KafkaException

        if isinstance(error, BrokerError):
            return error
        if isinstance(error, KafkaException):
            return mapped(error, f"{self.topic}/{self.group}")
        return BrokerError(f"the consumer of {self.topic}/{self.group} failed: {error!r}")

    def _answer(self, answer: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
        def give() -> None:
            if not answer.done():
                if error is None:
                    answer.set_result(result)
                else:
                    answer.set_exception(error)
            elif isinstance(result, list):
                # Whoever asked is gone.
                for each in result:
                    self.work.give_back(each.receipt)

        # The event loop may have ended; what was on its way is then never settled and comes again.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(give)

    def _take(self, limit: Room, deadline: float) -> list[Delivery]:
        """Return what there is room for, as soon as anything is there."""
        self._last_request = time.monotonic()
        self._resume()
        while True:
            self._fail()
            ready = self.work.ready(self._driver.clock.now())
            if ready < limit.messages:
                # What came in while nobody asked is no reason for a small batch.
                patience = 0.0 if ready else max(0.0, min(_POLL_S, deadline - time.monotonic()))
                self._fetch(limit.messages - ready, patience)
            found = self.work.hand_over(limit, self._driver.clock.now())
            if ready and not found:
                # There is no room for its bytes: nothing more is taken in, and polling goes on.
                self._assignment.pause(set(self.work.partitions))
                self._fetch(1, max(0.0, min(_POLL_S, deadline - time.monotonic())))
            self.commits.when_due()
            self._last_request = time.monotonic()
            if found or self._last_request >= deadline or self._closing:
                return deliveries(found, self.topic)

    def _fill(self, count: int) -> None:
        """Have as many records at hand as were asked for last."""
        self._reading_ahead = False
        self._resume()
        if self.work.at_hand < count:
            self._fetch(count - self.work.at_hand, 0.0)

    def _fetch(self, count: int, timeout: float) -> None:
        """Poll once, then take what the client has fetched already."""
        first = self._consumer.poll(timeout)
        if first is None:
            return
        rest = self._consumer.consume(count - 1, 0) if count > 1 else []
        natives, now = (first, *rest), self._driver.clock.now()
        if not any(map(_ERROR, natives)):
            self.work.take_in(natives, now)
            return
        # One by one: what comes before an error belongs to the epoch that it may end.
        for native in natives:
            if native.error() is None:
                self.work.take_in([native], now)
            elif native.error().name() == "_AUTO_OFFSET_RESET":
                self._places.out_of_range((native.topic(), native.partition()))
            else:
                self._note(native.error())

    def _note(self, error: Any) -> None:
        """Keep what the application must know; the client recovers from the rest by itself."""
        problem = mapped(error, f"receiving from {self.topic}")
        if error.name() == "_MAX_POLL_EXCEEDED" or (problem.retryable and not error.fatal()):
            log.warning("%s", problem)
            return
        self._failure = problem

    def _fail(self) -> None:
        failure = self._failure or self._driver.failure
        # It is told once: what lasts is reported again, and what passed must not be in the way.
        self._failure = self._driver.failure = None
        if failure is not None:
            raise failure

    def _idle(self) -> None:
        """Keep the membership alive while nobody asks for messages."""
        if time.monotonic() - self._last_request > _IDLE_S:
            self._assignment.pause(set(self.work.partitions))
        # Paused partitions bring nothing; one record may still be on its way, and waits here.
        self._fetch(1, 0.0)

    def _resume(self) -> None:
        """Take in again, except from partitions that are full."""
        full = self.work.full()
        if len(self.work.waiting) >= _MAX_WAITING:
            full |= {key for key in tuple(self.work.partitions) if key[0] == self._retries}
        self._assignment.resume(but=full)

    def _end(self) -> None:
        with contextlib.suppress(Exception):
            for _ in range(20):
                if self.commits.now():
                    break
        # `close` runs the revoke callback, which commits, and leaves the group.
        with contextlib.suppress(Exception):
            self._consumer.close()
        with contextlib.suppress(queue.Empty):
            while True:
                _, answer = self._calls.get_nowait()
                if answer is not None:
                    self._answer(answer, None, Closed(f"the consumer of {self.topic}/{self.group} is closed"))
