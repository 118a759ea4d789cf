"""Checks of ``publish``: everything arrives as it was sent, or is refused before it is sent."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from datetime import UTC, datetime, timedelta, timezone

import pytest

from ..errors import InvalidMessage, MessageTooLarge, NotFound, PublishError
from ..message import Delivery, Message
from .bench import GROUP, Bench, bodies, numbered, unique_name, within
from .checks import Checks

# Words that a client library's keyword arguments, or a transport's own headers, would swallow.
_RESERVED = (
    "topic", "data", "key", "id", "retry", "timeout", "ordering_key", "attributes", "messages", "partition",
    "googclient_x", "ce_id", "ce-id", "ce_type", "content-type", "traceparent", "self", "attempt",
)  # fmt: skip
_ODD = (
    "with space", "naïve-ключ-鍵", "dots.and/slashes", "semi;colon,comma", "quote\"'`", "tab\tinside",
    "new\nline", "percent%20", "=equals&amp", "emoji-\U0001f457", "{brace}[bracket]", "UPPER", "upper",
    "trailing ", " leading", "x" * 200, "back\\slash", "null-like: None", "a:b", "@#$^*()!~",
)  # fmt: skip


class Publishing(Checks):
    """What is stored, what is refused, and what the caller learns."""

    async def test_what_is_published_is_received(self, bench: Bench) -> None:
        """Every message comes exactly once, equal to what was published, with receipts in order."""
        messages = [
            Message(data=b"body %d" % n, key=f"key-{n % 7}", attributes={"n": str(n)}) for n in range(200)
        ]
        receipts = await bench.broker.publish(bench.topic, messages)
        assert [each.message_id for each in receipts] == [each.id for each in messages]
        assert all(each.topic == bench.topic and each.position for each in receipts)
        assert len({each.position for each in receipts}) == len(messages)
        async with bench.subscribe() as subscription:
            deliveries = await bench.take(subscription, len(messages))
            await bench.nothing_comes(subscription)
        assert {each.message.id: each.message for each in deliveries} == {each.id: each for each in messages}
        assert all(each.topic == bench.topic and each.attempt == 1 for each in deliveries)

    async def test_every_delivery_is_dated_and_identified(self, bench: Bench) -> None:
        """A delivery carries an id that can be logged and the aware time at which it was taken."""
        before = datetime.now(UTC) - timedelta(seconds=1)
        await bench.publish(3)
        async with bench.subscribe() as subscription:
            for each in await bench.take(subscription, 3):
                assert each.message.id.isprintable()
                assert each.message.id
                assert before <= each.received_at <= datetime.now(UTC) + timedelta(seconds=1)

    async def test_json_and_empty_bodies_pass(self, bench: Bench) -> None:
        """JSON text passes byte for byte, and so does an empty body, with attributes and without."""
        text = json.dumps({"größe": 38, "nested": [1, None, {"a": "b"}]}, ensure_ascii=False).encode()
        sent = [Message(data=text), Message(data=b"", attributes={"why": "empty"}), Message(data=b"")]
        assert await self._round_trip(bench, sent) == sent

    async def test_any_bytes_pass(self, bench: Bench) -> None:
        """Bodies that are no text pass byte for byte: every byte value, NUL, invalid UTF-8."""
        odd = (bytes(range(256)) * 8, b"\0", b"\0\0tail", b"\xff\xfe\x80\xc3\x28")
        sent = [Message(data=data) for data in odd]
        assert await self._round_trip(bench, sent) == sent

    async def test_odd_attributes_pass(self, bench: Bench) -> None:
        """Unicode, spaces, punctuation, long and empty text pass in attribute names and values."""
        groups = [_ODD[first : first + 10] for first in range(0, len(_ODD), 10)]
        sent = [Message(data=b"odd", attributes={odd: odd[::-1] for odd in group}) for group in groups]
        sent.append(Message(data=b"empty value", attributes={"empty": "", "zero": "0"}))
        assert await self._round_trip(bench, sent) == sent

    async def test_reserved_attribute_names_are_safe(self, bench: Bench) -> None:
        """Attributes named like a transport's own fields are the application's and disturb nothing."""
        alone = [Message(data=b"reserved", attributes={name: f"mine: {name}"}) for name in _RESERVED]
        together = Message(data=b"all", key="k", attributes={name: f"mine: {name}" for name in _RESERVED})
        assert await self._round_trip(bench, [*alone, together]) == [*alone, together]

    async def test_raw_bytes_of_foreign_attributes_pass(self, bench: Bench) -> None:
        """Attribute text that stands for bytes which are not UTF-8 (``surrogateescape``) is not mangled."""
        raw = b"caf\xe9 \xff".decode("utf-8", "surrogateescape")
        sent = [Message(data=b"raw", attributes={"raw": raw}), Message(data=b"name", attributes={raw: "raw"})]
        assert await self._round_trip(bench, sent) == sent

    async def test_every_field_round_trips(self, bench: Bench) -> None:
        """Id, key, attributes, content type, type, source, subject and the zoned time come back equal."""
        zoned = datetime(2024, 2, 29, 23, 59, 59, 123456, tzinfo=timezone(timedelta(hours=5, minutes=45)))
        full = Message(
            data=b"full", key="clé-鍵", attributes={"a": "1"}, id="order/42 – ünïque",
            content_type="image/png", type="org.example.thing.v2", source="//example.org/a?b=c",
            subject="sub/ject é", time=zoned,
        )  # fmt: skip
        bare = Message(data=b"bare", time=datetime(1999, 12, 31, tzinfo=UTC))
        came = await self._round_trip(bench, [full, bare])
        assert came == [full, bare]
        assert came[0].time.utcoffset() == zoned.utcoffset()
        assert (came[1].key, came[1].subject) == (None, None)

    async def test_a_large_publish_is_complete_and_in_order(self, bench: Bench) -> None:
        """One call with thousands of messages stores all of them and answers in their order."""
        messages = await self._publish_many(bench, 2500)
        async with bench.subscribe(max_in_flight=5000) as subscription:
            deliveries = await bench.take_and_ack(subscription, len(messages))
        assert sorted(each.message.id for each in deliveries) == sorted(each.id for each in messages)

    async def test_an_empty_publish_does_nothing(self, bench: Bench) -> None:
        """Publishing no messages returns no receipts."""
        assert await bench.broker.publish(bench.topic, []) == []
        assert (await bench.stats()).published == 0

    async def test_a_body_at_the_limit_passes_and_one_byte_more_is_refused(self, bench: Bench) -> None:
        """The largest body arrives whole; one byte more is ``MessageTooLarge`` and nothing is sent."""
        limit = bench.broker.capabilities.max_message_bytes
        largest = Message(data=b"\xa5" * limit)
        with pytest.raises(PublishError) as refused:
            await bench.broker.publish(bench.topic, [dataclasses.replace(largest, data=largest.data + b"!")])
        error = refused.value.failed[largest.id]
        assert isinstance(error, MessageTooLarge)
        assert (error.size_bytes, error.limit_bytes, error.retryable) == (limit + 1, limit, False)
        assert (await bench.stats()).published == 0
        came = await self._round_trip(bench, [largest])
        assert came[0].data == largest.data

    async def test_attribute_limits_are_checked_before_sending(self, bench: Bench) -> None:
        """At the limits of number and size attributes pass; beyond, or as non-text, they are refused."""
        can = bench.broker.capabilities
        most = {f"a{n}": "v" for n in range(can.max_attributes)}
        longest = {"é" * (can.max_attribute_name_bytes // 2): "", "long": "v" * can.max_attribute_bytes}
        fitting = [Message(data=b"most", attributes=most), Message(data=b"longest", attributes=longest)]
        refused = [
            Message(data=b"", attributes={**most, "more": "v"}),
            Message(data=b"", attributes={"n" * (can.max_attribute_name_bytes + 1): "v"}),
            Message(data=b"", attributes={"value": "é" * (can.max_attribute_bytes // 2 + 1)}),
            Message(data=b"", attributes={"number": 1}),  # type: ignore[dict-item]
            Message(data=b"", attributes={b"bytes": "v"}),  # type: ignore[dict-item]
        ]
        with pytest.raises(PublishError) as error:
            await bench.broker.publish(bench.topic, refused)
        assert set(error.value.failed) == {each.id for each in refused}
        assert all(type(each) is InvalidMessage for each in error.value.failed.values())
        assert (await bench.stats()).published == 0
        assert await self._round_trip(bench, fitting) == fitting

    async def test_fields_that_cannot_travel_are_refused(self, bench: Bench) -> None:
        """An empty id, a naive time, text that is not Unicode and a body that is not bytes are refused."""
        good = Message(data=b"good")
        bad = [
            Message(data=b"", id=""),
            Message(data=b"", time=datetime(2024, 1, 1)),
            Message(data=b"", key="lone \ud800"),
            Message(data=b"", subject="lone \udcff"),
            Message(data="text"),  # type: ignore[arg-type]
        ]
        for each in bad:
            with pytest.raises(PublishError) as error:
                await bench.broker.publish(bench.topic, [each])
            assert isinstance(error.value.failed[each.id], InvalidMessage)
        assert await self._round_trip(bench, [good]) == [good]

    async def test_one_bad_message_fails_alone(self, bench: Bench) -> None:
        """The neighbours of a bad message are stored; ``PublishError.failed`` names the bad one only."""
        messages = numbered(11)
        bad = dataclasses.replace(messages[5], attributes={"number": 5})  # type: ignore[dict-item]
        with pytest.raises(PublishError) as error:
            await bench.broker.publish(bench.topic, [*messages[:5], bad, *messages[6:]])
        assert list(error.value.failed) == [bad.id]
        assert bad.id in str(error.value)
        assert not error.value.retryable
        assert await bench.left() == sorted(bodies_of(messages, without=5))

    async def test_a_single_message_is_not_a_list(self, bench: Bench) -> None:
        """``publish`` takes a list; anything else is a ``TypeError`` and stores nothing."""
        for wrong in (Message(data=b"x"), [b"x"], ["x"]):
            with pytest.raises(TypeError):
                await bench.broker.publish(bench.topic, wrong)  # type: ignore[arg-type]
        assert (await bench.stats()).published == 0

    async def test_publishing_to_an_unknown_topic_is_refused(self, bench: Bench) -> None:
        """A topic that was never ensured is ``NotFound`` within seconds, and stays unknown."""
        unknown = unique_name("unknown")
        async with within(10, "publish to an unknown topic"):
            for _ in range(2):
                with pytest.raises(NotFound, match=unknown):
                    await bench.broker.publish(unknown, numbered(1))
        with pytest.raises(NotFound):
            await bench.broker.stats(unknown, GROUP)

    async def test_names_are_checked_before_anything_is_sent(self, bench: Bench) -> None:
        """Topic and group names that no backend takes are a ``ValueError`` that quotes them."""
        for name in ("", "1topic", "with space", "a/b", "x" * 121, "é", "new\nline", "tail\n", "../up"):
            with pytest.raises(ValueError, match="name"):
                await bench.broker.publish(name, numbered(1))
            with pytest.raises(ValueError, match="name"):
                await bench.broker.ensure(bench.topic, group=name)

    async def test_what_publish_returned_for_is_stored(self, bench: Bench) -> None:
        """Messages of a client that closes right after ``publish`` returned are all there."""
        for first in range(0, 50, 10):
            async with bench.harness.connect() as short_lived:
                await short_lived.publish(bench.topic, numbered(10, first))
        assert await bench.left() == sorted(b"%d" % n for n in range(50))

    async def test_a_cancelled_publish_ends_promptly_and_stores_whole_messages(self, bench: Bench) -> None:
        """Cancelled at any point, ``publish`` ends at once, and what it stored is complete and readable."""
        sent: dict[str, Message] = {}
        for turns in range(0, 24, 2):
            messages = numbered(3, first=turns * 10)
            sent |= {each.id: each for each in messages}
            task = asyncio.create_task(bench.broker.publish(bench.topic, messages))
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            async with within(10, "a cancelled publish"):
                await asyncio.wait({task})
        last = (await bench.publish(1, first=9999))[0]
        sent[last.id] = last
        came: list[Delivery] = []
        async with bench.subscribe() as subscription:
            while last.id not in {each.message.id for each in came}:
                came += await bench.take(subscription, 1)
            came += await subscription.receive(max_messages=len(sent), timeout=bench.harness.quiet)
        assert all(sent[each.message.id] == each.message for each in came)

    async def test_two_topics_do_not_mix(self, bench: Bench) -> None:
        """Messages, groups and verdicts of one topic are unknown to another on the same client."""
        other = await bench.another()
        await bench.publish(5)
        await other.publish(5, first=100)
        async with bench.subscribe() as subscription:
            mine = await bench.take_and_ack(subscription, 5)
            await bench.nothing_comes(subscription)
        assert sorted(bodies(mine)) == sorted(b"%d" % n for n in range(5))
        assert (await other.stats()).ready == 5

    async def test_twenty_topics_at_once(self, bench: Bench) -> None:
        """One client publishes to and receives from twenty topics concurrently."""

        async def one(number: int) -> Bench:
            own = await bench.another()
            await own.publish(10, first=number * 100)
            async with own.subscribe() as subscription:
                came = await own.take_and_ack(subscription, 10)
            assert sorted(bodies(came)) == sorted(b"%d" % n for n in range(number * 100, number * 100 + 10))
            return own

        for own in await asyncio.gather(*(one(number) for number in range(20))):
            stats = await own.stats()
            assert (stats.published, stats.unsettled) == (10, 0)

    async def test_hundreds_of_publishes_at_once_are_all_stored(self, bench: Bench) -> None:
        """A full send queue makes ``publish`` wait, not fail: every call returns, every message is there."""
        calls = [
            [Message(data=b"%d " % number + b"x" * 2000) for number in range(first, first + 10)]
            for first in range(0, 3000, 10)
        ]
        async with within(bench.harness.patience * 2, "300 publishes"):
            receipts = await asyncio.gather(*(bench.broker.publish(bench.topic, call) for call in calls))
        assert [[each.message_id for each in answer] for answer in receipts] == [
            [each.id for each in call] for call in calls
        ]
        async with bench.subscribe(max_in_flight=5000) as subscription:
            came = await bench.take_and_ack(subscription, 3000)
        assert {each.message.id for each in came} == {each.id for call in calls for each in call}

    @staticmethod
    async def _publish_many(bench: Bench, count: int) -> list[Message]:
        messages = numbered(count)
        receipts = await bench.broker.publish(bench.topic, messages)
        assert [each.message_id for each in receipts] == [each.id for each in messages]
        return messages

    @staticmethod
    async def _round_trip(bench: Bench, messages: list[Message]) -> list[Message]:
        """Publish, receive, finish and return in the order of publishing."""
        await bench.broker.publish(bench.topic, messages)
        order = [each.id for each in messages]
        async with bench.subscribe() as subscription:
            came = await bench.take_and_ack(subscription, len(messages))
        return sorted((each.message for each in came), key=lambda message: order.index(message.id))


def bodies_of(messages: list[Message], without: int) -> list[bytes]:
    """Return the bodies of all messages but one."""
    return [each.data for number, each in enumerate(messages) if number != without]
