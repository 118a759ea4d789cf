"""Checks of limits and of the end: what is in flight is bounded, and closing or draining loses nothing."""

from __future__ import annotations

import asyncio

import pytest

from ..message import Message
from .bench import Bench, attempts, bodies, within
from .checks import Checks


class Flow(Checks):
    """Back-pressure, drain and close."""

    async def test_max_in_flight_is_never_exceeded(self, bench: Bench) -> None:
        """Intake pauses at ``max_in_flight`` unsettled deliveries and goes on as they are settled."""
        await bench.publish(20)
        async with bench.subscribe(max_in_flight=5) as subscription:
            held = await bench.take(subscription, 5)
            await bench.nothing_comes(subscription)
            assert subscription.in_flight == 5
            assert (await bench.stats()).in_flight <= 5
            settled = 0
            for verb, count in ((subscription.ack, 1), (subscription.nack, 2), (subscription.release, 2)):
                await verb(held[settled : settled + count])
                settled += count
                held += await bench.take(subscription, count)
                await bench.nothing_comes(subscription)
                assert subscription.in_flight == 5
        assert (await bench.stats()).unsettled == 19

    async def test_max_in_flight_holds_for_concurrent_receives(self, bench: Bench) -> None:
        """Several calls at once, some of them cancelled, never hold more than ``max_in_flight`` together."""
        await bench.publish(50)
        async with bench.subscribe(max_in_flight=7) as subscription:
            await bench.take(subscription, 1)
            timeout = max(0.3, bench.harness.quiet)
            calls = [
                asyncio.create_task(subscription.receive(max_messages=5, timeout=timeout)) for _ in range(6)
            ]
            calls[0].cancel()
            most = 0
            while not all(each.done() for each in calls):
                most = max(most, subscription.in_flight, (await bench.stats()).in_flight)
                await asyncio.sleep(0.01)
            assert 1 < most <= 7

    async def test_max_bytes_is_never_exceeded(self, bench: Bench) -> None:
        """Intake pauses where the next body would exceed ``max_bytes``, and goes on as bytes are freed."""
        await bench.broker.publish(bench.topic, [Message(data=b"x" * 1000) for _ in range(12)])
        finished = 0
        async with bench.subscribe(max_bytes=3500) as subscription:
            while finished < 12:
                held = await bench.take(subscription, 3)
                await bench.nothing_comes(subscription)
                await subscription.ack(held)
                finished += 3
        assert (await bench.stats()).settled == 12

    async def test_a_body_over_max_bytes_comes_alone(self, bench: Bench) -> None:
        """One body larger than ``max_bytes`` still comes, with nothing else held beside it."""
        sizes = (10, 5000, 10, 5000, 10)
        await bench.broker.publish(bench.topic, [Message(data=b"x" * size) for size in sizes])
        came: list[int] = []
        async with bench.subscribe(max_bytes=1000) as subscription:
            while len(came) < len(sizes):
                held = await subscription.receive(timeout=bench.harness.patience)
                assert held, f"stuck after {came}"
                held += await subscription.receive(timeout=bench.harness.quiet)
                assert len(held) == 1 or sum(len(each.message.data) for each in held) <= 1000
                came += [len(each.message.data) for each in held]
                await subscription.ack(held)
        assert sorted(came) == sorted(sizes)

    async def test_limits_below_one_are_refused(self, bench: Bench) -> None:
        """``max_in_flight`` and ``max_bytes`` below 1 are a ``ValueError`` before anything is received."""
        with pytest.raises(ValueError, match="max_in_flight"):
            bench.subscribe(max_in_flight=0)
        with pytest.raises(ValueError, match="max_bytes"):
            bench.subscribe(max_bytes=0)

    async def test_closing_hands_open_deliveries_back_at_once(self, bench: Bench) -> None:
        """Without waiting for a lease, what a closed member held comes to the next one, uncounted."""
        await bench.publish(10)
        async with bench.subscribe() as subscription:
            held = await bench.take(subscription, 8)
            await subscription.ack(held[:2])
        async with bench.subscribe() as later:
            came = await bench.take(later, 8)
        assert {each.message.data for each in came}.isdisjoint(bodies(held[:2]))
        assert attempts(came) == {1}

    async def test_closing_twice_does_nothing(self, bench: Bench) -> None:
        """A second close is silent, also while another member holds what was handed back."""
        await bench.publish(2)
        subscription = bench.subscribe()
        async with subscription:
            await bench.take(subscription, 2)
            await subscription.aclose()
            async with bench.subscribe() as other:
                held = await bench.take(other, 2)
                await subscription.aclose()
                await other.ack(held)
        assert (await bench.stats()).settled == 2

    async def test_a_failing_body_of_the_block_hands_back(self, bench: Bench) -> None:
        """Leaving ``async with`` by an error, or by cancellation, hands back what was open, at once."""
        await bench.publish(4)

        async def fail() -> None:
            async with bench.subscribe() as subscription:
                await bench.take(subscription, 4)
                raise LookupError("of the application")

        async def wait_for_ever(holding: asyncio.Event) -> None:
            async with bench.subscribe() as subscription:
                await bench.take(subscription, 4)
                holding.set()
                await asyncio.Event().wait()

        with pytest.raises(LookupError):
            await fail()
        holding = asyncio.Event()
        task = asyncio.create_task(wait_for_ever(holding))
        async with within(bench.harness.patience, "a member that takes over"):
            await holding.wait()
        task.cancel()
        await asyncio.wait({task})
        async with bench.subscribe() as later:
            assert attempts(await bench.take(later, 4)) == {1}

    async def test_drain_waits_for_open_deliveries(self, bench: Bench) -> None:
        """``drain`` returns True as soon as everything that was held is settled; nothing new is taken."""
        await bench.publish(6)
        async with bench.subscribe() as subscription:
            held = await bench.take(subscription, 4)
            draining = asyncio.create_task(subscription.drain(bench.harness.patience))
            await asyncio.sleep(0.05)
            assert not draining.done()
            await subscription.ack(held[:2])
            await subscription.nack(held[2])
            assert not draining.done()
            await subscription.release(held[3])
            assert await draining is True
            assert subscription.in_flight == 0
        stats = await bench.stats()
        assert (stats.settled, stats.ready) == (2, 4)

    async def test_drain_gives_up_after_its_timeout(self, bench: Bench) -> None:
        """With something open ``drain`` returns False after its timeout; closing then hands it back."""
        await bench.publish(3)
        async with bench.subscribe() as subscription:
            held = await bench.take(subscription, 3)
            await subscription.ack(held[0])
            assert await subscription.drain(0.1) is False
            await subscription.ack(held[1])
        assert await bench.left() == [held[2].message.data]

    async def test_drain_hands_back_what_nobody_took(self, bench: Bench) -> None:
        """What was fetched and not yet handed to the application goes back, so that drain need not wait."""
        await bench.publish(40)
        async with bench.subscribe() as subscription:
            async for delivery in subscription:
                await subscription.ack(delivery)
                break
            async with within(bench.harness.patience, "drain with nothing open"):
                assert await subscription.drain(bench.harness.patience * 2) is True
            stats = await bench.stats()
            assert (stats.in_flight, stats.ready) == (0, 39)
        async with bench.subscribe() as other:
            assert attempts(await bench.take_and_ack(other, 39)) == {1}
