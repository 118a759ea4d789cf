"""The clock that moves only when told."""

from __future__ import annotations

import asyncio

import pytest

from broker import ManualClock, SystemClock

pytestmark = pytest.mark.anyio


async def test_sleepers_wake_in_order_at_their_own_time() -> None:
    """Each sleeper sees the time it asked for, also one that starts while time moves."""
    clock = ManualClock(start=0.0)
    woken: list[tuple[str, float]] = []

    async def sleeper(name: str, *naps: float) -> None:
        for nap in naps:
            await clock.sleep(nap)
            woken.append((name, clock.now()))

    tasks = [asyncio.create_task(sleeper(*each)) for each in (("a", 3.0), ("b", 1.0, 1.0), ("c", 2.5, 10.0))]
    await asyncio.sleep(0)
    await clock.advance(5.0)
    assert woken == [("b", 1.0), ("b", 2.0), ("c", 2.5), ("a", 3.0)]
    assert clock.now() == 5.0
    await clock.advance(7.5)
    assert woken[-1] == ("c", 12.5)
    await asyncio.gather(*tasks)


async def test_a_sleeper_that_gave_up_disturbs_nobody() -> None:
    """Cancelled sleepers are passed over."""
    clock = ManualClock()
    gone, waiting = (asyncio.create_task(clock.sleep(1.0)) for _ in range(2))
    await asyncio.sleep(0)
    gone.cancel()
    await clock.advance(1.0)
    assert waiting.done()
    assert gone.cancelled()


async def test_no_time_is_no_wait() -> None:
    """Sleeping for nothing, or for less, returns without an advance."""
    clock = ManualClock()
    async with asyncio.timeout(5):
        await clock.sleep(0.0)
        await clock.sleep(-1.0)


async def test_the_system_clock_is_real() -> None:
    """It follows its source and really sleeps."""
    times = iter([1.0, 2.5])
    clock = SystemClock(lambda: next(times))
    assert (clock.now(), clock.now()) == (1.0, 2.5)
    real = SystemClock()
    before = real.now()
    await real.sleep(0.02)
    assert real.now() - before >= 0.015
