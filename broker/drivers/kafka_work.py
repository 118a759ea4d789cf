"""What one member of a Kafka group has in its hands: assigned partitions and the records of them.

Verdicts come from the event loop, records from the thread that polls; ``lock`` is between them.
"""

from __future__ import annotations

import heapq
import itertools
import threading
from collections import deque
from collections.abc import Iterable
from typing import Any

from .base import Room
from .kafka_records import Record, read
from .offsets import Partition, Progress

Key = tuple[str, int]

# Over all members of this process, so that no two assignments are ever taken for one.
_epochs = itertools.count(1)


class Work:
    """Partitions by topic and number, what is handed over, what came back, what waits for its time."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.partitions: dict[Key, Partition] = {}
        self.held: set[Record] = set()
        self.waiting: list[tuple[float, int, Record]] = []
        self._back: deque[Record] = deque()
        self._numbers = itertools.count()

    def assign(self, key: Key, begin: Progress) -> None:
        """Start an epoch of a partition."""
        with self.lock:
            self.partitions[key] = Partition(next(_epochs), begin)

    def unassign(self, keys: Iterable[Key]) -> dict[Key, Partition]:
        """End epochs: from here on their verdicts are refused. Return what had come of them."""
        with self.lock:
            gone = {key: self.partitions.pop(key) for key in keys if key in self.partitions}
            self._back = deque(record for record in self._back if self.holds(record))
            self.waiting = [each for each in self.waiting if self.holds(each[2])]
            heapq.heapify(self.waiting)
            self.held = {record for record in self.held if self.holds(record)}
            return gone

    def holds(self, record: Record) -> bool:
        """Whether a record's assignment still lasts."""
        partition = self.partitions.get(record.partition)
        return partition is not None and partition.epoch == record.epoch

    def finish(self, record: Record) -> bool:
        """Note that a record needs no more work; return False if its assignment has ended."""
        with self.lock:
            if not self.holds(record):
                return False
            self.held.discard(record)
            self.partitions[record.partition].finish(record.offset)
            return True

    def give_back(self, record: Record) -> bool:
        """Offer a record again, untried; return False if its assignment has ended."""
        with self.lock:
            if not self.holds(record):
                return False
            self.held.discard(record)
            self._back.append(record)
            return True

    def take_in(self, native: Any, now: float) -> None:
        """Note a record that was polled, unless it is finished already or its assignment has ended."""
        key = (native.topic(), native.partition())
        with self.lock:
            partition = self.partitions.get(key)
            if partition is None or not partition.receive(native.offset()):
                return
            record = read(native, key, partition.epoch)
            if record.due > now:
                heapq.heappush(self.waiting, (record.due, next(self._numbers), record))
            else:
                self._back.append(record)

    def hand_over(self, limit: Room, now: float) -> list[Record]:
        """Hold and return what there is room for; what does not fit stays for the next time."""
        with self.lock:
            while self.waiting and self.waiting[0][0] <= now:
                self._back.append(heapq.heappop(self.waiting)[2])
            sizes = (len(record.native.value() or b"") for record in self._back)
            found = [self._back.popleft() for _ in range(limit.fitting(sizes))]
            self.held.update(found)
            return found

    def full(self) -> set[Key]:
        """Return the partitions that may take no more, because so much is finished out of order."""
        with self.lock:
            return {key for key, partition in self.partitions.items() if partition.full}

    def uncommitted(self) -> dict[Key, tuple[Partition, Progress]]:
        """Return what may be committed now and is not."""
        with self.lock:
            news = {key: (each, each.uncommitted()) for key, each in self.partitions.items()}
            return {key: (each, progress) for key, (each, progress) in news.items() if progress is not None}
