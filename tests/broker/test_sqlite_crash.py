"""Real processes on one queue file, killed with SIGKILL or frozen at every stage of their work."""

from __future__ import annotations

import asyncio
import contextlib
import random
import sqlite3
import time
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from remote_member import GROUP, TOPIC, RemoteMember

from broker import Broker, Delivery, Message, Subscription, connect

pytestmark = pytest.mark.anyio

LEASE_S = 1.0


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "queue.db"


@pytest.fixture
async def broker(path: Path) -> AsyncIterator[Broker]:
    async with connect(f"sqlite:///{path}?lease={LEASE_S}") as broker:
        await broker.ensure(TOPIC, group=GROUP)
        yield broker
    assert integrity(path) == "ok"


def integrity(path: Path) -> str:
    """Return what SQLite finds wrong with the file, or ``ok``."""
    with contextlib.closing(sqlite3.connect(path)) as db:
        return str(db.execute("PRAGMA integrity_check").fetchone()[0])


async def publish(broker: Broker, count: int) -> list[str]:
    """Publish numbered messages; return their bodies."""
    await broker.publish(TOPIC, [Message(data=b"%d" % number) for number in range(count)])
    return [str(number) for number in range(count)]


async def take(subscription: Subscription, count: int, timeout: float = 15.0) -> list[Delivery]:
    """Receive exactly ``count`` deliveries."""
    taken: list[Delivery] = []
    async with asyncio.timeout(timeout):
        while len(taken) < count:
            taken += await subscription.receive(max_messages=count - len(taken), timeout=1.0)
    return taken


def counted(deliveries: list[Delivery]) -> dict[str, int]:
    """Return attempt numbers by body."""
    return {each.message.data.decode(): each.attempt for each in deliveries}


async def test_what_a_killed_process_held_comes_again(broker: Broker, path: Path) -> None:
    """Killed with messages in its hands, a process loses none: another gets all of them, uncounted."""
    bodies = await publish(broker, 20)
    with RemoteMember(path, LEASE_S) as member:
        member.ask("receive", count=20)
        member.kill()
    async with broker.subscribe(TOPIC, group=GROUP) as subscription:
        assert counted(await take(subscription, 20)) == dict.fromkeys(bodies, 1)


@pytest.mark.parametrize("flush", [True, False], ids=["flushed", "not flushed"])
async def test_verdicts_of_a_killed_process_stand(broker: Broker, path: Path, flush: bool) -> None:
    """Acks, counted failures and delays given before a SIGKILL stand; only what was open comes again."""
    await publish(broker, 12)
    with RemoteMember(path, LEASE_S) as member:
        held = [body for body, _ in member.ask("receive", count=12)]
        assert member.ask("settle", verb="ack", bodies=held[:4]) == "settled"
        assert member.ask("settle", verb="nack", bodies=held[4:6]) == "settled"
        assert member.ask("settle", verb="nack", bodies=held[6:8], delay=3600.0) == "settled"
        assert member.ask("settle", verb="release", bodies=held[8:10]) == "settled"
        if flush:
            member.ask("flush")
        member.kill()
    async with broker.subscribe(TOPIC, group=GROUP) as subscription:
        expected = dict.fromkeys(held[4:6], 2) | dict.fromkeys(held[8:12], 1)
        assert counted(await take(subscription, 6)) == expected
    stats = await broker.stats(TOPIC, GROUP)
    assert (stats.settled, stats.delayed, stats.ready) == (4, 2, 6)


async def test_a_killed_process_hands_over_after_its_lease_and_not_before(broker: Broker, path: Path) -> None:
    """The lease of a dead process runs out by itself; until then nobody gets what it held."""
    await publish(broker, 3)
    with RemoteMember(path, LEASE_S) as member:
        member.ask("receive", count=3)
        member.kill()
    killed = time.monotonic()
    async with broker.subscribe(TOPIC, group=GROUP) as subscription:
        (first, *_) = await subscription.receive(timeout=15.0)
        # The last renewal may be a third of a lease old.
        assert time.monotonic() - killed >= LEASE_S * 0.6 - 0.1
        assert first.attempt == 1


async def test_a_frozen_process_is_told_that_it_is_late(broker: Broker, path: Path) -> None:
    """Thawed after its lease went to another, a process gets ``LeaseLost`` and disturbs nobody."""
    await publish(broker, 4)
    with RemoteMember(path, LEASE_S) as member:
        held = [body for body, _ in member.ask("receive", count=4)]
        member.stop()
        async with broker.subscribe(TOPIC, group=GROUP) as subscription:
            came = await take(subscription, 4)
            member.go_on()
            ids = {each.message.data.decode(): each.message.id for each in came}
            for verb, part in (("ack", held[:2]), ("nack", held[2:3]), ("release", held[3:])):
                lost = member.ask("settle", verb=verb, bodies=part)
                assert lost == {"lost": sorted(ids[body] for body in part)}
            assert await subscription.receive(timeout=0.1) == []
            await subscription.ack(came)
    stats = await broker.stats(TOPIC, GROUP)
    assert (stats.settled, stats.unsettled) == (4, 0)


async def test_killing_workers_again_and_again_loses_nothing(broker: Broker, path: Path) -> None:
    """Workers killed at random moments lose no message, repeat none that was acked, and count no attempt."""
    bodies = await publish(broker, 150)
    chance = random.Random(7)
    acked: Counter[str] = Counter()
    attempts: set[int] = set()

    def read(answer: Any) -> None:
        for body, attempt in answer.get("received", []):
            assert not acked[body], f"{body} was acked before and came again"
            attempts.add(attempt)
        acked.update(answer.get("acked", []))

    for _ in range(8):
        with RemoteMember(path, LEASE_S) as member:
            member.tell("work")
            for _ in range(chance.randrange(1, 6)):
                read(await asyncio.to_thread(member.answer))
            await asyncio.sleep(chance.random() * 0.004)
            for answer in member.kill():
                read(answer)
    stats = await broker.stats(TOPIC, GROUP)
    # An ack may be stored whose announcement was cut off: at most one batch of 5 per kill.
    assert sum(acked.values()) <= stats.settled <= sum(acked.values()) + 8 * 5
    async with broker.subscribe(TOPIC, group=GROUP) as subscription:
        rest = counted(await take(subscription, stats.unsettled))
    assert set(acked) & set(rest) == set()
    assert max(acked.values()) == 1
    assert stats.settled + len(rest) == len(bodies)
    assert attempts | set(rest.values()) == {1}


async def test_two_processes_share_a_group(broker: Broker, path: Path) -> None:
    """Two processes of one group receive every message exactly once between them."""
    bodies = await publish(broker, 1000)
    received: Counter[str] = Counter()
    shares: Counter[int] = Counter()
    with RemoteMember(path, 30.0) as one, RemoteMember(path, 30.0) as two:
        members = (one, two)
        for member in members:
            member.tell("work")

        def read(member: RemoteMember) -> None:
            while sum(received.values()) < len(bodies):
                fresh = [body for body, _ in member.answer().get("received", [])]
                received.update(fresh)
                shares[member.pid] += len(fresh)

        async with asyncio.timeout(30):
            await asyncio.gather(*(asyncio.to_thread(read, member) for member in members))
    assert received == Counter(bodies)
    assert len([share for share in shares.values() if share]) == 2


async def test_a_publisher_killed_in_the_middle_leaves_whole_batches(broker: Broker, path: Path) -> None:
    """Killed while it publishes, a process leaves every announced batch, each whole or not at all."""
    chance = random.Random(11)
    announced: Counter[int] = Counter()
    rounds, count = 4, 300
    for _ in range(rounds):
        with RemoteMember(path, LEASE_S) as publisher:
            publisher.tell("publish", batches=1000, size=4000, count=count)
            for _ in range(chance.randrange(1, 4)):
                announced.update([(await asyncio.to_thread(publisher.answer))["stored"]])
            await asyncio.sleep(chance.random() * 0.02)
            announced.update(answer["stored"] for answer in publisher.kill())
    stored: Counter[int] = Counter()
    async for each in broker.browse(TOPIC, GROUP):
        batch, _, rest = each.message.data.split(b":", 2)
        stored[int(batch)] += 1
        assert rest == b"x" * 4000
    assert all(number % count == 0 for number in stored.values())
    for batch, times in stored.items():
        assert announced[batch] <= times // count <= announced[batch] + rounds
    assert set(announced) <= set(stored)


async def test_a_process_killed_while_it_opens_a_new_file_leaves_a_usable_one(path: Path) -> None:
    """Killed at any moment of its start, a process leaves a file that the next one can use."""
    for delay in (0.05, 0.15, 0.2, 0.25, 0.3):
        with RemoteMember(path, LEASE_S):
            await asyncio.sleep(delay)
        async with connect(f"sqlite:///{path}?lease={LEASE_S}") as broker:
            await broker.ensure(TOPIC, group=GROUP)
            await publish(broker, 1)
    assert integrity(path) == "ok"
