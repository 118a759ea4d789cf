"""The limits of a message, each at its edge."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from broker import Capabilities, InvalidMessage, Message, MessageTooLarge
from broker.limits import check_message

CAN = Capabilities(
    backend="test",
    shared=True,
    durable=True,
    history=True,
    counts=True,
    order=frozenset({"none"}),
    lease=1.0,
    max_delay=1.0,
    max_message_bytes=10,
    max_attributes=2,
    max_attribute_bytes=4,
    max_attribute_name_bytes=4,
)
GOOD = Message(data=b"x", key="k", attributes={"a": "1"}, subject="s")


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"data": b"x" * 10},
        {"data": b""},
        {"attributes": {"a": "1", "b": "2"}},
        {"attributes": {"four": "four"}},
        {"attributes": {"éé": "éé"}},
        {"attributes": {"": ""}},
        {"attributes": {"\udcff\udcfe": "\udcff" * 4}},
        {"key": "ключ", "subject": "é" * 1000},
        {"key": None, "subject": None},
        {"time": datetime(1, 1, 1, tzinfo=UTC)},
    ],
)
def test_messages_within_the_limits_pass(fields: dict[str, Any]) -> None:
    """At the limit, and with the raw bytes of foreign attributes, nothing is refused."""
    assert check_message(replace(GOOD, **fields), CAN) is None


def test_a_body_over_the_limit_says_by_how_much() -> None:
    """Size and limit are fields, not only text."""
    error = check_message(replace(GOOD, data=b"x" * 11), CAN)
    assert isinstance(error, MessageTooLarge)
    assert (error.size_bytes, error.limit_bytes) == (11, 10)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"attributes": {"a": "", "b": "", "c": ""}}, "3 attributes"),
        ({"attributes": {"five5": ""}}, "five5"),
        ({"attributes": {"a": "ééé"}}, "6 bytes"),
        ({"attributes": {"a": 1}}, "text"),
        ({"attributes": {1: "a"}}, "text"),
        ({"attributes": {"a": None}}, "text"),
        ({"attributes": {"a": "\ud800"}}, "a"),
        ({"attributes": None}, "attributes"),
        ({"data": "text"}, "bytes"),
        ({"data": bytearray(b"x")}, "bytes"),
        ({"data": None}, "bytes"),
        ({"id": ""}, "id"),
        ({"id": 7}, "id"),
        ({"id": "\udc00"}, "id"),
        ({"key": b"bytes"}, "key"),
        ({"key": "\ud800"}, "key"),
        ({"content_type": None}, "content_type"),
        ({"type": 1}, "type"),
        ({"source": "\udfff"}, "source"),
        ({"subject": 0}, "subject"),
        ({"time": datetime(2024, 1, 1)}, "time zone"),
        ({"time": "2024-01-01"}, "time"),
        ({"time": None}, "time"),
    ],
)
def test_what_breaks_a_limit_is_named(fields: dict[str, Any], said: str) -> None:
    """The error is an ``InvalidMessage`` and says which field; nothing else is raised."""
    error = check_message(replace(GOOD, **fields), CAN)
    assert type(error) is InvalidMessage
    assert said in str(error)
    assert not error.retryable
