"""Acks, leases and hand-backs of one group, in requests that the service takes.

Leases are measured by this process's own clock, from before the call that asked for them, so that they end
here before they end at the service. Neither the service's clock nor the wall clock plays a part.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import defaultdict
from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import Any

from ..errors import BrokerError, Unavailable
from .google_pubsub_errors import ack_failures, kind_of
from .google_pubsub_rpc import CALL_S, Rpc, request
from .google_pubsub_wire import Held, id_chunks

log = logging.getLogger("broker")

# Longest lease that the service gives.
LONGEST_LEASE_S = 600.0
_TRIES = 3
_PAUSE_S = 0.1
# How an exactly-once subscription begins what may be tried again.
_TRANSIENT = "TRANSIENT_"


def own_clock() -> float:
    """Return seconds that pass also while the machine sleeps, and never jump."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


async def together(*calls: Coroutine[Any, Any, set[Held]]) -> set[Held]:
    """Run all to their end; return what they return, or raise the first error."""
    results = await asyncio.gather(*calls, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return set().union(*(result for result in results if not isinstance(result, BaseException)))


class Leases:
    """What is asked of a group's two subscriptions about deliveries that were received.

    Every call returns those that are not ours any more, as far as the service says so: only an exactly-once
    subscription does.

    Args:
        rpc: an open connection.
        paths: of the main and the retry subscription.
        lease: seconds, whole.
        missing: what to say when they do not exist.
        clock: of this process, by which leases end here.
    """

    def __init__(
        self,
        rpc: Rpc,
        paths: tuple[str, str],
        lease: float,
        missing: str,
        clock: Callable[[], float] = own_clock,
    ) -> None:
        self._rpc = rpc
        self._paths = paths
        self._lease = lease
        self._missing = missing
        self._clock = clock

    async def renew(self, helds: Iterable[Held]) -> set[Held]:
        """Give each a whole lease from now on.

        Raises:
            BrokerError: some keep the rest of their lease.
        """
        return await together(*(self._renew_chunk(chunk) for chunk in self._chunks(helds)))

    async def acknowledge(self, helds: Iterable[Held]) -> set[Held]:
        """Finish them.

        Raises:
            BrokerError: some may not be finished; asking again is harmless.
        """
        return await together(
            *(self._send("Acknowledge", chunk, "acknowledging") for chunk in self._chunks(helds))
        )

    async def release(self, helds: Iterable[Held], after: float = 0.0) -> set[Held]:
        """Have them come again after so many seconds, rounded up, at most ``LONGEST_LEASE_S``.

        Raises:
            BrokerError: some keep the rest of their lease.
        """
        seconds = math.ceil(min(max(0.0, after), LONGEST_LEASE_S))
        calls = (
            self._send("ModifyAckDeadline", chunk, "handing back", ack_deadline_seconds=seconds)
            for chunk in self._chunks(helds)
        )
        return await together(*calls)

    async def hand_back(self, helds: Iterable[Held]) -> set[Held]:
        """Release what was never delivered; what cannot be comes again when its lease ends."""
        return await self._tolerant({0.0: list(helds)})

    async def hide(self, helds: Iterable[Held], now: float, longest: float) -> set[Held]:
        """Put off retries that came before they are due.

        Args:
            helds: what came.
            now: the clock that ``Held.due`` is measured by, seconds.
            longest: seconds after which they come for another look at that clock.
        """
        by_seconds: dict[float, list[Held]] = defaultdict(list)
        for held in helds:
            by_seconds[math.ceil(min(held.due - now, longest))].append(held)
        return await self._tolerant(by_seconds)

    async def _tolerant(self, by_seconds: dict[float, list[Held]]) -> set[Held]:
        try:
            return await together(*(self.release(each, after) for after, each in by_seconds.items() if each))
        except BrokerError as error:
            log.debug("not handed back, comes again after its lease: %s", error)
            return set()

    def _chunks(self, helds: Iterable[Held]) -> Iterable[list[Held]]:
        """Cut into what goes to one subscription in one request."""
        sides: tuple[list[Held], list[Held]] = ([], [])
        for held in helds:
            sides[held.retry].append(held)
        for side in sides:
            yield from id_chunks(side)

    async def _renew_chunk(self, chunk: list[Held]) -> set[Held]:
        began = self._clock()
        lost = await self._send(
            "ModifyAckDeadline", chunk, "renewing leases", ack_deadline_seconds=int(self._lease)
        )
        for held in chunk:
            if held not in lost:
                held.until = began + self._lease
        return lost

    async def _send(self, method: str, chunk: Sequence[Held], doing: str, **fields: int) -> set[Held]:
        """Make one request; repeat it, within one deadline, for ids of which the service says so."""
        path = self._paths[chunk[0].retry]
        deadline = asyncio.get_running_loop().time() + CALL_S
        left = {held.ack_id: held for held in chunk}
        lost: set[Held] = set()
        for turn in range(_TRIES):
            timeout = deadline - asyncio.get_running_loop().time()
            asked = request(method, subscription=path, ack_ids=list(left), **fields)
            try:
                await self._rpc.call(
                    method, asked, doing, timeout=timeout, tries=_TRIES, missing=self._missing
                )
                return lost
            except BrokerError as error:
                reasons = ack_failures(error.__cause__)
                if not reasons:
                    raise
                problem = error
            again, refused = _sort(reasons, problem, left)
            lost.update(left[ack_id] for ack_id in refused)
            left = {ack_id: left[ack_id] for ack_id in again}
            if not left:
                return lost
            await asyncio.sleep(_PAUSE_S * (turn + 1))
        raise Unavailable(f"{doing}: the service asks to try {len(left)} again: {problem}") from problem


def _sort(reasons: dict[str, str], problem: BrokerError, left: dict[str, Held]) -> tuple[set[str], set[str]]:
    """Return which ids to ask for again, and which are lost; the others of the request are done.

    Source: what google-cloud-pubsub and google-cloud-java do with the ErrorInfo of an exactly-once ack.
    """
    again = {each for each, reason in reasons.items() if each in left and reason.startswith(_TRANSIENT)}
    refused = {each for each in reasons if each in left} - again
    cause = kind_of(problem.__cause__) if problem.__cause__ is not None else None
    if cause is not None and cause.retryable:
        again |= left.keys() - refused
    return again, refused
