"""What a rebalance gives to a member and takes from it, and what it reads of that."""

from __future__ import annotations

import logging
from collections.abc import Set
from typing import Any

from ..errors import BrokerError
from .kafka_commits import Commits
from .kafka_places import Places
from .kafka_work import Key, Work
from .offsets import Partition

log = logging.getLogger("broker")


class Assignment:
    """Partitions of one consumer; used by the thread that owns it, also in the client's callbacks.

    Args:
        consumer: a member of the group.
        work: what is in its hands.
        places: where to read on.
        commits: what it tells the broker.
    """

    def __init__(self, consumer: Any, work: Work, places: Places, commits: Commits) -> None:
        self._consumer = consumer
        self._work = work
        self._places = places
        self._commits = commits
        self._paused: set[Key] = set()
        self._unread: list[Any] = []

    def assigned(self, consumer: Any, places: list[Any]) -> None:
        """Read on in partitions, and in the retries that go with them."""
        from confluent_kafka import KafkaException

        try:
            both = [*places, *self._places.of_retries(places)] if places else []
            begins = self._places.begins(both) if both else []
        except (KafkaException, BrokerError) as error:
            log.warning("%d partition(s) wait to be read: %s", len(places), error)
            # The client would read them by itself otherwise, and nobody would take what it brings.
            consumer.incremental_assign([])
            self._unread += places
            return
        for place, begin in zip(both, begins, strict=True):
            self._work.assign((place.topic, place.partition), begin)
            place.offset = begin.position
        consumer.incremental_assign(both)
        # In the client a pause outlives the assignment in which it was made.
        consumer.resume(both)
        self._paused -= _keys(both)

    def try_again(self) -> None:
        """Read what could not be read when it was assigned."""
        if self._unread:
            places, self._unread = self._unread, []
            self.assigned(self._consumer, places)

    def revoked(self, consumer: Any, places: list[Any]) -> None:
        """Commit what is finished before another member gets the partitions."""
        both = self._read(places)
        self._commits.last(self._forget(both))
        consumer.incremental_unassign(both)

    def lost(self, consumer: Any, places: list[Any]) -> None:
        """Drop partitions that belong to another member already."""
        both = self._read(places)
        self._forget(both)
        consumer.incremental_unassign(both)
        log.warning("%d partition(s) were taken over by others: %s", len(places), _keys(places))

    def pause(self, keys: Set[Key]) -> None:
        """Bring nothing more of these partitions."""
        fresh = keys - self._paused
        if fresh:
            self._consumer.pause(_places(fresh))
            self._paused |= fresh

    def resume(self, but: Set[Key]) -> None:
        """Bring records of all partitions again, but for some."""
        free = (self._paused & set(self._work.partitions)) - but
        if free:
            self._consumer.resume(_places(free))
            self._paused -= free
        self.pause(but)

    def _read(self, places: list[Any]) -> list[Any]:
        """Return which of them are being read, with the retries that go with them; forget the others."""
        gone, unread = _keys(places), _keys(self._unread)
        self._unread = [each for each in self._unread if (each.topic, each.partition) not in gone]
        read = [each for each in places if (each.topic, each.partition) not in unread]
        return [*read, *self._places.let_go(read)]

    def _forget(self, places: list[Any]) -> dict[Key, Partition]:
        """End the epochs of partitions; return what had come of them."""
        keys = _keys(places)
        self._paused -= keys
        return self._work.unassign(keys)


def _keys(places: list[Any]) -> set[Key]:
    return {(place.topic, place.partition) for place in places}


def _places(keys: Set[Key]) -> list[Any]:
    from confluent_kafka import TopicPartition

    return [TopicPartition(*key) for key in keys]
