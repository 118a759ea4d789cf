"""The fault tests are fit to find bugs: each one that is planted in the driver is seen by what they check."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from kafka_bench import Scene, bodies, eventually, take
from kafka_bugs import BUGS
from kafka_remote import KafkaRemote
from test_kafka import driver_member

pytestmark = [pytest.mark.anyio, pytest.mark.kafka]


async def a_crash_with_open_work(scene: Scene, bug: str) -> None:
    """Killed after it acked the later half of what it held, a member loses the earlier half to nobody."""
    async with scene.open(partitions=1) as broker:
        await scene.ledger.publish(broker, scene.topic, 10)
        with KafkaRemote(scene.url, scene.topic, bug) as victim:
            held = [body for body, _ in await asyncio.to_thread(victim.ask, "receive", count=10)]
            answer = await asyncio.to_thread(victim.ask, "settle", verb="ack", bodies=held[5:])
            assert answer == "settled"
            await asyncio.to_thread(victim.ask, "flush")
            scene.ledger.handled.update(held[5:])
            await asyncio.sleep(0.5)  # an interval of automatic commits
            victim.kill()
        async with scene.working():
            await eventually(scene.books.balanced, "the group has committed all", patience=20.0)
    assert not scene.ledger.lost, "messages are lost"


async def a_crash_while_a_failure_cannot_be_stored(scene: Scene, bug: str) -> None:
    """Killed while the storage of retries is away, a member leaves the failed message where it was."""
    async with scene.open(partitions=1) as broker:
        await scene.ledger.publish(broker, scene.topic, 5)
        with KafkaRemote(scene.url, scene.topic, bug) as victim:
            held = [body for body, _ in await asyncio.to_thread(victim.ask, "receive", count=5)]
            await asyncio.to_thread(delete_topic, scene, f"{scene.group_id}.retry")
            answer = await asyncio.to_thread(victim.ask, "settle", verb="nack", bodies=held)
            assert "error" in answer, "the storage of retries was there"
            await asyncio.to_thread(victim.ask, "flush")
            victim.kill()
        async with scene.working():
            await eventually(scene.books.balanced, "the group has committed all", patience=20.0)
    assert not scene.ledger.lost, "messages are lost"


async def a_partition_that_leaves_and_returns(scene: Scene, bug: str) -> None:
    """What was held before is not this member's any more: its ack is refused, and commits nothing."""
    patch = pytest.MonkeyPatch()
    if bug:
        BUGS[bug](patch)
    try:
        async with scene.open(partitions=2) as broker, scene.member() as late:
            await scene.ledger.publish(broker, scene.topic, 20)
            held = await take(late, 20)
            work = driver_member(late).work
            epochs = {key: each.epoch for key, each in work.partitions.items()}
            async with scene.member():
                await eventually(lambda: len(work.partitions) < 4, "partitions have left")
            await eventually(lambda: len(work.partitions) == 4, "they have returned")
            moved = {
                key[1]
                for key, each in work.partitions.items()
                if each.epoch != epochs[key] and key[0] == scene.topic
            }
            assert moved, "no partition with open work moved"
            # Below the portable layer, which may have noticed meanwhile that the partition was away.
            lost = await driver_member(late).settle(held, [], [])
            refused = {each.message.id for each in lost}
            await late.flush()
            expected = {each.message.id for each in held if each.receipt.partition[1] in moved}
            assert refused == expected, "a late ack was not refused"
            committed = scene.books.committed()
            assert {committed[number] for number in moved} == {0}
            again = await take(late, len(expected))
            assert {each.message.id for each in again} == expected
            assert set(bodies(again)) <= set(bodies(held))
    finally:
        patch.undo()


def delete_topic(scene: Scene, topic: str) -> None:
    """Delete a topic, and wait until it is gone."""
    from confluent_kafka.admin import AdminClient

    admin = AdminClient({"bootstrap.servers": scene.bootstrap}, logger=logging.getLogger("tests.books"))
    admin.delete_topics([topic])[topic].result(20)


Check = Callable[[Scene, str], Awaitable[None]]
CHECKS: dict[str, Check] = {
    each.__name__: each
    for each in (
        a_crash_with_open_work,
        a_crash_while_a_failure_cannot_be_stored,
        a_partition_that_leaves_and_returns,
    )
}
FOUND_BY = {
    "highest_offset": "a_crash_with_open_work",
    "auto_commit": "a_crash_with_open_work",
    "acked_before_stored": "a_crash_while_a_failure_cannot_be_stored",
    "no_epoch_check": "a_partition_that_leaves_and_returns",
}


@pytest.fixture
def scene(kafka_service: Any) -> Scene:
    return Scene(kafka_service.bootstrap)


@pytest.mark.parametrize("check", CHECKS)
async def test_the_driver_passes(scene: Scene, check: str) -> None:
    """Without a bug each check holds."""
    await CHECKS[check](scene, "")


@pytest.mark.parametrize("bug", BUGS)
async def test_a_planted_bug_is_found(scene: Scene, bug: str) -> None:
    """With the bug the same check fails, at an assertion about what was lost or committed."""
    with pytest.raises(AssertionError, match=r"lost|refused"):
        await CHECKS[FOUND_BY[bug]](scene, bug)
