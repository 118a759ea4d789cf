"""Looks at a partition without taking part in a group."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ..errors import Unavailable
from .kafka_errors import mapped
from .offsets import Progress

if TYPE_CHECKING:
    from .kafka import KafkaDriver

_CALL_S = 10.0


class Reader:
    """Reads the unfinished records of one partition.

    It never joins the group. Its name is used all the same, because a client asks for the coordinator of
    whatever name it has, and a login that may look at the group need not have a right to any other.
    """

    def __init__(
        self,
        driver: KafkaDriver,
        group_id: str,
        place: tuple[str, int],
        progress: Progress,
        low: int,
        high: int,
    ) -> None:
        from confluent_kafka import Consumer, TopicPartition

        self._progress = progress
        self._high = high
        self._place = place
        self._consumer = Consumer(
            driver.consumer_config(
                group_id, **{"enable.partition.eof": True, "queued.max.messages.kbytes": 4096}
            )
        )
        self._consumer.assign([TopicPartition(*place, max(progress.position, low))])

    def __iter__(self) -> Iterator[Any]:
        deadline = time.monotonic() + _CALL_S
        while True:
            native: Any = self._consumer.poll(0.2)
            if native is None:
                if time.monotonic() > deadline:
                    raise Unavailable(f"reading {self._place} brought nothing for {_CALL_S:g} s")
                continue
            deadline = time.monotonic() + _CALL_S
            if native.error() is not None:
                if native.error().name() == "_PARTITION_EOF":
                    return
                raise mapped(native.error(), f"reading {self._place}")
            if not self._progress.is_finished(native.offset()) and native.offset() < self._high:
                yield native
            if native.offset() + 1 >= self._high:
                return

    def close(self) -> None:
        """Let the connection go."""
        self._consumer.close()
