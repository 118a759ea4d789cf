"""The contract for code without an event loop: the same objects behind anyio's blocking portal."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import wait
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import partial
from typing import Any

from anyio import to_thread
from anyio.from_thread import BlockingPortal, start_blocking_portal

from .connect import Broker, connect
from .drivers.base import Order, Start
from .errors import Closed
from .limits import MAX_BYTES, MAX_IN_FLIGHT
from .message import Capabilities, Delivery, GroupStats, Lag, Message, Receipt, Redelivery, TopicInfo
from .processing.batcher import Batching
from .processing.outcomes import Outcome, RetryPolicy
from .processing.watch import Totals
from .subscription import Subscription

BlockingHandler = Callable[[Sequence[Delivery]], Sequence[Outcome]]

# A flag of another thread cannot wake an event loop: it is looked at so often.
_LOOK_S = 0.05


@contextmanager
def connect_blocking(url: str | None = None, *, claim_check: str | None = None) -> Iterator[BlockingBroker]:
    """Open a broker for use from ordinary functions; arguments and errors are those of ``connect``.

    One event loop runs in a thread of its own for as long as the context lasts, and keeps leases alive
    there while the caller works. Any thread may use what it yields. Leaving closes every subscription that
    is still open in it.
    """
    broker = connect(url, claim_check=claim_check)
    with start_blocking_portal() as portal, portal.wrap_async_context_manager(broker):
        blocking = BlockingBroker(broker, portal)
        try:
            yield blocking
        finally:
            for each in [*blocking._members]:
                portal.call(each.aclose)


class _Behind:
    """What lives in the thread of an event loop, until the broker is closed."""

    def __init__(self, broker: Broker, portal: BlockingPortal) -> None:
        self._broker = broker
        self._behind = portal

    @property
    def _portal(self) -> BlockingPortal:
        self._broker._ready()  # Closed is what the contract says; anyio has an error of its own.
        return self._behind


class BlockingBroker(_Behind):
    """``Broker`` without ``await``; see there for every method."""

    def __init__(self, broker: Broker, portal: BlockingPortal) -> None:
        super().__init__(broker, portal)
        self._members: set[Subscription] = set()

    @property
    def capabilities(self) -> Capabilities:
        """What the backend promises."""
        return self._broker.capabilities

    @property
    def address(self) -> str:
        """Where the messages are, without credentials."""
        return self._broker.address

    def ensure(
        self,
        topic: str,
        group: str | None = None,
        *,
        partitions: int = 12,
        start: Start = "earliest",
        retention: float | None = None,
    ) -> None:
        """Create topic and group where they are missing."""
        ensure = self._broker.ensure
        self._portal.call(
            partial(ensure, topic, group, partitions=partitions, start=start, retention=retention)
        )

    def remove_group(self, topic: str, group: str) -> None:
        """Forget a group and what it had before it."""
        self._portal.call(self._broker.remove_group, topic, group)

    def publish(self, topic: str, messages: Sequence[Message]) -> list[Receipt]:
        """Store messages; return once every one of them is stored."""
        return self._portal.call(self._broker.publish, topic, messages)

    def stats(self, topic: str, group: str) -> GroupStats:
        """Count what ``group`` has before it."""
        return self._portal.call(self._broker.stats, topic, group)

    def topics(self) -> list[TopicInfo]:
        """List the topics of this broker, by name."""
        return self._portal.call(self._broker.topics)

    def lag(self, topic: str, group: str) -> list[Lag]:
        """Say, partition by partition where there are any, what ``group`` has before it."""
        return self._portal.call(self._broker.lag, topic, group)

    def describe(self) -> dict[str, str]:
        """Ask the backend who it is."""
        return self._portal.call(self._broker.describe)

    def browse(self, topic: str, group: str) -> Iterator[Delivery]:
        """Show what ``group`` has not settled, oldest first; leases, hides and ages nothing."""
        deliveries: Any = self._broker.browse(topic, group)
        try:
            while (delivery := self._portal.call(anext, deliveries, None)) is not None:
                yield delivery
        finally:
            with suppress(Closed):
                self._portal.call(deliveries.aclose)

    def subscribe(
        self,
        topic: str,
        *,
        group: str,
        max_in_flight: int = MAX_IN_FLIGHT,
        max_bytes: int = MAX_BYTES,
        order: Order = "none",
    ) -> AbstractContextManager[BlockingSubscription]:
        """Return a member of ``group``, to be opened with ``with``."""
        subscription = self._broker.subscribe(
            topic, group=group, max_in_flight=max_in_flight, max_bytes=max_bytes, order=order
        )
        return self._member(subscription)

    @contextmanager
    def _member(self, subscription: Subscription) -> Iterator[BlockingSubscription]:
        self._portal.call(subscription.__aenter__)
        self._members.add(subscription)
        try:
            yield BlockingSubscription(subscription, self._broker, self._portal)
        finally:
            self._members.discard(subscription)
            with suppress(Closed):
                self._portal.call(subscription.aclose)

    def process(
        self,
        topic: str,
        *,
        group: str,
        handler: BlockingHandler,
        batch: Batching | None = None,
        retry: RetryPolicy | None = None,
        dead_letter: bool = True,
        stop: threading.Event | None = None,
        drain_timeout: float = 25.0,
    ) -> Totals:
        """Run an ordinary function over the messages of a topic, in micro-batches, until drained.

        ``handler`` is called in threads, in ``batch.concurrency`` of them at a time. What an interrupt
        (Ctrl-C) or another exception finds at work is drained before it goes on its way.

        Args:
            topic: as everything else, see ``Broker.process``.
            group: ensured before.
            handler: ``def handler(deliveries) -> outcomes``.
            batch: size, wait and cost of a batch.
            retry: how often and how soon a failed message comes again.
            dead_letter: False drops what cannot succeed.
            stop: set it, from a handler or from another thread, to drain and return.
            drain_timeout: seconds that a drain may take.
        """
        interrupted = threading.Event()

        async def handle(deliveries: Sequence[Delivery]) -> Sequence[Outcome]:
            return await to_thread.run_sync(handler, deliveries)

        async def run() -> Totals:
            stopping = asyncio.Event()
            flags = [each for each in (stop, interrupted) if each is not None]
            watch = asyncio.create_task(_set_with(flags, stopping))
            try:
                return await self._broker.process(
                    topic, group=group, handler=handle, batch=batch, retry=retry, dead_letter=dead_letter,
                    stop=stopping, drain_timeout=drain_timeout,
                )  # fmt: skip
            finally:
                watch.cancel()

        totals = self._portal.start_task_soon(run)
        try:
            return totals.result()
        finally:
            interrupted.set()
            wait([totals])


class BlockingSubscription(_Behind):
    """``Subscription`` without ``await``; see there for every method."""

    def __init__(self, subscription: Subscription, broker: Broker, portal: BlockingPortal) -> None:
        super().__init__(broker, portal)
        self._subscription = subscription

    @property
    def topic(self) -> str:
        """Where it receives."""
        return self._subscription.topic

    @property
    def group(self) -> str:
        """For whom it receives."""
        return self._subscription.group

    @property
    def in_flight(self) -> int:
        """Deliveries that this member holds unsettled."""
        return self._subscription.in_flight

    def holds(self, delivery: Delivery) -> bool:
        """Return whether ``delivery`` is still this member's to settle."""
        return self._subscription.holds(delivery)

    def receive(self, max_messages: int = 256, timeout: float = 1.0) -> list[Delivery]:
        """Return deliveries as soon as there are any, else ``[]`` after ``timeout`` seconds."""
        return self._portal.call(self._subscription.receive, max_messages, timeout)

    def __iter__(self) -> Iterator[Delivery]:
        """Yield deliveries one by one until the subscription is closed or drained."""
        with suppress(Closed):
            while True:
                yield from self.receive(max_messages=1, timeout=60.0)

    def ack(self, deliveries: Delivery | Iterable[Delivery]) -> None:
        """Finish deliveries."""
        self._portal.call(self._subscription.ack, deliveries)

    def nack(self, deliveries: Delivery | Iterable[Delivery], delay: float = 0.0) -> None:
        """Record a failed attempt; they come again, not before ``delay`` seconds."""
        self._portal.call(self._subscription.nack, deliveries, delay)

    def release(self, deliveries: Delivery | Iterable[Delivery]) -> None:
        """Hand back untried."""
        self._portal.call(self._subscription.release, deliveries)

    def settle(
        self,
        acks: Sequence[Delivery] = (),
        releases: Sequence[Delivery] = (),
        retries: Sequence[Redelivery] = (),
    ) -> None:
        """Persist several verdicts in one go."""
        self._portal.call(self._subscription.settle, acks, releases, retries)

    def forward(self, delivery: Delivery, topic: str, extra: Mapping[str, str]) -> None:
        """Store a copy of the native record in ``topic`` with ``extra`` attributes; settles nothing."""
        self._portal.call(self._subscription.forward, delivery, topic, extra)

    def flush(self) -> None:
        """Return once every accepted verdict is durable."""
        self._portal.call(self._subscription.flush)

    def drain(self, timeout: float) -> bool:
        """Stop intake and wait for what is held to be settled; return whether it was in time."""
        return self._portal.call(self._subscription.drain, timeout)


async def _set_with(flags: Sequence[threading.Event], event: asyncio.Event) -> None:
    while not any(each.is_set() for each in flags):  # noqa: ASYNC110 - they belong to other threads
        await asyncio.sleep(_LOOK_S)
    event.set()
