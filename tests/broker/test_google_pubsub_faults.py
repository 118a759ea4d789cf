"""Faults on Google's emulator: killed and frozen processes, cut connections, shutdowns, deleted resources."""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import pytest
import remote_member
from remote_member import GROUP, TOPIC, RemoteMember

from broker import Batching, Broker, BrokerError, Delivery, Done, Message, NotFound, Outcome, Subscription
from broker.drivers.google_pubsub import PubsubDriver
from tests.faults.proxy import Proxy
from tests.services.fake_pubsub_bench import Bench
from tests.services.pubsub import PubSubService

pytestmark = [pytest.mark.anyio, pytest.mark.pubsub]

LEASE_S = 2.0
# The emulator leases for 10 s what a process took that died before it could ask for its own lease.
PATIENCE_S = 60.0


class Member(RemoteMember):
    """A member in a process of its own."""

    def __init__(self, host: str, project: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, remote_member.__file__, f"pubsub://{project}?lease={LEASE_S:g}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PUBSUB_EMULATOR_HOST": host},
        )


@pytest.fixture
def host(pubsub_service: PubSubService) -> str:
    return pubsub_service.host


@pytest.fixture
def project() -> str:
    return f"proj-{uuid.uuid4().hex[:12]}"


@pytest.fixture
async def broker(host: str, project: str) -> AsyncIterator[Broker]:
    async with Broker(PubsubDriver(project, host, LEASE_S)) as broker:
        await broker.ensure(TOPIC, group=GROUP)
        yield broker


async def publish(broker: Broker, count: int) -> list[str]:
    """Publish numbered messages; return their bodies."""
    await broker.publish(TOPIC, [Message(data=b"%d" % number) for number in range(count)])
    return [str(number) for number in range(count)]


async def take(subscription: Subscription, count: int) -> dict[str, Delivery]:
    """Receive exactly ``count`` deliveries; return them by body."""
    taken: list[Delivery] = []
    async with asyncio.timeout(PATIENCE_S):
        while len(taken) < count:
            taken += await subscription.receive(max_messages=count - len(taken), timeout=1.0)
    return {each.message.data.decode(): each for each in taken}


async def until(holds: Callable[[], bool], what: str) -> None:
    """Wait for a condition."""
    deadline = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < deadline, f"not within {PATIENCE_S:g} s: {what}"
        await asyncio.sleep(0.01)


async def test_what_a_killed_process_held_comes_again(broker: Broker, host: str, project: str) -> None:
    """Killed with messages in its hands, a process loses none: another gets all of them, uncounted."""
    bodies = await publish(broker, 20)
    with Member(host, project) as member:
        held = await asyncio.to_thread(member.ask, "receive", count=20)
        assert sorted(body for body, _ in held) == sorted(bodies)
        member.kill()
    async with broker.subscribe(TOPIC, group=GROUP) as subscription:
        again = await take(subscription, 20)
        assert {body: each.attempt for body, each in again.items()} == dict.fromkeys(bodies, 1)
        await subscription.ack(list(again.values()))


async def test_killing_workers_again_and_again_loses_nothing(broker: Broker, host: str, project: str) -> None:
    """Workers killed at random moments lose no message, repeat none that was acked, and count no attempt."""
    bodies = await publish(broker, 300)
    chance = random.Random(7)
    acked: Counter[str] = Counter()
    received: Counter[str] = Counter()
    attempts: set[int] = set()
    cut_off: set[str] = set()
    held: set[str] = set()

    def read(answer: Any) -> None:
        for body, attempt in answer.get("received", []):
            assert not acked[body], f"{body} was acked before and came again"
            received[body] += 1
            attempts.add(attempt)
        acked.update(answer.get("acked", []))

    for _ in range(3):
        before = received.copy()
        with Member(host, project) as member:  # killed at any moment of its work
            member.tell("work")
            for _ in range(chance.randrange(1, 8)):
                read(await asyncio.to_thread(member.answer))
            await asyncio.sleep(chance.random() * 0.004)
            for answer in member.kill():
                read(answer)
        cut_off |= set(received - before) - set(acked)
        with Member(host, project) as member:  # killed with so many in its hands
            came = await asyncio.to_thread(member.ask, "receive", count=chance.randrange(1, 30))
            read({"received": came})
            held |= {body for body, _ in came}
            member.kill()
    async with broker.subscribe(TOPIC, group=GROUP) as subscription, asyncio.timeout(PATIENCE_S):
        while (await broker.stats(TOPIC, GROUP)).unsettled:
            for each in await subscription.receive(timeout=1.0):
                read({"received": [[each.message.data.decode(), each.attempt]]})
                await subscription.ack(each)
                read({"acked": [each.message.data.decode()]})
    assert set(received) == set(bodies), f"lost {set(bodies) - set(received)}"
    # An ack may be stored whose announcement was cut off; then the message does not come again.
    assert set(bodies) - set(acked) <= cut_off
    assert all(received[body] > 1 for body in held)
    assert max(acked.values()) == 1
    assert attempts == {1}


async def test_a_frozen_process_is_told_that_it_is_late(broker: Broker, host: str, project: str) -> None:
    """Thawed after its lease went to another, a process gets ``LeaseLost`` and disturbs nobody."""
    await publish(broker, 4)
    with Member(host, project) as member:
        held = [body for body, _ in await asyncio.to_thread(member.ask, "receive", count=4)]
        member.stop()
        async with broker.subscribe(TOPIC, group=GROUP) as subscription:
            came = await take(subscription, 4)
            member.go_on()
            for verb, part in (("ack", held[:2]), ("nack", held[2:3]), ("release", held[3:])):
                answer = await asyncio.to_thread(member.ask, "settle", verb=verb, bodies=part)
                assert answer == {"lost": sorted(came[body].message.id for body in part)}
            assert await subscription.receive(timeout=0.3) == []
            await subscription.ack(list(came.values()))
    assert (await broker.stats(TOPIC, GROUP)).unsettled == 0


class Work:
    """A handler that takes some time and enters every message that it has finished."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        self.done: Counter[str] = Counter()
        self.busy = 0

    async def __call__(self, deliveries: Sequence[Delivery]) -> list[Outcome]:
        self.busy += 1
        await asyncio.sleep(self._chance.random() * 0.02)
        self.done.update(each.message.data.decode() for each in deliveries)
        self.busy -= 1
        return [Done()] * len(deliveries)


async def test_shutdown_at_random_points_repeats_nothing(broker: Broker) -> None:
    """Asked to stop at any moment, ``process`` finishes what it holds: nothing is repeated, nothing lost."""
    bodies = await publish(broker, 200)
    chance = random.Random(11)
    work, in_mid_work = Work(chance), 0
    for number in range(9):
        stop = asyncio.Event()
        running = asyncio.create_task(
            broker.process(
                TOPIC, group=GROUP, handler=work, batch=Batching(max_messages=5), stop=stop, dead_letter=False
            )
        )
        wanted = len(bodies) if number == 8 else len(work.done) + chance.randrange(1, 20)
        await until(lambda wanted=wanted: len(work.done) >= wanted, f"{wanted} of {len(bodies)} are done")
        if number < 8:
            await asyncio.sleep(chance.random() * 0.02)
            in_mid_work += work.busy > 0
        stop.set()
        assert (await running).lost_leases == 0
    assert in_mid_work, "every stop came between two batches"
    assert work.done == Counter(bodies)
    assert (await broker.stats(TOPIC, GROUP)).unsettled == 0


async def test_reset_connections_lose_nothing(host: str, project: str) -> None:
    """While connections are reset again and again, everything that was published is handled."""
    chance, work = random.Random(13), Work(random.Random(17))
    stop = asyncio.Event()
    with Proxy(host) as proxy:
        async with Broker(PubsubDriver(project, proxy.address, LEASE_S)) as broker:
            await broker.ensure(TOPIC, group=GROUP)
            running = asyncio.create_task(
                broker.process(
                    TOPIC,
                    group=GROUP,
                    handler=work,
                    batch=Batching(max_messages=5),
                    stop=stop,
                    dead_letter=False,
                )
            )
            await _store(broker, [Message(data=b"0")])
            await until(lambda: bool(work.done) or running.done(), "it has begun")
            cuts: list[int] = []
            for number in range(12):
                messages = [Message(data=b"%d" % each) for each in range(20 * number + 1, 20 * number + 21)]
                storing = asyncio.create_task(_store(broker, messages))
                await asyncio.sleep(chance.random() * 0.1)
                cuts.append(proxy.reset())
                await storing
            await until(lambda: len(work.done) == 241 or running.done(), "all of what was stored is handled")
            stop.set()
            await running
            assert sum(count > 0 for count in cuts) >= 6
            assert proxy.accepted >= 6
            assert (await broker.stats(TOPIC, GROUP)).unsettled == 0
    assert set(work.done) == {str(number) for number in range(241)}


async def _store(broker: Broker, messages: list[Message]) -> None:
    """Publish, however often it takes; what was stored without an answer comes twice."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            try:
                await broker.publish(TOPIC, messages)
                return
            except BrokerError as error:
                if not error.retryable:
                    raise
            await asyncio.sleep(0.05)


async def test_a_member_that_left_takes_nothing_with_it(broker: Broker, host: str, project: str) -> None:
    """What is stored after a member has left waits for the next one, and not for a lease to end.

    The emulator never learns of a cancelled pull: it goes on and leases to nobody.
    """
    path = f"projects/{project}/subscriptions/{TOPIC}.{GROUP}"
    with Bench(host) as bench:
        for _ in range(5):
            async with broker.subscribe(TOPIC, group=GROUP) as subscription:
                assert await subscription.receive(timeout=0.1) == []
            await publish(broker, 1)
            # Longer than the emulator's pulls sleep between two looks.
            await asyncio.sleep(0.15)
            received = await asyncio.to_thread(bench.pull, path)
            assert list(received) == ["0"]
            await asyncio.to_thread(bench.ack, path, *received.values())


@pytest.mark.parametrize("gone", ["subscription", "retry subscription", "topic"])
async def test_what_is_deleted_while_it_is_consumed_is_an_error(
    broker: Broker, host: str, project: str, gone: str
) -> None:
    """Within seconds, and as ``NotFound``; ``process`` ends with it."""
    with Bench(host) as bench:
        async with broker.subscribe(TOPIC, group=GROUP) as subscription:
            assert await subscription.receive(timeout=0.1) == []
            path = f"projects/{project}/subscriptions/{TOPIC}.{GROUP}"
            if gone == "topic":
                bench.publisher.delete_topic(topic=f"projects/{project}/topics/{TOPIC}")
            else:
                suffix = "" if gone == "subscription" else ".retry"
                bench.subscriber.delete_subscription(subscription=path + suffix)
            with pytest.raises(NotFound, match="ensure"):
                await asyncio.wait_for(_receive_for_ever(subscription), 20)
        handler = Work(random.Random(1))
        with pytest.raises(NotFound):
            await asyncio.wait_for(broker.process(TOPIC, group=GROUP, handler=handler, dead_letter=False), 20)


async def _receive_for_ever(subscription: Subscription) -> None:
    while True:
        await subscription.receive(timeout=1.0)
