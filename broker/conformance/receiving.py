"""Checks of ``receive`` and of iteration: waiting, cancelling, ending."""

from __future__ import annotations

import asyncio
import itertools

import pytest

from ..errors import Closed, NotFound
from ..message import Delivery
from ..subscription import Subscription
from .bench import GROUP, Bench, bodies, numbered, unique_name, within
from .checks import Checks


class Receiving(Checks):
    """How messages are handed to the application."""

    async def test_receive_returns_nothing_after_its_timeout(self, bench: Bench) -> None:
        """With nothing there, ``receive`` returns ``[]`` when its timeout has passed, not much later."""
        loop = asyncio.get_running_loop()
        async with bench.subscribe() as subscription:
            for timeout in (0.0, 0.3):
                started = loop.time()
                assert await subscription.receive(timeout=timeout) == []
                assert timeout - 0.01 <= loop.time() - started < timeout + 5.0

    async def test_receive_returns_as_soon_as_something_comes(self, bench: Bench) -> None:
        """A waiting ``receive`` returns the first message without waiting for more or for its timeout."""
        async with bench.subscribe() as subscription, bench.harness.connect() as publisher:
            waiting = asyncio.create_task(subscription.receive(max_messages=100, timeout=60.0))
            await asyncio.sleep(0)
            await publisher.publish(bench.topic, numbered(1))
            async with within(bench.harness.patience, "receive of a message that is there"):
                assert bodies(await waiting) == [b"0"]

    async def test_receive_never_exceeds_max_messages(self, bench: Bench) -> None:
        """``max_messages`` bounds each call, and below 1 is a ``ValueError``."""
        await bench.publish(10)
        async with bench.subscribe() as subscription:
            sizes: list[int] = []
            while sum(sizes) < 10:
                came = await subscription.receive(max_messages=3, timeout=bench.harness.patience)
                assert came
                sizes.append(len(came))
            assert max(sizes) <= 3
            with pytest.raises(ValueError, match="max_messages"):
                await subscription.receive(max_messages=0)

    async def test_cancelling_receive_loses_nothing(self, bench: Bench) -> None:
        """Wherever a ``receive`` is cancelled, what was on its way comes with a later call, once."""
        count = 60
        await bench.publish(count)
        async with bench.subscribe() as subscription:
            came = await bench.take(subscription, 1)
            for turns in itertools.chain(range(25), [0.001, 0.003, 0.01, 0.05]):
                came += await _receive_cancelled(subscription, turns)
            came += await bench.take(subscription, count - len(came))
            await bench.nothing_comes(subscription)
            await subscription.ack(came)
        assert sorted(bodies(came)) == sorted(b"%d" % n for n in range(count))
        assert {each.attempt for each in came} == {1}
        assert (await bench.stats()).settled == count

    async def test_a_message_taken_by_a_cancelled_receive_stays_leased(self, bench: Bench) -> None:
        """What a cancelled ``receive`` had on its way is kept leased and can be settled much later."""
        async with bench.pair() as (subscription, other):
            await bench.publish(1)
            waiting = asyncio.create_task(subscription.receive(timeout=60.0))
            await bench.eventually(lambda: _holds_or_took(subscription, waiting), "the message is fetched")
            waiting.cancel()
            await asyncio.wait({waiting})
            await bench.advance_leases(2.5)
            await bench.nothing_comes(other)
            came = await bench.take(subscription, 1) if waiting.cancelled() else waiting.result()
            await subscription.ack(came)
        assert (await bench.stats()).settled == 1

    async def test_two_receives_at_once_share_what_comes(self, bench: Bench) -> None:
        """Concurrent calls on one subscription hand over every message exactly once."""
        await bench.publish(100)
        async with bench.subscribe() as subscription:
            came: list[Delivery] = []

            async def pull() -> None:
                while len(came) < 100:
                    came.extend(await subscription.receive(max_messages=7, timeout=0.2))

            async with within(bench.harness.patience, "concurrent receives"):
                await asyncio.gather(*(pull() for _ in range(4)))
        assert sorted(bodies(came)) == sorted(b"%d" % n for n in range(100))

    async def test_iteration_yields_everything(self, bench: Bench) -> None:
        """``async for`` yields every message; leaving the loop loses nothing."""
        await bench.publish(20)
        seen: list[bytes] = []
        async with bench.subscribe() as subscription:
            for wanted in (5, 20):
                async with within(bench.harness.patience, "iteration"):
                    async for delivery in subscription:
                        seen.append(delivery.message.data)
                        await subscription.ack(delivery)
                        if len(seen) == wanted:
                            break
        assert sorted(seen) == sorted(b"%d" % n for n in range(20))
        assert (await bench.stats()).settled == 20

    async def test_iteration_ends_when_the_subscription_ends(self, bench: Bench) -> None:
        """Draining and closing end a waiting ``async for`` promptly and without an error."""

        async def iterate(subscription: Subscription) -> int:
            count = 0
            async for delivery in subscription:
                await subscription.ack(delivery)
                count += 1
            return count

        for end in ("drain", "close"):
            async with bench.subscribe() as subscription:
                task = asyncio.create_task(iterate(subscription))
                await bench.publish(3)
                await bench.eventually(lambda: self._all_settled(bench), "all acked")
                async with within(bench.harness.patience, f"the end of an iteration by {end}"):
                    await (subscription.drain(5.0) if end == "drain" else subscription.aclose())
                    assert await task == 3

    async def test_closing_leaves_no_task_behind(self, bench: Bench) -> None:
        """After a subscription is closed, also in the middle of its work, no task of it runs on."""
        await bench.publish(20)
        before = asyncio.all_tasks()
        async with bench.subscribe() as subscription:
            await bench.take(subscription, 3)
            await _receive_cancelled(subscription, 1)
        async with bench.subscribe():
            pass
        await bench.eventually(lambda: asyncio.all_tasks() <= before, "no task is left")

    async def test_receive_on_what_was_never_ensured_is_refused(self, bench: Bench) -> None:
        """Subscribing to an unknown topic or group is ``NotFound`` within seconds and creates neither."""
        unknown = unique_name("unknown")
        async with within(20, "subscribing to what does not exist"):
            for topic, group in ((unknown, GROUP), (bench.topic, unknown), (unknown, GROUP)):
                with pytest.raises(NotFound, match=unknown):
                    async with bench.broker.subscribe(topic, group=group) as subscription:
                        await subscription.receive(timeout=2.0)
                with pytest.raises(NotFound, match=unknown):
                    await bench.broker.stats(topic, group)

    async def test_receive_after_close_or_drain_is_refused(self, bench: Bench) -> None:
        """A subscription that was not opened, was drained or was closed raises ``Closed``."""
        await bench.publish(1)
        never = bench.subscribe()
        with pytest.raises(Closed):
            await never.receive(timeout=0.1)
        async with bench.subscribe() as subscription:
            assert await subscription.drain(1.0)
            with pytest.raises(Closed):
                await subscription.receive(timeout=0.1)
        with pytest.raises(Closed):
            await subscription.receive(timeout=0.1)

    async def test_a_waiting_receive_ends_when_the_subscription_closes(self, bench: Bench) -> None:
        """Closing wakes a ``receive`` in another task, which raises ``Closed`` or returns nothing."""
        async with bench.subscribe() as subscription:
            waiting = asyncio.create_task(subscription.receive(timeout=60.0))
            await asyncio.sleep(0.05)
        async with within(bench.harness.patience, "a receive whose subscription is closed"):
            await asyncio.wait({waiting})
        if waiting.exception() is None:
            assert waiting.result() == []
        else:
            assert isinstance(waiting.exception(), Closed)

    @staticmethod
    async def _all_settled(bench: Bench) -> bool:
        stats = await bench.stats()
        return stats.published == stats.settled


async def _receive_cancelled(subscription: Subscription, turns: float) -> list[Delivery]:
    """Cancel a ``receive`` after some turns of the event loop, or some seconds; return what it still gave."""
    task = asyncio.create_task(subscription.receive(max_messages=2, timeout=0.5))
    if isinstance(turns, int):
        for _ in range(turns):
            await asyncio.sleep(0)
    else:
        await asyncio.sleep(turns)
    task.cancel()
    await asyncio.wait({task})
    return [] if task.cancelled() else task.result()


def _holds_or_took(subscription: Subscription, waiting: asyncio.Task[list[Delivery]]) -> bool:
    return subscription.in_flight == 1 or waiting.done()
