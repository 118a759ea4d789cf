"""Which offsets of a partition are finished, and what may be committed: pure, no clock, no I/O.

Kafka keeps one number per partition and group: everything below it is finished. Work here ends in any
order, so only the contiguous finished prefix of what was *received* is committed (offsets may have holes:
transaction markers, compaction), and what is finished beyond it travels in the commit's metadata, where the
next owner of the partition finds it.
"""

from __future__ import annotations

import base64
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

# The broker's `offset.metadata.max.bytes` is 4,096 by default: kafka.apache.org/documentation/#brokerconfigs
_METADATA_BYTES = 4096
# Intake pauses here, so that what is already held still fits.
_FULL_BYTES = 3072
_FORMAT = "c1"


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a group has come in one partition, as its commit says.

    Attributes:
        position: every offset below it is finished.
        start: the first offset that this group is to see.
        beyond: ranges [first, end) of offsets at or above ``position`` that are finished too.
    """

    position: int
    start: int
    beyond: tuple[tuple[int, int], ...] = ()

    @property
    def finished_beyond(self) -> int:
        """How many offsets at or above ``position`` are finished."""
        return sum(end - first for first, end in self.beyond)

    def is_finished(self, offset: int) -> bool:
        """Whether the message at ``offset`` needs no more work."""
        return offset < self.position or any(first <= offset < end for first, end in self.beyond)

    def metadata(self) -> str:
        """Return the text for the commit; ranges that do not fit are left out and are worked on again."""
        head = f"{_FORMAT};{self.start};"
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
            kind, start, packed = (metadata or "").split(";")
            numbers = list(_numbers(base64.b64decode(packed, validate=True)))
            if kind != _FORMAT:
                return Progress(position, position)
            beyond, at = [], position
            for gap, length in zip(numbers[::2], numbers[1::2], strict=True):
                beyond.append((at + gap, at + gap + length))
                at += gap + length
            return Progress(position, int(start), tuple(beyond))
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
    _done: set[int] = field(default_factory=set)
    _next: int = -1
    _committed: Progress | None = None

    def receive(self, offset: int) -> bool:
        """Note a record; return whether it needs work (False: finished before this assignment)."""
        if offset < self._next:
            return False
        self._next = offset + 1
        self._order.append(offset)
        if self.begin.is_finished(offset):
            self.finish(offset)
            return False
        return True

    def finish(self, offset: int) -> None:
        """Note that the message at ``offset`` needs no more work."""
        self._done.add(offset)
        while self._order and self._order[0] in self._done:
            self._done.remove(self._order.popleft())

    def progress(self) -> Progress:
        """Return what may be committed now."""
        position = self._order[0] if self._order else max(self._next, self.begin.position)
        beyond = [*_ranges(self._done), *self._not_yet_read()]
        return Progress(position, self.begin.start, tuple(beyond))

    def _not_yet_read(self) -> Iterator[tuple[int, int]]:
        """Yield what was finished before this assignment and has not come by again."""
        for first, end in self.begin.beyond:
            if end > max(self._next, first):
                yield max(first, self._next), end

    def uncommitted(self) -> Progress | None:
        """Return what may be committed and is not yet, or None."""
        progress = self.progress()
        # The commit that was found at the start is there already.
        known = self._committed or self.begin
        return None if progress == known else progress

    def committed(self, progress: Progress | None) -> None:
        """Note what was committed; None: it is not known any more."""
        self._committed = progress

    @property
    def full(self) -> bool:
        """Whether so much is finished out of order that no more may be taken."""
        # One range takes up to four bytes before base64; a count is cheap and errs to the safe side.
        return len(self._done) > 64 and len(self.progress().metadata()) > _FULL_BYTES


def _ranges(offsets: Iterable[int]) -> Iterator[tuple[int, int]]:
    """Yield [first, end) of neighbouring offsets, ascending."""
    first = end = None
    for offset in sorted(offsets):
        if offset == end:
            end += 1
            continue
        if first is not None and end is not None:
            yield first, end
        first, end = offset, offset + 1
    if first is not None and end is not None:
        yield first, end


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
