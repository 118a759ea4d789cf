"""Where a member reads on: at the commit that it found, and what happens when that place is no more.

Records go by retention or by hand, and topics are deleted and made again under the same name. The client
would go on in silence: at the end of the log, or at the old offset of another topic (measured: of 30 records
in a topic made anew, the first 20 were never read). So it is told to reset nothing by itself.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from ..errors import NotFound
from .kafka_work import Key, Work
from .offsets import Progress

if TYPE_CHECKING:
    from concurrent.futures import Future

log = logging.getLogger("broker")

_CALL_S = 10.0
# How often the cluster is asked whether the topics are still the same.
_LOOK_S = 10.0

Look = Callable[[Sequence[str]], "dict[str, Future[Any]]"]


class Places:
    """The places of one consumer; used by the thread that owns it.

    Args:
        consumer: of the group.
        work: what is assigned.
        topic: what it is subscribed to.
        retries: the storage of the group's retries.
        look: asks for the descriptions of topics, without waiting.
        numbers: returns the partitions of a topic, or raises ``NotFound``.
        patience: seconds that a broker may take to come back before an assignment fails.
    """

    def __init__(
        self,
        consumer: Any,
        work: Work,
        topic: str,
        retries: str,
        look: Look,
        numbers: Callable[[str], list[int]],
        patience: float = 3 * _CALL_S,
    ) -> None:
        self._consumer = consumer
        self._work = work
        self._topics = (topic, retries)
        self._with: dict[int, list[Any]] = {}
        self._look = look
        self._numbers = numbers
        self._patience = patience
        self._asked: dict[str, Future[Any]] = {}
        self._next_look = 0.0

    def of_retries(self, places: Sequence[Any]) -> list[Any]:
        """Return the partitions of the retries that go with partitions of the topic.

        The group shares out the topic alone and the retries follow by number. A group that is subscribed to
        both shares them out as one pool: of two members one may get the topic, and the other its retries
        (measured with cooperative-sticky, [0, 12] of 12 partitions).

        Raises:
            NotFound: one of them is gone.
            KafkaException: the broker does not say how many there are.
        """
        from confluent_kafka import TopicPartition

        _, retries = self._topics
        count, stored = self._patiently(self._counts)
        for place in places:
            numbers = range(place.partition, stored, count)
            self._with[place.partition] = [TopicPartition(retries, number) for number in numbers]
        return [each for place in places for each in self._with[place.partition]]

    def _counts(self) -> list[int]:
        """Return how many partitions topic and retries have.

        Another client is asked: where this one's ``list_topics`` runs inside a callback, the next callback of
        the same poll aborts the process (confluent-kafka 2.16.1, ``CallState_get: Assertion `cs != NULL'``).

        Raises:
            NotFound: the broker that was asked does not know of them, or not yet.
        """
        return [len(self._numbers(name)) for name in self._topics]

    def let_go(self, places: Sequence[Any]) -> list[Any]:
        """Return, and forget, the partitions of the retries that went with partitions of the topic."""
        return [each for place in places for each in self._with.pop(place.partition, ())]

    def begins(self, places: list[Any]) -> list[Progress]:
        """Return what was committed; a partition that is new to the group is read from its beginning.

        Raises:
            KafkaException: the broker does not say.
        """
        # Commits say of which topic they are, and a topic of that name may be another one by now.
        self._next_look = 0.0
        committed = self._patiently(lambda: self._committed(places))
        return [
            Progress.parse(each.offset, each.metadata) if each.offset >= 0 else self._beginning(each)
            for each in committed
        ]

    def _committed(self, places: list[Any]) -> list[Any]:
        from confluent_kafka import KafkaException

        found: list[Any] = self._consumer.committed(places, timeout=_CALL_S)
        for each in found:
            if each.error is not None:
                raise KafkaException(each.error)
        return found

    def _beginning(self, place: Any) -> Progress:
        low, _ = self._watermarks(place)
        return Progress(low, low)

    def _watermarks(self, place: Any) -> tuple[int, int]:
        found: tuple[int, int] = self._patiently(
            lambda: self._consumer.get_watermark_offsets(place, timeout=_CALL_S)
        )
        return found

    def _patiently(self, call: Callable[[], Any]) -> Any:
        from confluent_kafka import KafkaException

        deadline = time.monotonic() + self._patience
        while True:
            try:
                return call()
            except (KafkaException, NotFound) as error:
                if time.monotonic() > deadline:
                    raise
                log.warning("asking where %s stands failed: %s", self._topics[0], error)
                time.sleep(0.1)

    def check(self) -> None:
        """Look, every now and then, whether the topics are still the same; never waits."""
        if self._asked:
            self._read_answers()
        elif time.monotonic() >= self._next_look:
            self._next_look = time.monotonic() + _LOOK_S
            self._asked = self._look(self._topics)

    def _read_answers(self) -> None:
        if not all(each.done() for each in self._asked.values()):
            return
        asked, self._asked = self._asked, {}
        for topic, answer in asked.items():
            if (error := answer.exception()) is not None:
                log.info("asking for the identity of topic %s failed: %s", topic, error)
            else:
                self._identify(topic, str(answer.result().topic_id))

    def _identify(self, topic: str, identity: str) -> None:
        for key, partition in tuple(self._work.partitions.items()):
            if key[0] == topic and not partition.identify(identity):
                place = self._place(key)
                begin = self._beginning(place)
                log.warning(
                    "topic %s was deleted and made again: partition %d is read from its beginning, %d; what"
                    " was held of the old topic is let go", *key, begin.position,
                )  # fmt: skip
                self._work.restart(key, Progress(begin.position, begin.start, topic=identity))
                self._read_from(place, begin.position)

    def out_of_range(self, key: Key) -> None:
        """Read on where there is something, and say what cannot be read any more."""
        partition = self._work.partitions.get(key)
        if partition is None:
            return
        place = self._place(key)
        low, high = self._watermarks(place)
        if low >= partition.next:
            log.warning(
                "partition %d of %s: offsets %d to %d were deleted before they were read",
                key[1], key[0], partition.next, low - 1,
            )  # fmt: skip
        else:
            log.warning(
                "partition %d of %s ends at %d, before %d, where this group stands: the log was cut or made"
                " again, and is read from its beginning, %d", key[1], key[0], high, partition.next, low,
            )  # fmt: skip
            self._work.restart(key, Progress(low, low, topic=partition.begin.topic))
        self._read_from(place, low)

    def _read_from(self, place: Any, offset: int) -> None:
        """Fetch from another offset. A seek is refused by a partition whose fetching has ended."""
        self._consumer.incremental_unassign([place])
        place.offset = offset
        self._consumer.incremental_assign([place])

    @staticmethod
    def _place(key: Key) -> Any:
        from confluent_kafka import TopicPartition

        return TopicPartition(*key)
