"""Where a group begins in a topic: a commit of its own, since a group of Kafka exists by its commits."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..errors import Unavailable
from .base import Start
from .offsets import Progress

_CALL_S = 10.0
_JOIN_S = 30.0
_PATIENCE_S = 1.0
_WAITING = ("_TIMED_OUT", "_WAIT_COORD")
# Answers to a commit from outside, while the group has members.
_AT_WORK = ("UNKNOWN_MEMBER_ID", "ILLEGAL_GENERATION", "STALE_MEMBER_EPOCH")


def begin(
    consumer: Any, topic: str, partitions: Sequence[int], start: Start, member: Callable[[], Any]
) -> None:
    """Commit where a group begins, unless it has committed anything of this topic before.

    A partition that is added later is read from its beginning by whoever gets it, and so is the storage of
    retries.

    Args:
        consumer: of the group, which it never joins.
        topic: where.
        partitions: all of them.
        start: ``earliest`` or ``latest``.
        member: makes a consumer that may join the group.

    Raises:
        Unavailable: the group is at work, and let no other member in.
        KafkaException: the broker refuses.
    """
    from confluent_kafka import KafkaException, TopicPartition

    places = [TopicPartition(topic, number) for number in partitions]
    if len(_without_commit(consumer, places)) < len(places):
        return
    begins = {}
    for place in places:
        low, high = consumer.get_watermark_offsets(place, timeout=_CALL_S)
        at = high if start == "latest" else low
        begins[place.partition] = TopicPartition(topic, place.partition, at, Progress(at, at).metadata())
    try:
        consumer.commit(offsets=list(begins.values()), asynchronous=False)
    except KafkaException as error:
        if error.args[0].name() not in _AT_WORK:
            raise
        # On another topic, or on this one by now; and only its members may commit.
        _begin_as_member(member(), topic, begins)


def committed(consumer: Any, places: list[Any]) -> list[Any]:
    """Return what a group has committed.

    The client waits for the group's coordinator to the end, also where the broker denies it the group, and
    tells only who polls: so it is asked for a second at first.

    Args:
        consumer: of the group, which has not joined it.
        places: partitions.

    Raises:
        KafkaException: the broker refuses, or did not answer in 11 s.
    """
    from confluent_kafka import KafkaException

    try:
        return _committed(consumer, places, _PATIENCE_S)
    except KafkaException as error:
        if error.args[0].name() not in _WAITING:
            raise
    return _committed(consumer, places, _CALL_S)


def _committed(consumer: Any, places: list[Any], timeout: float) -> list[Any]:
    from confluent_kafka import KafkaException

    try:
        found: list[Any] = consumer.committed(places, timeout=timeout)
        return found
    except KafkaException as error:
        said = consumer.poll(0)
        denial = None if said is None else said.error()
        if denial is not None and denial.name() == "GROUP_AUTHORIZATION_FAILED":
            raise KafkaException(denial) from error
        raise


def _without_commit(consumer: Any, places: list[Any]) -> set[int]:
    """Return the partitions of which a group has committed nothing."""
    return {each.partition for each in committed(consumer, places) if each.offset < 0}


def _begin_as_member(consumer: Any, topic: str, begins: Mapping[int, Any]) -> None:
    """Be a member for as long as it takes until the group has begun; others may be doing the same."""
    from confluent_kafka import KafkaException, TopicPartition

    mine: set[int] = set()
    consumer.subscribe(
        [topic],
        on_assign=lambda _, places: mine.update(each.partition for each in places),
        on_revoke=lambda _, places: mine.difference_update(each.partition for each in places),
    )
    places = [TopicPartition(topic, number) for number in begins]
    deadline = time.monotonic() + _JOIN_S
    try:
        while missing := _without_commit(consumer, places):
            if time.monotonic() > deadline:
                raise Unavailable(f"the group of topic {topic!r} let no other member in within {_JOIN_S:g} s")
            consumer.poll(0.1)
            if offsets := [begins[number] for number in sorted(mine & missing)]:
                # The group may be rebalancing, or others were first.
                with contextlib.suppress(KafkaException):
                    consumer.commit(offsets=offsets, asynchronous=False)
    finally:
        consumer.close()
