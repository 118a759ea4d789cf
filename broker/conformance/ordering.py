"""Checks of ``subscribe(order=...)``: strict per key, fair between keys, refused where it cannot be kept."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from dataclasses import replace

import pytest

from ..message import Message
from ..subscription import Subscription
from .bench import MANY, Bench, attempts, bodies, within
from .checks import Checks
from .harness import KEY_ORDER, needs


def _keyed(keys: str, count: int) -> list[Message]:
    """Return ``count`` messages for each key, interleaved."""
    return [Message(data=f"{key}{number}".encode(), key=key) for number in range(count) for key in keys]


class Ordering(Checks):
    """Order by key."""

    async def test_an_order_that_cannot_be_kept_is_refused(self, bench: Bench) -> None:
        """Every order outside the capabilities is a ``ValueError`` at ``subscribe``, which names it."""
        can = bench.broker.capabilities.order
        assert "none" in can
        for order in {"key", "total", "", "KEY"} - can:
            with pytest.raises(ValueError, match=f"order={order!r}"):
                bench.subscribe(order=order)  # type: ignore[arg-type]

    @needs(KEY_ORDER)
    async def test_the_messages_of_a_key_come_one_by_one_in_order(self, bench: Bench) -> None:
        """A message comes only after the one before it with the same key is acked."""
        await bench.broker.publish(bench.topic, _keyed("a", 5))
        async with bench.pair("key", "key") as (one, two):
            seen = []
            for _ in range(5):
                held = await bench.take(one, 1)
                await bench.nothing_comes(two)
                seen += bodies(held)
                await one.ack(held)
        assert seen == [b"a0", b"a1", b"a2", b"a3", b"a4"]

    @needs(KEY_ORDER)
    async def test_order_holds_with_several_members(self, bench: Bench) -> None:
        """With several members at work, each key is handled in order and never twice at a time."""
        keys, count = "abcdefgh", 12
        bench = await bench.another(partitions=MANY)
        handled: dict[str, list[bytes]] = defaultdict(list)
        busy: set[str] = set()

        async def work(member: Subscription, turns: int) -> None:
            while sum(map(len, handled.values())) < len(keys) * count:
                held = await member.receive(max_messages=5, timeout=0.1)
                for each in held:
                    assert each.message.key is not None
                    assert each.message.key not in busy, "two messages of one key at a time"
                    busy.add(each.message.key)
                for each in held:
                    for _ in range(turns):
                        await asyncio.sleep(0)
                    assert each.message.key is not None
                    handled[each.message.key].append(each.message.data)
                    busy.discard(each.message.key)
                    await member.ack(each)

        async with (
            bench.subscribe(order="key") as one,
            bench.subscribe(order="key") as two,
            bench.apart("key") as three,
        ):
            await bench.harness.rebalanced()
            await bench.broker.publish(bench.topic, _keyed(keys, count))
            async with within(bench.harness.patience, "three members at work"):
                await asyncio.gather(work(one, 1), work(two, 3), work(three, 7))
        assert handled == {key: [f"{key}{number}".encode() for number in range(count)] for key in keys}

    @needs(KEY_ORDER)
    async def test_a_blocked_key_does_not_stop_the_others(self, bench: Bench) -> None:
        """While one key's first message is held for long, all messages of other keys pass."""
        await bench.broker.publish(bench.topic, _keyed("sab", 15))
        async with bench.subscribe(order="key") as subscription:
            held = await bench.take(subscription, 3)
            slow = [each for each in held if each.message.key == "s"]
            assert bodies(slow) == [b"s0"]
            passed: list[bytes] = []
            held = [each for each in held if each.message.key != "s"]
            while len(passed) < 30:
                await subscription.ack(held)
                passed += bodies(held)
                if len(passed) < 30:
                    held = await subscription.receive(timeout=bench.harness.patience)
                    assert held, f"stuck after {len(passed)}"
                    assert all(each.message.key != "s" for each in held)
            await bench.advance_leases(2.5)
            await bench.nothing_comes(subscription)
            await subscription.ack(slow)
            assert bodies(await bench.take(subscription, 1)) == [b"s1"]
        for key in ("a", "b"):
            assert [body for body in passed if body.startswith(key.encode())] == [
                f"{key}{number}".encode() for number in range(15)
            ]

    @needs(KEY_ORDER)
    async def test_a_failed_message_comes_before_its_successors(self, bench: Bench) -> None:
        """Nacked, released or delayed, a message of a key comes again before the next of that key."""
        await bench.broker.publish(bench.topic, [*_keyed("a", 3), *_keyed("b", 1)])
        async with bench.subscribe(order="key") as subscription:
            held = {each.message.data: each for each in await bench.take(subscription, 2)}
            assert sorted(held) == [b"a0", b"b0"]
            await subscription.ack(held[b"b0"])
            await subscription.nack(held[b"a0"])
            (again,) = await bench.take(subscription, 1)
            await subscription.release(again)
            (again,) = await bench.take(subscription, 1)
            await subscription.nack(again, delay=bench.harness.delay)
            await bench.nothing_comes(subscription)
            await bench.harness.advance(bench.harness.delay * 1.05)
            (again,) = await bench.take(subscription, 1)
            assert (again.message.data, again.attempt) == (b"a0", 3)
            await subscription.ack(again)
            assert bodies(await bench.take_and_ack(subscription, 1)) == [b"a1"]
            assert bodies(await bench.take_and_ack(subscription, 1)) == [b"a2"]

    @needs(KEY_ORDER)
    async def test_order_outlives_a_crash(self, bench: Bench) -> None:
        """After its holder died, the first unfinished message of a key comes first, the rest in order."""
        await bench.broker.publish(bench.topic, _keyed("ab", 4))
        async with bench.apart("key") as dead:
            held = {each.message.data: each for each in await bench.take(dead, 2)}
            await dead.ack(held[b"b0"])
            await dead.flush()
            await bench.take(dead, 1)
            await bench.harness.crash(dead)
        async with bench.subscribe(order="key") as later:
            await bench.nothing_comes(later)
            await bench.advance_leases()
            seen: dict[str | None, list[bytes]] = defaultdict(list)
            while sum(map(len, seen.values())) < 7:
                for each in await bench.take(later, 1):
                    seen[each.message.key].append(each.message.data)
                    await later.ack(each)
        assert seen == {"a": [b"a0", b"a1", b"a2", b"a3"], "b": [b"b1", b"b2", b"b3"]}

    @needs(KEY_ORDER)
    async def test_order_and_limits_together_lose_nothing(self, bench: Bench) -> None:
        """Where a limit cuts a batch short, all keys still come whole and in order."""
        sent = [replace(each, data=each.data.ljust(1000)) for each in _keyed("abc", 8)]
        await bench.broker.publish(bench.topic, sent)
        seen: dict[str | None, list[bytes]] = defaultdict(list)
        async with bench.subscribe(order="key", max_bytes=1500) as narrow:
            for count in (1, 2, 5):
                for _ in range(4):
                    for each in await narrow.receive(max_messages=count, timeout=bench.harness.patience):
                        seen[each.message.key].append(each.message.data.strip())
                        await narrow.ack(each)
        async with bench.subscribe(order="key", max_in_flight=2) as wide:
            while sum(map(len, seen.values())) < len(sent):
                for each in await bench.take(wide, 1):
                    seen[each.message.key].append(each.message.data.strip())
                    await wide.ack(each)
        assert seen == {key: [f"{key}{number}".encode() for number in range(8)] for key in "abc"}

    @needs(KEY_ORDER)
    async def test_order_holds_behind_a_member_that_keeps_none(self, bench: Bench) -> None:
        """What a member without order holds, or held when it died, still comes before its successors."""
        await bench.broker.publish(bench.topic, _keyed("a", 3))
        async with bench.pair("none", "key") as (without, ordered):
            assert bodies(await bench.take(without, 1)) == [b"a0"]
            await bench.nothing_comes(ordered)
            await bench.harness.crash(without)
            await bench.nothing_comes(ordered)
            await bench.advance_leases()
            seen = [bodies(await bench.take_and_ack(ordered, 1)) for _ in range(3)]
        assert seen == [[b"a0"], [b"a1"], [b"a2"]]

    @needs(KEY_ORDER)
    async def test_messages_without_a_key_wait_for_nobody(self, bench: Bench) -> None:
        """Messages that have no key are all handed over at once, beside those that have one."""
        keyless = [Message(data=b"%d" % number) for number in range(10)]
        await bench.broker.publish(bench.topic, [*_keyed("a", 2), *keyless])
        async with bench.subscribe(order="key") as subscription:
            held = await bench.take(subscription, 11)
            await bench.nothing_comes(subscription)
            assert sorted(bodies(held)) == sorted([b"a0", *(each.data for each in keyless)])
            await subscription.ack(held)
            assert attempts(await bench.take(subscription, 1)) == {1}

    async def test_without_order_a_key_blocks_nothing(self, bench: Bench) -> None:
        """With ``order="none"`` all messages of one key may be in flight together."""
        await bench.broker.publish(bench.topic, _keyed("a", 10))
        async with bench.subscribe() as subscription:
            held = await bench.take(subscription, 10)
            assert sorted(bodies(held)) == sorted(f"a{number}".encode() for number in range(10))
