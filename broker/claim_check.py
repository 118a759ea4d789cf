"""Large bodies by reference: between the contract and a driver, so that neither knows of it.

A body over the backend's limit goes to a ``ClaimStore`` first; then the message goes, empty, with the body's
hash and size as attributes. Whoever receives it gets the message as it was published. What a driver copies
(a redelivery, a dead letter) is the native record, so the reference travels on.

What goes wrong with the store blames no message: a delivery whose body cannot be fetched now is handed back,
and ``receive`` fails. Only a body that is gone for good, from a store that is there, makes its message one
that can never succeed.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from weakref import WeakKeyDictionary

from .claims import (
    ADDED,
    CLAIM,
    TRANSFERS,
    ClaimLost,
    ClaimStore,
    is_claimed,
    read_claim,
    with_body,
    with_claim,
    without_body,
)
from .drivers.base import Driver, Order, Room, SubscriptionDriver
from .errors import BrokerError, InvalidMessage, PermissionDenied
from .logs import log
from .message import Capabilities, Delivery, Message, Receipt, Redelivery

# How long at most a member waits for a body before it looks again at what else there is.
_LOOK_S = 0.05


class ClaimCheck:
    """A driver that takes larger bodies than the one below it. Without a store it only knows their mark.

    Args:
        driver: the backend.
        store: where large bodies go; None refuses them.
    """

    def __init__(self, driver: Driver, store: ClaimStore | None) -> None:
        self._driver = driver
        self._store = store
        self._below: Capabilities | None = None
        self._above = driver.capabilities
        self._transfers = asyncio.Semaphore(TRANSFERS)
        self.clock = driver.clock
        self.address = driver.address
        self.admin = driver.admin

    @property
    def capabilities(self) -> Capabilities:
        """What the backend promises; with a store larger bodies, and room for the attributes of a claim."""
        below = self._driver.capabilities
        if self._store is None or below.max_message_bytes >= self._store.max_bytes:
            return below
        if below is not self._below:
            attributes, size = below.max_attributes - len(ADDED), self._store.max_bytes
            self._below = below
            self._above = replace(below, max_message_bytes=size, max_attributes=attributes)
        return self._above

    @capabilities.setter
    def capabilities(self, value: Capabilities) -> None:
        self._driver.capabilities = value

    async def open(self) -> None:
        """Connect the backend; the store is opened by the first body."""
        self._transfers = asyncio.Semaphore(TRANSFERS)
        await self._driver.open()
        self.clock, self.address, self.admin = self._driver.clock, self._driver.address, self._driver.admin

    async def aclose(self) -> None:
        """Release both."""
        if self._store is not None:
            self._store.close()
        await self._driver.aclose()

    async def send(self, topic: str, messages: Sequence[Message]) -> list[Receipt | BrokerError]:
        """Store large bodies, then all messages in order; one receipt or error for each."""
        if self._store is not None:
            self._store.sweep_soon()
        limit = self._driver.capabilities.max_message_bytes
        if not any(len(each.data) > limit or CLAIM in each.attributes for each in messages):
            return await self._driver.send(topic, messages)
        ready = await asyncio.gather(*(self._check_in(each, limit) for each in messages))
        good = [each for each in ready if isinstance(each, Message)]
        answers = iter(await self._driver.send(topic, good) if good else [])
        return [next(answers) if isinstance(each, Message) else each for each in ready]

    async def subscribe(self, topic: str, group: str, order: Order) -> ClaimingMember:
        """Join a group."""
        return ClaimingMember(self, await self._driver.subscribe(topic, group, order))

    async def redeem(self, delivery: Delivery) -> Delivery:
        """Return ``delivery`` with its body, or with the reason why it has none for good.

        Raises:
            Unavailable: the store does not answer.
            PermissionDenied: it refuses these credentials.
            ValueError: this consumer was told of no store.
        """
        message = delivery.message
        if not is_claimed(message):
            return delivery
        try:
            claim = read_claim(message)
            if self._store is None:
                raise ValueError(
                    f"the body of message {message.id} is in a claim store, and none is known here; set"
                    " BROKER_CLAIM_CHECK_URL to that of its publisher"
                )
            async with self._transfers:
                data = await self._store.get(claim)
        except ClaimLost as error:
            return replace(delivery, message=without_body(message, str(error)))
        return replace(delivery, message=with_body(message, data))

    async def show(self, delivery: Delivery) -> Delivery:
        """Return ``delivery`` for a person: as ``redeem`` does, or with the reason why not now."""
        try:
            return await self.redeem(delivery)
        except (BrokerError, ValueError) as error:
            return replace(delivery, message=without_body(delivery.message, f"not fetched: {error}"))

    async def renew(self, delivery: Delivery) -> None:
        """Begin the retention of a body again, since a copy of its message is about to be stored.

        Who may only read the store copies the message all the same: its body is kept as long as before.

        Raises:
            Unavailable: the store does not answer.
        """
        if self._store is None or not delivery.message.data:
            return
        try:
            async with self._transfers:
                await self._store.put(delivery.message.data)
        except PermissionDenied as error:
            log.warning("the body of message %s is not kept for longer: %s", delivery.message.id, error)

    async def _check_in(self, message: Message, limit: int) -> Message | BrokerError:
        """Return the message that the backend is to store, once the store has its body."""
        if CLAIM in message.attributes:
            return InvalidMessage(f"attribute {CLAIM!r} is written by the library alone")
        if self._store is None or len(message.data) <= limit:
            return message
        try:
            async with self._transfers:
                return with_claim(message, await self._store.put(message.data))
        except BrokerError as error:
            return error


class ClaimingMember:
    """One member of one group, which gets its deliveries with their bodies.

    Bodies on their way, and those for which there is no room yet, are held here: leased, and counted
    against what ``receive`` may bring, by the size that the message says.
    """

    def __init__(self, claims: ClaimCheck, member: SubscriptionDriver) -> None:
        self._claims = claims
        self._member = member
        self._waiting: deque[Delivery] = deque()
        self._fetching: dict[asyncio.Task[Delivery], Delivery] = {}
        self._problem: BaseException | None = None
        # What the driver handed over for what was handed on: it may copy a record from its delivery.
        self._native: WeakKeyDictionary[Delivery, Delivery] = WeakKeyDictionary()

    async def receive(self, limit: Room, timeout: float) -> list[Delivery]:
        """Return what is complete; a problem with the store is raised once there is nothing to return."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        while True:
            self._raise_problem()
            if fetched := await self._collect():
                return fetched
            self._raise_problem()
            wait = 0.0 if self._fetching else max(0.0, deadline - loop.time())
            if complete := await self._take_in(limit, wait):
                return complete
            remaining = deadline - loop.time()
            if self._fetching and remaining > 0:
                pause = min(remaining, _LOOK_S)
                await asyncio.wait(self._fetching, timeout=pause, return_when=asyncio.FIRST_COMPLETED)
            elif self._waiting:
                # There is no room; whoever asks again says how much there is by then.
                await asyncio.sleep(min(max(0.0, remaining), _LOOK_S))
                return []
            elif remaining <= 0:
                return []

    async def settle(
        self, acks: Sequence[Delivery], releases: Sequence[Delivery], retries: Sequence[Redelivery]
    ) -> list[Delivery]:
        """Persist verdicts, as the backend does."""
        if not self._native:
            return await self._member.settle(acks, releases, retries)
        native = [replace(each, delivery=self._native.get(each.delivery, each.delivery)) for each in retries]
        lost = await self._member.settle(self._natives(acks), self._natives(releases), native)
        return self._among([*acks, *releases, *(each.delivery for each in retries)], lost)

    async def extend(self, deliveries: Sequence[Delivery]) -> list[Delivery]:
        """Renew the leases of ``deliveries`` and of what is held here."""
        held = self._held()
        if not deliveries and not held:
            return []
        lost = set(await self._member.extend([*self._natives(deliveries), *held]))
        for task in [task for task, each in self._fetching.items() if each in lost]:
            del self._fetching[task]
            task.cancel()
        self._waiting = deque(each for each in self._waiting if each not in lost)
        return self._among(deliveries, lost)

    async def forward(self, delivery: Delivery, topic: str, extra: Mapping[str, str]) -> None:
        """Store a copy of the native record: the reference, whose body is kept for as long as the copy."""
        native = self._native.get(delivery, delivery)
        if native is not delivery:
            await self._claims.renew(delivery)
        await self._member.forward(native, topic, extra)

    async def flush(self) -> None:
        """Make every verdict durable, as the backend does."""
        await self._member.flush()

    async def hand_back(self) -> None:
        """Release what is held here, once intake has ended."""
        for task in self._fetching:
            task.cancel()
        await asyncio.gather(*self._fetching, return_exceptions=True)
        if held := self._held():
            await self._member.settle([], held, [])
        self._fetching.clear()
        self._waiting.clear()

    async def aclose(self) -> None:
        """Hand back what is held here and leave the group."""
        try:
            await self.hand_back()
            await self._member.flush()
        except BrokerError as error:
            log.warning("could not hand back %d large message(s): %s", len(self._held()), error)
        finally:
            await self._member.aclose()

    def _natives(self, deliveries: Sequence[Delivery]) -> list[Delivery]:
        return [self._native.get(each, each) for each in deliveries]

    def _among(self, deliveries: Sequence[Delivery], lost: Iterable[Delivery]) -> list[Delivery]:
        """Return those of ``deliveries`` that the driver calls lost."""
        gone = set(lost)
        return [each for each in deliveries if self._native.get(each, each) in gone] if gone else []

    def _held(self) -> list[Delivery]:
        return [*self._fetching.values(), *self._waiting]

    async def _collect(self) -> list[Delivery]:
        """Return what has been fetched; hand back all the rest if something could not be."""
        done = [task for task in self._fetching if task.done()]
        failed = [task for task in done if task.exception() is not None]
        if failed:
            self._problem = failed[0].exception()
            back = [*(self._fetching[task] for task in failed), *self._waiting]
            log.warning("%d large message(s) are handed back: %s", len(back), self._problem)
            await self._member.settle([], back, [])
            self._waiting.clear()
            for task in failed:
                self._fetching.pop(task, None)
        good = [task for task in done if task not in failed and task in self._fetching]
        for task in good:
            self._native[task.result()] = self._fetching.pop(task)
        return [task.result() for task in good]

    async def _take_in(self, limit: Room, timeout: float) -> list[Delivery]:
        """Receive what there is room for beside what is held; return what needs no fetching."""
        room = limit.size_bytes - sum(_size(each) for each in self._fetching.values())
        slots = limit.messages - len(self._held())
        alone = limit.alone and not self._fetching
        complete: list[Delivery] = []
        # What waits for room is next: nothing slips past it.
        if not self._waiting and slots > 0 and room > 0:
            found = await self._member.receive(Room(slots, room, alone), timeout)
            complete = [each for each in found if each.message.data or not is_claimed(each.message)]
            if len(complete) < len(found):
                self._waiting.extend(each for each in found if is_claimed(each.message))
                room -= sum(len(each.message.data) for each in complete)
        alone = alone and not complete
        while self._waiting and (_size(self._waiting[0]) <= room or alone):
            delivery = self._waiting.popleft()
            self._fetching[asyncio.create_task(self._claims.redeem(delivery))] = delivery
            room -= _size(delivery)
            alone = False
        return complete

    def _raise_problem(self) -> None:
        problem, self._problem = self._problem, None
        if problem is not None:
            raise problem


def _size(delivery: Delivery) -> int:
    """Return how many bytes the body of a claimed delivery will have; 0 if it will have none."""
    try:
        return read_claim(delivery.message).size_bytes
    except ClaimLost:
        return 0
