"""One member of a group, the same on every backend: intake, settling once, leases, drain, close."""

from __future__ import annotations

import asyncio
import contextlib
import heapq
from collections import deque
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from operator import attrgetter
from types import TracebackType
from typing import Self
from weakref import WeakSet

from .claim_check import ClaimCheck, ClaimingMember
from .drivers.base import Order, Room
from .errors import BrokerError, Closed, LeaseLost
from .limits import Limits
from .logs import log
from .message import Delivery, Redelivery

# One driver call waits no longer than this, so that close and cancellation are prompt on every backend.
_SLICE_S = 0.2
_ITERATION_BATCH = 32
_BODY = attrgetter("message.data")


class Subscription:
    """Receives for one group; made by ``Broker.subscribe`` and used as an async context manager.

    Every delivery is kept leased until it is settled by exactly one of ``ack``, ``nack`` and ``release``.
    Settling twice is silent. Closing hands back what is still open.
    """

    def __init__(self, driver: ClaimCheck, topic: str, group: str, limits: Limits, order: Order) -> None:
        self.topic = topic
        self.group = group
        self._driver = driver
        self._limits = limits
        self._order: Order = order
        self._member: ClaimingMember | None = None
        self._ready: deque[Delivery] = deque()
        self._open: dict[Delivery, None] = {}
        self._open_bytes = 0
        self._lost: WeakSet[Delivery] = WeakSet()
        self._due: list[float] = []
        self._fetch: asyncio.Task[None] | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._settling: set[asyncio.Task[list[Delivery]]] = set()
        self._changed = asyncio.Event()
        self._intake = True

    async def __aenter__(self) -> Self:
        self._member = await self._driver.subscribe(self.topic, self.group, self._order)
        self._keeper = asyncio.create_task(self._keep_leases(), name=f"leases of {self.topic}/{self.group}")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    @property
    def in_flight(self) -> int:
        """Deliveries that this member holds unsettled."""
        return len(self._open)

    async def receive(self, max_messages: int = 256, timeout: float = 1.0) -> list[Delivery]:
        """Return up to ``max_messages`` deliveries as soon as there are any, else ``[]``.

        Cancelling it loses nothing: what was on its way comes with the next call.

        Args:
            max_messages: at least 1.
            timeout: seconds to wait for the first.

        Raises:
            NotFound: topic or group was never ensured, or is gone.
            Closed: the subscription was closed or drained.
            BrokerError: the backend, or the store of large bodies, failed; try again if ``retryable``.
            ValueError: a large body is in a claim store, and this consumer was told of none.
        """
        if max_messages < 1:
            raise ValueError(f"max_messages must be at least 1, not {max_messages}")
        await self._fill(max_messages, timeout)
        return [self._ready.popleft() for _ in range(min(max_messages, len(self._ready)))]

    async def __aiter__(self) -> AsyncIterator[Delivery]:
        """Yield deliveries one by one until the subscription is closed or drained."""
        with contextlib.suppress(Closed):
            while True:
                await self._fill(_ITERATION_BATCH, timeout=60.0)
                if self._ready:
                    yield self._ready.popleft()

    async def ack(self, deliveries: Delivery | Iterable[Delivery]) -> None:
        """Finish deliveries: they do not come again.

        Raises:
            LeaseLost: some are held by another member by now; all others are settled.
            BrokerError: nothing is settled; try again if ``retryable``.
        """
        await self.settle(acks=_listed(deliveries))

    async def nack(self, deliveries: Delivery | Iterable[Delivery], delay: float = 0.0) -> None:
        """Record a failed attempt: they come again with ``attempt`` + 1, not before ``delay`` seconds.

        Raises:
            ValueError: ``delay`` is outside 0 to ``capabilities.max_delay``.
            LeaseLost: as for ``ack``.
        """
        await self.settle(retries=[Redelivery(each, delay, each.attempt + 1) for each in _listed(deliveries)])

    async def release(self, deliveries: Delivery | Iterable[Delivery]) -> None:
        """Hand back untried: they come again at once, ``attempt`` unchanged.

        Raises:
            LeaseLost: as for ``ack``.
        """
        await self.settle(releases=_listed(deliveries))

    async def settle(
        self,
        acks: Sequence[Delivery] = (),
        releases: Sequence[Delivery] = (),
        retries: Sequence[Redelivery] = (),
    ) -> None:
        """Persist several verdicts in one go; ``ack``, ``nack`` and ``release`` are its short forms."""
        member = self._joined()
        limit = self._driver.capabilities.max_delay
        for retry in retries:
            if not 0 <= retry.delay <= limit:
                raise ValueError(f"delay must be within 0 to {limit:g} seconds, not {retry.delay!r}")
        named = [*acks, *releases, *(retry.delivery for retry in retries)]
        lost = {each for each in named if each in self._lost} if self._lost else set()
        acks = self._take_open(acks)
        releases = self._take_open(releases)
        retries = [retry for retry in retries if self._take_open([retry.delivery])]
        if acks or releases or retries:
            # Once begun it is finished: a caller that is cancelled must not leave a verdict in doubt.
            task = asyncio.create_task(self._persist(member, acks, releases, retries))
            self._settling.add(task)
            task.add_done_callback(self._settled)
            lost.update(await asyncio.shield(task))
        if lost:
            raise LeaseLost(each.message.id for each in named if each in lost)

    async def forward(self, delivery: Delivery, topic: str, extra: Mapping[str, str]) -> None:
        """Store a copy of the native record in ``topic`` with ``extra`` attributes; settles nothing.

        Raises:
            LeaseLost: another member holds the delivery by now.
            BrokerError: the copy is not stored.
        """
        if delivery in self._lost:
            raise LeaseLost([delivery.message.id])
        await self._joined().forward(delivery, topic, extra)

    async def flush(self) -> None:
        """Return once every accepted verdict is durable."""
        await self._await_settling()
        await self._joined().flush()

    async def drain(self, timeout: float) -> bool:
        """Stop intake, hand back what nobody took yet, wait for the rest to be settled.

        Args:
            timeout: seconds.

        Returns:
            Whether everything was settled in time. Close the subscription afterwards.
        """
        await self._stop_intake()
        await self._joined().hand_back()
        untaken = list(self._ready)
        self._ready.clear()
        with contextlib.suppress(LeaseLost):
            await self.release(untaken)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                while self._open:
                    self._changed.clear()
                    await self._changed.wait()
        await self.flush()
        return not self._open

    async def aclose(self) -> None:
        """Stop intake, hand open deliveries back at once, leave the group. A second call does nothing."""
        member, self._member = self._member, None
        if member is None:
            return
        try:
            await self._stop_intake()
            self._ready.clear()
            await self._await_settling()
            if self._open:
                await member.settle([], list(self._open), [])
            await member.flush()
        except BrokerError as error:
            log.warning("could not hand back %d delivery(ies): %s; they come again", len(self._open), error)
        finally:
            self._open.clear()
            if self._keeper is not None:
                self._keeper.cancel()
            await member.aclose()

    async def _persist(
        self,
        member: ClaimingMember,
        acks: Sequence[Delivery],
        releases: Sequence[Delivery],
        retries: Sequence[Redelivery],
    ) -> list[Delivery]:
        """Have the driver persist verdicts; hold the deliveries again if it fails."""
        try:
            lost = await member.settle(acks, releases, retries)
        except BaseException:
            self._hold([*acks, *releases, *(retry.delivery for retry in retries)])
            raise
        self._lost.update(lost)
        now = self._driver.clock.now()
        for retry in retries:
            if retry.delivery not in self._lost:
                heapq.heappush(self._due, now + retry.delay)
        self._changed.set()
        return lost

    def _settled(self, task: asyncio.Task[list[Delivery]]) -> None:
        self._settling.discard(task)
        if not task.cancelled():
            task.exception()  # The caller has it, or was cancelled and does not want it.

    async def _await_settling(self) -> None:
        if self._settling:
            await asyncio.wait(self._settling)

    def _joined(self) -> ClaimingMember:
        if self._member is None:
            raise Closed(f"the subscription to {self.topic!r} is not open; enter it with `async with`")
        return self._member

    async def _fill(self, wanted: int, timeout: float) -> None:
        """Wait until something is ready or ``timeout`` passes. The fetch itself is never cancelled."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        while not self._ready:
            self._joined()
            if not self._intake:
                raise Closed(f"the subscription to {self.topic!r} takes no more messages")
            self._changed.clear()
            slice_s = min(_SLICE_S, max(0.0, deadline - loop.time()))
            fetch = self._start_fetch(wanted, slice_s)
            if fetch is not None:
                await asyncio.wait({fetch})
                self._reap()
            else:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._changed.wait(), slice_s)
            if loop.time() >= deadline:
                return

    def _start_fetch(self, wanted: int, timeout: float) -> asyncio.Task[None] | None:
        """Start the one fetch, unless it runs already or there is no room; return the running one."""
        room = self._limits.max_in_flight - len(self._open)
        room_bytes = self._limits.max_bytes - self._open_bytes
        may_fetch = room > 0 and room_bytes > 0 and self._delayed() < self._limits.max_in_flight
        if self._fetch is None and may_fetch:
            limit = Room(min(room, wanted), room_bytes, alone=not self._open)
            self._fetch = asyncio.create_task(self._fetch_once(limit, timeout))
        return self._fetch

    async def _fetch_once(self, limit: Room, timeout: float) -> None:
        found = await self._joined().receive(limit, timeout)
        self._hold(found)
        self._ready.extend(found)

    def _reap(self) -> None:
        """Forget a finished fetch and pass its error on."""
        if self._fetch is not None and self._fetch.done():
            fetch, self._fetch = self._fetch, None
            fetch.result()

    def _delayed(self) -> int:
        now = self._driver.clock.now()
        while self._due and self._due[0] <= now:
            heapq.heappop(self._due)
        return len(self._due)

    def _hold(self, deliveries: Sequence[Delivery]) -> None:
        self._open.update(dict.fromkeys(deliveries))
        self._open_bytes += sum(map(len, map(_BODY, deliveries)))

    def _take_open(self, deliveries: Sequence[Delivery]) -> list[Delivery]:
        """Remove and return those that are still open; the rest were settled or lost before."""
        take = self._open.pop
        taken = [each for each in deliveries if take(each, False) is None]
        self._open_bytes -= sum(map(len, map(_BODY, taken)))
        return taken

    async def _stop_intake(self) -> None:
        self._intake = False
        self._changed.set()
        fetch = self._fetch
        if fetch is not None:
            await asyncio.wait({fetch})
            # A waiting `receive` may have taken it, and its error, first.
            if self._fetch is fetch:
                self._fetch = None
                if not fetch.cancelled() and (error := fetch.exception()) is not None:
                    log.warning("the last receive of %s failed: %s", self.topic, error)

    async def _keep_leases(self) -> None:
        """Renew the lease of every open delivery three times per lease."""
        while self._member is not None:
            await self._driver.clock.sleep(self._driver.capabilities.lease / 3)
            if self._member is None:
                return
            try:
                gone = await self._member.extend(list(self._open))
            except Closed:
                return
            except Exception as error:
                # Whatever it was, the next renewal may work; a keeper that stopped would lose every lease.
                log.warning("could not renew %d lease(s) of %s: %s", len(self._open), self.topic, error)
                continue
            lost = self._take_open(gone)
            self._lost.update(lost)
            if lost:
                log.warning("%d lease(s) of %s went to another member", len(lost), self.topic)
                self._ready = deque(each for each in self._ready if each not in self._lost)
                self._changed.set()

    def holds(self, delivery: Delivery) -> bool:
        """Return whether ``delivery`` is still this member's to settle: not settled, lost or handed back."""
        return self._member is not None and delivery in self._open


def _listed(deliveries: Delivery | Iterable[Delivery]) -> list[Delivery]:
    return [deliveries] if isinstance(deliveries, Delivery) else list(deliveries)
