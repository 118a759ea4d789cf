"""The seam: what a backend implements. Everything else is written once, above it.

Six methods move data: ``send``, ``receive``, ``settle``, ``extend``, ``forward``, ``flush``. The second
protocol, ``Admin``, looks after topics and groups. A driver never retries, never batches for its own
sake and never decides a message's fate; it maps every error of its SDK to ``broker.errors``.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from ..clock import Clock
from ..errors import BrokerError
from ..message import (
    Capabilities,
    Delivery,
    GroupStats,
    Lag,
    Message,
    Receipt,
    Redelivery,
    TopicInfo,
)

Order = Literal["none", "key"]
Start = Literal["earliest", "latest"]


@dataclass(frozen=True, slots=True)
class Room:
    """How much one ``receive`` may bring.

    Attributes:
        messages: at most so many, at least 1.
        size_bytes: of all bodies together.
        alone: nothing is held, so that a first body over ``size_bytes`` may come, alone.
    """

    messages: int
    size_bytes: int
    alone: bool

    def fitting(self, sizes: Iterable[int]) -> int:
        """Return how many of these bodies, taken in order, there is room for."""
        left, count = self.size_bytes, 0
        for size in sizes:
            left -= size
            if count == self.messages or (left < 0 and (count or not self.alone)):
                break
            count += 1
        return count


class SubscriptionDriver(Protocol):
    """One member of one group. Calls may overlap, except ``receive`` with itself."""

    async def receive(self, limit: Room, timeout: float) -> list[Delivery]:
        """Lease what ``limit`` has room for, as soon as anything is there; ``[]`` after ``timeout`` seconds.

        Raises:
            NotFound: topic or group does not exist.
            BrokerError: mapped from the SDK.
        """
        ...

    async def settle(
        self, acks: Sequence[Delivery], releases: Sequence[Delivery], retries: Sequence[Redelivery]
    ) -> list[Delivery]:
        """Persist verdicts; return those that this member no longer held (nothing was done to them)."""
        ...

    async def extend(self, deliveries: Sequence[Delivery]) -> list[Delivery]:
        """Renew leases for ``capabilities.lease`` seconds; return those that were already lost."""
        ...

    async def forward(self, delivery: Delivery, topic: str, extra: Mapping[str, str]) -> None:
        """Store a copy of the native record in ``topic`` with ``extra`` attributes; do not settle.

        Where the backend can, doing it twice for one record stores one copy.
        """
        ...

    async def flush(self) -> None:
        """Make every verdict that ``settle`` accepted durable."""
        ...

    async def aclose(self) -> None:
        """Leave the group. Whatever is still held comes again elsewhere."""
        ...


class Admin(Protocol):
    """Topics and groups."""

    async def ensure(
        self, topic: str, group: str | None, partitions: int, start: Start, retention: float | None
    ) -> float | None:
        """Create what is missing; change nothing that exists.

        Args:
            topic: of valid name, as is ``group``.
            group: None creates the topic alone.
            partitions: of a new topic, on backends that have them.
            start: where a new group begins.
            retention: seconds for which a new topic and its groups keep messages, settled or not, within
                ``capabilities.retention``; None means the backend's own.

        Returns:
            How long a topic that was there keeps messages, if that is not ``retention``; else None.
        """
        ...

    async def remove_group(self, topic: str, group: str) -> None:
        """Forget a group, what it had before it, and its storage; silent if there is none.

        Raises:
            BrokerError: the backend knows that it is in use.
        """
        ...

    async def stats(self, topic: str, group: str) -> GroupStats:
        """Count what a group has before it.

        Raises:
            NotFound: topic or group does not exist.
        """
        ...

    async def topics(self) -> list[TopicInfo]:
        """List topics by name; a driver's own storage is left out."""
        ...

    async def lag(self, topic: str, group: str) -> list[Lag]:
        """Say, part by part, what a group has before it.

        Raises:
            NotFound: topic or group does not exist.
        """
        ...

    async def describe(self) -> dict[str, str]:
        """Ask the backend who it is: facts for a person, such as its version; fails when it is not there.

        Raises:
            BrokerError: it does not answer.
        """
        ...

    def browse(self, topic: str, group: str) -> AsyncIterator[Delivery]:
        """Show what ``group`` has not settled, oldest first; leases, hides and ages nothing.

        Raises:
            NotFound: topic or group does not exist.
        """
        ...


class Driver(Protocol):
    """A connection to one backend.

    Attributes:
        capabilities: what it promises.
        clock: what its leases and delays are measured by.
        address: where the messages are, without credentials; one text for all who share them.
        admin: its topics and groups.
    """

    capabilities: Capabilities
    clock: Clock
    address: str
    admin: Admin

    async def open(self) -> None:
        """Connect.

        Raises:
            BrokerError: the backend cannot be used; the text says what to do.
        """
        ...

    async def send(self, topic: str, messages: Sequence[Message]) -> list[Receipt | BrokerError]:
        """Store messages in order; one receipt or error for each, in the same order.

        Raises:
            NotFound: the topic does not exist; nothing was stored.
        """
        ...

    async def subscribe(self, topic: str, group: str, order: Order) -> SubscriptionDriver:
        """Join a group.

        Raises:
            NotFound: topic or group does not exist.
        """
        ...

    async def aclose(self) -> None:
        """Release the connection."""
        ...
