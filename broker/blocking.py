"""The contract for code without an event loop: the same objects behind anyio's blocking portal."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial

from anyio.from_thread import BlockingPortal, start_blocking_portal

from .connect import Broker, connect
from .drivers.base import Order, Start
from .errors import Closed
from .limits import MAX_BYTES, MAX_IN_FLIGHT
from .message import Capabilities, Delivery, GroupStats, Message, Receipt
from .subscription import Subscription


@contextmanager
def connect_blocking(url: str | None = None, *, claim_check: str | None = None) -> Iterator[BlockingBroker]:
    """Open a broker for use from ordinary functions; arguments and errors are those of ``connect``.

    One event loop runs in a thread of its own for as long as the context lasts, and keeps leases alive
    there while the caller works.
    """
    broker = connect(url, claim_check=claim_check)
    with start_blocking_portal() as portal, portal.wrap_async_context_manager(broker):
        yield BlockingBroker(broker, portal)


class BlockingBroker:
    """``Broker`` without ``await``; see there for every method."""

    def __init__(self, broker: Broker, portal: BlockingPortal) -> None:
        self._broker = broker
        self._portal = portal

    @property
    def capabilities(self) -> Capabilities:
        """What the backend promises."""
        return self._broker.capabilities

    def ensure(
        self, topic: str, group: str | None = None, *, partitions: int = 12, start: Start = "earliest"
    ) -> None:
        """Create topic and group where they are missing."""
        self._portal.call(partial(self._broker.ensure, topic, group, partitions=partitions, start=start))

    def publish(self, topic: str, messages: Sequence[Message]) -> list[Receipt]:
        """Store messages; return once every one of them is stored."""
        return self._portal.call(self._broker.publish, topic, messages)

    def stats(self, topic: str, group: str) -> GroupStats:
        """Count what ``group`` has before it."""
        return self._portal.call(self._broker.stats, topic, group)

    @contextmanager
    def subscribe(
        self,
        topic: str,
        *,
        group: str,
        max_in_flight: int = MAX_IN_FLIGHT,
        max_bytes: int = MAX_BYTES,
        order: Order = "none",
    ) -> Iterator[BlockingSubscription]:
        """Join ``group`` for as long as the context lasts."""
        subscription = self._broker.subscribe(
            topic, group=group, max_in_flight=max_in_flight, max_bytes=max_bytes, order=order
        )
        with self._portal.wrap_async_context_manager(subscription):
            yield BlockingSubscription(subscription, self._portal)


class BlockingSubscription:
    """``Subscription`` without ``await``; see there for every method."""

    def __init__(self, subscription: Subscription, portal: BlockingPortal) -> None:
        self._subscription = subscription
        self._portal = portal

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

    def flush(self) -> None:
        """Return once every accepted verdict is durable."""
        self._portal.call(self._subscription.flush)

    def drain(self, timeout: float) -> bool:
        """Stop intake and wait for what is held to be settled; return whether it was in time."""
        return self._portal.call(self._subscription.drain, timeout)
