"""One member of a group on Pub/Sub: it pulls, keeps leases and settles."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import grpc  # type: ignore[import-untyped]

from ..errors import BrokerError, Closed, InvalidMessage, LeaseLost, NotFound
from ..message import Delivery, Redelivery
from .base import Room
from .google_pubsub_errors import mapped
from .google_pubsub_intake import Intake
from .google_pubsub_leases import Leases, together
from .google_pubsub_rpc import CALL_S, Call, request
from .google_pubsub_wire import (
    DELETED_TOPIC,
    Held,
    delivery,
    forward_copy,
    no_group,
    no_topic,
    retry_copy,
)

if TYPE_CHECKING:
    from .google_pubsub import PubsubDriver

log = logging.getLogger("broker")

# What a pull brings while nobody receives goes back after this; a busy consumer comes for it sooner.
_GRACE_S = 1.0
# A `receive` that must not wait gives the pull that it has just started this long.
_LEAST_S = 0.1
# Deleting a topic ends no pull: how often an idle member looks whether it is still there.
_LOOK_S = 5.0


class PubsubMember:
    """One member of one group."""

    def __init__(self, driver: PubsubDriver, topic: str, group: str) -> None:
        self._driver = driver
        self._rpc = driver.rpc
        self._topic = topic
        self._group = group
        self._missing = no_group(topic, group)
        main = driver.names.subscription(topic, group)
        retry = driver.names.retry_subscription(topic, group)
        self._path = main
        # Retries first, because they have waited before.
        self._intakes = (
            Intake(self._rpc, retry, True, self._missing, self._pull_ended),
            Intake(self._rpc, main, False, self._missing, self._pull_ended),
        )
        self._clock = driver.lease_clock
        self._leases = Leases(
            self._rpc, (main, retry), driver.capabilities.lease, self._missing, driver.lease_clock
        )
        self._open: set[Held] = set()
        self._news = asyncio.Event()
        self._receiving = False
        self._closed = False
        self._idle: asyncio.TimerHandle | None = None
        self._background: set[asyncio.Task[set[Held]]] = set()
        # A renewal that overtook a release would hold the message back.
        self._renewing = asyncio.Lock()
        self._look: Call | None = None
        self._looked = asyncio.get_running_loop().time()

    def held_ids(self, topic: str, group: str) -> set[tuple[bool, str]]:
        """Return which records of a group this member holds: whether from the retry topic, message id."""
        if (topic, group) != (self._topic, self._group):
            return set()
        now = self._clock()
        return {(held.retry, held.message_id) for held in self._open if held.until > now}

    async def receive(self, limit: Room, timeout: float) -> list[Delivery]:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + max(timeout, _LEAST_S)
        self._receiving = True
        self._stop_waiting_for_nobody()
        try:
            while True:
                self._news.clear()
                deliveries = await self._take(limit)
                left = deadline - loop.time()
                if deliveries or left <= 0 or self._closed:
                    return deliveries
                self._check_existence()
                pauses = [each.start(limit.messages, limit.size_bytes) for each in self._intakes]
                left = min([left, *(pause for pause in pauses if pause > 0)])
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(left):
                        await self._news.wait()
        finally:
            self._receiving = False
            self._pull_ended()

    async def settle(
        self, acks: Sequence[Delivery], releases: Sequence[Delivery], retries: Sequence[Redelivery]
    ) -> list[Delivery]:
        self._check_open()
        named = [*acks, *releases, *(retry.delivery for retry in retries)]
        now = self._clock()
        held: set[Held] = {each.receipt for each in named if self._holds(each, now)}
        self._open -= held
        try:
            lost = await together(
                self._leases.acknowledge(each.receipt for each in acks if each.receipt in held),
                self._release([each.receipt for each in releases if each.receipt in held]),
                self._fail([each for each in retries if each.delivery.receipt in held]),
            )
        except BaseException:
            self._open |= held
            raise
        return [each for each in named if each.receipt not in held or each.receipt in lost]

    async def extend(self, deliveries: Sequence[Delivery]) -> list[Delivery]:
        self._check_open()
        async with self._renewing:
            now = self._clock()
            held = {each.receipt for each in deliveries if self._holds(each, now)}
            lost = {each.receipt for each in deliveries} - held | await self._leases.renew(held)
        self._open -= lost
        return [each for each in deliveries if each.receipt in lost]

    async def forward(self, delivery: Delivery, topic: str, extra: Mapping[str, str]) -> None:
        self._check_open()
        held: Held = delivery.receipt
        if not self._holds(delivery, self._clock()):
            raise LeaseLost([delivery.message.id])
        if topic in held.copies:
            return
        record = (held.body, forward_copy(held, extra), held.key)
        (answer,) = await self._driver.publisher.store(
            self._driver.names.topic(topic), [record], f"forwarding to topic {topic!r}", no_topic(topic)
        )
        if isinstance(answer, BrokerError):
            raise answer
        held.copies.add(topic)

    async def flush(self) -> None:
        """Do nothing: ``settle`` has its answers before it returns."""

    async def aclose(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._driver.members.discard(self)
        self._stop_waiting_for_nobody()
        if self._look is not None:
            self._look.cancel()
        ended = await asyncio.gather(*(each.stop() for each in self._intakes))
        await asyncio.gather(
            self._rpc.fence(), self._leases.hand_back(held for arrivals in ended for held in arrivals)
        )
        if self._background:
            await asyncio.wait(self._background)
        self._open.clear()

    def _check_open(self) -> None:
        if self._closed:
            raise Closed(f"this member of group {self._group!r} has left; its deliveries come again")

    def _holds(self, each: Delivery, now: float) -> bool:
        held: Held = each.receipt
        return held in self._open and held.until > now

    async def _release(self, helds: Sequence[Held]) -> set[Held]:
        if not helds:
            return set()
        for intake in self._intakes:
            intake.expect(any(held.retry == intake.retry for held in helds))
        async with self._renewing:
            return await self._leases.release(helds)

    async def _fail(self, retries: Sequence[Redelivery]) -> set[Held]:
        """Store a copy of each in the group's retry topic; ack the original once that is confirmed."""
        if not retries:
            return set()
        self._intakes[0].expect(True)
        new = [each for each in retries if each.attempt not in each.delivery.receipt.copies]
        now = self._driver.clock.now()
        records = [
            (held.body, retry_copy(held, each.attempt, now + each.delay), "")
            for each in new
            for held in (each.delivery.receipt,)
        ]
        answers = await self._driver.publisher.store(
            self._driver.names.retry_topic(self._topic, self._group),
            records,
            f"keeping what failed in group {self._group!r} of topic {self._topic!r}",
            self._missing,
        )
        problems: list[BrokerError] = []
        for each, answer in zip(new, answers, strict=True):
            if isinstance(answer, InvalidMessage):
                log.warning("the attempt at %s is not counted: %s", each.delivery.message.id, answer)
            elif isinstance(answer, BrokerError):
                problems.append(answer)
            else:
                each.delivery.receipt.copies.add(each.attempt)
        if problems:
            raise problems[0]
        stored = [each.delivery.receipt for each in retries if each.attempt in each.delivery.receipt.copies]
        # What took so long that the lease is over may be another member's by now: the copy comes beside it.
        late = {held for held in stored if held.until <= self._clock()}
        uncopied = (each for each in retries if each.attempt not in each.delivery.receipt.copies)
        return late | await together(
            self._leases.acknowledge(held for held in stored if held not in late),
            *(self._leases.release([each.delivery.receipt], each.delay) for each in uncopied),
        )

    async def _take(self, limit: Room) -> list[Delivery]:
        """Lease what has arrived, is due and fits; hide what is not due; hand the rest back."""
        arrivals = self._arrivals()
        if not arrivals:
            return []
        now = self._driver.clock.now()
        due = [held for held in arrivals if held.due <= now]
        kept = due[: limit.fitting(len(held.body) for held in due)]
        for intake in self._intakes:
            intake.judge(due, kept)
        lost = await together(
            self._leases.renew(kept),
            self._leases.hand_back(due[len(kept) :]),
            self._leases.hide((held for held in arrivals if held.due > now), now, self._driver.look_again),
        )
        ours = [held for held in kept if held not in lost]
        self._open.update(ours)
        return [delivery(held, self._driver.names.project, self._topic) for held in ours]

    def _arrivals(self) -> list[Held]:
        """Return what both pulls have brought.

        Raises:
            NotFound: topic or group is gone.
            BrokerError: a pull failed and nothing came.
        """
        arrivals: list[Held] = []
        problem: BrokerError | None = None
        for intake in self._intakes:
            try:
                arrivals += intake.arrived()
            except BrokerError as error:
                problem = error
        if arrivals:
            self._looked = asyncio.get_running_loop().time()
        elif problem is not None:
            raise problem
        return arrivals

    def _check_existence(self) -> None:
        """Ask now and then whether the topic is there, and learn the answer at a later call."""
        now = asyncio.get_running_loop().time()
        if self._look is None:
            if now - self._looked >= _LOOK_S:
                asked = request("GetSubscription", subscription=self._path)
                self._look = self._rpc.begin(asked, "GetSubscription", CALL_S)
        elif self._look.ended.done():
            look, self._look, self._looked = self._look, None, now
            try:
                found = look.answer()
            except (grpc.RpcError, grpc.FutureCancelledError) as error:
                raise mapped(error, f"looking for {self._path}", missing=self._missing) from error
            if found.topic == DELETED_TOPIC:
                raise NotFound(no_topic(self._topic))

    def _pull_ended(self) -> None:
        """Wake ``receive``, or give it some time to be called before everything goes back."""
        self._news.set()
        arrived = any(each.has_ended for each in self._intakes)
        if arrived and not self._receiving and not self._closed and self._idle is None:
            self._idle = asyncio.get_running_loop().call_later(_GRACE_S, self._nobody_came)

    def _stop_waiting_for_nobody(self) -> None:
        if self._idle is not None:
            self._idle.cancel()
            self._idle = None

    def _nobody_came(self) -> None:
        self._idle = None
        with contextlib.suppress(BrokerError):
            arrivals = self._arrivals()
            if arrivals:
                task = asyncio.create_task(self._leases.hand_back(arrivals))
                self._background.add(task)
                task.add_done_callback(self._background.discard)
