"""One member of a Kafka consumer group. One thread owns the consumer; everything else asks it.

Every method of the client's ``Consumer`` waits for the one that runs (measured: a ``commit`` beside
``poll(2.0)`` waited the rest of it), so the thread polls briefly and commits between polls. Verdicts are
noted under a lock by whoever gives them and committed here, at the latest ``_COMMIT_S`` later.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..errors import BrokerError, Closed, DeadlineExceeded, LeaseLost
from ..message import Delivery, Redelivery
from .base import Room
from .kafka_records import Record, copied, delivery, mapped, retried
from .kafka_work import Key, Work
from .offsets import Partition, Progress

if TYPE_CHECKING:
    from .kafka import KafkaDriver

log = logging.getLogger("broker")

_POLL_S = 0.05
_COMMIT_S = 0.25
_CALL_S = 10.0
# Without a request for so long, partitions are paused: polling must go on, taking in must not.
_IDLE_S = 0.3
# Retries that wait for their time are held in memory up to here; then their partitions are paused.
_MAX_WAITING = 1000


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
        self._calls: queue.SimpleQueue[tuple[Callable[[], Any], asyncio.Future[Any]]] = queue.SimpleQueue()
        self._paused: set[Key] = set()
        self._failure: BrokerError | None = None
        self._next_commit = 0.0
        self._last_request = time.monotonic()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name=f"kafka {topic}/{group}", daemon=True)

    def start(self) -> None:
        """Join the group."""
        self._consumer.subscribe(
            [self.topic, self._retries],
            on_assign=self._assigned, on_revoke=self._revoked, on_lost=self._lost,
        )  # fmt: skip
        self._thread.start()

    # What the portable layer calls, on the event loop.

    async def receive(self, limit: Room, timeout: float) -> list[Delivery]:
        deadline = time.monotonic() + timeout
        found: list[Delivery] = await self._ask(lambda: self._take(limit, deadline))
        return found

    async def settle(
        self, acks: Sequence[Delivery], releases: Sequence[Delivery], retries: Sequence[Redelivery]
    ) -> list[Delivery]:
        work = self.work
        kept = [retry for retry in retries if work.holds(retry.delivery.receipt)]
        if kept:
            now = self._driver.clock.now()
            copies = [
                (each.delivery.receipt, retried(each.delivery.receipt, each.attempt, now + each.delay))
                for each in kept
            ]
            await self._driver.copy(self._retries, copies)
        done = [*acks, *(retry.delivery for retry in retries)]
        lost = [each for each in done if not work.finish(each.receipt)]
        return lost + [each for each in releases if not work.give_back(each.receipt)]

    async def extend(self, deliveries: Sequence[Delivery]) -> list[Delivery]:
        return [each for each in deliveries if not self.work.holds(each.receipt)]

    async def forward(self, delivery: Delivery, topic: str, extra: Mapping[str, str]) -> None:
        record: Record = delivery.receipt
        if not self.work.holds(record):
            raise LeaseLost([delivery.message.id])
        await self._driver.copy(topic, [(record, copied(record, extra))])

    async def flush(self) -> None:
        deadline = time.monotonic() + _CALL_S
        while not await self._ask(lambda: self._commit(now=True)):
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
            self._idle()
            call, answer = None, None
        if call is not None and answer is not None:
            try:
                result, error = call(), None
            except BaseException as failure:
                result, error = None, failure
            self._answer(answer, result, error)
        self._commit()

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
            found = self.work.hand_over(limit, self._driver.clock.now())
            if not found:
                self._fetch(limit.messages, max(0.0, min(_POLL_S, deadline - time.monotonic())))
                found = self.work.hand_over(limit, self._driver.clock.now())
            self._commit()
            self._last_request = time.monotonic()
            if found or self._last_request >= deadline or self._closing:
                return [delivery(record, self.topic) for record in found]

    def _fetch(self, count: int, timeout: float) -> None:
        """Poll once, then take what the client has fetched already."""
        first = self._consumer.poll(timeout)
        if first is None:
            return
        rest = self._consumer.consume(count - 1, 0) if count > 1 else []
        now = self._driver.clock.now()
        for native in (first, *rest):
            if native.error() is None:
                self.work.take_in(native, now)
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
        failure, self._failure = self._failure or self._driver.failure, None
        if failure is not None:
            raise failure

    def _idle(self) -> None:
        """Keep the membership alive while nobody asks for messages."""
        if time.monotonic() - self._last_request > _IDLE_S:
            self._pause(set(self.work.partitions))
        # Paused partitions bring nothing; one record may still be on its way, and waits here.
        self._fetch(1, 0.0)

    def _resume(self) -> None:
        """Take in again, except from partitions that are full."""
        assigned, full = set(self.work.partitions), self.work.full()
        if len(self.work.waiting) >= _MAX_WAITING:
            full |= {key for key in assigned if key[0] == self._retries}
        free = (self._paused & assigned) - full
        if free:
            self._consumer.resume([self._place(key) for key in free])
            self._paused -= free
        self._pause(full)

    def _pause(self, keys: set[Key]) -> None:
        fresh = keys - self._paused
        if fresh:
            self._consumer.pause([self._place(key) for key in fresh])
            self._paused |= fresh

    def _commit(self, now: bool = False) -> bool:
        """Commit finished prefixes when it is time; return whether nothing is left to commit."""
        if not now and time.monotonic() < self._next_commit:
            return True
        self._next_commit = time.monotonic() + _COMMIT_S
        return self._send_commit(self.work.uncommitted(), now)

    def _send_commit(self, news: dict[Key, tuple[Partition, Progress]], wait: bool) -> bool:
        from confluent_kafka import KafkaException

        if not news:
            return True
        offsets = [self._place(key, each.position, each.metadata()) for key, (_, each) in news.items()]
        try:
            self._consumer.commit(offsets=offsets, asynchronous=not wait)
        except KafkaException as error:
            # A rebalance, or the coordinator is away: it is tried again, or the partition goes.
            log.info("the commit of %s/%s waits: %s", self.topic, self.group, error)
            return False
        with self.work.lock:
            for partition, progress in news.values():
                partition.committed(progress)
        return True

    def commit_result(self, error: Any, places: list[Any]) -> None:
        """Called by the client after an asynchronous commit; what failed is tried again."""
        with self.work.lock:
            for place in places:
                partition = self.work.partitions.get((place.topic, place.partition))
                if partition is not None and (error is not None or place.error is not None):
                    partition.committed(None)

    def _assigned(self, consumer: Any, places: list[Any]) -> None:
        begins = self._begins(consumer, places)
        for place, begin in zip(places, begins, strict=True):
            self.work.assign((place.topic, place.partition), begin)
            place.offset = begin.position
        consumer.incremental_assign(places)
        self._paused -= {(place.topic, place.partition) for place in places}

    def _begins(self, consumer: Any, places: list[Any]) -> list[Progress]:
        """Return what was committed; a partition that is new to the group is read from its beginning."""
        from confluent_kafka import OFFSET_BEGINNING, KafkaException

        deadline = time.monotonic() + 3 * _CALL_S
        while True:
            try:
                found = consumer.committed(places, timeout=_CALL_S)
                break
            except KafkaException as error:
                if time.monotonic() > deadline:
                    raise
                log.warning("asking where %s/%s stands failed: %s", self.topic, self.group, error)
        return [
            Progress.parse(each.offset, each.metadata) if each.offset >= 0 else Progress(OFFSET_BEGINNING, 0)
            for each in found
        ]

    def _revoked(self, _: Any, places: list[Any]) -> None:
        """Commit what is finished before another member gets the partitions."""
        keys = {(place.topic, place.partition) for place in places}
        gone = self.work.unassign(keys)
        news = {key: (each, new) for key, each in gone.items() if (new := each.uncommitted()) is not None}
        self._send_commit(news, wait=True)
        self._paused -= keys

    def _lost(self, _: Any, places: list[Any]) -> None:
        """Drop partitions that belong to another member already."""
        keys = {(place.topic, place.partition) for place in places}
        self.work.unassign(keys)
        self._paused -= keys
        log.warning("%d partition(s) of %s/%s were taken over by others", len(places), self.topic, self.group)

    def _end(self) -> None:
        with contextlib.suppress(Exception):
            for _ in range(20):
                if self._commit(now=True):
                    break
        # `close` runs the revoke callback, which commits, and leaves the group.
        with contextlib.suppress(Exception):
            self._consumer.close()
        with contextlib.suppress(queue.Empty):
            while True:
                _, answer = self._calls.get_nowait()
                self._answer(answer, None, Closed(f"the consumer of {self.topic}/{self.group} is closed"))

    @staticmethod
    def _place(key: Key, offset: int | None = None, metadata: str | None = None) -> Any:
        from confluent_kafka import TopicPartition

        if offset is None:
            return TopicPartition(*key)
        return TopicPartition(*key, offset, metadata)
