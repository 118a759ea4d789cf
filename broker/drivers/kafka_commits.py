"""What a member tells the broker of its progress, and what the broker says to it."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from typing import Any

from .kafka_work import Key, Work
from .offsets import Partition, Progress

log = logging.getLogger("broker")

_COMMIT_S = 0.25
# Brokers forget the commits of a topic that no member subscribes to, as is that of the retries, after
# `offsets.retention.minutes`: 7 days, and a day before 2.0: kafka.apache.org/documentation/#brokerconfigs
_RENEW_S = 6 * 3600.0
# Answers to the commit of one who is no member any more.
_EVICTED = {"UNKNOWN_MEMBER_ID", "FENCED_MEMBER_EPOCH", "FENCED_INSTANCE_ID"}


class Commits:
    """Commits of one consumer; used by the thread that owns it.

    Args:
        consumer: a member of the group.
        work: what is assigned to it, and how far that is.
        what: topic and group, for the log.
    """

    def __init__(self, consumer: Any, work: Work, what: str) -> None:
        self._consumer = consumer
        self._work = work
        self._what = what
        self._next = 0.0
        self._renew = time.monotonic() + _RENEW_S

    def when_due(self) -> None:
        """Commit finished prefixes, every now and then, without waiting for the answer."""
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + _COMMIT_S
            if time.monotonic() >= self._renew:
                self._renew = time.monotonic() + _RENEW_S
                self._forget_what_is_stored()
            self._send(self._work.uncommitted(unsure=False), wait=False)

    def _forget_what_is_stored(self) -> None:
        """Have everything committed again, also what has not changed."""
        with self._work.lock:
            for partition in self._work.partitions.values():
                partition.refused()

    def now(self) -> bool:
        """Commit all that is not known to be stored; return whether it is by now."""
        return self._send(self._work.uncommitted(unsure=True), wait=True)

    def last(self, partitions: Mapping[Key, Partition]) -> None:
        """Commit what is finished in partitions that are about to be given up."""
        news = {
            key: (each, progress)
            for key, each in partitions.items()
            if (progress := each.uncommitted(unsure=True))
        }
        self._send(news, wait=True)

    def result(self, error: Any, places: list[Any]) -> None:
        """Note what became of a commit; what failed is tried again. The client calls it as well."""
        with self._work.lock:
            for place in places:
                partition = self._work.partitions.get((place.topic, place.partition))
                if partition is None:
                    continue
                if error is None and place.error is None:
                    partition.stored(place.offset, place.metadata)
                else:
                    partition.refused()

    def confirm_membership(self) -> None:
        """After a silence, as of a frozen process: let go of everything if others have it by now.

        The client notices an eviction only at its next heartbeat, and a verdict may come before.
        """
        from confluent_kafka import KafkaException

        held = {key: each.progress() for key, each in tuple(self._work.partitions.items())}
        if not held:
            return
        try:
            self._consumer.commit(offsets=_places(held), asynchronous=False)
        except KafkaException as error:
            if error.args[0].name() in _EVICTED:
                log.warning("a member of %s was silent for too long and was evicted", self._what)
                self._work.unassign(held)

    def _send(self, news: Mapping[Key, tuple[Partition, Progress]], wait: bool) -> bool:
        from confluent_kafka import KafkaException

        if not news:
            return True
        offsets = _places({key: progress for key, (_, progress) in news.items()})
        with self._work.lock:
            for partition, progress in news.values():
                partition.sent(progress)
        try:
            answers = self._consumer.commit(offsets=offsets, asynchronous=not wait)
        except KafkaException as error:
            # A rebalance, or the coordinator is away: it is tried again, or the partition goes.
            log.info("the commit of %s waits: %s", self._what, error)
            self.result(error, offsets)
            return False
        if not wait:
            return True
        self.result(None, answers)
        return all(each.error is None for each in answers)


def _places(progress: Mapping[Key, Progress]) -> list[Any]:
    from confluent_kafka import TopicPartition

    return [TopicPartition(*key, each.position, each.metadata()) for key, each in progress.items()]
