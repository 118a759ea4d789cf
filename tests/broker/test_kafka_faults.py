"""Real Kafka, real faults, and a ledger of every message: whatever dies, stalls or moves, nothing is lost."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
from kafka_bench import Books, Ledger, Scene, bodies, eventually, take
from kafka_remote import KafkaRemote
from test_kafka import Stalled, driver_member, give_consumer

from broker import Broker, LeaseLost, Subscription

pytestmark = [pytest.mark.anyio, pytest.mark.kafka]


@pytest.fixture
def scene(kafka_service: Any) -> Scene:
    return Scene(kafka_service.bootstrap)


async def answers(remote: KafkaRemote, ledger: Ledger, count: int) -> None:
    """Enter into the ledger what a working process says it received; check what it says it finished."""
    for _ in range(count):
        enter(ledger, await asyncio.to_thread(remote.answer))


def enter(ledger: Ledger, answer: Any) -> None:
    """Enter one line of a working process."""
    for body, attempt in answer.get("received", []):
        assert body not in ledger.acked, f"{body} was acked and flushed, and came again"
        assert attempt == 1
        ledger.handled[body] += 1
    ledger.acked.update(answer.get("acked", []))


@pytest.mark.parametrize(
    "rounds", [4, pytest.param(25, marks=pytest.mark.campaign)], ids=["short", "campaign"]
)
async def test_killing_members_at_random_points_loses_nothing(scene: Scene, rounds: int) -> None:
    """SIGKILL again and again: what was open comes again uncounted, what was flushed never does."""
    chance, ledger = random.Random(4), scene.ledger
    async with scene.open() as broker:
        await ledger.publish(broker, scene.topic, 200 * rounds)
        with KafkaRemote(scene.url, scene.topic) as first:
            held = await asyncio.to_thread(first.ask, "receive", count=20)
            enter(ledger, {"received": held})
        with contextlib.ExitStack() as processes:
            members = [processes.enter_context(KafkaRemote(scene.url, scene.topic)) for _ in range(2)]
            for each in members:
                each.tell("work")
            for _ in range(rounds):
                # Whichever of the two holds partitions by now: the other may have to wait for a session.
                await answers(members[-1], ledger, chance.randrange(4, 30))
                await asyncio.sleep(chance.random() * 0.02)
                for answer in members.pop().kill():
                    enter(ledger, answer)
                members.insert(0, processes.enter_context(KafkaRemote(scene.url, scene.topic)))
                members[0].tell("work")
            for each in members:
                for answer in each.kill():
                    enter(ledger, answer)
        async with scene.member() as last:
            while not await asyncio.to_thread(scene.books.balanced):
                came = await last.receive(timeout=1.0)
                enter(ledger, {"received": [(each.message.data.decode(), each.attempt) for each in came]})
                await last.ack(came)
                await last.flush()
        assert ledger.lost == set()
        assert {body for body, _ in held} <= ledger.redelivered, "the first kill hit no open work"


async def test_a_crash_is_taken_over_within_fifteen_seconds(kafka_service: Any) -> None:
    """With the default session of 10 s, another member has what a killed one held within 15 s."""
    scene = Scene(kafka_service.bootstrap, options="session=10")
    async with scene.open(partitions=2) as broker:
        await scene.ledger.publish(broker, scene.topic, 20)
        with KafkaRemote(scene.url, scene.topic) as victim:
            held = [body for body, _ in await asyncio.to_thread(victim.ask, "receive", count=20)]
            victim.kill()
        killed = time.monotonic()
        async with scene.working():
            await eventually(lambda: set(scene.ledger.acked) == set(held), "another member has it all")
            assert time.monotonic() - killed < 15.0
            await scene.finished()


@pytest.mark.parametrize("kill", [False, True], ids=["clean", "kill -9"])
async def test_a_broker_restart_loses_nothing(mortal_kafka: Any, kill: bool) -> None:
    """Publishing and consuming go on when the broker is back; what was confirmed is delivered."""
    scene = Scene(mortal_kafka.bootstrap)
    ledger = scene.ledger
    async with scene.open() as broker, scene.working(0.01), scene.working(0.01):
        async with publishing(scene, broker) as times:
            await eventually(lambda: len(ledger.acked) > 200, "work is under way")
            before = await asyncio.to_thread(mortal_kafka.server_pid)
            down = time.monotonic()
            await asyncio.to_thread(mortal_kafka.restart, kill)
            back = time.monotonic()
            after = await asyncio.to_thread(mortal_kafka.server_pid)
            assert after != before or mortal_kafka.how != "native"
            stored = len(ledger.stored)
            await eventually(lambda: len(ledger.stored) > stored + 200, "publishing goes on")
        met = [end - begin for begin, end in times if begin < back and end > down]
        assert max(met) > 0.5, "no publish met the outage"
        await scene.finished()


@contextlib.asynccontextmanager
async def publishing(scene: Scene, broker: Broker) -> AsyncIterator[list[tuple[float, float]]]:
    """Publish small batches while the block runs; yield when each began and ended."""
    times: list[tuple[float, float]] = []
    stopped = asyncio.Event()

    async def publish() -> None:
        while not stopped.is_set():
            begun = time.monotonic()
            await scene.ledger.publish(broker, scene.topic, 20)
            times.append((begun, time.monotonic()))
            await asyncio.sleep(0.02)

    task = asyncio.create_task(publish())
    try:
        yield times
    finally:
        stopped.set()
        await task


@pytest.mark.parametrize(
    ("top", "rounds"), [(6, 1), pytest.param(6, 10, marks=pytest.mark.campaign)], ids=["short", "campaign"]
)
async def test_a_rebalance_storm_loses_nothing(scene: Scene, top: int, rounds: int) -> None:
    """Members come and go, one change every two seconds, while messages flow: 1, 6, 2 members."""
    worked: set[int] = set()
    async with scene.open(partitions=12) as broker, scene.working(0.05):
        async with publishing(scene, broker):
            for _ in range(rounds):
                async with contextlib.AsyncExitStack() as crowd:
                    members: list[contextlib.AsyncExitStack] = []
                    for number in range(1, top):
                        stack = contextlib.AsyncExitStack()
                        member = await stack.enter_async_context(scene.working(0.05))
                        members.append(stack)
                        crowd.push_async_callback(stack.aclose)
                        await change(member, worked, number)
                    for stack in members[1:]:
                        await stack.aclose()
                        await asyncio.sleep(2.0)
        await scene.finished()
    assert len(worked) == top - 1, "a member never got a partition"


async def change(member: Subscription, worked: set[int], number: int) -> None:
    """Let two seconds pass, in which a new member gets partitions."""
    until = time.monotonic() + 2.0
    work = driver_member(member).work
    await eventually(lambda: any(topic[-6:] != ".retry" for topic, _ in work.partitions), "it has partitions")
    worked.add(number)
    await asyncio.sleep(max(0.0, until - time.monotonic()))


async def test_a_slow_handler_keeps_its_partitions(scene: Scene) -> None:
    """A handler may take longer than session and poll interval: the member goes on polling."""
    async with scene.open(partitions=2) as broker, scene.member() as one, scene.member() as two:
        members = [driver_member(each).work for each in (one, two)]
        await eventually(lambda: [len(each.partitions) for each in members] == [2, 2], "both have partitions")
        await scene.ledger.publish(broker, scene.topic, 20)
        # The storage of retries has partitions too, so one of them may have none with messages.
        held = {each: await each.receive(timeout=3.0) for each in (one, two)}
        time.sleep(4.0)  # noqa: ASYNC251 - a handler that blocks the event loop
        await asyncio.sleep(1.0)
        for member, deliveries in held.items():
            await scene.ledger.ack(member, deliveries)
        assert scene.ledger.late == 0
        assert len(scene.ledger.acked) == sum(len(each) for each in held.values()) > 0


async def test_a_stalled_member_is_evicted_and_its_late_ack_moves_nothing(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    """Past ``max.poll.interval.ms`` others take over; the late ack raises, and commits nothing."""
    caplog.set_level(logging.WARNING, "broker")
    async with scene.open(partitions=1) as broker:
        await scene.ledger.publish(broker, scene.topic, 5)
        async with scene.member() as late:
            held = await take(late, 5)
            member = driver_member(late)
            stalled = Stalled(member._consumer)
            give_consumer(member, stalled)
            async with scene.member() as other:
                came = await take(other, 5)
                assert sorted(bodies(came)) == sorted(bodies(held))
                give_consumer(member, stalled._consumer)
                stalled.gate.set()
                with pytest.raises(LeaseLost) as lost:
                    await late.ack(held)
                assert set(lost.value.ids) == {each.message.id for each in held}
                await late.flush()
                assert scene.books.committed() == {0: 0}
                await other.ack(came)
                await other.flush()
                assert scene.books.committed() == {0: 5}
    assert "_MAX_POLL_EXCEEDED" in caplog.text


@pytest.mark.parametrize("verb", ["ack", "nack", "release"])
async def test_a_frozen_process_is_told_that_it_is_late(scene: Scene, verb: str) -> None:
    """Thawed after its session, a process gets ``LeaseLost`` at once and disturbs nobody."""
    async with scene.open(partitions=1) as broker:
        await scene.ledger.publish(broker, scene.topic, 4)
        with KafkaRemote(scene.url, scene.topic) as frozen:
            held = [body for body, _ in await asyncio.to_thread(frozen.ask, "receive", count=4)]
            frozen.stop()
            async with scene.member() as other:
                came = await take(other, 4)
                frozen.go_on()
                answer = await asyncio.to_thread(frozen.ask, "settle", verb=verb, bodies=held)
                assert answer == {"lost": sorted(each.message.id for each in came)}
                assert await asyncio.to_thread(frozen.ask, "flush") == "flushed"
                assert scene.books.committed() == {0: 0}
        retries = Books(scene.bootstrap, f"{scene.group_id}.retry", scene.group_id)
        assert set(retries.ends().values()) == {0}
        retries.close()
        async with scene.working():
            await scene.finished()
        assert scene.ledger.redelivered == set()


async def test_a_frozen_process_is_told_so_at_once_also_when_alone(scene: Scene) -> None:
    """Nobody took over: what it held comes again to itself."""
    async with scene.open(partitions=1) as broker:
        await scene.ledger.publish(broker, scene.topic, 4)
        with KafkaRemote(scene.url, scene.topic) as frozen:
            held = [body for body, _ in await asyncio.to_thread(frozen.ask, "receive", count=4)]
            frozen.stop()
            await eventually(lambda: not members_of(scene), "the broker has evicted it")
            frozen.go_on()
            answer = await asyncio.to_thread(frozen.ask, "settle", verb="ack", bodies=held)
            assert len(answer["lost"]) == 4
            again = await asyncio.to_thread(frozen.ask, "receive", count=4)
            assert sorted(body for body, _ in again) == sorted(held)
            assert await asyncio.to_thread(frozen.ask, "settle", verb="ack", bodies=held) == "settled"
            assert await asyncio.to_thread(frozen.ask, "flush") == "flushed"
            assert scene.books.balanced()


def members_of(scene: Scene) -> int:
    """Return how many members the broker counts."""
    from confluent_kafka.admin import AdminClient

    admin = AdminClient({"bootstrap.servers": scene.bootstrap}, logger=logging.getLogger("tests.books"))
    return len(admin.describe_consumer_groups([scene.group_id])[scene.group_id].result(10).members)
