"""Checks of leases: kept while a delivery is open, passed on when its holder dies, fenced when it is late."""

from __future__ import annotations

import pytest

from ..errors import LeaseLost
from ..message import Delivery
from ..subscription import Subscription
from .bench import MANY, Bench, attempts, bodies, numbered, spread
from .checks import Checks


class Leases(Checks):
    """Who holds what, and for how long."""

    async def test_a_lease_is_kept_while_a_delivery_is_open(self, bench: Bench) -> None:
        """A delivery held for many leases comes to nobody else and can then be settled."""
        await bench.publish(3)
        async with bench.pair() as (subscription, other):
            held = await bench.take(subscription, 3)
            await bench.advance_leases(3.5)
            await bench.nothing_comes(other)
            await subscription.ack(held[0])
            await subscription.nack(held[1])
            await subscription.release(held[2])
        assert (await bench.stats()).settled == 1

    async def test_what_a_dead_member_held_comes_after_its_lease(self, bench: Bench) -> None:
        """Within the lease of a dead member nobody gets what it held; after it another member does."""
        await bench.publish(5)
        async with bench.apart() as dead:
            await bench.take(dead, 5)
            await bench.harness.crash(dead)
            async with bench.subscribe() as other:
                await bench.nothing_comes(other)
                await bench.advance_leases()
                came = await bench.take_and_ack(other, 5)
        assert sorted(bodies(came)) == [b"0", b"1", b"2", b"3", b"4"]
        assert attempts(came) == {1}

    async def test_crash_after_crash_loses_nothing(self, bench: Bench) -> None:
        """A message whose holders die one after the other still comes, as attempt 1."""
        await bench.publish(2)
        for _ in range(4):
            async with bench.apart() as subscription:
                assert attempts(await bench.take(subscription, 2)) == {1}
                await bench.harness.crash(subscription)
            await bench.advance_leases()
        assert await bench.left() == [b"0", b"1"]

    async def test_a_late_verdict_is_refused_and_disturbs_nobody(self, bench: Bench) -> None:
        """After its lease went to another member every verb raises ``LeaseLost`` with the ids, every time."""
        await bench.publish(3)
        async with bench.pair() as (late, holder):
            old, new = await self._hand_over(bench, late, holder, 3)
            for verb, delivery in zip((late.ack, late.nack, late.release), old, strict=True):
                for _ in range(2):
                    with pytest.raises(LeaseLost) as lost:
                        await verb(delivery)
                    assert lost.value.ids == (delivery.message.id,)
                    assert not lost.value.retryable
                    assert not late.holds(delivery)
            assert all(holder.holds(each) for each in new)
            await bench.nothing_comes(late, holder)
            await holder.ack(new)
        stats = await bench.stats()
        assert (stats.settled, stats.unsettled) == (3, 0)

    async def test_a_late_verdict_leaves_the_attempts_alone(self, bench: Bench) -> None:
        """A nack after the lease was lost records no failure; the new holder's does."""
        await bench.publish(1)
        async with bench.pair() as (late, holder):
            old, new = await self._hand_over(bench, late, holder, 1)
            with pytest.raises(LeaseLost):
                await late.nack(old)
            assert attempts(new) == {1}
            await holder.nack(new)
            assert attempts(await bench.take(holder, 1)) == {2}

    async def test_what_is_still_held_is_settled_beside_what_is_lost(self, bench: Bench) -> None:
        """``LeaseLost`` names exactly the lost deliveries; all others of the same call are settled."""
        await bench.publish(3)
        async with bench.pair() as (late, holder):
            old, new = await self._hand_over(bench, late, holder, 3)
            await holder.ack(new[:2])
            await holder.aclose()
            await bench.publish(4, first=10)
            # One of them is a message that was lost before: it is another delivery by now.
            held = await bench.take(late, 5)
            with pytest.raises(LeaseLost) as lost:
                await late.ack([held[0], old[0], held[1], old[1], held[2], old[2], *held[3:]])
            assert sorted(lost.value.ids) == sorted(each.message.id for each in old)
            assert late.in_flight == 0
        stats = await bench.stats()
        assert (stats.settled, stats.unsettled) == (7, 0)

    async def test_closing_late_disturbs_nobody(self, bench: Bench) -> None:
        """A member that closes after its leases were lost takes nothing from the new holder."""
        await bench.publish(2)
        async with bench.pair() as (late, holder):
            _, new = await self._hand_over(bench, late, holder, 2)
            await late.aclose()
            async with bench.subscribe() as third:
                await bench.harness.rebalanced()
                await bench.nothing_comes(third)
            await holder.ack(new)
        assert (await bench.stats()).settled == 2

    async def test_a_lost_delivery_cannot_be_forwarded(self, bench: Bench) -> None:
        """``forward`` of what another member holds by now is ``LeaseLost`` and stores no copy."""
        await bench.publish(1)
        target = await bench.another("copies")
        async with bench.pair() as (late, holder):
            old, _ = await self._hand_over(bench, late, holder, 1)
            with pytest.raises(LeaseLost) as lost:
                await late.forward(old[0], target.topic, {"why": "late"})
            assert lost.value.ids == (old[0].message.id,)
        assert (await target.stats()).published == 0

    async def test_a_member_that_gets_its_own_message_again_holds_the_new_one(self, bench: Bench) -> None:
        """After a lost lease the same member may receive the message anew; the old delivery stays void."""
        await bench.publish(1)
        async with bench.apart() as subscription:
            (old,) = await bench.take(subscription, 1)
            await bench.harness.freeze(subscription)
            await bench.advance_leases()
            (new,) = await bench.take(subscription, 1)
            assert (new.message, new.attempt) == (old.message, 1)
            with pytest.raises(LeaseLost):
                await subscription.ack(old)
            assert (await bench.stats()).settled == 0
            await subscription.ack(new)
        assert (await bench.stats()).settled == 1

    async def test_a_full_member_keeps_its_leases(self, bench: Bench) -> None:
        """At ``max_in_flight`` intake pauses but leases are kept, for as long as it lasts."""
        wide = await bench.another(partitions=MANY)
        await wide.broker.publish(wide.topic, spread(numbered(200)))
        async with wide.apart(max_in_flight=4) as full, wide.subscribe(max_in_flight=4) as other:
            await wide.harness.rebalanced()
            held = await wide.take(full, 4)
            kept = await wide.take(other, 4)
            for _ in range(3):
                await wide.advance_leases(1.1)
                await wide.nothing_comes(full, other)
            await full.ack(held)
            await other.ack(kept)
        stats = await wide.stats()
        assert (stats.settled, stats.unsettled) == (8, 192)

    @staticmethod
    async def _hand_over(
        bench: Bench, late: Subscription, holder: Subscription, count: int
    ) -> tuple[list[Delivery], list[Delivery]]:
        """Let ``late`` freeze until ``holder`` has received what it held; return both sides' deliveries."""
        old = await bench.take(late, count)
        await bench.harness.freeze(late)
        await bench.advance_leases()
        new = await bench.take(holder, count)
        assert sorted(bodies(new)) == sorted(bodies(old))
        return old, new
