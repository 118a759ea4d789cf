"""Offsets that no message has, as transactions leave them, neither stop a commit nor come again."""

from __future__ import annotations

import pytest
from confluent_kafka import Producer
from test_kafka import KafkaHarness

from broker.conformance import GROUP, Bench
from broker.conformance.bench import bodies, unique_name
from tests.services.kafka import KafkaService

pytestmark = [pytest.mark.anyio, pytest.mark.kafka]


def transact(bootstrap: str, topic: str, sent: list[bytes], *, commit: bool) -> None:
    """Store messages in one transaction; its marker takes an offset of its own."""
    producer = Producer({"bootstrap.servers": bootstrap, "transactional.id": unique_name("transactions")})
    producer.init_transactions(20)
    producer.begin_transaction()
    for each in sent:
        producer.produce(topic, each)
    producer.flush(20)
    if commit:
        producer.commit_transaction(20)
    else:
        producer.abort_transaction(20)


async def test_holes_of_transactions_are_passed(kafka_service: KafkaService) -> None:
    """What is aborted never comes; one open message comes again alone; then nothing is left."""
    harness = KafkaHarness(kafka_service.bootstrap)
    async with harness.connect() as broker:
        topic = unique_name("holes")
        await broker.ensure(topic, group=GROUP, partitions=1)
        for number in range(0, 12, 3):
            sent = [b"%d" % each for each in range(number, number + 3)]
            transact(kafka_service.bootstrap, topic, sent, commit=number != 3)
        bench = Bench(harness, broker, topic)
        async with bench.apart() as member:
            held = {each.message.data: each for each in await bench.take(member, 9)}
            assert sorted(held) == sorted(b"%d" % each for each in (0, 1, 2, 6, 7, 8, 9, 10, 11))
            await bench.nothing_comes(member)
            missing = held.pop(b"6")
            await member.ack(held.values())
            await member.flush()
        async with bench.apart() as later:
            (again,) = await bench.take(later, 1)
            assert (again.message, again.attempt) == (missing.message, 1)
            await bench.nothing_comes(later)
            await later.ack(again)
            # A marker at the very end counts as unsettled until a message follows it.
            await bench.publish(1, first=12)
            assert bodies(await bench.take_and_ack(later, 1)) == [b"12"]
            await later.flush()
            (lag,) = await broker.lag(topic, GROUP)
            assert (lag.unsettled, lag.position, lag.end) == (0, "17", "17")
