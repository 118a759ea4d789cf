"""Topics and groups of a Kafka cluster made and removed: blocking calls of its admin client."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from ..errors import BrokerError, Unavailable
from ..limits import DAY_S

_CALL_S = 10.0
# The broker's default for ``segment.ms``: kafka.apache.org/documentation/#topicconfigs
_SEGMENT_S = 7 * DAY_S


def create_topic(client: Any, topic: str, partitions: int, retention: float | None) -> None:
    """Create a topic; silent if it is there.

    Kafka removes whole segments, each once its newest record is too old. So that a slow topic does not keep
    one for much longer, a new segment begins as often as the retention is long: a record stays for at most
    twice its retention, and five minutes.

    Raises:
        Unavailable: the cluster does not answer.
        KafkaException: it refuses.
    """
    from confluent_kafka.cimpl import NewTopic

    config = {}
    if retention is not None:
        segment = min(retention, _SEGMENT_S)
        config = {"retention.ms": str(int(retention * 1000)), "segment.ms": str(int(segment * 1000))}
    found = client.create_topics([NewTopic(topic, partitions, config=config)], operation_timeout=_CALL_S)
    _result(found, f"creating topic {topic!r}", silent="TOPIC_ALREADY_EXISTS")


def remove_topic(client: Any, topic: str) -> None:
    """Delete a topic; silent if there is none. Errors are those of ``create_topic``."""
    found = client.delete_topics([topic], operation_timeout=_CALL_S)
    _result(found, f"deleting topic {topic!r}", silent="UNKNOWN_TOPIC_OR_PART")


def remove_group(client: Any, group_id: str, topics: Collection[str], address: str) -> None:
    """Delete a group with its committed offsets; silent if there is none.

    Args:
        client: to ask.
        group_id: Kafka's.
        topics: that it may have begun on; Kafka deletes a group as a whole, so one with others stays.
        address: for errors.

    Raises:
        BrokerError: the group has members, or has begun on other topics.
        Unavailable: the cluster does not answer.
        KafkaException: it refuses.
    """
    from confluent_kafka import ConsumerGroupTopicPartitions, KafkaException

    asked = client.list_consumer_group_offsets(
        [ConsumerGroupTopicPartitions(group_id)], request_timeout=_CALL_S
    )
    offsets = _result(asked, f"looking at group {group_id!r}", silent="GROUP_ID_NOT_FOUND")
    places = [] if offsets is None else offsets.topic_partitions
    others = sorted({each.topic for each in places if each.offset >= 0}.difference(topics))
    if others:
        raise BrokerError(
            f"group {group_id!r} at {address} has begun on {', '.join(others)}, too, and Kafka would forget"
            " that as well; use `kafka-consumer-groups.sh --delete-offsets`"
        )
    try:
        found = client.delete_consumer_groups([group_id], request_timeout=_CALL_S)
        _result(found, f"deleting group {group_id!r}", silent="GROUP_ID_NOT_FOUND")
    except KafkaException as error:
        if error.args[0].name() != "NON_EMPTY_GROUP":
            raise
        raise BrokerError(f"group {group_id!r} at {address} has members; end them first") from error


def retention_of(client: Any, topic: str) -> float | None:
    """Return for how many seconds a topic keeps messages; None if that may not be known."""
    from confluent_kafka import KafkaException
    from confluent_kafka.admin._config import ConfigResource
    from confluent_kafka.admin._resource import ResourceType

    asked = client.describe_configs([ConfigResource(ResourceType.TOPIC, topic)], request_timeout=_CALL_S)
    try:
        found = _result(asked, f"looking at topic {topic!r}")
    except KafkaException as error:
        if error.args[0].name() != "TOPIC_AUTHORIZATION_FAILED":
            raise
        return None
    kept = float(found["retention.ms"].value)
    return kept / 1000 if kept >= 0 else float("inf")


def _result(asked: dict[Any, Any], doing: str, silent: str = "") -> Any:
    """Wait for the one answer; None if the refusal is called ``silent``."""
    from confluent_kafka import KafkaException

    (future,) = asked.values()
    try:
        return future.result(timeout=2 * _CALL_S)
    except KafkaException as error:
        if error.args[0].name() != silent:
            raise
    except TimeoutError:
        raise Unavailable(f"{doing} took more than {2 * _CALL_S:g} s") from None
    return None
