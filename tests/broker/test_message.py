"""The values that cross the contract."""

from __future__ import annotations

import dataclasses
import pickle
import time
import uuid
import weakref
from datetime import UTC, datetime

import pytest

from broker import Delivery, GroupStats, Message
from broker.message import uuid7


def test_ids_are_uuids_of_version_7() -> None:
    """Version and variant are those of RFC 9562, and the first 48 bits are the time."""
    before = time.time_ns() // 1_000_000
    for _ in range(1000):
        parsed = uuid.UUID(uuid7())
        assert (parsed.version, parsed.variant) == (7, uuid.RFC_4122)
        assert before <= parsed.int >> 80 <= time.time_ns() // 1_000_000


def test_ids_are_unique_and_sort_by_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """No two are equal; an id of a later millisecond sorts later, as text."""
    assert len({uuid7() for _ in range(100_000)}) == 100_000
    ids = []
    for millisecond in (1, 2, 10, 11, 1_700_000_000_000, (1 << 48) - 1):
        monkeypatch.setattr("time.time_ns", lambda now=millisecond: now * 1_000_000)
        ids.append(uuid7())
    assert ids == sorted(ids)


def test_a_message_has_useful_defaults() -> None:
    """Only the body is required; id and time are its own, the time is aware."""
    one, two = Message(data=b""), Message(data=b"")
    assert one.id != two.id
    assert one.time.tzinfo is UTC
    assert (one.key, one.subject, dict(one.attributes)) == (None, None, {})
    with pytest.raises(dataclasses.FrozenInstanceError):
        one.data = b"x"  # type: ignore[misc]


def test_two_deliveries_are_never_equal() -> None:
    """A hand-over is identified by itself, can be a key of a dictionary and be referred to weakly."""
    message, now = Message(data=b""), datetime.now(UTC)
    one, two = Delivery(message, "t", 1, now), Delivery(message, "t", 1, now)
    assert one != two
    assert len({one: 1, two: 2}) == 2
    assert weakref.ref(one)() is one
    assert "receipt" not in repr(one)


def test_unsettled_is_what_is_not_finished() -> None:
    """In flight, delayed and ready messages are unsettled."""
    assert GroupStats(published=10, settled=4, in_flight=1, delayed=2, ready=3).unsettled == 6


def test_a_message_is_decoded_when_it_is_first_asked_for() -> None:
    """The body is there at once; the rest is decoded once, on use: then it is a message like any other."""
    whole, decoded = Message(data=b"x", key="k", attributes={"a": "1"}, subject="s"), []

    def decode(record: str) -> Message:
        decoded.append(record)
        return whole

    uses = [
        lambda message: message.id == whole.id,
        lambda message: message == whole,
        lambda message: repr(message) == repr(whole),
        lambda message: pickle.loads(pickle.dumps(message)) == whole,
        lambda message: dataclasses.replace(message, data=b"y").time == whole.time,
    ]
    for use in uses:
        decoded.clear()
        (message,) = Message.deferred([b"x"], decode, ["record"])
        assert message.data == b"x"
        assert decoded == []
        assert use(message)
        assert (message.key, message.attributes, message.subject) == ("k", {"a": "1"}, "s")
        assert decoded == ["record"]
        with pytest.raises(dataclasses.FrozenInstanceError):
            message.key = "other"  # type: ignore[misc]


def test_a_message_has_no_other_attributes() -> None:
    """A misspelt name is an error, decoded or not."""
    (deferred,) = Message.deferred([b"x"], lambda _: Message(data=b"x"), [1])
    for message in (Message(data=b"x"), deferred):
        with pytest.raises(AttributeError, match="ident"):
            message.ident  # type: ignore[attr-defined]  # noqa: B018
