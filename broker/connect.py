"""``connect`` picks a driver by URL; ``Broker`` is what every backend looks like."""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import AsyncIterator, Sequence
from contextlib import nullcontext
from types import TracebackType
from typing import TYPE_CHECKING, Self
from urllib.parse import parse_qsl, urlsplit

from . import tracing
from .claim_check import ClaimCheck
from .claims import ClaimStore
from .drivers.base import Driver, Order, Start
from .drivers.options import check_name, public_url
from .errors import BrokerError, Closed, PublishError
from .limits import DAY_S, MAX_BYTES, MAX_IN_FLIGHT, Limits, check_message, check_retention
from .logs import log
from .message import Capabilities, Delivery, GroupStats, Lag, Message, Receipt, TopicInfo
from .processing.batcher import Batching
from .processing.outcomes import RetryPolicy
from .sending import store
from .subscription import Subscription

if TYPE_CHECKING:
    from .processing.handling import Handler
    from .processing.watch import Totals

# Scheme to "module:factory"; a factory takes (url, options) and is imported on first use.
_DRIVERS = {
    "kafka": "broker.drivers.kafka:from_url",
    "memory": "broker.drivers.memory:from_url",
    "pubsub": "broker.drivers.google_pubsub:from_url",
    "sqlite": "broker.drivers.sqlite:from_url",
}


def connect(url: str | None = None, *, claim_check: str | None = None) -> Broker:
    """Return a broker to be opened with ``async with``.

    Args:
        url: ``sqlite:///relative.db``, ``sqlite:////absolute.db`` or ``memory://name``; backend options
            follow as a query (``?lease=5``). None reads ``BROKER_URL`` or ``BROKER_BACKEND``.
        claim_check: where bodies go that are too large for the backend: a directory, or a bucket as
            ``s3://bucket/prefix``. None reads ``BROKER_CLAIM_CHECK_URL``; unset, such bodies are refused.

    Raises:
        ValueError: the URL or a variable does not work; the text says which, and what would.
    """
    origin = "connect()"
    if url is None:
        from .settings import broker_url

        url, origin = broker_url(), "BROKER_URL"
    scheme = urlsplit(url).scheme
    if scheme not in _DRIVERS:
        known = ", ".join(f"{name}://" for name in sorted(_DRIVERS))
        raise ValueError(
            f"{origin}: {public_url(url)!r} names no backend that is known here; known are {known}"
        )
    module, factory = _DRIVERS[scheme].split(":")
    try:
        options = dict(parse_qsl(urlsplit(url).query, strict_parsing=bool(urlsplit(url).query)))
        driver: Driver = getattr(importlib.import_module(module), factory)(url, options)
    except ValueError as error:
        raise ValueError(f"{origin}: {public_url(url)!r}: {error}") from None
    return Broker(driver, _claim_store(claim_check))


def _claim_store(url: str | None) -> ClaimStore | None:
    from .settings import claim_check

    try:
        if url is not None:
            return ClaimStore(url)
        configured = claim_check()
        return ClaimStore(*configured) if configured else None
    except ValueError as error:
        raise ValueError(f"{'BROKER_CLAIM_CHECK_URL' if url is None else 'claim_check'}: {error}") from None


class Broker:
    """Publish and subscribe on one backend. Open it with ``async with``.

    Args:
        driver: any object that satisfies ``broker.drivers.base.Driver``.
        claims: where bodies go that are too large for it; None refuses them.
    """

    def __init__(self, driver: Driver, claims: ClaimStore | None = None) -> None:
        self._driver = ClaimCheck(driver, claims)
        self._opened = False
        self._kept_otherwise: set[str] = set()

    async def __aenter__(self) -> Self:
        await self._driver.open()
        self._opened = True
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    @property
    def capabilities(self) -> Capabilities:
        """What the backend promises."""
        return self._driver.capabilities

    @property
    def address(self) -> str:
        """Where the messages are, without credentials; one text for all who share them."""
        return self._driver.address

    async def aclose(self) -> None:
        """Release the connection. A second call does nothing."""
        if self._opened:
            self._opened = False
            await self._driver.aclose()

    async def ensure(
        self,
        topic: str,
        group: str | None = None,
        *,
        partitions: int = 12,
        start: Start = "earliest",
        retention: float | None = None,
    ) -> None:
        """Create topic and group where they are missing; the one call that does.

        A group sees everything stored after its ``ensure``; with ``start="earliest"`` also what the
        backend still keeps, where ``capabilities.history`` says so.

        Args:
            topic: letters, digits and ``. _ -``, a letter first, at most 120.
            group: as for ``topic``; None creates the topic alone.
            partitions: of a new topic, on backends that have them.
            start: where a new group begins.
            retention: seconds for which a new topic keeps messages; what is older goes, settled or not.
                None means the backend's own. A topic that is there keeps its own, which is logged.

        Raises:
            ValueError: a name or a number that cannot be, or a retention that the backend cannot keep.
        """
        if start not in ("earliest", "latest"):
            raise ValueError(f"start must be 'earliest' or 'latest', not {start!r}")
        if partitions < 1:
            raise ValueError(f"partitions must be at least 1, not {partitions}")
        driver = self._ready(topic, group)
        if retention is not None:
            check_retention(retention, driver.capabilities)
        kept = await driver.admin.ensure(topic, group, partitions, start, retention)
        if retention is not None and kept is not None and topic not in self._kept_otherwise:
            self._kept_otherwise.add(topic)
            log.warning(
                "topic %r was there and keeps messages for %g days, not %g; change it with the tools of the"
                " broker, or delete it first",
                topic, kept / DAY_S, retention / DAY_S,
            )  # fmt: skip

    async def remove_group(self, topic: str, group: str) -> None:
        """Forget a group and what it had before it; silent if there is none.

        Its members, if there are any, get ``NotFound``; on Kafka a group that has members stays.

        Raises:
            BrokerError: the backend knows that the group is in use.
        """
        await self._ready(topic, group).admin.remove_group(topic, group)

    async def publish(self, topic: str, messages: Sequence[Message]) -> list[Receipt]:
        """Store messages; return once the broker has stored every one of them.

        Returns:
            One receipt for each message, in order.

        Raises:
            PublishError: some are not stored; ``failed`` maps their ids to errors, all others are stored.
            NotFound: the topic was never ensured; nothing is stored.
        """
        driver = self._ready(topic)
        if isinstance(messages, Message) or not all(isinstance(each, Message) for each in messages):
            raise TypeError("publish takes a list of Message")
        failed: dict[str, BrokerError] = {}
        valid: list[Message] = []
        for message in messages:
            problem = check_message(message, driver.capabilities)
            if problem is None:
                valid.append(message)
            else:
                failed[message.id] = problem
        spans = tracing.spans()
        sending = spans.send(topic, valid, driver.capabilities) if spans else nullcontext(valid)
        with sending as traced:
            receipts = await store(driver, topic, traced, failed)
        if failed:
            raise PublishError(failed)
        return receipts

    def subscribe(
        self,
        topic: str,
        *,
        group: str,
        max_in_flight: int = MAX_IN_FLIGHT,
        max_bytes: int = MAX_BYTES,
        order: Order = "none",
    ) -> Subscription:
        """Return a member of ``group``, to be opened with ``async with``.

        Args:
            topic: ensured before.
            group: ensured before.
            max_in_flight: most unsettled deliveries; intake pauses there.
            max_bytes: most bytes of unsettled bodies; intake pauses there.
            order: ``"key"``: a message comes only after the one before it with the same key is acked.

        Raises:
            ValueError: the backend cannot keep this order.
        """
        driver = self._ready(topic, group)
        if order not in driver.capabilities.order:
            can = ", ".join(sorted(driver.capabilities.order))
            raise ValueError(f"order={order!r}: the {driver.capabilities.backend} backend can keep: {can}")
        return Subscription(driver, topic, group, Limits(max_in_flight, max_bytes), order)

    async def process(
        self,
        topic: str,
        *,
        group: str,
        handler: Handler,
        batch: Batching | None = None,
        retry: RetryPolicy | None = None,
        dead_letter: bool = True,
        stop: asyncio.Event | None = None,
        drain_timeout: float = 25.0,
    ) -> Totals:
        """Run ``handler`` over the messages of a topic, in micro-batches, until cancelled or drained.

        The handler is called with a list of deliveries and returns one outcome for each: ``Done()``,
        ``Retry(error)`` or ``Reject(reason)``. When it raises, the batch is bisected and only the isolated
        raiser is blamed. When it raises ``Unavailable`` nobody is blamed: intake pauses and the same batch
        is tried again with backoff. Settling happens here and nowhere else.

        Args:
            topic: ensured before.
            group: ensured before.
            handler: ``async def handler(deliveries) -> outcomes``.
            batch: size, wait and cost of a batch.
            retry: how often and how soon a failed message comes again, and when many failures are taken for
                an outage of something else.
            dead_letter: send what cannot succeed to ``<topic>.<group>.dlq``, created together with its
                standing group ``operators`` before the first message is taken. False drops it, logged.
            stop: set it to drain: intake ends, what is held is finished, the call returns.
            drain_timeout: seconds that a drain may take; then the rest is handed back.

        Returns:
            What became of the messages.

        Raises:
            NotFound: topic or group was never ensured, or is gone.
            DeadlineExceeded: the drain took too long; the rest was handed back.
        """
        from .processing.loop import Processor

        return await Processor(self, topic, group, handler, batch, retry).run(
            dead_letter, stop, drain_timeout
        )

    async def stats(self, topic: str, group: str) -> GroupStats:
        """Count what ``group`` has before it.

        Raises:
            NotFound: topic or group was never ensured.
        """
        return await self._ready(topic, group).admin.stats(topic, group)

    async def topics(self) -> list[TopicInfo]:
        """List the topics of this broker, by name."""
        return await self._ready().admin.topics()

    async def lag(self, topic: str, group: str) -> list[Lag]:
        """Say, partition by partition where there are any, what ``group`` has before it.

        Raises:
            NotFound: topic or group was never ensured.
        """
        return await self._ready(topic, group).admin.lag(topic, group)

    async def describe(self) -> dict[str, str]:
        """Ask the backend who it is; returns facts for a person, such as its version.

        Raises:
            BrokerError: it does not answer.
        """
        return await self._ready().admin.describe()

    async def browse(self, topic: str, group: str) -> AsyncIterator[Delivery]:
        """Show what ``group`` has not settled, oldest first; leases, hides and ages nothing.

        A large body that cannot be had is shown empty, with the reason as ``couturier-claim-error``.

        Raises:
            NotFound: topic or group was never ensured.
        """
        async for delivery in self._ready(topic, group).admin.browse(topic, group):
            yield await self._driver.show(delivery)

    def _ready(self, topic: str | None = None, group: str | None = None) -> ClaimCheck:
        for what, name in (("topic", topic), ("group", group)):
            if name is not None:
                try:
                    check_name(name)
                except ValueError as error:
                    raise ValueError(f"{what} {name!r}: {error}") from None
        if not self._opened:
            raise Closed("the broker is not open; use `async with connect(...) as broker`")
        return self._driver
