"""Checks of ``forward``: a native copy in another topic, the original untouched."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime

import pytest

from ..errors import NotFound
from ..message import Delivery, Message
from .bench import GROUP, Bench, attempts, bodies, unique_name, within
from .checks import Checks


class Forwarding(Checks):
    """Copying what is held to another topic."""

    async def test_forward_copies_everything_and_adds(self, bench: Bench) -> None:
        """The copy has every field of the original and the extra attributes, none of them mangled."""
        raw = b"\xff\xfe".decode("utf-8", "surrogateescape")
        sent = Message(
            data=bytes(range(256)), key="k-é", attributes={"mine": "1", "raw": raw, "": "none"},
            id="id 1", content_type="image/png", type="t", source="//s", subject="sub",
            time=datetime(2001, 2, 3, 4, 5, 6, 7, tzinfo=UTC),
        )  # fmt: skip
        copy = await self._forwarded(bench, sent, {"why": "because", "naïve": "ключ"})
        assert copy.attributes == {**sent.attributes, "why": "because", "naïve": "ключ"}
        assert dataclasses.replace(copy, attributes=sent.attributes) == sent

    async def test_an_extra_attribute_wins_over_one_of_the_same_name(self, bench: Bench) -> None:
        """An attribute that the original has already, as after a replay, gets the new value in the copy."""
        sent = Message(data=b"", attributes={"why": "old", "a": "1"})
        copy = await self._forwarded(bench, sent, {"why": "new"})
        assert copy.attributes == {"why": "new", "a": "1"}

    async def test_forward_settles_nothing(self, bench: Bench) -> None:
        """After ``forward`` the original is still held: it can be acked, or comes again as it was."""
        target = await self._target(bench)
        await bench.publish(2)
        async with bench.subscribe() as subscription:
            first, second = await bench.take(subscription, 2)
            for delivery in (first, second):
                await subscription.forward(delivery, target, {})
            assert subscription.in_flight == 2
            assert (await bench.stats()).settled == 0
            await bench.nothing_comes(subscription)
            await subscription.ack(first)
        async with bench.subscribe() as later:
            came = await bench.take(later, 1)
            assert (bodies(came), attempts(came)) == ([second.message.data], {1})

    async def test_what_forward_returned_for_is_stored(self, bench: Bench) -> None:
        """A copy is there although the member died right after ``forward``."""
        target = await self._target(bench)
        await bench.publish(1)
        async with bench.apart() as subscription:
            (delivery,) = await bench.take(subscription, 1)
            await subscription.forward(delivery, target, {})
            await bench.harness.crash(subscription)
        async with bench.harness.connect() as other, other.subscribe(target, group=GROUP) as member:
            came = await bench.take(member, 1)
        assert (bodies(came), attempts(came)) == ([b"0"], {1})

    async def test_forward_starts_a_new_count(self, bench: Bench) -> None:
        """The copy of a message that failed before comes as attempt 1, with the body as published."""
        target = await self._target(bench)
        await bench.publish(1)
        async with bench.subscribe() as subscription:
            for _ in range(2):
                await subscription.nack(await bench.take(subscription, 1))
            (delivery,) = await bench.take(subscription, 1)
            assert delivery.attempt == 3
            await subscription.forward(delivery, target, {})
            await subscription.ack(delivery)
        async with bench.broker.subscribe(target, group=GROUP) as member:
            came = await bench.take(member, 1)
        assert (bodies(came), attempts(came)) == ([b"0"], {1})

    async def test_trace_context_and_id_survive_every_way(self, bench: Bench) -> None:
        """W3C trace context and the event's id are the same after nack, release and ``forward``."""
        trace = {
            "traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "tracestate": "rojo=00f067aa0ba902b7,congo=t61rcWkgMzE",
            "baggage": "userId=alice,serverNode=DF%2028",
        }
        target = await self._target(bench)
        sent = Message(data=b"traced", attributes=trace)
        await bench.broker.publish(bench.topic, [sent])
        seen: list[Delivery] = []
        async with bench.subscribe() as subscription:
            for verb in (subscription.nack, subscription.release, None):
                seen += await bench.take(subscription, 1)
                if verb is not None:
                    await verb(seen[-1])
            await subscription.forward(seen[-1], target, {})
            await subscription.ack(seen[-1])
        async with bench.broker.subscribe(target, group=GROUP) as member:
            seen += await bench.take(member, 1)
        assert [each.message.attributes for each in seen] == [trace] * 4
        assert [each.message.id for each in seen] == [sent.id] * 4
        assert [each.attempt for each in seen] == [1, 2, 2, 1]

    async def test_forwarding_to_an_unknown_topic_is_refused(self, bench: Bench) -> None:
        """A target that was never ensured is ``NotFound``, is not created, and the original is untouched."""
        unknown = unique_name("unknown")
        await bench.publish(1)
        async with bench.subscribe() as subscription:
            (delivery,) = await bench.take(subscription, 1)
            async with within(10, "forward to an unknown topic"):
                with pytest.raises(NotFound, match=unknown):
                    await subscription.forward(delivery, unknown, {})
            with pytest.raises(NotFound):
                await bench.broker.stats(unknown, GROUP)
            await subscription.ack(delivery)
        assert (await bench.stats()).settled == 1

    async def test_a_message_can_go_round_in_circles(self, bench: Bench) -> None:
        """Forwarded out, received there, forwarded back and forwarded out again: each copy arrives."""
        target = await self._target(bench)
        await bench.publish(1)
        async with bench.subscribe() as here, bench.broker.subscribe(target, group=GROUP) as there:
            for turn in range(3):
                for member, topic in ((here, target), (there, bench.topic)):
                    (delivery,) = await bench.take(member, 1)
                    assert delivery.message.attributes.get("turn", "0") in (str(turn), str(max(0, turn - 1)))
                    await member.forward(delivery, topic, {"turn": str(turn)})
                    await member.ack(delivery)
            assert len(await bench.take(here, 1)) == 1

    async def _forwarded(self, bench: Bench, message: Message, extra: dict[str, str]) -> Message:
        """Publish, forward, finish and return the copy."""
        target = await self._target(bench)
        await bench.broker.publish(bench.topic, [message])
        async with bench.subscribe() as subscription:
            (delivery,) = await bench.take(subscription, 1)
            await subscription.forward(delivery, target, extra)
            await subscription.ack(delivery)
        async with bench.broker.subscribe(target, group=GROUP) as member:
            (copy,) = await bench.take_and_ack(member, 1)
            await bench.nothing_comes(member)
        assert copy.topic == target
        return copy.message

    @staticmethod
    async def _target(bench: Bench) -> str:
        return (await bench.another("copies")).topic
