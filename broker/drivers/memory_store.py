"""What a queue in this process consists of: topics, groups, and who waits for a change."""

from __future__ import annotations

import contextlib
import itertools
import math
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from ..errors import NotFound
from ..logs import log
from ..message import Message
from .options import GONE, SWEEP_S

# Settled messages that a later group can still see; older ones are dropped to bound memory.
_KEPT = 100_000


@dataclass(slots=True)
class Pending:
    """A message that a group took from the log and has not settled.

    Attributes:
        available_at: end of its lease or of its delay.
        failures: recorded failures.
        token: identifies the lease; None while nobody holds one.
    """

    available_at: float
    failures: int = 0
    token: int | None = None


@dataclass(slots=True)
class Group:
    """Everything up to ``cursor`` was taken from the log; what is not settled of it is in ``pending``."""

    start: int
    cursor: int
    pending: dict[int, Pending] = field(default_factory=dict)


@dataclass(slots=True)
class Topic:
    """Its messages by their number, the number of the newest, and its groups by name.

    Attributes:
        retention: seconds for which messages are kept, settled or not; None: until they are settled.
        stored: when each message came; empty without a retention.
    """

    retention: float | None = None
    log: dict[int, Message] = field(default_factory=dict)
    stored: dict[int, float] = field(default_factory=dict)
    last: int = 0
    groups: dict[str, Group] = field(default_factory=dict)

    def append(self, message: Message, now: float) -> int:
        """Store a message; return its number."""
        self.last += 1
        self.log[self.last] = message
        if self.retention is not None:
            self.stored[self.last] = now
        return self.last

    def expire(self, now: float) -> int:
        """Drop what is older than the retention; return how much of it some group had not settled.

        What a member holds is left to it; no other group gets it any more.
        """
        unsettled = 0
        for seq, stored_at in list(self.stored.items()):
            if self.retention is None or stored_at > now - self.retention:
                break
            held = missed = False
            for group in self.groups.values():
                entry = group.pending.get(seq)
                if entry is not None and entry.token is not None and entry.available_at > now:
                    held = True
                    continue
                missed |= group.pending.pop(seq, None) is not None or group.cursor < seq
                group.cursor = max(group.cursor, seq)
            unsettled += missed
            if not held:
                del self.log[seq], self.stored[seq]
        return unsettled

    def trim(self) -> None:
        """Drop the oldest messages that every group has settled, beyond ``_KEPT``."""
        while len(self.log) > _KEPT and self.groups:
            oldest = next(iter(self.log))
            if any(oldest > each.cursor or oldest in each.pending for each in self.groups.values()):
                return
            del self.log[oldest]
            self.stored.pop(oldest, None)


@dataclass(frozen=True, slots=True)
class Lease:
    """Receipt of a delivery: the message's number and the token that must still stand in its entry."""

    seq: int
    token: int


class MemoryStore:
    """The topics of one queue; safe to use from several threads and event loops."""

    def __init__(self) -> None:
        self.topics: dict[str, Topic] = {}
        self.lock = threading.Lock()
        self.tokens = itertools.count(1)
        self._waiting: set[Callable[[], object]] = set()
        self._next_sweep = -math.inf

    def topic(self, name: str) -> Topic:
        """Return a topic, or raise ``NotFound``."""
        if name not in self.topics:
            raise NotFound(f"topic {name!r} does not exist; create it with `await broker.ensure({name!r})`")
        return self.topics[name]

    def group(self, topic: str, name: str) -> Group:
        """Return a group, or raise ``NotFound``."""
        groups = self.topic(topic).groups
        if name not in groups:
            raise NotFound(
                f"group {name!r} of topic {topic!r} does not exist; create it with"
                f" `await broker.ensure({topic!r}, group={name!r})`"
            )
        return groups[name]

    def expire(self, now: float) -> None:
        """Drop what is older than its topic's retention, once in ``SWEEP_S`` seconds; hold the lock."""
        if now < self._next_sweep:
            return
        self._next_sweep = now + SWEEP_S
        for name, topic in self.topics.items():
            if count := topic.expire(now):
                log.warning(GONE, count, name)

    @contextlib.contextmanager
    def calling(self, wake: Callable[[], object]) -> Iterator[None]:
        """Have ``wake`` called after every change while the context lasts."""
        self._waiting.add(wake)
        try:
            yield
        finally:
            self._waiting.discard(wake)

    def changed(self) -> None:
        """Wake everyone who waits."""
        for wake in tuple(self._waiting):
            # The event loop of a waiter may have ended meanwhile.
            with contextlib.suppress(RuntimeError):
                wake()
