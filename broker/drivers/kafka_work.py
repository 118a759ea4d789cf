"""What one member of a Kafka group has in its hands: assigned partitions and the records of them.

Verdicts come from the event loop, records from the thread that polls; ``lock`` is between them.
"""

from __future__ import annotations

import heapq
import itertools
import threading
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any

from .base import Room
from .kafka_records import Record, is_retry, read_private
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

    def restart(self, key: Key, begin: Progress) -> None:
        """Begin another epoch of a partition that this member keeps."""
        with self.lock:
            self.unassign([key])
            self.assign(key, begin)

    def holds(self, record: Record) -> bool:
        """Whether a record's assignment still lasts."""
        partition = self.partitions.get(record.partition)
        return partition is not None and partition.epoch == record.epoch

    def finish(self, records: Sequence[Record]) -> set[Record]:
        """Note that records need no more work; return those whose assignment has ended."""
        lost: set[Record] = set()
        key: Key | None = None
        partition: Partition | None = None
        with self.lock:
            for record in records:
                if record.partition is not key:
                    key = record.partition
                    partition = self.partitions.get(key)
                if partition is None or partition.epoch != record.epoch:
                    lost.add(record)
                else:
                    partition.finish(record.offset)
            self.held.difference_update(records)
        return lost

    def give_back(self, record: Record) -> bool:
        """Offer a record again, untried; return False if its assignment has ended."""
        with self.lock:
            if not self.holds(record):
                return False
            self.held.discard(record)
            self._back.append(record)
            return True

    def postpone(self, record: Record, due: float) -> None:
        """Offer a record again, untried, but not before its time."""
        with self.lock:
            if self.holds(record):
                self.held.discard(record)
                heapq.heappush(self.waiting, (due, next(self._numbers), record))

    def take_in(self, natives: Iterable[Any], now: float) -> None:
        """Note records that were polled, but for those that are finished or whose assignment has ended."""
        key: Key | None = None
        partition: Partition | None = None
        own = False
        with self.lock:
            for native in natives:
                topic, number = native.topic(), native.partition()
                if key is None or number != key[1] or topic != key[0]:
                    key = (topic, number)
                    partition = self.partitions.get(key)
                    own = is_retry(topic)
                offset = native.offset()
                if partition is None or not partition.receive(offset):
                    continue
                record = Record(native, key, partition.epoch, offset)
                if own and read_private(record).due > now:
                    heapq.heappush(self.waiting, (record.due, next(self._numbers), record))
                else:
                    self._back.append(record)

    def ready(self, now: float) -> int:
        """Return how many records could be handed over."""
        with self.lock:
            while self.waiting and self.waiting[0][0] <= now:
                self._back.append(heapq.heappop(self.waiting)[2])
            return len(self._back)

    def hand_over(self, limit: Room, now: float) -> list[Record]:
        """Hold and return what there is room for; what does not fit stays for the next time."""
        with self.lock:
            self.ready(now)
            sizes = [len(record.native) for record in itertools.islice(self._back, limit.messages)]
            # Adding up in one go is the usual case; one by one is for when there is not room for all.
            count = len(sizes) if sum(sizes) <= limit.size_bytes else limit.fitting(sizes)
            found = [self._back.popleft() for _ in range(count)]
            self.held.update(found)
            return found

    @property
    def at_hand(self) -> int:
        """How many records could be handed over now."""
        return len(self._back)

    def full(self) -> set[Key]:
        """Return the partitions that may take no more, because so much is finished out of order."""
        with self.lock:
            return {key for key, partition in self.partitions.items() if partition.full}

    def uncommitted(self, unsure: bool) -> dict[Key, tuple[Partition, Progress]]:
        """Return what may be committed now and is not; ``unsure`` as for ``Partition.uncommitted``."""
        with self.lock:
            news = {key: (each, each.uncommitted(unsure)) for key, each in self.partitions.items()}
            return {key: (each, progress) for key, (each, progress) in news.items() if progress is not None}
