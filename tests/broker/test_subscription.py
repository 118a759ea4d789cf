"""A member whose backend fails under it: nothing is lost, nothing hangs, every error is told once."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator

import pytest
from faulty import FaultyDriver

from broker import Broker, Delivery, LeaseLost, Message, PublishError, Subscription, Unavailable
from broker.errors import BrokerError

pytestmark = pytest.mark.anyio

TOPIC, GROUP = "images", "workers"


@pytest.fixture
async def driver() -> FaultyDriver:
    return FaultyDriver()


@pytest.fixture
async def broker(driver: FaultyDriver) -> AsyncIterator[Broker]:
    async with Broker(driver) as broker:
        await broker.ensure(TOPIC, group=GROUP)
        yield broker


async def hold(broker: Broker, subscription: Subscription, count: int) -> list[Delivery]:
    """Publish and receive."""
    await broker.publish(TOPIC, [Message(data=b"%d" % number) for number in range(count)])
    held: list[Delivery] = []
    while len(held) < count:
        held += await subscription.receive(timeout=5.0)
    return held


async def settled(broker: Broker) -> int:
    """Return how many messages are finished."""
    return (await broker.stats(TOPIC, GROUP)).settled


async def turns(count: int = 20) -> None:
    """Let others run."""
    for _ in range(count):
        await asyncio.sleep(0)


async def test_a_verdict_that_fails_can_be_given_again(broker: Broker, driver: FaultyDriver) -> None:
    """When the backend is away, the deliveries stay held, and the same call works later."""
    async with broker.subscribe(TOPIC, group=GROUP) as subscription:
        held = await hold(broker, subscription, 3)
        for verb in (subscription.ack, subscription.nack, subscription.release):
            driver.faults.errors["settle"] = [Unavailable("away")]
            with pytest.raises(Unavailable):
                await verb(held)
            assert subscription.in_flight == 3
        await subscription.ack(held)
    assert await settled(broker) == 3


async def test_what_fails_while_it_is_held_stays_leased(broker: Broker, driver: FaultyDriver) -> None:
    """A failed verdict leaves the lease to the keeper: nobody else gets the message meanwhile."""
    async with broker.subscribe(TOPIC, group=GROUP) as subscription:
        held = await hold(broker, subscription, 1)
        driver.faults.errors["settle"] = [Unavailable("away")]
        with pytest.raises(Unavailable):
            await subscription.ack(held)
        await driver.manual.advance(driver.capabilities.lease * 3)
        await subscription.ack(held)
    assert await settled(broker) == 1


async def test_an_error_of_receive_is_told_once(broker: Broker, driver: FaultyDriver) -> None:
    """The call that waits gets the error; the next one works."""
    driver.faults.errors["receive"] = [Unavailable("away")]
    async with broker.subscribe(TOPIC, group=GROUP) as subscription:
        with pytest.raises(Unavailable):
            await subscription.receive(timeout=1.0)
        assert len(await hold(broker, subscription, 2)) == 2


async def test_an_error_while_nobody_waits_is_told_to_the_next(broker: Broker, driver: FaultyDriver) -> None:
    """What goes wrong after a ``receive`` was cancelled is not swallowed."""
    gate = driver.faults.gates["receive"] = asyncio.Event()
    driver.faults.errors["receive"] = [Unavailable("away")]
    async with broker.subscribe(TOPIC, group=GROUP) as subscription:
        waiting = asyncio.create_task(subscription.receive(timeout=60.0))
        await turns()
        waiting.cancel()
        await asyncio.wait({waiting})
        gate.set()
        await turns()
        with pytest.raises(Unavailable):
            await subscription.receive(timeout=1.0)
        assert len(await hold(broker, subscription, 1)) == 1


async def test_an_error_at_the_very_end_is_logged(
    broker: Broker, driver: FaultyDriver, caplog: pytest.LogCaptureFixture
) -> None:
    """Closing does not raise what a last ``receive`` or the handing back ran into; it says so."""
    gate = driver.faults.gates["receive"] = asyncio.Event()
    driver.faults.errors["receive"] = [Unavailable("receive is away")]
    subscription = broker.subscribe(TOPIC, group=GROUP)
    async with subscription:
        waiting = asyncio.create_task(subscription.receive(timeout=60.0))
        await turns()
        waiting.cancel()
        await asyncio.wait({waiting})
        gate.set()
    async with broker.subscribe(TOPIC, group=GROUP) as subscription:
        await hold(broker, subscription, 1)
        driver.faults.errors["settle"] = [Unavailable("settle is away")]
    messages = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert any("receive is away" in each for each in messages)
    assert any("settle is away" in each for each in messages)


async def test_leases_survive_a_backend_that_is_away_for_a_moment(
    broker: Broker, driver: FaultyDriver
) -> None:
    """A renewal that fails is tried again before the lease runs out."""
    async with broker.subscribe(TOPIC, group=GROUP) as subscription:
        held = await hold(broker, subscription, 1)
        for _ in range(5):
            driver.faults.errors["extend"] = [Unavailable("away")]
            await driver.manual.advance(driver.capabilities.lease * 0.7)
        await subscription.ack(held)
    assert await settled(broker) == 1


@pytest.mark.parametrize("error", [RuntimeError("a bug of the driver"), BrokerError("odd")])
async def test_leases_survive_any_error_of_a_renewal(
    broker: Broker, driver: FaultyDriver, error: Exception
) -> None:
    """Whatever one renewal raises, also what a driver forgot to map, the next ones are still tried."""
    async with broker.subscribe(TOPIC, group=GROUP) as subscription:
        held = await hold(broker, subscription, 1)
        driver.faults.errors["extend"] = [error]
        await driver.manual.advance(driver.capabilities.lease * 3)
        assert driver.faults.calls["extend"] > 3
        await subscription.ack(held)


async def lose(
    broker: Broker, driver: FaultyDriver, subscription: Subscription, count: int
) -> list[Delivery]:
    """Let another client take what ``subscription`` holds while its renewals fail."""
    other = FaultyDriver(driver.store, driver.manual)
    driver.faults.errors["extend"] = [Unavailable("away")] * 4
    await driver.manual.advance(driver.capabilities.lease * 1.2)
    driver.faults.errors["extend"].clear()
    client = Broker(other)
    await client.__aenter__()
    member = client.subscribe(TOPIC, group=GROUP)
    await member.__aenter__()
    taken: list[Delivery] = []
    while len(taken) < count:
        taken += await member.receive(timeout=5.0)
    assert subscription.in_flight == count
    return taken


async def test_a_loss_that_the_keeper_notices_is_told(broker: Broker, driver: FaultyDriver) -> None:
    """Deliveries that a renewal finds lost leave the member at once; settling them is ``LeaseLost``."""
    async with broker.subscribe(TOPIC, group=GROUP) as subscription:
        held = await hold(broker, subscription, 2)
        await lose(broker, driver, subscription, 2)
        await driver.manual.advance(driver.capabilities.lease / 3)
        assert subscription.in_flight == 0
        with pytest.raises(LeaseLost) as lost:
            await subscription.ack(held)
        assert sorted(lost.value.ids) == sorted(each.message.id for each in held)
        with pytest.raises(LeaseLost):
            await subscription.forward(held[0], TOPIC, {})
    assert await settled(broker) == 0


async def test_drain_does_not_wait_for_what_is_lost(broker: Broker, driver: FaultyDriver) -> None:
    """When the last open deliveries turn out to be lost, a waiting ``drain`` ends at once."""
    async with broker.subscribe(TOPIC, group=GROUP) as subscription:
        await hold(broker, subscription, 2)
        await lose(broker, driver, subscription, 2)
        draining = asyncio.create_task(subscription.drain(60.0))
        await turns()
        async with asyncio.timeout(5):
            await driver.manual.advance(driver.capabilities.lease / 3)
            assert await draining is True


async def test_a_loss_makes_room_for_others(broker: Broker, driver: FaultyDriver) -> None:
    """A member that was full and lost its leases takes new messages at once."""
    async with broker.subscribe(TOPIC, group=GROUP, max_in_flight=2) as subscription:
        await hold(broker, subscription, 2)
        await lose(broker, driver, subscription, 2)
        waiting = asyncio.create_task(subscription.receive(timeout=60.0))
        await turns()
        await broker.publish(TOPIC, [Message(data=b"new")])
        await driver.manual.advance(driver.capabilities.lease / 3)
        async with asyncio.timeout(5):
            assert [each.message.data for each in await waiting] == [b"new"]


@pytest.mark.parametrize("end", ["drain", "close"])
async def test_ending_waits_for_verdicts_on_their_way(broker: Broker, driver: FaultyDriver, end: str) -> None:
    """An ack that has begun is stored before ``drain`` says so, and before a close leaves the group."""
    async with broker.subscribe(TOPIC, group=GROUP) as subscription:
        held = await hold(broker, subscription, 2)
        gate = driver.faults.gates["settle"] = asyncio.Event()
        acking = asyncio.create_task(subscription.ack(held))
        await turns()
        ending = asyncio.create_task(subscription.drain(5.0) if end == "drain" else subscription.aclose())
        await turns()
        assert not ending.done()
        gate.set()
        assert await ending in (True, None)
        await acking
    assert await settled(broker) == 2


async def test_a_cancelled_verdict_is_finished_all_the_same(broker: Broker, driver: FaultyDriver) -> None:
    """Once begun a verdict is stored although its caller was cancelled; the member closes behind it."""
    async with broker.subscribe(TOPIC, group=GROUP) as subscription:
        held = await hold(broker, subscription, 2)
        gate = driver.faults.gates["settle"] = asyncio.Event()
        acking = asyncio.create_task(subscription.ack(held))
        await turns()
        acking.cancel()
        await asyncio.wait({acking})
        assert acking.cancelled()
        gate.set()
    assert await settled(broker) == 2


async def test_a_publish_that_fails_on_its_way_is_told(broker: Broker, driver: FaultyDriver) -> None:
    """An outage between the parts of a large publish names what is not stored, and only that."""
    messages = [Message(data=bytes(1_000_000)) for _ in range(20)]
    original = driver.send

    async def second_part_fails(topic: str, part: list[Message]) -> object:
        if part[0] is messages[16]:
            raise Unavailable("away")
        return await original(topic, part)

    driver.send = second_part_fails  # type: ignore[method-assign, assignment]
    with pytest.raises((PublishError, Unavailable)) as error:
        await broker.publish(TOPIC, messages)
    assert error.value.retryable
    stored = {each.message.id async for each in broker.browse(TOPIC, GROUP)}
    assert isinstance(error.value, PublishError), "16 messages are stored, and nobody can tell which"
    assert stored == {each.id for each in messages} - set(error.value.failed)


async def test_a_drain_hands_out_nothing_that_it_hands_back(broker: Broker) -> None:
    """What an iteration handled beside a drain is settled, and what the drain handed back was not handled."""
    await broker.publish(TOPIC, [Message(data=b"%d" % number) for number in range(60)])
    handled = 0
    async with broker.subscribe(TOPIC, group=GROUP) as subscription:

        async def iterate() -> None:
            nonlocal handled
            async for delivery in subscription:
                await subscription.ack(delivery)
                handled += 1

        task = asyncio.create_task(iterate())
        while not handled:
            await asyncio.sleep(0)
        assert await subscription.drain(5.0)
        await task
    assert (await broker.stats(TOPIC, GROUP)).settled == handled


async def test_a_close_that_is_cancelled_ends_the_leases_all_the_same(
    broker: Broker, driver: FaultyDriver
) -> None:
    """No task goes on renewing what a half-closed member held."""
    before = asyncio.all_tasks()
    subscription = broker.subscribe(TOPIC, group=GROUP)
    await subscription.__aenter__()
    await hold(broker, subscription, 3)
    asyncio.create_task(subscription.receive(timeout=5.0)).cancel()
    fetching = asyncio.create_task(subscription.receive(timeout=5.0))
    await asyncio.sleep(0)
    closing = asyncio.create_task(subscription.aclose())
    await asyncio.sleep(0)
    closing.cancel()
    await asyncio.gather(closing, fetching, return_exceptions=True)
    async with asyncio.timeout(5.0):
        while asyncio.all_tasks() - before:
            await asyncio.sleep(0.01)


async def test_closing_twice_at_once_is_closing_once(broker: Broker) -> None:
    """Whoever comes second has nothing to do."""
    async with broker.subscribe(TOPIC, group=GROUP) as subscription:
        await hold(broker, subscription, 3)
        await asyncio.gather(subscription.aclose(), subscription.aclose())
    assert (await broker.stats(TOPIC, GROUP)).ready == 3
