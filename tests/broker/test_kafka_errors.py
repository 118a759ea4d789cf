"""Every error of Kafka's client, by cause and on every call."""

from __future__ import annotations

import html
import logging
import re
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient, NewTopic
from test_kafka import KafkaHarness, driver_member, give_consumer

from broker import (
    Broker,
    BrokerError,
    DeadlineExceeded,
    InvalidMessage,
    Message,
    NotFound,
    PermissionDenied,
    PublishError,
    Subscription,
    Unavailable,
)
from broker.conformance.bench import unique_name
from broker.drivers.kafka_errors import mapped

CODES = {
    name: getattr(KafkaError, name) for name in dir(KafkaError) if re.fullmatch(r"_?[A-Z][A-Z0-9_]*", name)
}
# Where we judge otherwise than the protocol's own table, and why.
NOT_RETRIED = {
    "INVALID_MSG": "a record without a key in a compacted topic is refused like this, again and again",
    "UNKNOWN_TOPIC_OR_PART": "`ensure` waits until a new topic is known, so nobody made this one",
}
RETRIED = {
    "BROKER_NOT_AVAILABLE", "STALE_BROKER_EPOCH", "STALE_CTRL_EPOCH", "REBOOTSTRAP_REQUIRED",
    "REASSIGNMENT_IN_PROGRESS",
    # A member that lost its place joins again by itself.
    "REBALANCE_IN_PROGRESS", "ILLEGAL_GENERATION", "UNKNOWN_MEMBER_ID", "MEMBER_ID_REQUIRED",
    "FENCED_MEMBER_EPOCH", "STALE_MEMBER_EPOCH",
}  # fmt: skip


class Broken:
    """A client on which every call fails."""

    def __init__(self, code: int) -> None:
        self._code = code

    def __getattr__(self, name: str) -> Callable[..., None]:
        def fail(*_: object, **__: object) -> None:
            raise KafkaException(KafkaError(self._code))

        return fail


@pytest.mark.parametrize("name", sorted(CODES))
def test_every_code_is_mapped(name: str) -> None:
    """Each becomes one of ours, says what was being done and names the code; a fatal one is never retried."""
    for error in (KafkaError(CODES[name]), KafkaException(KafkaError(CODES[name]))):
        found = mapped(error, "storing in images")
        assert isinstance(found, BrokerError)
        assert "storing in images" in str(found)
        assert name in str(found)
    assert not mapped(KafkaError(CODES[name], "the end", fatal=True), "x").retryable


def test_there_are_as_many_codes_as_we_know() -> None:
    """The pattern that collects them finds them all; a newer client may have more."""
    assert len(CODES) >= 188


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        (PermissionDenied, ["SASL_AUTHENTICATION_FAILED", "TOPIC_AUTHORIZATION_FAILED", "_SSL"]),
        (NotFound, ["UNKNOWN_TOPIC_OR_PART", "_UNKNOWN_TOPIC", "GROUP_ID_NOT_FOUND"]),
        (InvalidMessage, ["MSG_SIZE_TOO_LARGE", "INVALID_RECORD", "_INVALID_ARG"]),
        (DeadlineExceeded, ["_MSG_TIMED_OUT", "REQUEST_TIMED_OUT"]),
        (Unavailable, ["_ALL_BROKERS_DOWN", "_TRANSPORT", "NOT_ENOUGH_REPLICAS", "NOT_COORDINATOR"]),
    ],
)
def test_causes_are_told_apart(kind: type[BrokerError], names: list[str]) -> None:
    """A program decides by the class."""
    for name in names:
        assert type(mapped(KafkaError(CODES[name]), "x")) is kind, name


@pytest.mark.kafka
def test_what_the_protocol_calls_retriable_is_retryable(kafka_service: Any) -> None:
    """Compared with the table that Kafka prints for its documentation, both ways."""
    text = kafka_service.run_tool("org.apache.kafka.common.protocol.Errors")
    rows = re.findall(r"<td>(\w+)</td>\s*<td>(-?\d+)</td>\s*<td>(True|False)</td>", html.unescape(text))
    assert len(rows) > 100
    retriable = {int(code): word == "True" for _, code, word in rows}
    for name, code in CODES.items():
        if code <= 0 or code not in retriable:
            continue
        expected = (retriable[code] and name not in NOT_RETRIED) or name in RETRIED
        assert mapped(KafkaError(code), "x").retryable is expected, name


Call = Callable[[Broker, Subscription, str, Any], Awaitable[object]]


async def browse(broker: Broker, _: Subscription, topic: str, __: Any) -> None:
    """Browse to the end."""
    async for _each in broker.browse(topic, "workers"):
        pass


CALLS: dict[str, Call] = {
    "ensure": lambda broker, _, topic, __: broker.ensure(topic, group="others"),
    "publish": lambda broker, _, topic, __: broker.publish(topic, [Message(data=b"x")]),
    "stats": lambda broker, _, topic, __: broker.stats(topic, "workers"),
    "lag": lambda broker, _, topic, __: broker.lag(topic, "workers"),
    "topics": lambda broker, *_: broker.topics(),
    "browse": browse,
    "subscribe": lambda broker, _, topic, __: broker.subscribe(topic, group="workers").__aenter__(),
    "receive": lambda _, subscription, *__: subscription.receive(timeout=1.0),
    "nack": lambda _, subscription, __, held: subscription.nack(held, delay=1.0),
    "forward": lambda _, subscription, topic, held: subscription.forward(held, topic, {"a": "b"}),
    "flush": lambda _, subscription, *__: subscription.flush(),
}


@pytest.mark.kafka
@pytest.mark.anyio
@pytest.mark.parametrize("name", ["CLUSTER_AUTHORIZATION_FAILED", "INVALID_REQUEST"])
async def test_no_error_of_the_client_escapes(
    kafka_service: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever it raises, on whichever call, the caller sees a ``BrokerError``, and goes on afterwards."""
    # A flush is tried for so long.
    monkeypatch.setattr("broker.drivers.kafka_member._CALL_S", 0.5)
    topic, broken = unique_name("errors"), Broken(CODES[name])
    async with KafkaHarness(kafka_service.bootstrap).connect() as broker:
        await broker.ensure(topic, group="workers")
        await broker.publish(topic, [Message(data=b"x")])
        driver: Any = broker._driver._driver  # type: ignore[attr-defined]
        async with broker.subscribe(topic, group="workers") as subscription:
            (held,) = await subscription.receive(timeout=20.0)
            await subscription.flush()
            member = driver_member(subscription)
            publisher, consumer, admin = driver._publisher, member._consumer, driver.admin
            producer = publisher.client
            for verb, call in CALLS.items():
                if verb == "flush":
                    member.work.partitions[held.receipt.partition].refused()
                give_consumer(member, broken)
                publisher.client, driver._known = broken, {topic: 1e12, f"{topic}.workers.retry": 1e12}
                consumers = admin._consumers
                admin._consumers = dict.fromkeys([*consumers, f"{topic}.others", f"{topic}.workers"], broken)
                with pytest.raises(BrokerError) as error:
                    await call(broker, subscription, topic, held)
                give_consumer(member, consumer)
                publisher.client, admin._consumers = producer, consumers
                if verb not in ("flush", "publish"):
                    assert isinstance(error.value, PermissionDenied) is (name != "INVALID_REQUEST"), verb
                if verb == "publish":
                    assert isinstance(error.value, PublishError)
            await subscription.ack(held)
            await subscription.flush()
        assert (await broker.stats(topic, "workers")).unsettled == 0


@pytest.mark.kafka
@pytest.mark.anyio
@pytest.mark.parametrize(("setting", "value"), [("cleanup.policy", "compact"), ("max.message.bytes", "5000")])
async def test_what_a_broker_refuses_harms_no_neighbour(kafka_service: Any, setting: str, value: str) -> None:
    """A broker refuses whole batches: the good records of one are stored all the same, each once."""
    topic, logger = unique_name("strict"), logging.getLogger("tests.errors")
    admin = AdminClient({"bootstrap.servers": kafka_service.bootstrap}, logger=logger)
    admin.create_topics([NewTopic(topic, 1, 1, config={setting: value})])[topic].result(20)
    messages = [Message(data=b"%d" % number, key=str(number)) for number in range(40)]
    bad = [Message(data=b"x" * 9000), Message(data=b"y" * 9000)]
    async with KafkaHarness(kafka_service.bootstrap).connect() as broker:
        await broker.ensure(topic, group="workers")
        with pytest.raises(PublishError) as error:
            await broker.publish(topic, [*messages[:7], bad[0], *messages[7:30], bad[1], *messages[30:]])
        assert set(error.value.failed) == {each.id for each in bad}
        assert {type(each) for each in error.value.failed.values()} == {InvalidMessage}
        stored = [each.message.data async for each in broker.browse(topic, "workers")]
    assert sorted(stored) == sorted(each.data for each in messages)
