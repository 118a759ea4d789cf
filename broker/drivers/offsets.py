"""Which offsets of a partition are finished, and what may be committed: pure, no clock, no I/O.

Kafka keeps one number per partition and group: everything below it is finished. Work here ends in any
order, so only the contiguous finished prefix of what was *received* is committed (offsets may have holes:
transaction markers, compaction), and what is finished beyond it travels in the commit's metadata, where the
next owner of the partition finds it. The topic's identity travels there too: offsets of a topic that was
deleted say nothing about its successor of the same name.
"""

from __future__ import annotations

import base64
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

# The broker's `offset.metadata.max.bytes` is 4,096 by default: kafka.apache.org/documentation/#brokerconfigs
_METADATA_BYTES = 4096
# Intake pauses here, so that what is already held still fits.
_FULL_BYTES = 3072
# So many received records may wait behind a slow one; memory, as their verdicts take almost no metadata.
_MAX_WINDOW = 100_000
_FORMAT = "c1"


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a group has come in one partition, as its commit says.

    Attributes:
        position: every offset below it is finished.
        start: the first offset that this group is to see.
        beyond: ranges [first, end) of offsets at or above ``position`` that are finished too.
        topic: identity of the topic, which the broker gives it when it is created; "" if not known.
    """

    position: int
    start: int
    beyond: tuple[tuple[int, int], ...] = ()
    topic: str = ""

    @property
    def finished_beyond(self) -> int:
        """How many offsets at or above ``position`` are finished."""
        return sum(end - first for first, end in self.beyond)

    def is_finished(self, offset: int) -> bool:
        """Whether the message at ``offset`` needs no more work."""
        return offset < self.position or any(first <= offset < end for first, end in self.beyond)

    def metadata(self) -> str:
        """Return the text for the commit; ranges that do not fit are left out and are worked on again."""
        head = f"{_FORMAT};{self.topic};{self.start};"
        packed, at = bytearray(), self.position
        for first, end in self.beyond:
            pair = _varint(first - at) + _varint(end - first)
            if len(head) + (len(packed) + len(pair) + 2) // 3 * 4 > _METADATA_BYTES:
                break
            packed += pair
            at = end
        return head + base64.b64encode(packed).decode()

    @staticmethod
    def parse(position: int, metadata: str | None) -> Progress:
        """Read a commit; metadata of another program counts for nothing."""
        try:
            kind, topic, start, packed = (metadata or "").split(";")
            numbers = list(_numbers(base64.b64decode(packed, validate=True)))
            if kind != _FORMAT:
                return Progress(position, position)
            beyond, at = [], position
            for gap, length in zip(numbers[::2], numbers[1::2], strict=True):
                beyond.append((at + gap, at + gap + length))
                at += gap + length
            return Progress(position, int(start), tuple(beyond), topic)
        except ValueError:
            return Progress(position, position)


@dataclass(slots=True)
class Partition:
    """One partition for as long as it is assigned to this member.

    Attributes:
        epoch: identifies the assignment; a verdict from another epoch is refused.
        begin: what the commit said when the partition was assigned.
    """

    epoch: int
    begin: Progress
    _order: deque[int] = field(default_factory=deque)
    # What is finished and not yet below the position: ranges, by their first offset and by their end.
    _ends: dict[int, int] = field(default_factory=dict)
    _firsts: dict[int, int] = field(default_factory=dict)
    _next: int = -1
    _sent: Progress | None = None
    _stored: Progress | None = None

    def __post_init__(self) -> None:
        self._sent = self._stored = self.begin

    @property
    def next(self) -> int:
        """The offset to be read next."""
        return max(self._next, self.begin.position)

    def receive(self, offset: int) -> bool:
        """Note a record; return whether it needs work (False: finished before this assignment)."""
        if offset < self._next:
            return False
        self._next = offset + 1
        self._order.append(offset)
        begin = self.begin
        if (begin.beyond or offset < begin.position) and begin.is_finished(offset):
            self.finish(offset)
            return False
        return True

    def finish(self, offset: int) -> None:
        """Note, once, that the message at ``offset`` needs no more work."""
        order = self._order
        if not self._ends and order and order[0] == offset:  # in order: nothing to remember
            order.popleft()
            return
        first, end = self._firsts.pop(offset, offset), self._ends.pop(offset + 1, offset + 1)
        self._ends[first], self._firsts[end] = end, first
        while order and (end := self._ends.pop(order[0], -1)) >= 0:
            del self._firsts[end]
            while order and order[0] < end:
                order.popleft()

    def progress(self) -> Progress:
        """Return what may be committed now."""
        position = self._order[0] if self._order else self.next
        beyond = [*sorted(self._ends.items()), *self._not_yet_read()]
        return Progress(position, self.begin.start, tuple(beyond), self.begin.topic)

    def _not_yet_read(self) -> Iterator[tuple[int, int]]:
        """Yield what was finished before this assignment and has not come by again."""
        for first, end in self.begin.beyond:
            if end > max(self._next, first):
                yield max(first, self._next), end

    def identify(self, topic: str) -> bool:
        """Take over the identity of the topic where none was known; return False if it was another one."""
        if not self.begin.topic:
            begin, self.begin = self.begin, replace(self.begin, topic=topic)
            # The identity alone is not worth a commit.
            if self._sent == begin == self._stored:
                self._sent = self._stored = self.begin
        return self.begin.topic == topic

    def uncommitted(self, unsure: bool = False) -> Progress | None:
        """Return what may be committed and was not sent yet, or None.

        Args:
            unsure: also what was sent and is not known to be stored.
        """
        progress = self.progress()
        return None if progress == (self._stored if unsure else self._sent) else progress

    def sent(self, progress: Progress) -> None:
        """Note what was sent to be committed."""
        self._sent = progress

    def stored(self, position: int, metadata: str | None) -> None:
        """Note what is committed for certain."""
        if self._sent is not None and (position, metadata) == (self._sent.position, self._sent.metadata()):
            self._stored = self._sent

    def refused(self) -> None:
        """Note that a commit failed: it is sent again."""
        self._sent = self._stored = None

    @property
    def full(self) -> bool:
        """Whether so much is finished out of order that no more may be taken."""
        if len(self._order) >= _MAX_WINDOW:
            return True
        # One range takes up to four bytes before base64; a count is cheap and errs to the safe side.
        return len(self._ends) > 64 and len(self.progress().metadata()) > _FULL_BYTES


def _varint(number: int) -> bytes:
    """Return seven bits per byte, low bits first, as in Protocol Buffers."""
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def _numbers(packed: bytes) -> Iterator[int]:
    number = shift = 0
    for byte in packed:
        number |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            yield number
            number = shift = 0
    if shift:
        raise ValueError("a number is cut short")
