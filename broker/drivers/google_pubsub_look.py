"""A look at what a group has not settled, without touching it.

Pub/Sub has no way to read a backlog but to receive it. So both subscriptions of the group are captured in
snapshots, and subscriptions that nobody else knows are put there and emptied. It costs what receiving the
whole backlog costs, and the right to create and delete snapshots and subscriptions.
"""

from __future__ import annotations

import asyncio
import heapq
import logging
import uuid
from collections.abc import AsyncIterator
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from ..errors import BrokerError, DeadlineExceeded
from .google_pubsub_leases import Leases
from .google_pubsub_rpc import CALL_S, request
from .google_pubsub_wire import MAX_REQUEST_MESSAGES, Held, no_group, taken

if TYPE_CHECKING:
    from .google_pubsub import PubsubDriver

log = logging.getLogger("broker")

LABEL = "couturier"
LOOK = "look"
_PREFIX = "couturier-look-"
# All of a look; what takes longer is too much to be counted by receiving it.
_LOOK_S = 60.0
# It is empty when so many pulls in a row brought nothing, each having waited so long. The emulator says at
# once what there is; the service may have messages and answer without.
_EMPTY_PULLS = 2
_EMPTY_S = 2.0
# With the pauses between them longer than gRPC takes to connect again after a short outage.
_TRIES = 8
# Bodies held while sorting.
_SORTED_BYTES = 256 * 1024 * 1024
_SORTED_MESSAGES = 100_000
# What is left behind by a process that dies is removed by the service, after the shortest time it offers.
_EXPIRY = {"ttl": {"seconds": 86_400}}
_RETENTION = {"seconds": 600}


class Look:
    """The unsettled records of a group; an async context manager.

    Args:
        driver: open.
        topic: of the group.
        group: ensured.
    """

    def __init__(self, driver: PubsubDriver, topic: str, group: str) -> None:
        names = driver.names
        self._rpc = driver.rpc
        self._project = names.project
        self._missing = no_group(topic, group)
        self._sides = (
            (False, names.subscription(topic, group), names.topic(topic)),
            (True, names.retry_subscription(topic, group), names.retry_topic(topic, group)),
        )
        self._copies = tuple(f"{_PREFIX}{uuid.uuid4().hex}" for _ in self._sides)
        self._leases = Leases(self._rpc, (self._path(0), self._path(1)), 60.0, self._missing)
        self._deadline = asyncio.get_running_loop().time() + _LOOK_S
        self._made = False

    async def __aenter__(self) -> Self:
        self._made = True
        try:
            await _all(*(self._make(index) for index in range(len(self._sides))))
        except BaseException:
            await self.aclose()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Remove what was made for the look. A second call does nothing."""
        if not self._made:
            return
        self._made = False
        removing = asyncio.gather(*(self._remove(index) for index in range(len(self._sides))))
        # Also if the caller is cancelled: nobody else would remove it before a day has passed.
        await asyncio.shield(removing)

    async def records(self) -> AsyncIterator[Held]:
        """Yield every record, in no order.

        Raises:
            DeadlineExceeded: it took a minute, and there is more.
        """
        for index in range(len(self._sides)):
            empty = 0
            while empty < _EMPTY_PULLS:
                if asyncio.get_running_loop().time() > self._deadline:
                    raise DeadlineExceeded(
                        f"there is more before this group than can be received in {_LOOK_S:g} s"
                    )
                records = await self._pull(index)
                empty = 0 if records else empty + 1
                for record in records:
                    yield record

    async def oldest_first(self) -> AsyncIterator[Held]:
        """Yield every record, oldest first within windows of ``_SORTED_BYTES``; then the look is over."""
        heap: list[tuple[tuple[int, int, str], int, Held]] = []
        size = count = 0
        async for record in self.records():
            count += 1
            size += len(record.body)
            heapq.heappush(heap, (record.order(), count, record))
            while size > _SORTED_BYTES or len(heap) > _SORTED_MESSAGES:
                oldest = heapq.heappop(heap)[2]
                size -= len(oldest.body)
                yield oldest
        # Before the caller takes its time, or never comes back.
        await self.aclose()
        while heap:
            yield heapq.heappop(heap)[2]

    def _path(self, index: int) -> str:
        return f"projects/{self._project}/subscriptions/{self._copies[index]}"

    def _snapshot(self, index: int) -> str:
        return f"projects/{self._project}/snapshots/{self._copies[index]}"

    async def _make(self, index: int) -> None:
        _, path, topic = self._sides[index]
        asked = request("CreateSnapshot", name=self._snapshot(index), subscription=path, labels={LABEL: LOOK})
        await self._call("CreateSnapshot", asked, f"capturing {path}")
        asked = request(
            "CreateSubscription",
            name=self._path(index),
            topic=topic,
            ack_deadline_seconds=60,
            message_retention_duration=_RETENTION,
            expiration_policy=_EXPIRY,
            labels={LABEL: LOOK},
        )
        await self._call("CreateSubscription", asked, f"copying {path}")
        asked = request("Seek", subscription=self._path(index), snapshot=self._snapshot(index))
        await self._call("Seek", asked, f"copying {path}")

    async def _remove(self, index: int) -> None:
        for method, field, path in (
            ("DeleteSubscription", "subscription", self._path(index)),
            ("DeleteSnapshot", "snapshot", self._snapshot(index)),
        ):
            try:
                await self._rpc.call(method, request(method, **{field: path}), f"removing {path}", tries=3)
            except BrokerError as error:
                log.debug("%s is left for the service to remove: %s", path, error)

    async def _pull(self, index: int) -> list[Held]:
        """Return what one pull brings, acked, so that it is not brought again."""
        at_once = self._rpc.emulator is not None
        asked = request(
            "Pull",
            subscription=self._path(index),
            max_messages=MAX_REQUEST_MESSAGES,
            return_immediately=at_once,
        )
        try:
            # Pulls have a connection of their own, which may still be down when the other one is up again.
            answer = await self._rpc.call(
                "Pull", asked, "receiving a copy", timeout=CALL_S if at_once else _EMPTY_S, tries=_TRIES
            )
        except DeadlineExceeded:
            return []
        records = [taken(each, self._sides[index][0]) for each in answer.received_messages]
        await self._leases.acknowledge(records)
        return records

    async def _call(self, method: str, asked: Any, doing: str) -> None:
        await self._rpc.call(method, asked, doing, missing=self._missing)


async def _all(*calls: Any) -> None:
    for result in await asyncio.gather(*calls, return_exceptions=True):
        if isinstance(result, BaseException):
            raise result
