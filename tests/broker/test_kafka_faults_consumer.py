"""The same behaviour with ``protocol=consumer`` (KIP-848), where the broker assigns the partitions."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import pytest
from kafka_bench import Scene, bodies, eventually, take
from kafka_remote import KafkaRemote
from test_kafka import driver_member

from broker import NotFound, connect

pytestmark = [pytest.mark.anyio, pytest.mark.kafka]


@pytest.fixture
def scene(kafka_service: Any) -> Scene:
    return Scene(kafka_service.bootstrap, options="protocol=consumer")


async def test_verdicts(scene: Scene) -> None:
    """Ack ends a message, nack brings it again with its attempt counted, release uncounted."""
    async with scene.open(partitions=2) as broker:
        await scene.ledger.publish(broker, scene.topic, 9)
        async with scene.member() as member:
            held = sorted(await take(member, 9), key=lambda each: int(each.message.data))
            await member.ack(held[:3])
            await member.nack(held[3:6], delay=0.5)
            await member.release(held[6:])
            again = await take(member, 6)
            assert {int(each.message.data): each.attempt for each in again} == {
                3: 2, 4: 2, 5: 2, 6: 1, 7: 1, 8: 1,
            }  # fmt: skip
            await member.ack(again)
            await member.flush()
            assert scene.books.balanced()


async def test_a_group_that_was_never_ensured_is_not_found(scene: Scene) -> None:
    """As with the other protocol, within seconds."""
    async with scene.open(), connect(scene.url) as broker, asyncio.timeout(10):
        with pytest.raises(NotFound):
            async with broker.subscribe(scene.topic, group="nobody"):
                pass


async def test_what_is_finished_is_committed_on_the_way(scene: Scene) -> None:
    """Joining members take partitions over: finished work does not come again, open work does."""
    ledger = scene.ledger
    async with scene.open(partitions=4) as broker, scene.member() as first:
        await ledger.publish(broker, scene.topic, 40)
        held = await take(first, 40)
        done, still_open = held[::2], held[1::2]
        ledger.handled.update(bodies(done))
        await first.ack(done)
        work = driver_member(first).work
        # Four members share four partitions; with each goes one of the storage of retries.
        async with scene.working(), scene.working(), scene.working():
            await eventually(lambda: len(work.partitions) == 2, "partitions have moved")
            rest = [each for each in still_open if work.holds(each.receipt)]
            ledger.handled.update(bodies(rest))
            await ledger.ack(first, still_open)
            assert 0 < ledger.late == len(still_open) - len(rest)
            await scene.finished()
        assert ledger.redelivered == set()


async def test_members_that_come_and_go_lose_nothing(scene: Scene) -> None:
    """A small storm: 1, 4, 1 members while messages are worked on."""
    ledger = scene.ledger
    async with scene.open(partitions=8) as broker, scene.working(0.02):
        for _ in range(3):
            async with contextlib.AsyncExitStack() as crowd:
                works = []
                for _ in range(3):
                    works.append(driver_member(await crowd.enter_async_context(scene.working(0.02))).work)
                    await ledger.publish(broker, scene.topic, 200)
                await eventually(lambda works=works: all(each.partitions for each in works), "all take part")
        await scene.finished()


@pytest.mark.campaign
async def test_a_crash_is_taken_over_within_a_minute(scene: Scene) -> None:
    """The broker's own session is 45 s unless the group is configured otherwise."""
    async with scene.open(partitions=2) as broker:
        await scene.ledger.publish(broker, scene.topic, 20)
        with KafkaRemote(scene.url, scene.topic) as victim:
            await asyncio.to_thread(victim.ask, "receive", count=20)
            victim.kill()
        async with scene.working():
            await eventually(lambda: len(scene.ledger.acked) == 20, "another member has it all", 70.0)
            await scene.finished()
