"""Bugs that other Kafka libraries have had. The fault tests have to find each of them in our driver."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from broker import Delivery
from broker.drivers.kafka import KafkaDriver
from broker.drivers.kafka_member import KafkaMember
from broker.drivers.kafka_records import Record
from broker.drivers.kafka_work import Work
from broker.drivers.offsets import Partition, Progress
from broker.message import Redelivery


def highest_offset(patch: pytest.MonkeyPatch) -> None:
    """Commit after the last finished record, whatever is open before it."""

    def finish(self: Partition, offset: int) -> None:
        self._order.clear()
        self._ends.clear()
        self._firsts.clear()
        self.begin = Progress(max(offset + 1, self.begin.position), self.begin.start)
        self._next = self.begin.position

    patch.setattr(Partition, "finish", finish)


def no_epoch_check(patch: pytest.MonkeyPatch) -> None:
    """Take a verdict for any partition that is assigned, whenever the record came."""

    def finish(self: Work, records: Sequence[Record]) -> set[Record]:
        for each in records:
            self.partitions[each.partition].finish(each.offset)
        return set()

    patch.setattr(Work, "finish", finish)
    patch.setattr(Work, "holds", lambda self, record: record.partition in self.partitions)


def auto_commit(patch: pytest.MonkeyPatch) -> None:
    """Let the client commit what it has handed over."""
    config = KafkaDriver.consumer_config
    automatic = {
        "enable.auto.commit": True, "enable.auto.offset.store": True, "auto.commit.interval.ms": 100,
    }  # fmt: skip
    patch.setattr(
        KafkaDriver,
        "consumer_config",
        lambda self, group, **more: {**config(self, group, **more), **automatic},
    )


def acked_before_stored(patch: pytest.MonkeyPatch) -> None:
    """Finish a failed message before the copy that is to come again is stored."""
    settle = KafkaMember.settle

    async def hasty(
        self: KafkaMember,
        acks: Sequence[Delivery],
        releases: Sequence[Delivery],
        retries: Sequence[Redelivery],
    ) -> list[Delivery]:
        self.work.finish([each.delivery.receipt for each in retries])
        return await settle(self, acks, releases, retries)

    patch.setattr(KafkaMember, "settle", hasty)


BUGS: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    each.__name__: each for each in (highest_offset, no_epoch_check, auto_commit, acked_before_stored)
}


def plant(name: str) -> None:
    """Plant a bug in this process, for good."""
    patch: Any = pytest.MonkeyPatch()
    BUGS[name](patch)
