"""The messages of one fake subscription: who holds which, until when, and what comes back.

Pure: no thread, no socket, no wall clock. Time is a function that returns seconds since 1970, so that a test
moves it. Not safe for threads: ``FakePubSub`` holds one lock around every call.
"""

from __future__ import annotations

import enum
import heapq
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from google.pubsub_v1 import types

from .fake_pubsub_limits import need

# A channel made for an emulator keeps gRPC's 4 MiB limit on what it receives.
MAX_RESPONSE_BYTES = 3_500_000
# As long as real ones (about 180 characters): the limit on requests of ids is met as soon as there.
ACK_ID_PREFIX = "RkFLRQ" + "x" * 150


class State(enum.Enum):
    """Where a message of one subscription is."""

    READY, LEASED, DELAYED, ACKED = range(4)


@dataclass(frozen=True, slots=True, eq=False)
class Record:
    """A published message; ``seq`` rises by one with each, over all topics."""

    seq: int
    message: Any
    published: float
    size_bytes: int


@dataclass(slots=True, eq=False)
class Entry:
    """One message in one subscription; ``due`` ends its lease or its delay."""

    record: Record
    state: State = State.READY
    ack_id: str = ""
    due: float = 0.0
    attempts: int = 0


@dataclass(slots=True)
class Lane:
    """What is out of one ordering key, oldest first, and with whom."""

    sent: list[Entry] = field(default_factory=list)
    receiver: object = None
    not_before: float = 0.0


class Topic:
    """A topic and what it retains; kept while a snapshot or a subscription still refers to it."""

    def __init__(self, pb: Any, clock: Callable[[], float]) -> None:
        self.pb, self._clock = pb, clock
        self.log: deque[Record] = deque()
        self.snapshots = 0

    def append(self, record: Record) -> None:
        """Retain a record, if a retention or a snapshot asks for it, and forget what none asks for."""
        oldest = self._clock() - self.pb.message_retention_duration.seconds
        while self.log and self.log[0].published < oldest and not self.snapshots:
            self.log.popleft()
        if self.snapshots or self.pb.HasField("message_retention_duration"):
            self.log.append(record)

    def retained(self) -> list[Record]:
        """Return the records that the topic's own retention keeps for its subscriptions."""
        if not self.pb.HasField("message_retention_duration"):
            return []
        oldest = self._clock() - self.pb.message_retention_duration.seconds
        return [record for record in self.log if record.published >= oldest]


class Backlog:
    """The messages of one subscription: ready, leased, or waiting out a retry policy.

    An expired lease can still be acked or extended until the message is delivered again, as on the emulator;
    not so with exactly-once delivery. Of an ordering key one receiver at a time (a stream or one pull) holds
    messages.
    """

    def __init__(self, pb: Any, topic: Topic, clock: Callable[[], float], bury: Callable[..., bool]) -> None:
        self.pb, self.topic, self._clock, self._bury = pb, topic, clock, bury
        self._entries: dict[int, Entry] = {}
        self._kept: dict[int, Record] = {}  # acked, but retained for a seek
        self._ready: list[int] = []
        self._timers: list[tuple[float, int]] = []
        self._leases: dict[str, Entry] = {}
        self._settled: dict[
            str, float
        ] = {}  # acked ids of an exactly-once subscription, until their lease ends
        self._lanes: dict[str, Lane] = defaultdict(Lane)

    def add(self, record: Record) -> None:
        """Append a message that was published now."""
        self._offer(Entry(record))

    def take(self, receiver: object, limit: int, max_bytes: int, lease_s: float) -> list[Any]:
        """Lease up to ``limit`` messages, oldest first; the one that reaches ``max_bytes`` is the last."""
        self._wake()
        now = self._clock()
        blocked: list[int] = []
        taken: list[Any] = []
        room = min(max_bytes, MAX_RESPONSE_BYTES)
        while self._ready and len(taken) < limit and room > 0:
            seq = heapq.heappop(self._ready)
            entry = self._entries.get(seq)
            if entry is None or entry.state is not State.READY:
                continue
            if entry.record.published < now - self._retention_s():
                del self._entries[seq]
            elif self._is_blocked(entry, receiver, now):
                blocked.append(seq)
            elif taken and entry.record.size_bytes > room:
                blocked.append(seq)
                break
            else:
                room -= entry.record.size_bytes
                taken.append(self._lease(entry, receiver, now + lease_s))
        for seq in blocked:
            heapq.heappush(self._ready, seq)
        return taken

    def ack(self, ack_ids: Iterable[str]) -> list[str]:
        """Acknowledge; returns the ids that an exactly-once subscription refuses.

        There a repeated ack succeeds while the lease would last: clients repeat what got no answer.
        """
        return self._settle(ack_ids, self._acknowledge, self._settled)

    def modify(self, ack_ids: Iterable[str], seconds: float) -> list[str]:
        """Set the rest of the leases to ``seconds``, 0 returns the messages; returns as ``ack`` does."""
        need(0 <= seconds <= 600, f"ack_deadline_seconds must be from 0 to 600, not {seconds}")
        return self._settle(
            ack_ids, self._return if seconds == 0 else lambda entry: self._hold(entry, seconds), {}
        )

    def held_bytes(self, ack_id: str) -> int | None:
        """Return the size of the message that ``ack_id`` still leases, None once it does not."""
        self._wake()
        entry = self._leases.get(ack_id)
        return entry.record.size_bytes if entry and entry.state is State.LEASED else None

    def next_due(self) -> float:
        """Return when the next lease or delay ends; infinity without one."""
        return self._timers[0][0] if self._timers else float("inf")

    def unacked(self) -> list[Record]:
        """Return what is not acknowledged, oldest first."""
        return [self._entries[seq].record for seq in sorted(self._entries)]

    def replayable(self) -> list[Record]:
        """Return what a seek to a time can bring back: the unacked, and the acked that is retained."""
        oldest = self._clock() - self._retention_s()
        found = {record.seq: record for record in self.topic.retained()} | self._kept
        found |= {seq: entry.record for seq, entry in self._entries.items()}
        return [record for _, record in sorted(found.items()) if record.published >= oldest]

    def reset(self, records: Iterable[Record]) -> None:
        """Make ``records`` the unacked messages and end all leases; all else counts as acked."""
        before = self.replayable()
        for part in (
            self._entries,
            self._leases,
            self._lanes,
            self._kept,
            self._settled,
            self._ready,
            self._timers,
        ):
            part.clear()
        for record in records:
            self.add(record)
        if self.pb.retain_acked_messages:
            self._kept = {record.seq: record for record in before if record.seq not in self._entries}

    def _settle(
        self, ack_ids: Iterable[str], act: Callable[[Entry], None], done: Mapping[str, float]
    ) -> list[str]:
        self._wake()
        refused = []
        ids = list(ack_ids)
        for ack_id in ids:
            need(ack_id.startswith(ACK_ID_PREFIX), f"Invalid ack id (ack_id={ack_id})")
        for ack_id in ids:
            entry = self._leases.get(ack_id)
            if self.pb.enable_exactly_once_delivery and (entry is None or entry.state is not State.LEASED):
                if done.get(ack_id, 0.0) <= self._clock():
                    refused.append(ack_id)
            elif entry is not None:
                act(entry)
        return refused

    def _acknowledge(self, entry: Entry) -> None:
        self._leases.pop(entry.ack_id, None)
        if self.pb.enable_exactly_once_delivery:
            self._settled[entry.ack_id] = entry.due
        self._drop(entry)
        lane = self._lane(entry)
        while lane and lane.sent and lane.sent[0].state is State.ACKED:
            lane.sent.pop(0)

    def _drop(self, entry: Entry) -> None:
        entry.state = State.ACKED
        self._entries.pop(entry.record.seq, None)
        if self.pb.retain_acked_messages:
            self._kept[entry.record.seq] = entry.record

    def _hold(self, entry: Entry, seconds: float) -> None:
        """Lease for ``seconds`` from now; a keyed message whose lease has ended stays returned."""
        if entry.state is not State.LEASED and self._lane(entry):
            return
        entry.state, entry.due = State.LEASED, self._clock() + seconds
        heapq.heappush(self._timers, (entry.due, entry.record.seq))

    def _lease(self, entry: Entry, receiver: object, until: float) -> Any:
        self._leases.pop(entry.ack_id, None)
        entry.attempts += 1
        entry.ack_id = f"{ACK_ID_PREFIX}-{id(self):x}-{entry.record.seq}-{entry.attempts}"
        entry.state, entry.due = State.LEASED, until
        self._leases[entry.ack_id] = entry
        heapq.heappush(self._timers, (until, entry.record.seq))
        if lane := self._lane(entry):
            lane.receiver = receiver
            lane.sent.append(entry)
        attempt = entry.attempts if self.pb.HasField("dead_letter_policy") else 0
        return types.ReceivedMessage.pb()(
            ack_id=entry.ack_id, message=entry.record.message, delivery_attempt=attempt
        )

    def _wake(self) -> None:
        while self._timers and self._timers[0][0] <= self._clock():
            due, seq = heapq.heappop(self._timers)
            entry = self._entries.get(seq)
            if entry is None or entry.due != due:
                continue
            if entry.state is State.LEASED:
                self._return(entry, expired=True)
            elif entry.state is State.DELAYED:
                self._offer(entry)

    def _return(self, entry: Entry, expired: bool = False) -> None:
        """End a lease. Of an ordering key all that was sent after it returns too, even the acked (not so with
        exactly-once delivery), as Google documents for redelivery in order."""
        if entry.state is not State.LEASED:
            return
        if not expired:
            self._leases.pop(entry.ack_id, None)
        lane = self._lane(entry)
        if lane:
            cut = lane.sent.index(entry)
            lane.sent, later = lane.sent[:cut], lane.sent[cut + 1 :]
            for each in later:
                self._leases.pop(each.ack_id, None)
                if each.state is not State.ACKED or not self.pb.enable_exactly_once_delivery:
                    self._offer(each)
        policy = self.pb.dead_letter_policy
        exhausted = self.pb.HasField("dead_letter_policy") and entry.attempts >= policy.max_delivery_attempts
        if exhausted and self._bury(self.pb, entry.record, entry.attempts):
            self._drop(entry)
            return
        delay_s = self._backoff_s(entry.attempts)
        if delay_s == 0:
            self._offer(entry)
            return
        entry.state, entry.due = State.DELAYED, (entry.due if expired else self._clock()) + delay_s
        heapq.heappush(self._timers, (entry.due, entry.record.seq))
        if lane:
            lane.not_before = entry.due

    def _offer(self, entry: Entry) -> None:
        entry.state = State.READY
        self._kept.pop(entry.record.seq, None)
        self._entries[entry.record.seq] = entry
        heapq.heappush(self._ready, entry.record.seq)

    def _lane(self, entry: Entry) -> Lane | None:
        key = entry.record.message.ordering_key
        return self._lanes[key] if key and self.pb.enable_message_ordering else None

    def _is_blocked(self, entry: Entry, receiver: object, now: float) -> bool:
        lane = self._lane(entry)
        return lane is not None and (
            now < lane.not_before or bool(lane.sent and lane.receiver is not receiver)
        )

    def _backoff_s(self, attempts: int) -> float:
        policy = self.pb.retry_policy
        if not self.pb.HasField("retry_policy"):
            return 0.0
        first = (
            policy.minimum_backoff.ToTimedelta().total_seconds()
            if policy.HasField("minimum_backoff")
            else 10.0
        )
        most = (
            policy.maximum_backoff.ToTimedelta().total_seconds()
            if policy.HasField("maximum_backoff")
            else 600.0
        )
        return float(min(most, first * 2 ** min(attempts - 1, 16)))

    def _retention_s(self) -> float:
        return float(
            max(self.pb.message_retention_duration.seconds, self.topic.pb.message_retention_duration.seconds)
        )
