"""How members of a Kafka group share the partitions of a topic and of the storage of its retries."""

from __future__ import annotations

import contextlib
from itertools import chain
from typing import Any

import pytest
from confluent_kafka.admin import AdminClient, NewTopic
from kafka_bench import Scene, bodies, eventually
from test_kafka import driver_member

from broker import LeaseLost, Subscription
from broker.conformance.bench import GROUP

pytestmark = [pytest.mark.anyio, pytest.mark.kafka]


@pytest.fixture(params=["classic", "consumer"])
def scene(request: pytest.FixtureRequest, kafka_service: Any) -> Scene:
    options = "protocol=consumer" if request.param == "consumer" else "session=2&max_poll=3"
    return Scene(kafka_service.bootstrap, options=options)


def shares(scene: Scene, members: list[Subscription]) -> list[list[int]]:
    """Return the partitions of the topic that each member has; [] while those of the retries are others."""
    retries = f"{scene.topic}.{GROUP}.retry"
    found = []
    for each in members:
        keys = set(driver_member(each).work.partitions)
        numbers = sorted(number for topic, number in keys if topic == scene.topic)
        matched = keys == {(topic, number) for topic in (scene.topic, retries) for number in numbers}
        found.append(numbers if matched else [])
    return found


async def test_each_member_gets_its_share_of_the_topic(scene: Scene) -> None:
    """Members that join one after the other have equally much of the topic, and its retries with it."""
    async with scene.open(partitions=12), scene.member() as first:
        await eventually(lambda: [len(each) for each in shares(scene, [first])] == [12], "one has all")
        async with scene.member() as second:
            both = [first, second]
            await eventually(lambda: [len(each) for each in shares(scene, both)] == [6, 6], "two share")
            async with scene.member() as third:
                three = [first, second, third]
                await eventually(lambda: [len(each) for each in shares(scene, three)] == [4] * 3, "three do")
                numbers = shares(scene, three)
                assert sorted(chain(*numbers)) == list(range(12))
        await eventually(lambda: [len(each) for each in shares(scene, [first])] == [12], "one has all again")


@pytest.mark.parametrize(("partitions", "stored"), [(2, 5), (5, 2)], ids=["more", "fewer"])
async def test_all_retries_are_read_whatever_their_partitions(
    scene: Scene, kafka_service: Any, partitions: int, stored: int
) -> None:
    """A storage with more or fewer partitions than the topic, as after one was made anew, strands nothing."""
    admin = AdminClient({"bootstrap.servers": kafka_service.bootstrap})
    storage = NewTopic(f"{scene.topic}.{GROUP}.retry", stored, 1)
    admin.create_topics([storage])[storage.topic].result(20)
    async with scene.open(partitions=partitions) as broker, scene.member() as first, scene.member() as second:
        await scene.ledger.publish(broker, scene.topic, 60)
        published = {str(number) for number in range(60)}
        again: set[str] = set()

        async def work() -> bool:
            for member in (first, second):
                came = await member.receive(timeout=0.2)
                again.update(bodies(each for each in came if each.attempt > 1))
                # The members are still sharing out the partitions; what one loses comes again.
                with contextlib.suppress(LeaseLost):
                    await member.nack([each for each in came if each.attempt == 1])
                with contextlib.suppress(LeaseLost):
                    await member.ack([each for each in came if each.attempt > 1])
            return again == published

        await eventually(work, "every message came again, as a retry")
