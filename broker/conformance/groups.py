"""Checks of groups: who sees what, members that share, come and go, and the books (``stats``, ``browse``)."""

from __future__ import annotations

import asyncio

import pytest

from ..errors import NotFound
from ..message import Delivery, GroupStats, Message
from ..subscription import Subscription
from .bench import GROUP, MANY, Bench, attempts, bodies, numbered, spread, unique_name, within
from .checks import Checks


class Groups(Checks):
    """Topics, groups and their members."""

    async def test_every_group_gets_everything(self, bench: Bench) -> None:
        """Two groups of one topic each receive every message; settling in one leaves the other alone."""
        await bench.broker.ensure(bench.topic, group="auditors")
        await bench.publish(20)
        for group in (GROUP, "auditors"):
            async with bench.subscribe(group=group) as subscription:
                deliveries = await bench.take_and_ack(subscription, 20)
                await bench.nothing_comes(subscription)
            assert sorted(bodies(deliveries)) == sorted(b"%d" % n for n in range(20))
            assert attempts(deliveries) == {1}

    async def test_members_of_a_group_share(self, bench: Bench) -> None:
        """Members on one client and on another receive every message once between them."""
        bench = await bench.another(partitions=MANY)
        async with bench.subscribe() as one, bench.subscribe() as two, bench.apart() as three:
            await bench.harness.rebalanced()
            await bench.broker.publish(bench.topic, spread(numbered(300)))
            came: list[Delivery] = []

            async def pull(subscription: Subscription) -> None:
                while len(came) < 300:
                    deliveries = await subscription.receive(max_messages=10, timeout=0.1)
                    came.extend(deliveries)
                    await subscription.ack(deliveries)

            async with within(bench.harness.patience, "300 messages over three members"):
                await asyncio.gather(pull(one), pull(two), pull(three))
        assert sorted(bodies(came)) == sorted(b"%d" % n for n in range(300))
        stats = await bench.stats()
        assert (stats.settled, stats.unsettled) == (300, 0)

    async def test_many_members_receive_everything(self, bench: Bench) -> None:
        """A crowd of members that start while messages are published receive all of them between them."""
        wide, total = await bench.another(partitions=MANY), 100 * bench.harness.crowd
        finished: set[bytes] = set()

        async def member() -> None:
            async with wide.subscribe(max_in_flight=50) as subscription:
                while len(finished) < total:
                    deliveries = await subscription.receive(max_messages=20, timeout=0.2)
                    finished.update(bodies(await wide.ack_held(subscription, deliveries)))

        async with within(wide.harness.patience * 2, "a crowd at work"), asyncio.TaskGroup() as tasks:
            for _ in range(wide.harness.crowd):
                tasks.create_task(member())
            for first in range(0, total, 100):
                await wide.broker.publish(wide.topic, spread(numbered(100, first)))
        assert finished == {b"%d" % n for n in range(total)}
        assert (await wide.stats()).unsettled == 0

    async def test_members_that_come_and_go_lose_nothing(self, bench: Bench) -> None:
        """Ten members that open, take something and close at the same time hand everything back."""
        bench = await bench.another(partitions=MANY)
        await bench.broker.publish(bench.topic, spread(numbered(40)))

        async def visit(number: int) -> None:
            async with bench.subscribe() as subscription:
                await bench.harness.rebalanced()
                await subscription.receive(max_messages=number, timeout=bench.harness.quiet)

        await asyncio.gather(*(visit(number) for number in range(1, 11)))
        async with bench.subscribe() as subscription:
            deliveries = await bench.take_and_ack(subscription, 40)
        assert sorted(bodies(deliveries)) == sorted(b"%d" % n for n in range(40))
        assert attempts(deliveries) == {1}

    async def test_closing_in_mid_stream_again_and_again_loses_nothing(self, bench: Bench) -> None:
        """A member that reopens every few messages, settling some of them, sees everything in the end."""
        await bench.publish(60)
        finished: list[bytes] = []
        for _ in range(100):
            async with bench.subscribe() as subscription:
                deliveries = await subscription.receive(max_messages=12, timeout=bench.harness.patience)
                assert deliveries, f"stuck after {len(finished)}"
                await subscription.ack(deliveries[::2])
                finished += bodies(deliveries[::2])
            if len(finished) == 60:
                break
        assert sorted(finished) == sorted(b"%d" % n for n in range(60))

    async def test_what_is_done_stays_done_while_members_join_and_leave(self, bench: Bench) -> None:
        """Whoever joins or leaves in mid-work, what was acked never comes again, and all the rest does."""
        wide, total = await bench.another(partitions=MANY), 200
        await wide.broker.publish(wide.topic, spread(numbered(total)))
        finished: list[bytes] = []

        async def finish(member: Subscription, deliveries: list[Delivery]) -> None:
            assert attempts(deliveries) <= {1}
            assert not set(bodies(deliveries)) & set(finished), "finished before"
            finished.extend(bodies(await wide.ack_held(member, deliveries)))

        async with wide.subscribe() as first:
            held = await wide.take(first, total)
            await finish(first, held[::2])
            async with wide.apart() as second:
                await wide.harness.rebalanced()
                came = await second.receive(timeout=wide.harness.quiet)
                await finish(second, came[::2])
            await wide.harness.rebalanced()
            mine = [each for each in held if each.message.data not in finished]
            await finish(first, [each for each in mine if first.holds(each)])
            while len(finished) < total:
                came = await first.receive(timeout=wide.harness.patience)
                assert came, f"stuck after {len(finished)}"
                await finish(first, came)
            await wide.nothing_comes(first)
        assert (await wide.stats()).unsettled == 0

    async def test_surplus_members_receive_nothing(self, bench: Bench) -> None:
        """Members for which there is no work get ``[]``, not an error, and get work when others leave."""
        await bench.publish(1)
        async with asyncio.timeout(bench.harness.patience * 3), bench.subscribe() as busy:
            await bench.take(busy, 1)
            surplus = [bench.subscribe() for _ in range(20)]
            await bench.harness.rebalanced()
            for each in surplus:
                await each.__aenter__()
            await bench.harness.rebalanced()
            came = await asyncio.gather(*(each.receive(timeout=0.1) for each in surplus))
            assert came == [[]] * 20
            for each in surplus[1:]:
                await each.aclose()
            await busy.aclose()
            assert bodies(await bench.take_and_ack(surplus[0], 1)) == [b"0"]
            await surplus[0].aclose()

    async def test_ensure_changes_nothing_that_exists(self, bench: Bench) -> None:
        """Repeated and concurrent ``ensure`` calls neither fail nor move a group or lose a message."""
        await bench.publish(5)
        async with bench.subscribe() as subscription:
            await bench.take_and_ack(subscription, 2)
        before = await bench.stats()
        async with bench.harness.connect() as other:
            await asyncio.gather(
                bench.broker.ensure(bench.topic),
                bench.broker.ensure(bench.topic, group=GROUP, partitions=3),
                other.ensure(bench.topic, group=GROUP, start="latest"),
                other.ensure(bench.topic, group="another"),
                bench.broker.ensure(bench.topic, group="another"),
            )
        assert await bench.stats() == before
        assert len(await bench.left()) == 3

    async def test_ensure_checks_its_arguments(self, bench: Bench) -> None:
        """An unknown ``start`` and fewer than one partition are a ``ValueError`` and create nothing."""
        name = unique_name()
        with pytest.raises(ValueError, match="start"):
            await bench.broker.ensure(name, start="yesterday")  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="partitions"):
            await bench.broker.ensure(name, partitions=0)
        with pytest.raises(NotFound):
            await bench.broker.publish(name, numbered(1))

    async def test_a_group_starts_where_it_was_told(self, bench: Bench) -> None:
        """``earliest`` sees the past exactly where ``history`` is claimed; ``latest`` never does."""
        await bench.publish(3)
        await bench.broker.ensure(bench.topic, group="early", start="earliest")
        await bench.broker.ensure(bench.topic, group="late", start="latest")
        await bench.publish(2, first=100)
        past = [b"0", b"1", b"2"] if bench.broker.capabilities.history else []
        for group, expected in (("early", [*past, b"100", b"101"]), ("late", [b"100", b"101"])):
            stats = await bench.stats(group)
            assert (stats.published, stats.settled, stats.ready) == (len(expected), 0, len(expected))
            async with bench.subscribe(group=group) as subscription:
                came = await bench.take_and_ack(subscription, len(expected))
                assert sorted(bodies(came)) == sorted(expected)
                await bench.nothing_comes(subscription)

    async def test_a_group_keeps_what_came_before_its_first_member(self, bench: Bench) -> None:
        """From its ``ensure`` on a group collects, whether or not anyone has ever subscribed."""
        await bench.broker.ensure(bench.topic, group="standing", start="latest")
        await bench.publish(4)
        async with bench.harness.connect() as later, bench.subscribe(broker=later, group="standing") as one:
            assert sorted(bodies(await bench.take(one, 4))) == [b"0", b"1", b"2", b"3"]

    async def test_stats_equal_what_happened(self, bench: Bench) -> None:
        """The counts follow every publish, hand-over, verdict, delay and close."""
        assert await bench.stats() == GroupStats(published=0, settled=0, in_flight=0, delayed=0, ready=0)
        await bench.publish(10)
        assert await bench.stats() == GroupStats(published=10, settled=0, in_flight=0, delayed=0, ready=10)
        async with bench.subscribe() as subscription:
            held = await bench.take(subscription, 6)
            assert await bench.stats() == GroupStats(published=10, settled=0, in_flight=6, delayed=0, ready=4)
            await subscription.ack(held[:2])
            await subscription.nack(held[2], delay=bench.harness.delay)
            await subscription.release(held[3])
            await subscription.flush()
            assert await bench.stats() == GroupStats(published=10, settled=2, in_flight=2, delayed=1, ready=5)
        assert await bench.stats() == GroupStats(published=10, settled=2, in_flight=0, delayed=1, ready=7)
        await bench.harness.advance(bench.harness.delay * 1.05)
        stats = await bench.stats()
        assert stats == GroupStats(published=10, settled=2, in_flight=0, delayed=0, ready=8)
        assert stats.unsettled == 8

    async def test_browse_shows_what_is_not_settled_in_order(self, bench: Bench) -> None:
        """``browse`` shows ready, held and delayed messages, oldest first, with their attempt numbers."""
        await bench.publish(450)
        async with bench.subscribe() as subscription:
            held = {each.message.data: each for each in await bench.take(subscription, 450)}
            await subscription.ack([held[b"%d" % n] for n in range(0, 450, 3)])
            await subscription.nack(held[b"1"], delay=bench.harness.delay)
            await subscription.release([held[b"%d" % n] for n in range(100, 450) if n % 3])
            await subscription.flush()
            seen = [each async for each in bench.broker.browse(bench.topic, GROUP)]
        assert bodies(seen) == [b"%d" % n for n in range(450) if n % 3]
        assert [each.message.data for each in seen if each.attempt != 1] == [b"1"]
        assert seen[0].attempt == 2
        assert all(each.topic == bench.topic for each in seen)

    async def test_browse_changes_nothing(self, bench: Bench) -> None:
        """Browsing, also one that is broken off, leases, hides and ages nothing."""
        messages = [Message(data=b"%d" % n, key="k", attributes={"n": str(n)}) for n in range(5)]
        await bench.broker.publish(bench.topic, messages)
        before = await bench.stats()
        for _ in range(3):
            seen = [each async for each in bench.broker.browse(bench.topic, GROUP)]
            assert [each.message for each in seen] == messages
            async for each in bench.broker.browse(bench.topic, GROUP):
                assert each.attempt == 1
                break
        assert await bench.stats() == before
        async with bench.subscribe() as subscription:
            came = await bench.take(subscription, 5)
        assert attempts(came) == {1}

    async def test_stats_and_browse_of_what_was_never_ensured_are_refused(self, bench: Bench) -> None:
        """Unknown topics and groups are ``NotFound``, within seconds, and stay unknown."""
        unknown = unique_name("unknown")
        async with within(10, "asking for what does not exist"):
            for topic, group in ((unknown, GROUP), (bench.topic, unknown)):
                with pytest.raises(NotFound, match=unknown):
                    await bench.broker.stats(topic, group)
                with pytest.raises(NotFound, match=unknown):
                    _ = [each async for each in bench.broker.browse(topic, group)]
