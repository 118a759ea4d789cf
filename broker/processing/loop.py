"""The processing loop: receive, batch, handle, settle.

The way of one message::

    receive          Processor._receive       a task; no more than one batch waits
    batch            Batcher.take             when to start, and with what
    handle           Work.run, handle         the handler; what raises is bisected
    judge, decide    Breaker.judge, decide    whose fault it is, and what follows
    settle           Settler.settle           the only place: ack, retry, or dead letter and then ack

What decides (``Batcher``, ``Breaker``, ``decide``, ``Lifecycle``) has no clock and no I/O. The tasks are
owned here: one that receives, and one for each batch; all have ended when ``run`` ends.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from functools import partial
from typing import TYPE_CHECKING, Any

from ..errors import DeadlineExceeded
from ..limits import MAX_IN_FLIGHT
from ..message import Delivery
from ..subscription import Subscription
from .batcher import Batcher, Batching
from .dead_letter import OPERATORS, dead_letter_topic
from .handling import Handler
from .lifecycle import Lifecycle
from .outages import Outages, of_broker
from .outcomes import RetryPolicy
from .settler import DeadLetters, Settler
from .watch import Totals, Watch
from .work import Work

if TYPE_CHECKING:
    from ..connect import Broker

# Longest time between two turns, seconds: who looks at ``Watch.beat`` sees that the loop lives.
_TURN_S = 0.5


class Processor:
    """One member of a group that runs a handler; ``Broker.process`` makes one and runs it, once.

    Args:
        broker: open.
        topic: ensured before.
        group: ensured before.
        handler: ``async def handler(deliveries) -> outcomes``.
        batch: size, wait and cost of a batch.
        retry: how often and how soon a failed message comes again.

    Attributes:
        watch: what it is doing.
    """

    def __init__(
        self,
        broker: Broker,
        topic: str,
        group: str,
        handler: Handler,
        batch: Batching | None = None,
        retry: RetryPolicy | None = None,
    ) -> None:
        self.watch = Watch()
        self._broker = broker
        self._topic = topic
        self._group = group
        self._handler = handler
        self._batching = batch or Batching()
        self._retry = retry or RetryPolicy()
        self._intake: asyncio.Task[list[Delivery]] | None = None
        self._running: dict[asyncio.Task[None], None] = {}

    async def run(
        self, dead_letter: bool = True, stop: asyncio.Event | None = None, drain_timeout: float = 25.0
    ) -> Totals:
        """Process until ``stop`` is set and everything held is finished.

        Args:
            dead_letter: as for ``Broker.process``, as are the others.
            stop: set it to drain.
            drain_timeout: seconds that a drain may take.

        Raises:
            DeadlineExceeded: the drain took longer; the rest was handed back.
        """
        batching = self._batching
        subscription = self._broker.subscribe(
            self._topic,
            group=self._group,
            # As many retries may wait for their backoff; small batches must not stall on a few of them.
            max_in_flight=max(MAX_IN_FLIGHT, batching.max_messages * (2 * batching.concurrency + 1)),
            max_bytes=batching.max_bytes * (batching.concurrency + 1),
        )
        try:
            async with subscription:
                letters = await self._make_letters() if dead_letter else None
                settler = Settler(subscription, Outages(self.watch), self.watch, letters)
                capabilities = self._broker.capabilities
                work = Work(subscription, settler, self._handler, self._retry, capabilities, self.watch)
                stopped = asyncio.create_task((stop or asyncio.Event()).wait())
                try:
                    await self._turns(subscription, work, stopped, Lifecycle(drain_timeout))
                    await subscription.flush()
                finally:
                    tasks = [task for task in (stopped, self._intake, *self._running) if task is not None]
                    for task in tasks:
                        task.cancel()
                    await asyncio.gather(*tasks, return_exceptions=True)
        finally:
            self.watch.state = "stopped"
            self.watch.held.clear()
        return self.watch.totals

    async def _make_letters(self) -> DeadLetters:
        topic = dead_letter_topic(self._topic, self._group)
        make = partial(self._broker.ensure, topic, OPERATORS)
        await make()
        return DeadLetters(topic, make, min(self._retry.cap, self._broker.capabilities.max_delay))

    async def _turns(
        self, subscription: Subscription, work: Work, stopped: asyncio.Task[bool], life: Lifecycle
    ) -> None:
        """Take in and start batches until asked to end; then finish what is held."""
        batcher = Batcher(self._batching, work.estimator)
        while True:
            now = _now()
            if stopped.done() and not life.draining:
                life.stop(now)
                if self._intake is not None:
                    self._intake.cancel()
            self._reap(batcher, now)
            self._start_batches(batcher, work, now)
            self._show(work, life)
            end = life.end(now, len(batcher) + len(self._running) + (self._intake is not None))
            if end == "finished":
                return
            if end == "too late":
                raise DeadlineExceeded(
                    f"the drain of {self._topic!r} did not end in time; {subscription.in_flight}"
                    " unfinished message(s) were handed back and come again"
                )
            if life.may_take_in(work.outages.count):
                self._start_intake(subscription, batcher, work, now)
            wakes = (
                batcher.wake_at(len(self._running)),
                work.breaker.wake_at(),
                life.deadline,
                now + _TURN_S,
            )
            await self._wait(now, wakes, None if life.draining else stopped)

    def _start_intake(self, subscription: Subscription, batcher: Batcher, work: Work, now: float) -> None:
        """Receive, if nobody does and there is room: what is held here, an idle member cannot have."""
        room, allowed = batcher.room, work.breaker.allowed(now, len(self._running))
        if allowed is not None:
            room = min(room, allowed - len(batcher))
        if self._intake is None and room > 0:
            receive = partial(subscription.receive, max_messages=room, timeout=1.0)
            self._intake = asyncio.create_task(work.outages.outlast(of_broker, receive))

    def _start_batches(self, batcher: Batcher, work: Work, now: float) -> None:
        while True:
            running = len(self._running)
            allowed = work.breaker.allowed(now, running)
            if allowed == 0:
                if batcher:
                    # Another member may fare better; what fails there, too, comes back by itself.
                    self._own(work.hand_back(batcher.clear()))
                return
            batch = batcher.take(now, running, allowed)
            if not batch:
                return
            work.breaker.begin()
            self._own(work.run(batch))

    def _reap(self, batcher: Batcher, now: float) -> None:
        """Take over what came in and forget the batches that ended; what a task raised is raised here."""
        for task in [task for task in self._running if task.done()]:
            del self._running[task]
            task.result()
        if self._intake is not None and self._intake.done():
            intake, self._intake = self._intake, None
            if not intake.cancelled():
                deliveries = intake.result()
                self.watch.totals.received += len(deliveries)
                self.watch.enter(deliveries, "waiting")
                batcher.add(now, deliveries, time.time())

    async def _wait(
        self, now: float, wakes: tuple[float | None, ...], stopped: asyncio.Task[bool] | None
    ) -> None:
        """Return when something ends, or when it is time to look again."""
        # What was due before now waits for something else: a probe, for example, for what runs.
        timeout = min(at for at in wakes if at is not None and at > now) - now
        tasks: list[asyncio.Task[Any]] = [*self._running]
        tasks += [task for task in (self._intake, stopped) if task is not None]
        await asyncio.wait(tasks, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)

    def _show(self, work: Work, life: Lifecycle) -> None:
        watch = self.watch
        watch.beat = time.monotonic()
        watch.state = life.state(work.outages.count + work.breaker.is_open)
        watch.outage = work.trouble
        watch.estimate = work.estimator.line

    def _own(self, task: Coroutine[Any, Any, None]) -> None:
        self._running[asyncio.create_task(task)] = None


def _now() -> float:
    return asyncio.get_running_loop().time()
