"""Checks of the three verbs: same verb, same effect, on every backend."""

from __future__ import annotations

import asyncio
from random import Random

import pytest

from ..errors import Closed
from ..message import Message, Redelivery
from .bench import MANY, Bench, attempts, bodies, numbered, spread
from .checks import Checks


class Settling(Checks):
    """``ack``, ``nack`` and ``release``."""

    async def test_an_acked_message_never_comes_again(self, bench: Bench) -> None:
        """What is acked stays away: at once, after the lease, and for later members."""
        await bench.publish(5)
        async with bench.subscribe() as subscription:
            await bench.take_and_ack(subscription, 5)
            await bench.advance_leases(2.5)
            await bench.nothing_comes(subscription)
        async with bench.subscribe() as later:
            await bench.harness.rebalanced()
            await bench.nothing_comes(later)

    async def test_the_first_verdict_is_final(self, bench: Bench) -> None:
        """Any second verdict on a delivery is silent and changes nothing, whichever it is."""
        await bench.publish(9)
        async with bench.subscribe() as subscription:
            held = await bench.take(subscription, 9)
            verbs = (subscription.ack, subscription.nack, subscription.release)
            for number, delivery in enumerate(held):
                await verbs[number // 3](delivery)
                await verbs[number % 3](delivery)
            again = await bench.take(subscription, 6)
            await bench.nothing_comes(subscription)
            for delivery in held:
                for verb in verbs:
                    await verb(delivery)
            await bench.nothing_comes(subscription)
        expected = {held[n].message.data: 2 if n < 6 else 1 for n in range(3, 9)}
        assert {each.message.data: each.attempt for each in again} == expected

    async def test_a_repeated_ack_does_not_shield_the_others(self, bench: Bench) -> None:
        """After double acks and ack-then-nack the one message that is open can still be nacked."""
        await bench.publish(3)
        async with bench.subscribe() as subscription:
            one, two, three = await bench.take(subscription, 3)
            await subscription.ack([one, two])
            await subscription.ack([one, two])
            await subscription.nack([one, two])
            await subscription.nack(three)
            again = await bench.take(subscription, 1)
            assert (again[0].message, again[0].attempt) == (three.message, 2)

    async def test_verdicts_come_in_batches_of_any_size(self, bench: Bench) -> None:
        """One delivery, a list, a generator, everything at once or nothing: each is taken as it comes."""
        await bench.publish(1010)
        async with bench.subscribe(max_in_flight=2000) as subscription:
            held = await bench.take(subscription, 1010)
            await subscription.ack(held[0])
            await subscription.ack([])
            await subscription.ack(each for each in held[1:3])
            await subscription.ack(tuple(held[3:10]))
            await subscription.ack(held[10:])
            await subscription.flush()
        stats = await bench.stats()
        assert (stats.settled, stats.unsettled) == (1010, 0)

    async def test_nack_of_everything_brings_everything_again(self, bench: Bench) -> None:
        """All messages in flight, nacked together, all come again with ``attempt`` 2."""
        sent = await bench.publish(30)
        async with bench.subscribe() as subscription:
            held = await bench.take(subscription, 30)
            await bench.nothing_comes(subscription)
            await subscription.nack(held)
            again = await bench.take_and_ack(subscription, 30)
        assert sorted(bodies(again)) == sorted(each.data for each in sent)
        assert (attempts(held), attempts(again)) == ({1}, {2})

    async def test_failing_now_and_then_loses_nothing(self, bench: Bench) -> None:
        """A consumer that nacks every third delivery finishes everything in the end."""
        await bench.publish(40)
        finished: list[bytes] = []
        async with bench.subscribe() as subscription:
            count = 0
            while len(finished) < 40:
                came = await subscription.receive(timeout=bench.harness.patience)
                assert came, f"stuck after {len(finished)}"
                for delivery in came:
                    count += 1
                    if count % 3 == 0:
                        await subscription.nack(delivery)
                    else:
                        await subscription.ack(delivery)
                        finished.append(delivery.message.data)
            await bench.nothing_comes(subscription)
        assert sorted(finished) == sorted(b"%d" % n for n in range(40))

    async def test_many_failing_members_in_turn_lose_nothing(self, bench: Bench) -> None:
        """Short-lived members that nack everything leave everything, counted, to a good one."""
        await bench.publish(10)
        for turn in range(1, 5):
            async with bench.subscribe() as subscription:
                held = await bench.take(subscription, 10)
                assert attempts(held) == {turn}
                await subscription.nack(held)
        async with bench.subscribe() as subscription:
            came = await bench.take_and_ack(subscription, 10)
        assert sorted(bodies(came)) == sorted(b"%d" % n for n in range(10))
        assert attempts(came) == {5}

    async def test_release_brings_a_message_again_untried(self, bench: Bench) -> None:
        """A released message comes again at once, for any member, with ``attempt`` unchanged."""
        await bench.publish(4)
        async with bench.subscribe() as subscription:
            for _ in range(3):
                held = await bench.take(subscription, 4)
                assert attempts(held) == {1}
                await subscription.release(held)
            await subscription.nack(await bench.take(subscription, 4))
            held = await bench.take(subscription, 4)
            await subscription.release(held)
            again = await bench.take_and_ack(subscription, 4)
        assert (attempts(held), attempts(again)) == ({2}, {2})

    async def test_verdicts_on_one_batch_may_be_mixed(self, bench: Bench) -> None:
        """In one batch acked ones stay away, nacked ones come counted, released ones uncounted."""
        await bench.publish(12)
        async with bench.subscribe() as subscription:
            held = await bench.take(subscription, 12)
            await subscription.release(held[2::4])
            await subscription.ack(held[0::4])
            await subscription.nack(held[1::4])
            await subscription.settle(
                acks=held[3:4], releases=held[7:8], retries=[Redelivery(held[11], 0.0, held[11].attempt + 1)]
            )
            again = await bench.take(subscription, 8)
            await bench.nothing_comes(subscription)
        expected = {bodies([held[n]])[0]: 1 for n in (2, 6, 10, 7)} | {
            bodies([held[n]])[0]: 2 for n in (1, 5, 9, 11)
        }
        assert {each.message.data: each.attempt for each in again} == expected

    async def test_acks_may_come_in_any_order(self, bench: Bench) -> None:
        """With everything but one acked, in any order, only that one comes again after close or crash."""
        for end, partitions in (("close", None), ("crash", None), ("crash", MANY)):
            topic = await bench.another(partitions=partitions)
            await topic.broker.publish(topic.topic, spread(numbered(20)))
            async with topic.apart() as subscription:
                held = {each.message.data: each for each in await topic.take(subscription, 20)}
                missing = held.pop(b"4")
                for body in Random(end).sample(sorted(held), len(held)):
                    await subscription.ack(held[body])
                await subscription.flush()
                if end == "crash":
                    await topic.harness.crash(subscription)
                    await topic.advance_leases()
            async with topic.subscribe() as later:
                came = await topic.take(later, 1)
                await topic.nothing_comes(later)
                assert (came[0].message, came[0].attempt) == (missing.message, 1)
                await later.ack(came)
            assert (await topic.stats()).unsettled == 0

    async def test_a_redelivery_is_the_same_message(self, bench: Bench) -> None:
        """However often it comes, a message keeps all its fields; each hand-over is a delivery of its own."""
        sent = Message(data=b"same", key="k", attributes={"traceparent": "00-ab-cd-01"}, subject="s")
        await bench.broker.publish(bench.topic, [sent])
        seen = []
        async with bench.subscribe() as subscription:
            for verb in (subscription.nack, subscription.release, subscription.nack, subscription.ack):
                seen += await bench.take(subscription, 1)
                await verb(seen[-1])
        assert [each.message for each in seen] == [sent] * 4
        assert [each.attempt for each in seen] == [1, 2, 2, 3]
        assert len(set(seen)) == 4

    async def test_a_cancelled_verdict_can_be_given_again(self, bench: Bench) -> None:
        """A settling call cancelled at any point can be repeated: no error, and the message is done."""
        await bench.publish(24)
        async with bench.subscribe() as subscription:
            for turns, delivery in enumerate(await bench.take(subscription, 24)):
                task = asyncio.create_task(subscription.ack(delivery))
                for _ in range(turns // 2):
                    await asyncio.sleep(0)
                task.cancel()
                await asyncio.wait({task})
                await subscription.ack(delivery)
            await subscription.flush()
            assert subscription.in_flight == 0
        stats = await bench.stats()
        assert (stats.settled, stats.unsettled) == (24, 0)

    async def test_a_delay_outside_its_range_is_refused(self, bench: Bench) -> None:
        """A negative, too long or non-numeric delay is a ``ValueError``, and the delivery stays open."""
        await bench.publish(2)
        longest = bench.broker.capabilities.max_delay
        async with bench.subscribe() as subscription:
            first, second = await bench.take(subscription, 2)
            for delay in (-0.001, longest + 1, float("inf"), float("nan")):
                with pytest.raises(ValueError, match="delay"):
                    await subscription.nack([first, second], delay=delay)
            assert subscription.in_flight == 2
            await subscription.ack(first)
            await subscription.nack(second, delay=longest)
            await subscription.flush()
        stats = await bench.stats()
        assert (stats.settled, stats.delayed) == (1, 1)

    async def test_settling_after_close_is_refused(self, bench: Bench) -> None:
        """After close every settling call is ``Closed``, and what was open comes again unchanged."""
        await bench.publish(3)
        async with bench.subscribe() as subscription:
            held = await bench.take(subscription, 3)
        for verb in (subscription.ack, subscription.nack, subscription.release):
            with pytest.raises(Closed):
                await verb(held)
        with pytest.raises(Closed):
            await subscription.flush()
        with pytest.raises(Closed):
            await subscription.forward(held[0], bench.topic, {})
        async with bench.subscribe() as later:
            assert attempts(await bench.take(later, 3)) == {1}

    async def test_a_delivery_is_held_until_its_verdict(self, bench: Bench) -> None:
        """``holds`` is True from ``receive`` to the first verdict, or to the end of the subscription."""
        await bench.publish(6)
        async with bench.subscribe() as subscription, bench.harness.connect() as other:
            held = await bench.take(subscription, 5)
            stranger = bench.subscribe(broker=other)
            for verb, delivery in zip(
                (subscription.ack, subscription.nack, subscription.release), held, strict=False
            ):
                assert subscription.holds(delivery)
                assert not stranger.holds(delivery)
                await verb(delivery)
                assert not subscription.holds(delivery)
            assert [subscription.holds(each) for each in held] == [False, False, False, True, True]
        assert not any(subscription.holds(each) for each in held)

    async def test_the_native_record_is_there_where_one_is_declared(self, bench: Bench) -> None:
        """``Delivery.native`` yields the declared type, again after a failure, and refuses any other."""
        native = bench.harness.native
        await bench.publish(1)
        async with bench.subscribe() as subscription:
            for _ in range(2):
                (delivery,) = await bench.take(subscription, 1)
                if native is None:
                    with pytest.raises(TypeError, match="no native record"):
                        delivery.native(object)
                else:
                    assert type(delivery.native(native)) is native
                    with pytest.raises(TypeError, match=native.__qualname__):
                        delivery.native(Bench)
                await subscription.nack(delivery)
