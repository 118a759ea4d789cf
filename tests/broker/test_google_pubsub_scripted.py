"""Faults that Google's emulator cannot play, on a service inside the test process."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence

import grpc
import pytest
from test_google_pubsub_fake import ServiceClock

from broker import (
    Broker,
    Delivery,
    Done,
    LeaseLost,
    Message,
    NotFound,
    Outcome,
    PermissionDenied,
    Subscription,
    Unavailable,
)
from broker.clock import SystemClock
from broker.drivers.google_pubsub import PubsubDriver
from tests.services.fake_pubsub import FakePubSub
from tests.services.fake_pubsub_bench import Bench

pytestmark = pytest.mark.anyio

PROJECT, TOPIC, GROUP = "proj-test", "images", "workers"
PATH = f"projects/{PROJECT}/subscriptions/{TOPIC}.{GROUP}"
FAILED_PRECONDITION, INTERNAL = grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.INTERNAL


@pytest.fixture
def fake() -> Iterator[FakePubSub]:
    with FakePubSub() as fake:
        yield fake


@contextlib.asynccontextmanager
async def opened(driver: PubsubDriver) -> AsyncIterator[tuple[Broker, Subscription]]:
    """Open a client and a member of its group."""
    async with Broker(driver) as broker:
        await broker.ensure(TOPIC, group=GROUP)
        async with broker.subscribe(TOPIC, group=GROUP) as subscription:
            yield broker, subscription


async def publish(broker: Broker, count: int) -> None:
    await broker.publish(TOPIC, [Message(data=b"%d" % number) for number in range(count)])


async def take(subscription: Subscription, count: int) -> list[Delivery]:
    """Receive exactly ``count`` deliveries."""
    taken: list[Delivery] = []
    async with asyncio.timeout(20):
        while len(taken) < count:
            taken += await subscription.receive(max_messages=count - len(taken), timeout=1.0)
    return taken


def virtual(fake: FakePubSub, lease: float = 30.0) -> tuple[PubsubDriver, ServiceClock]:
    """Return a driver whose time is the service's."""
    clock = ServiceClock(fake)
    return PubsubDriver(PROJECT, fake.host, lease, clock=clock, lease_clock=clock.now), clock


class Finish:
    """A handler that counts what it has finished; ``first`` is called before the first batch is."""

    def __init__(self, first: Callable[[], object] = lambda: None) -> None:
        self._first: Callable[[], object] | None = first
        self.done: Counter[bytes] = Counter()

    async def __call__(self, deliveries: Sequence[Delivery]) -> list[Outcome]:
        if self._first is not None:
            self._first()
            self._first = None
        self.done.update(each.message.data for each in deliveries)
        await asyncio.sleep(0.002)
        return [Done()] * len(deliveries)


async def until(holds: Callable[[], bool], what: str) -> None:
    """Wait for a condition."""
    deadline = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < deadline, f"not within 30 s: {what}"
        await asyncio.sleep(0.01)


async def test_a_failed_exactly_once_ack_is_counted(fake: FakePubSub) -> None:
    """``process`` counts the ack of a lease that was over as lost, not as done; the message comes again."""
    handler, stop = Finish(lambda: fake.advance(3600)), asyncio.Event()
    async with opened(PubsubDriver(PROJECT, fake.host, exactly_once=True)) as (broker, subscription):
        await subscription.aclose()
        await publish(broker, 1)
        running = asyncio.create_task(broker.process(TOPIC, group=GROUP, handler=handler, stop=stop))
        await until(lambda: handler.done[b"0"] == 2, "it comes again")
        stop.set()
        totals = await running
        assert (totals.lost_leases, totals.done) == (1, 1)
        assert (await broker.stats(TOPIC, GROUP)).unsettled == 0


async def test_an_exactly_once_ack_is_tried_again_where_the_service_says_so(fake: FakePubSub) -> None:
    """Of one request, what failed for now is acked by a second one, what failed for good is ``LeaseLost``."""
    async with opened(PubsubDriver(PROJECT, fake.host, exactly_once=True)) as (broker, subscription):
        await publish(broker, 3)
        now, good, bad = await take(subscription, 3)
        fates = {
            now.receipt.ack_id: "TRANSIENT_FAILURE_INTERNAL",
            bad.receipt.ack_id: "PERMANENT_FAILURE_INVALID_ACK_ID",
        }
        fake.fail_next("Acknowledge", INTERNAL, metadata=fates)
        with pytest.raises(LeaseLost) as lost:
            await subscription.ack([now, good, bad])
        assert lost.value.ids == (bad.message.id,)
        assert fake.calls["Acknowledge"] == 2
        # As far as the service knows, the third one is still leased.
        assert (await broker.stats(TOPIC, GROUP)).unsettled == 1


async def test_an_exactly_once_ack_that_fails_on_and_on_settles_nothing(fake: FakePubSub) -> None:
    """Then ``ack`` raises what may be tried again, the delivery is still held, and the next try works."""
    async with opened(PubsubDriver(PROJECT, fake.host, exactly_once=True)) as (broker, subscription):
        await publish(broker, 1)
        (held,) = await take(subscription, 1)
        fates = {held.receipt.ack_id: "TRANSIENT_FAILURE_SERVICE_UNAVAILABLE"}
        fake.fail_next("Acknowledge", FAILED_PRECONDITION, times=3, metadata=fates)
        with pytest.raises(Unavailable):
            await subscription.ack(held)
        assert subscription.holds(held)
        await subscription.ack(held)
        assert (await broker.stats(TOPIC, GROUP)).unsettled == 0


async def test_an_ack_without_an_answer_is_an_ack(fake: FakePubSub) -> None:
    """The response is lost, the request is repeated: exactly once all the same."""
    async with opened(PubsubDriver(PROJECT, fake.host, exactly_once=True)) as (broker, subscription):
        await publish(broker, 1)
        (held,) = await take(subscription, 1)
        fake.fail_next("Acknowledge", grpc.StatusCode.UNAVAILABLE, applied=True)
        await subscription.ack(held)
        assert fake.calls["Acknowledge"] == 2
        assert (await broker.stats(TOPIC, GROUP)).unsettled == 0


async def test_refused_access_ends_process(fake: FakePubSub) -> None:
    """Without the permission to pull, ``process`` is an error within seconds."""
    async with Broker(PubsubDriver(PROJECT, fake.host)) as broker:
        await broker.ensure(TOPIC, group=GROUP)
        fake.deny("Pull")
        with pytest.raises(PermissionDenied, match="not authorized"):
            await asyncio.wait_for(broker.process(TOPIC, group=GROUP, handler=Finish()), 10)


@pytest.mark.parametrize("gone", ["subscription", "topic"])
async def test_what_is_deleted_meanwhile_ends_process(fake: FakePubSub, gone: str) -> None:
    """A topic or subscription that disappears under a running ``process`` is ``NotFound`` within seconds."""
    handler = Finish()
    async with opened(PubsubDriver(PROJECT, fake.host)) as (broker, subscription):
        await subscription.aclose()
        await publish(broker, 1)
        running = asyncio.create_task(broker.process(TOPIC, group=GROUP, handler=handler))
        await until(lambda: handler.done.total() == 1, "it works")
        with Bench(fake.host) as bench:
            if gone == "topic":
                bench.publisher.delete_topic(topic=f"projects/{PROJECT}/topics/{TOPIC}")
            else:
                bench.subscriber.delete_subscription(subscription=PATH)
        with pytest.raises(NotFound, match="ensure"):
            await asyncio.wait_for(running, 15)


@pytest.mark.parametrize("fault", ["connections dropped", "server restarted"])
async def test_outages_lose_nothing(fake: FakePubSub, fault: str, caplog: pytest.LogCaptureFixture) -> None:
    """``process`` waits them out: all that was stored is handled, and nothing is blamed for it."""
    chance, handler, stop = random.Random(5), Finish(), asyncio.Event()
    async with opened(PubsubDriver(PROJECT, fake.host)) as (broker, subscription):
        await subscription.aclose()
        running = asyncio.create_task(broker.process(TOPIC, group=GROUP, handler=handler, stop=stop))
        for number in range(6):
            first = 50 * number
            await broker.publish(TOPIC, [Message(data=b"%d" % each) for each in range(first, first + 50)])
            wanted = first + chance.randrange(1, 50)
            await until(lambda wanted=wanted: len(handler.done) >= wanted, f"{wanted} are handled")
            if fault == "connections dropped":
                fake.drop_connections()
            else:
                await asyncio.to_thread(fake.stop)
                fake.start()
                await until_there(broker)
        await until(lambda: len(handler.done) == 300, "all are handled")
        stop.set()
        totals = await running
        assert (totals.retried, totals.dead_lettered) == (0, 0)
        assert (await broker.stats(TOPIC, GROUP)).unsettled == 0
    landed = [each for each in caplog.messages if "failed: " in each or "outage, blaming no" in each]
    assert landed, "no call was under way at any of the faults"


async def until_there(broker: Broker) -> None:
    """Wait for the connection."""
    async with asyncio.timeout(30):
        while True:
            with contextlib.suppress(Unavailable):
                await broker.describe()
                return
            await asyncio.sleep(0.05)


async def test_jumps_of_the_wall_clock_drop_no_lease(fake: FakePubSub) -> None:
    """While the wall clock jumps by days in both directions, leases are renewed and verdicts count."""
    offset = 0.0
    clock = SystemClock(lambda: time.time() + offset)
    async with opened(PubsubDriver(PROJECT, fake.host, lease=1.0, clock=clock)) as (broker, subscription):
        await publish(broker, 4)
        held = await take(subscription, 4)
        async with broker.subscribe(TOPIC, group=GROUP) as other:
            for jump in (400_000.0, -800_000.0, 400_000.0):
                offset += jump
                renewed = fake.calls["ModifyAckDeadline"]
                assert await other.receive(timeout=1.2) == []
                assert fake.calls["ModifyAckDeadline"] - renewed >= 2
            await subscription.ack(held[:2])
            offset = 900_000.0
            await subscription.nack(held[2])
            await subscription.release(held[3])
            came = await take(other, 2)
            assert sorted(each.attempt for each in came) == [1, 2]
            await other.ack(came)


async def test_leases_are_renewed_until_the_verdict_and_no_longer(fake: FakePubSub) -> None:
    """For ten leases a delivery stays with its holder; once it is settled nothing more is asked for."""
    driver, clock = virtual(fake)
    async with opened(driver) as (broker, subscription):
        await publish(broker, 2)
        held = await take(subscription, 2)
        before = fake.calls["ModifyAckDeadline"]
        await clock.advance(300.0)
        assert fake.calls["ModifyAckDeadline"] - before >= 29
        with Bench(fake.host) as bench:
            assert await asyncio.to_thread(bench.pull, PATH) == {}
        await subscription.ack(held)
        before = fake.calls["ModifyAckDeadline"]
        await clock.advance(300.0)
        assert fake.calls["ModifyAckDeadline"] == before
        assert (await broker.stats(TOPIC, GROUP)).unsettled == 0


async def test_a_delay_may_be_longer_than_any_lease(fake: FakePubSub) -> None:
    """A nack for 25 minutes comes after 25 minutes, though the service hides nothing for more than 10."""
    driver, clock = virtual(fake)
    async with opened(driver) as (broker, subscription):
        await publish(broker, 1)
        await subscription.nack(await take(subscription, 1), delay=1500.0)
        hidden = fake.calls["ModifyAckDeadline"]
        for step in (605.0, 605.0, 280.0):
            assert await subscription.receive(timeout=0.3) == []
            await clock.advance(step)
        assert await subscription.receive(timeout=0.3) == []
        assert fake.calls["ModifyAckDeadline"] - hidden >= 3
        await clock.advance(20.0)
        (again,) = await take(subscription, 1)
        assert again.attempt == 2
        await subscription.ack(again)


async def test_late_acks_are_sent_while_draining(fake: FakePubSub) -> None:
    """A drain waits for the verdicts of what is held; given meanwhile, they reach the service."""
    async with opened(PubsubDriver(PROJECT, fake.host)) as (broker, subscription):
        await publish(broker, 3)
        held = await take(subscription, 3)
        draining = asyncio.create_task(subscription.drain(timeout=20))
        await asyncio.sleep(0.1)
        assert not draining.done()
        await subscription.ack(held[:2])
        await subscription.nack(held[2])
        assert await draining
        assert fake.calls["Acknowledge"] == 2
        await subscription.aclose()
        stats = await broker.stats(TOPIC, GROUP)
        assert (stats.in_flight, stats.ready) == (0, 1)
