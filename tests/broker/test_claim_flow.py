"""Large bodies on their way: bounds, leases, neighbours, closing."""

# ruff: noqa: ASYNC240, F401, F811 - a test may block its own event loop; fixtures are imported

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from claim_bench import (
    GROUP,
    LARGE,
    LETTERS,
    TOPIC,
    Gate,
    backend,
    folder,
    gate,
    opened,
    quick_outages,
    received,
    small,
    take,
)
from faulty import FaultyDriver, until

from broker import (
    Delivery,
    LeaseLost,
    ManualClock,
    Message,
    Unavailable,
)
from broker import claims as claims_module
from broker.drivers.memory import MemoryStore

pytestmark = pytest.mark.anyio


class Particular(FaultyDriver):
    """A backend that knows its own deliveries only, and copies a record from what it handed over."""

    async def subscribe(self, topic: str, group: str, order: Any) -> Any:
        member = await super().subscribe(topic, group, order)
        own: set[Delivery] = set()
        receive, settle, extend, forward = member.receive, member.settle, member.extend, member.forward

        async def received(limit: Any, timeout: float) -> list[Delivery]:
            deliveries = await receive(limit, timeout)
            own.update(deliveries)
            return deliveries

        async def settled(acks: Any, releases: Any, retries: Any) -> list[Delivery]:
            assert own.issuperset([*acks, *releases, *(each.delivery for each in retries)])
            return await settle(acks, releases, retries)

        async def extended(deliveries: Any) -> list[Delivery]:
            assert own.issuperset(deliveries)
            return await extend(deliveries)

        async def forwarded(delivery: Delivery, topic: str, extra: Any) -> None:
            assert delivery in own
            await forward(delivery, topic, extra)

        member.receive, member.settle, member.extend, member.forward = received, settled, extended, forwarded
        return member


async def test_a_driver_gets_back_what_it_handed_over(folder: Path) -> None:
    """Whatever it keeps with its deliveries, or copies from them, is that of the native record."""
    clock = ManualClock()
    async with opened(small(Particular(clock=clock)), folder) as broker:
        await broker.publish(TOPIC, [Message(LARGE + b"%d" % number) for number in range(3)])
        async with broker.subscribe(TOPIC, group=GROUP) as subscription:
            one, two, three = await take(subscription, 3)
            await clock.advance(100.0)
            await subscription.forward(one, LETTERS, {})
            await subscription.settle(acks=[one], releases=[two])
            await subscription.nack(three)
            again = await take(subscription, 2)
            assert sorted(each.attempt for each in again) == [1, 2]
            await subscription.ack(again)
        assert (await broker.stats(TOPIC, GROUP)).settled == 3


# Bounds, leases and closing.


async def test_what_is_fetched_stays_within_the_bounds(backend: Any, folder: Path) -> None:
    """``max_bytes`` counts real sizes: what does not fit waits for its turn, and none is passed over."""
    sent = [Message(b"%02d" % number * 500) for number in range(12)]
    async with opened(backend(), folder) as broker:
        await broker.publish(TOPIC, sent)
        got: list[bytes] = []
        async with broker.subscribe(TOPIC, group=GROUP, max_bytes=2500) as subscription:
            while len(got) < len(sent):
                held = await take(subscription, 1)
                held += await subscription.receive(timeout=0.1)
                assert subscription.in_flight == len(held) <= 2
                got += [each.message.data for each in held]
                await subscription.ack(held)
    assert sorted(got) == [each.data for each in sent]


async def test_a_body_over_the_bounds_comes_alone(folder: Path) -> None:
    """One larger message still comes, when nothing else is held."""
    async with opened(small(FaultyDriver()), folder) as broker:
        await broker.publish(TOPIC, [Message(b"x"), Message(LARGE), Message(b"y"), Message(LARGE)])
        async with broker.subscribe(TOPIC, group=GROUP, max_bytes=200) as subscription:
            got = []
            while len(got) < 4:
                held = await take(subscription, 1)
                held += await subscription.receive(timeout=0.05)
                if LARGE in [each.message.data for each in held]:
                    assert len(held) == 1
                got += held
                await subscription.ack(held)


async def test_a_slow_store_delays_no_neighbour_and_loses_no_lease(folder: Path, gate: Gate) -> None:
    """While a body is on its way small messages come, and its lease is renewed however long it takes."""
    clock, store = ManualClock(), MemoryStore()
    one, other = (small(FaultyDriver(store, clock)) for _ in range(2))
    async with opened(one, folder) as broker, opened(other, folder) as rival:
        await broker.publish(TOPIC, [Message(LARGE), Message(b"x")])
        async with (
            broker.subscribe(TOPIC, group=GROUP) as subscription,
            rival.subscribe(TOPIC, group=GROUP) as waiting,
        ):
            (small_one,) = await subscription.receive(timeout=5.0)
            assert small_one.message.data == b"x"
            await until(gate.is_busy)
            for _ in range(20):
                await clock.advance(10.0)
                assert await subscription.receive(timeout=0.0) == []
                assert await waiting.receive(timeout=0.0) == []
            gate.opened.set()
            (large,) = await take(subscription, 1)
            assert (large.message.data, large.attempt) == (LARGE, 1)
            await subscription.ack([large, small_one])
        assert (await broker.stats(TOPIC, GROUP)).settled == 2


async def test_closing_does_not_wait_for_the_store(folder: Path, gate: Gate) -> None:
    """What is on its way is handed back at once, and comes to another member."""
    store = MemoryStore()
    one, other = (small(FaultyDriver(store)) for _ in range(2))
    async with opened(one, folder) as broker, opened(other, folder) as rival:
        await broker.publish(TOPIC, [Message(LARGE), Message(LARGE + b"2")])
        async with broker.subscribe(TOPIC, group=GROUP, max_bytes=600) as subscription:
            assert await subscription.receive(timeout=0.3) == []
            await until(gate.is_busy)
            started = time.monotonic()
        assert time.monotonic() - started < 5.0
        gate.opened.set()
        got = await received(rival, 2)
        assert {each.data for each in got} == {LARGE, LARGE + b"2"}


async def test_a_drain_hands_back_what_is_on_its_way(folder: Path, gate: Gate) -> None:
    """Nobody took it yet, so a drain does not wait for it."""
    async with opened(small(FaultyDriver()), folder) as broker:
        await broker.publish(TOPIC, [Message(LARGE)])
        async with broker.subscribe(TOPIC, group=GROUP) as subscription:
            assert await subscription.receive(timeout=0.3) == []
            assert await subscription.drain(5.0) is True
            assert (await broker.stats(TOPIC, GROUP)).ready == 1


async def test_few_bodies_are_on_their_way_at_a_time(folder: Path, gate: Gate) -> None:
    """However many there are, a few threads fetch them, and all arrive."""
    sent = [Message(b"%02d" % number * 100) for number in range(30)]
    async with opened(small(FaultyDriver()), folder) as broker:
        await broker.publish(TOPIC, sent)
        async with broker.subscribe(TOPIC, group=GROUP) as subscription:
            assert await subscription.receive(timeout=0.3) == []
            assert gate.most == claims_module.TRANSFERS
            gate.opened.set()
            got = await take(subscription, 30)
            assert {each.message.data for each in got} == {each.data for each in sent}
            await subscription.ack(got)


async def test_a_store_that_hangs_is_an_outage(
    folder: Path, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every transfer has a deadline, which grows with the body; nothing else waits for the threads."""
    async with opened(small(FaultyDriver()), folder) as broker:
        await broker.publish(TOPIC, [Message(LARGE), Message(b"x")])
        monkeypatch.setattr(claims_module, "_PATIENCE_S", 0.05)
        async with broker.subscribe(TOPIC, group=GROUP) as subscription:
            assert [each.message.data for each in await subscription.receive(timeout=5.0)] == [b"x"]
            with pytest.raises(Unavailable, match="TimeoutError"):
                await take(subscription, 1)
            gate.opened.set()
            monkeypatch.setattr(claims_module, "_PATIENCE_S", 10.0)
            (delivery,) = await take(subscription, 1)
            assert (delivery.message.data, delivery.attempt) == (LARGE, 1)


async def test_a_lease_that_is_lost_on_the_way_is_dropped(folder: Path, gate: Gate) -> None:
    """Its body is not handed over here any more: another member has it."""
    clock, store = ManualClock(), MemoryStore()
    one, other = (small(FaultyDriver(store, clock)) for _ in range(2))
    async with opened(one, folder) as broker, opened(other, folder) as rival:
        await broker.publish(TOPIC, [Message(LARGE), Message(LARGE + b"2")])
        async with (
            broker.subscribe(TOPIC, group=GROUP, max_bytes=600) as subscription,
            rival.subscribe(TOPIC, group=GROUP) as taking,
        ):
            assert await subscription.receive(timeout=0.1) == []
            one.faults.errors["extend"] = [Unavailable("away")] * 3
            await clock.advance(35.0)
            gate.opened.set()
            got = await take(taking, 2)
            await clock.advance(10.0)
            assert await subscription.receive(timeout=0.2) == []
            await taking.ack(got)
        assert (await broker.stats(TOPIC, GROUP)).settled == 2


async def test_a_lease_that_is_lost_after_delivery_is_told(folder: Path) -> None:
    """``LeaseLost`` names the message, as for a small one."""
    clock, store = ManualClock(), MemoryStore()
    one, other = (small(FaultyDriver(store, clock)) for _ in range(2))
    async with opened(one, folder) as broker, opened(other, folder) as rival:
        await broker.publish(TOPIC, [Message(LARGE, id="large"), Message(b"x", id="small")])
        async with (
            broker.subscribe(TOPIC, group=GROUP) as subscription,
            rival.subscribe(TOPIC, group=GROUP) as taking,
        ):
            held = await take(subscription, 2)
            one.faults.errors["extend"] = [Unavailable("away")] * 4
            await clock.advance(31.0)
            (await take(taking, 2))
            for verdict in (subscription.ack, subscription.nack):
                with pytest.raises(LeaseLost) as error:
                    await verdict(held)
                assert set(error.value.ids) == {"large", "small"}
            large = next(each for each in held if each.message.id == "large")
            with pytest.raises(LeaseLost):
                await subscription.forward(large, LETTERS, {})


async def test_a_failed_hand_back_is_tried_again(folder: Path) -> None:
    """Store and broker down together: nothing is lost, and both errors are told."""
    driver = small(FaultyDriver())
    async with opened(driver, folder) as broker:
        await broker.publish(TOPIC, [Message(LARGE)])
        away = folder.rename(folder.with_name("away"))
        driver.faults.errors["settle"] = [Unavailable("the broker is away")]
        async with broker.subscribe(TOPIC, group=GROUP) as subscription:
            seen = set()
            for _ in range(3):
                with pytest.raises(Unavailable) as error:
                    await take(subscription, 1)
                seen.add(str(error.value).split(" ")[1])
            assert seen == {"broker", "claim"} or len(seen) == 2
            away.rename(folder)
            assert (await take(subscription, 1))[0].message.data == LARGE
