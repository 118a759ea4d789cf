"""Checks of what verdicts outlive, of the attempt counter and of delays."""

from __future__ import annotations

from ..message import Delivery
from .bench import GROUP, Bench, attempts, bodies, numbered
from .checks import Checks
from .harness import DURABLE, needs


class Verdicts(Checks):
    """Durability, attempts, delayed redelivery."""

    async def test_a_crash_before_ack_brings_the_message_again(self, bench: Bench) -> None:
        """What a dead member held comes again, all of it, with ``attempt`` unchanged."""
        await bench.publish(10)
        async with bench.apart() as subscription:
            await bench.take(subscription, 10)
            await bench.harness.crash(subscription)
        await bench.advance_leases()
        async with bench.subscribe() as later:
            came = await bench.take(later, 10)
        assert sorted(bodies(came)) == sorted(b"%d" % n for n in range(10))
        assert attempts(came) == {1}

    async def test_a_crash_after_flush_undoes_no_verdict(self, bench: Bench) -> None:
        """After ``flush`` a crash brings no acked message again and forgets no counted failure."""
        await bench.publish(9)
        async with bench.apart() as subscription:
            held = await bench.take(subscription, 9)
            await subscription.ack(held[:3])
            await subscription.nack(held[3:6])
            await subscription.flush()
            await bench.harness.crash(subscription)
        await bench.advance_leases()
        async with bench.subscribe() as later:
            came = await bench.take(later, 6)
            await bench.nothing_comes(later)
        expected = {each.message.data: 2 if number < 3 else 1 for number, each in enumerate(held[3:])}
        assert {each.message.data: each.attempt for each in came} == expected

    async def test_verdicts_are_visible_to_others_without_flush(self, bench: Bench) -> None:
        """Another client sees a verdict soon after it was given, also when nobody flushes."""
        await bench.publish(3)
        async with bench.harness.connect() as other, bench.subscribe() as subscription:
            await subscription.ack((await bench.take(subscription, 3))[:2])

            async def seen() -> bool:
                return await bench.on(other).settled() == 2

            await bench.eventually(seen, "two acks are stored")

    async def test_only_recorded_failures_count_as_attempts(self, bench: Bench) -> None:
        """``attempt`` is 1 first and grows by 1 per nack, not by crash, lost lease, release or close."""
        await bench.publish(1)
        expected = 1
        events = ("release", "nack", "crash", "close", "nack", "freeze", "nack", "crash", "release", "ack")
        for event in events:
            async with bench.apart() as subscription:
                (delivery,) = await bench.take(subscription, 1)
                assert delivery.attempt == expected, f"before {event}"
                if event in ("crash", "freeze"):
                    await getattr(bench.harness, event)(subscription)
                    await bench.advance_leases()
                elif event != "close":
                    await getattr(subscription, event)(delivery)
            expected += event == "nack"
        assert await bench.settled() == 1

    async def test_attempts_outlive_every_client(self, bench: Bench) -> None:
        """Counted failures are still counted when the next member is on another client."""
        await bench.publish(2)
        for expected in (1, 2, 3):
            async with bench.harness.connect() as client, bench.subscribe(broker=client) as subscription:
                held = await bench.take(subscription, 2)
                assert attempts(held) == {expected}
                await subscription.nack(held)
        assert [each.attempt async for each in bench.broker.browse(bench.topic, GROUP)] == [4, 4]

    async def test_a_delayed_message_does_not_come_early(self, bench: Bench) -> None:
        """``nack(delay=d)`` brings a message again after ``d``, and for no member before it."""
        delay = bench.harness.delay
        await bench.publish(1)
        async with bench.subscribe() as subscription:
            (delivery,) = await bench.take(subscription, 1)
            async with bench.subscribe() as other:
                await bench.harness.rebalanced()
                await subscription.nack(delivery, delay=delay)
                for part in (0.0, 0.8):
                    await bench.harness.advance(delay * part)
                    await bench.nothing_comes(subscription, other)
                await bench.harness.advance(delay * 0.3)
                (again,) = await bench.take_any([subscription, other], 1)
        assert (again.message, again.attempt) == (delivery.message, 2)

    async def test_others_flow_while_a_message_is_delayed(self, bench: Bench) -> None:
        """A delayed message frees its place in flight: the others pass, then it comes."""
        await bench.publish(1)
        async with bench.subscribe(max_in_flight=2) as subscription:
            (failed,) = await bench.take(subscription, 1)
            await subscription.nack(failed, delay=bench.harness.delay)
            assert subscription.in_flight == 0
            await bench.publish(10, first=1)
            for _ in range(5):
                passed = await bench.take(subscription, 2)
                assert failed.message.data not in bodies(passed)
                await subscription.ack(passed)
            await bench.nothing_comes(subscription)
            await bench.harness.advance(bench.harness.delay * 1.1)
            assert bodies(await bench.take_and_ack(subscription, 1)) == [failed.message.data]
        assert (await bench.stats()).settled == 11

    async def test_too_many_delayed_messages_pause_the_intake(self, bench: Bench) -> None:
        """With ``max_in_flight`` messages delayed, nothing more is taken until a delay ends."""
        await bench.publish(6)
        async with bench.subscribe(max_in_flight=3) as subscription:
            await subscription.nack(await bench.take(subscription, 3), delay=bench.harness.delay)
            await bench.nothing_comes(subscription)
            await bench.harness.advance(bench.harness.delay * 1.1)
            came: list[Delivery] = []
            while len(came) < 6:
                came += await bench.take_and_ack(subscription, 1)
        assert sorted(each.attempt for each in came) == [1, 1, 1, 2, 2, 2]

    async def test_delays_end_one_by_one(self, bench: Bench) -> None:
        """Messages with different delays come when theirs ends, whatever the order of the nacks."""
        step = bench.harness.delay
        await bench.publish(3)
        async with bench.subscribe() as subscription:
            held = await bench.take(subscription, 3)
            delays = dict(zip((step * 3, step, step * 2), held, strict=True))
            for delay, delivery in delays.items():
                await subscription.nack(delivery, delay=delay)
            for delay in sorted(delays):
                await bench.nothing_comes(subscription)
                await bench.harness.advance(step * 1.05)
                assert bodies(await bench.take_and_ack(subscription, 1)) == [delays[delay].message.data]

    async def test_a_delay_outlives_the_member_that_asked_for_it(self, bench: Bench) -> None:
        """After close or crash of the member a delayed message still comes, counted, and not early."""
        # Longer than a dead member's lease, so that it is still running when the next member comes.
        delay = bench.harness.delay + bench.harness.lease * 3
        await bench.publish(2)
        for end in ("close", "crash"):
            async with bench.apart() as subscription:
                (delivery,) = await bench.take(subscription, 1)
                await subscription.nack(delivery, delay=delay)
                await subscription.flush()
                if end == "crash":
                    await bench.harness.crash(subscription)
        await bench.advance_leases()
        async with bench.subscribe() as later:
            await bench.harness.rebalanced()
            await bench.nothing_comes(later)
            await bench.harness.advance(delay)
            assert attempts(await bench.take(later, 2)) == {2}

    @needs(DURABLE)
    async def test_messages_survive_a_restart(self, bench: Bench) -> None:
        """What was published, with all clients gone and the backend restarted, is received."""
        await bench.publish(500)
        await bench.broker.aclose()
        await bench.harness.restart()
        async with bench.harness.connect() as broker:
            again = bench.on(broker)
            assert await again.left() == sorted(b"%d" % n for n in range(500))

    @needs(DURABLE)
    async def test_verdicts_survive_a_restart(self, bench: Bench) -> None:
        """Acks, counted failures, delays and groups are as they were before a restart of the backend."""
        await bench.publish(9)
        async with bench.subscribe() as subscription:
            held = await bench.take(subscription, 9)
            await subscription.ack(held[:3])
            await subscription.nack(held[3:5])
            await subscription.nack(held[5], delay=3600.0)
        before = await bench.stats()
        await bench.broker.aclose()
        await bench.harness.restart()
        async with bench.harness.connect() as broker:
            again = bench.on(broker)
            assert await again.stats() == before
            async with again.subscribe() as subscription:
                came = await again.take(subscription, 5)
                await again.nothing_comes(subscription)
        assert sorted(each.attempt for each in came) == [1, 1, 1, 2, 2]

    @needs(DURABLE)
    async def test_a_restart_in_mid_run_loses_nothing(self, bench: Bench) -> None:
        """Restarted twice while a batch is held, the backend still hands over every message."""
        total, finished = bench.harness.volume, set[bytes]()
        await bench.publish(total)
        await bench.broker.aclose()
        for share in (total // 3, total // 2, 0):
            async with bench.harness.connect() as broker:
                run = bench.on(broker)
                async with run.subscribe(max_in_flight=50) as subscription:
                    while len(finished) < (share or total):
                        came = await run.take(subscription, min(20, total - len(finished)))
                        await subscription.ack(came[:10])
                        finished.update(bodies(came[:10]))
                        await subscription.release(came[10:])
                    if share:
                        await run.take(subscription, 10)
                        await run.harness.crash(subscription)
            await bench.harness.restart()
            await bench.advance_leases()
        assert finished == {each.data for each in numbered(total)}
