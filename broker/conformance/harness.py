"""What a driver's authors provide, and what a check may need of a backend."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TypeVar

from ..connect import Broker
from ..drivers.base import SubscriptionDriver
from ..message import Capabilities, GroupStats
from ..subscription import Subscription

_Check = TypeVar("_Check", bound=Callable[..., object])


class Harness(ABC):
    """One backend under test.

    Attributes:
        lease: seconds, as in the backend's ``Capabilities``.
        impossible: name of a check to the reason why this backend cannot pass it.
        patience: real seconds within which what must happen happens.
        quiet: real seconds without a message that count as "nothing comes".
        delay: seconds of the backend's clock for which checks delay a message; where that clock is real
            time, at least 20 times ``quiet``, because checks look for silence while a delay lasts.
        partitions: of the topics of checks that need only one member at a time. Where a partition
            belongs to one member, keep 1: a second member then stands by until the first has gone.
            Checks whose members share work make a topic of ``MANY`` partitions.
        rebalances: a member that joins or leaves may be followed by another one losing what it holds, so
            that ``LeaseLost`` is no failure where members come and go.
        crowd: how many members the busiest check opens at once.
        volume: how many messages the check has that restarts the backend at a third and at a half of them.
        native: type of the backend's own record, as ``Delivery.native`` yields it; None without one.
    """

    lease: float
    impossible: Mapping[str, str] = MappingProxyType({})
    patience: float = 20.0
    quiet: float = 0.25
    delay: float = 20.0
    partitions: int = 1
    rebalances: bool = False
    crowd: int = 50
    volume: int = 300
    native: type | None = None

    @abstractmethod
    def connect(self) -> Broker:
        """Return a new client, not yet open; all clients of one harness see the same messages."""

    @abstractmethod
    async def advance(self, seconds: float) -> None:
        """Let ``seconds`` pass for leases and delays: move an injected clock, or wait.

        A member that was frozen before may go on at the end of it.
        """

    async def restart(self) -> None:
        """Stop the backend and start it again on what it stored; every client is closed before.

        An embedded backend, which stops with its last client, has nothing to do.
        """
        return

    async def rebalanced(self) -> None:
        """Return once members that joined, and those that left, are taken into account.

        Called wherever it matters who receives what, so it returns at once when nobody came or went.
        """
        return

    async def stats(self, broker: Broker, topic: str, group: str) -> GroupStats:
        """Return the counts of a group, all of them numbers.

        A backend without ``capabilities.counts`` fills in ``published`` and ``settled`` from what it knows
        as the tester, for example from the backend's own administration.
        """
        return await broker.stats(topic, group)

    async def freeze(self, subscription: Subscription) -> None:
        """Stop a member from keeping its leases, as a suspended process would.

        The member is alone on its client. The check lets time pass next, has another member take over, and
        then gives the late verdict.
        """
        await _cancel(subscription._keeper)

    async def crash(self, subscription: Subscription) -> None:
        """End a member without a word: nothing that it holds is settled or handed back.

        The member is alone on its client, which is closed some time later and must not hang.
        """
        await _cancel(subscription._keeper)
        await _cancel(subscription._fetch)
        subscription._member = None


def member_of(subscription: Subscription) -> SubscriptionDriver:
    """Return the driver's own member behind an open subscription, for a harness that must reach it."""
    assert subscription._member is not None, "the subscription is not open"
    return subscription._member._member


class Claim:
    """Something a check needs and ``Capabilities`` may claim or deny."""

    def __init__(self, text: str, holds: Callable[[Capabilities], bool]) -> None:
        self.text = text
        self.holds = holds


KEY_ORDER = Claim("order='key'", lambda capabilities: "key" in capabilities.order)
DURABLE = Claim("durable", lambda capabilities: capabilities.durable)
RETENTION = Claim("a retention", lambda capabilities: capabilities.retention is not None)


def needs(claim: Claim) -> Callable[[_Check], _Check]:
    """Mark a check as one that only a backend with ``claim`` can pass."""

    def mark(check: _Check) -> _Check:
        check.claim = claim  # type: ignore[attr-defined]
        return check

    return mark


async def _cancel(task: asyncio.Task[None] | None) -> None:
    if task is not None:
        task.cancel()
        await asyncio.wait({task})
