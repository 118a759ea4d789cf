"""Checks of what an operator asks: which topics there are, how far a group is behind, who the backend is."""

from __future__ import annotations

import asyncio

import pytest

from ..errors import Closed, NotFound
from ..message import TopicInfo
from .bench import GROUP, MANY, Bench, bodies, unique_name, within
from .checks import Checks
from .harness import RETENTION, needs


class Administration(Checks):
    """``topics``, ``lag``, ``describe``, which counts are kept, and what is removed."""

    async def test_topics_are_listed_with_their_groups(self, bench: Bench) -> None:
        """``topics`` lists by name what was ensured, once each, with partitions and sorted groups."""
        wide = await bench.another("wide", partitions=MANY)
        bare = unique_name("bare")
        await bench.broker.ensure(bare, partitions=bench.harness.partitions)
        for group in ("second", "a.first"):
            await bench.broker.ensure(wide.topic, group=group)
        listed = await self._listed(bench)
        found = {each.name: each for each in listed}
        assert [each.name for each in listed] == sorted(found)
        assert found[bare].groups == ()
        assert found[bench.topic].groups == (GROUP,)
        assert found[wide.topic].groups == ("a.first", "second", GROUP)
        for name, partitions in ((bare, bench.harness.partitions), (wide.topic, MANY)):
            assert found[name].partitions in (None, partitions)

    async def test_topics_hide_what_the_driver_keeps_for_itself(self, bench: Bench) -> None:
        """Storage for retries, delays and verdicts appears nowhere in ``topics``, nor its groups."""
        await bench.publish(3)
        async with bench.subscribe() as subscription:
            held = await bench.take(subscription, 3)
            await subscription.nack(held[0])
            await subscription.nack(held[1], delay=3600.0)
            await subscription.ack(held[2])
            await subscription.flush()
            listed = await self._listed(bench)
        mine = [each for each in listed if bench.topic in each.name]
        assert [(each.name, each.groups) for each in mine] == [(bench.topic, (GROUP,))]

    async def test_what_one_client_ensures_another_lists(self, bench: Bench) -> None:
        """A topic is listed by every client as soon as ``ensure`` has returned."""
        async with bench.harness.connect() as other:
            topic = (await bench.another()).topic
            assert topic in {each.name for each in await other.topics()}

    async def test_lag_adds_up_to_what_is_unsettled(self, bench: Bench) -> None:
        """The parts of ``lag`` are distinct and add up to ``stats``, whatever became of the messages."""
        await self._lag_is(bench, 0)
        await bench.publish(10)
        await self._lag_is(bench, 10)
        async with bench.subscribe() as subscription:
            held = await bench.take(subscription, 6)
            await subscription.ack(held[1:3])
            await subscription.nack(held[3], delay=bench.harness.delay)
            await subscription.nack(held[4])
            await subscription.release(held[5])
            await subscription.flush()
            await self._lag_is(bench, 8)
        await bench.harness.advance(bench.harness.delay * 1.05)
        assert len(await bench.left()) == 8
        await self._lag_is(bench, 0)

    async def test_lag_has_a_part_for_every_partition(self, bench: Bench) -> None:
        """Where there are partitions each has its part; otherwise there is one, without a number."""
        wide = await bench.another(partitions=MANY)
        parts = [each.partition for each in await wide.broker.lag(wide.topic, GROUP)]
        assert parts in ([None], list(range(MANY)))
        listed = {each.name: each.partitions for each in await self._listed(bench)}
        assert listed[wide.topic] == (None if parts == [None] else MANY)

    async def test_lag_of_what_was_never_ensured_is_refused(self, bench: Bench) -> None:
        """Unknown topics and groups are ``NotFound``, within seconds, and stay unknown."""
        unknown = unique_name("unknown")
        async with within(10, "asking for what does not exist"):
            for topic, group in ((unknown, GROUP), (bench.topic, unknown)):
                with pytest.raises(NotFound, match=unknown):
                    await bench.broker.lag(topic, group)
        assert unknown not in {each.name for each in await self._listed(bench)}

    async def test_describe_tells_facts(self, bench: Bench) -> None:
        """``describe`` answers within seconds with named, printable facts; not on a closed client."""
        async with within(10, "describe"):
            facts = await bench.broker.describe()
        assert facts
        for name, value in facts.items():
            assert name.strip() == name != ""
            assert value.isprintable()
            assert value
        never = bench.harness.connect()
        for call in (never.describe(), never.topics(), never.lag(bench.topic, GROUP)):
            with pytest.raises(Closed):
                await call

    async def test_counts_are_kept_where_they_are_claimed(self, bench: Bench) -> None:
        """``published`` and ``settled`` are numbers if ``capabilities.counts``, else both None."""
        await bench.publish(1)
        stats = await bench.broker.stats(bench.topic, GROUP)
        claimed = bench.broker.capabilities.counts
        assert (stats.published is not None, stats.settled is not None) == (claimed, claimed)

    async def test_a_removed_group_is_gone_and_the_others_stay(self, bench: Bench) -> None:
        """``remove_group`` forgets one group and what it had before it, twice in silence, and no other."""
        await bench.broker.ensure(bench.topic, group="brief")
        await bench.publish(3)
        for _ in range(2):
            await bench.broker.remove_group(bench.topic, "brief")
        await bench.broker.remove_group(unique_name("unknown"), "brief")
        async with within(10, "asking for a group that was removed"):
            with pytest.raises(NotFound, match="brief"):
                await bench.broker.stats(bench.topic, "brief")
            with pytest.raises(NotFound, match="brief"):
                async with bench.subscribe(group="brief") as subscription:
                    await subscription.receive(timeout=1.0)
        await bench.broker.ensure(bench.topic, group="brief", start="latest")
        await bench.publish(1, first=100)
        async with bench.subscribe(group="brief") as subscription:
            assert bodies(await bench.take_and_ack(subscription, 1)) == [b"100"]
            await bench.nothing_comes(subscription)
        assert len(await bench.left()) == 4

    @needs(RETENTION)
    async def test_a_topic_with_a_retention_keeps_what_is_younger(self, bench: Bench) -> None:
        """A new topic takes a retention; one that is there keeps its own, and all that it has."""
        kept = await self._keeping(bench, 3600.0)
        await kept.publish(3)
        assert kept.broker.capabilities.retention is not None
        await kept.broker.ensure(
            kept.topic, GROUP, retention=max(7200.0, kept.broker.capabilities.retention[0])
        )
        assert await kept.left() == [b"0", b"1", b"2"]

    async def test_what_is_older_than_its_retention_goes(self, bench: Bench) -> None:
        """Unsettled messages go once they are too old; younger ones, and what a member holds, stay."""
        kept = await self._keeping(bench, 600.0)
        await kept.publish(3)
        async with kept.subscribe() as subscription:
            held = await kept.take(subscription, 1)
            await bench.harness.advance(400.0)
            await kept.publish(2, first=100)
            await bench.harness.advance(300.0)
            assert sorted(bodies(await kept.take_and_ack(subscription, 2))) == [b"100", b"101"]
            await kept.nothing_comes(subscription)
            await subscription.ack(held)
        assert (await kept.stats()).unsettled == 0

    async def test_a_retention_that_cannot_be_kept_is_refused(self, bench: Bench) -> None:
        """Outside ``capabilities.retention`` it is a ``ValueError``, and nothing is created."""
        name, bounds = unique_name(), bench.broker.capabilities.retention
        for seconds in (600.0, 3600.0) if bounds is None else (0.0, -1.0, bounds[0] / 2, 2 * bounds[1]):
            if bounds is None or not bounds[0] <= seconds <= bounds[1]:
                with pytest.raises(ValueError, match="retention"):
                    await bench.broker.ensure(name, group=GROUP, retention=seconds)
        assert name not in {each.name for each in await self._listed(bench)}

    @staticmethod
    async def _keeping(bench: Bench, seconds: float) -> Bench:
        """Return a bench on a new topic with a retention of so many seconds, or the shortest there is."""
        bounds = bench.broker.capabilities.retention
        assert bounds is not None, "the backend cannot be told how long to keep messages"
        topic = unique_name("kept")
        await bench.broker.ensure(
            topic, group=GROUP, partitions=bench.harness.partitions, retention=max(seconds, bounds[0])
        )
        return Bench(bench.harness, bench.broker, topic)

    @staticmethod
    async def _listed(bench: Bench) -> list[TopicInfo]:
        async with asyncio.timeout(bench.harness.patience):
            return await bench.broker.topics()

    @staticmethod
    async def _lag_is(bench: Bench, expected: int) -> None:
        parts = await bench.broker.lag(bench.topic, GROUP)
        assert len({each.partition for each in parts}) == len(parts)
        assert sum(each.unsettled for each in parts) == expected
        assert (await bench.stats()).unsettled == expected
