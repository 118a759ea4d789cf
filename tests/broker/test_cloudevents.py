"""The CloudEvents codec, held against the official SDK: what either writes, the other reads unchanged."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from cloudevents.core.bindings import http, kafka
from cloudevents.core.v1.event import CloudEvent
from hypothesis import example, given
from hypothesis import strategies as st

from broker import Message
from broker.drivers import cloudevents
from broker.drivers.cloudevents import FOREIGN_TYPE, KAFKA, PUBSUB, Binding, Place, decode, encode, escaped

BINDINGS = pytest.mark.parametrize("binding", [KAFKA, PUBSUB], ids=["kafka", "pubsub"])
PLACE = Place("images/3/42", "kafka://images", datetime(2024, 5, 1, tzinfo=UTC))
# Everything that means something else in a transport, to another reader, or to us.
TRAPS = [
    "", "\0", "a\0b", "ce_", "ce-", "ce_id", "ce-id", "CE_ID", "Ce-Id", "ce_time", "ce_data", "ce_é",
    "ce_a b", "ce_partitionkey", "ce-dataschema", "ce_datacontenttype", "content-type", "Content-Type",
    "content-typed", "goog", "googclient_x", "Google", "goog\n", "googé", "couturier-retry-x",
    "couturier-retry-é", "couturier-escaped-x", "couturier-escaped-é", "couturier-escaped-name-x",
    "couturier-escaped-both-x",
    "couturier-reason", "couturier-claim", "name-x", "both-x", "name-", "%41", "a%00b", "é", "日本",
    "😀", "\udcff", "goog\udcff", "x" * 3000, "traceparent", "tracestate",
]  # fmt: skip


def standing_for_bytes(text: str) -> str:
    """Return ``text`` as the bytes that it stands for are decoded; two spellings of one byte become one."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "surrogateescape")


# What `check_message` lets through: Unicode text in which lone surrogates may stand for raw bytes.
TEXT = st.text(st.characters(codec="utf-8") | st.sampled_from("\udc80\udcc3\udca9\udcff")).map(
    standing_for_bytes
)
NAMES = (
    st.sampled_from(TRAPS)
    | st.tuples(st.sampled_from(TRAPS), TEXT).map("".join).map(standing_for_bytes)
    | TEXT
)
# CloudEvents strings have no control characters, surrogates or noncharacters, and none may be empty.
STRICT = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs", "Cn")), min_size=1)
URI = st.text("abcdefghijklmnopqrstuvwxyz/:.-", min_size=1)
# Times of zones whose clocks are set back are equal to none of another zone, not even to their own.
TIMES = st.datetimes(datetime(1800, 1, 1), datetime(2900, 1, 1), timezones=st.timezones()).map(
    lambda time: time.replace(tzinfo=timezone(time.utcoffset() or timedelta()))
)
EXTENSIONS = st.dictionaries(
    st.from_regex(r"[a-z][a-z0-9]{0,19}", fullmatch=True).filter(lambda name: name not in RESERVED), STRICT
)
RESERVED = {*cloudevents._CONTEXT, "data", "dataschema"}
MESSAGES = st.builds(
    Message,
    data=st.binary(max_size=50),
    key=st.none() | STRICT,
    attributes=st.dictionaries(NAMES, TEXT | st.sampled_from(TRAPS), max_size=6),
    id=STRICT,
    content_type=st.sampled_from(["application/octet-stream", "image/png", "text/plain; charset=utf-8"]),
    type=STRICT,
    source=URI,
    subject=st.none() | STRICT,
    time=TIMES,
)


def received(headers: Mapping[str, str], message: Message, binding: Binding) -> Message:
    """Return the message after a way over the wire, where names and values are bytes."""
    wire = [
        (name.encode("utf-8", "strict"), value.encode("utf-8", "surrogateescape"))
        for name, value in headers.items()
    ]
    text = [(name.decode(), value.decode("utf-8", "surrogateescape")) for name, value in wire]
    return decode(text, message.data, message.key, PLACE, binding)


@BINDINGS
@given(message=MESSAGES)
@example(message=Message(b"", attributes=dict.fromkeys(TRAPS, "x")))
@example(message=Message(b"", attributes=dict.fromkeys(TRAPS, "\udcff")))
@example(message=Message(b"", attributes=dict.fromkeys(TRAPS, "")))
def test_what_is_encoded_is_decoded(binding: Binding, message: Message) -> None:
    """Every field and every attribute comes back, whatever its name, and nothing comes beside them."""
    assert received(encode(message, binding), message, binding) == message


@given(message=MESSAGES)
@example(message=Message(b"", attributes=dict.fromkeys(TRAPS, "\udcff")))
def test_pubsub_can_carry_what_is_encoded(message: Message) -> None:
    """Names and values are Unicode text; no name is empty or begins with what Google keeps for itself."""
    for name, value in encode(message, PUBSUB).items():
        name.encode()
        value.encode()
        assert name
        assert not name.lower().startswith("goog")


@given(message=MESSAGES)
@example(message=Message(b"", attributes=dict.fromkeys(TRAPS, "\udcff")))
def test_kafka_can_carry_what_is_encoded(message: Message) -> None:
    """Names are UTF-8 without NUL, where the C client would end them."""
    for name in encode(message, KAFKA):
        assert b"\0" not in name.encode()
        assert name


@BINDINGS
@given(attributes=st.dictionaries(NAMES, TEXT, max_size=6))
def test_an_attribute_is_never_taken_for_the_event(binding: Binding, attributes: dict[str, str]) -> None:
    """No attribute of the application changes a field of the event, for a reader who ignores case either."""
    bare = encode(Message(b"", subject="s"), binding)
    for name in escaped(attributes, binding):
        assert name.lower() not in bare
        assert not name.startswith(cloudevents.PRIVATE)


@pytest.mark.parametrize("name", ["site", "traceparent", "tracestate", "couturier-reason", "Färbung", "a b"])
@BINDINGS
def test_ordinary_names_travel_as_they_are(binding: Binding, name: str) -> None:
    """Any consumer, and any tracer, finds an attribute under its own name."""
    assert escaped({name: "1"}, binding) == {name: "1"}


@BINDINGS
def test_extensions_travel_as_extensions(binding: Binding) -> None:
    """What a foreign event carried beside the core is an extension again when it is published on."""
    name = binding.prefix + "partitionkey"
    foreign = {binding.prefix + "id": "1", name: "cam-7"}
    message = decode(foreign.items(), b"", None, PLACE, binding)
    assert message.attributes == {name: "cam-7"}
    assert encode(message, binding)[name] == "cam-7"


@BINDINGS
def test_private_headers_are_not_shown(binding: Binding) -> None:
    """What a driver writes on its own copies is no attribute."""
    headers = [("couturier-retry-attempt", "3"), ("site", "7")]
    assert decode(headers, b"", None, PLACE, binding).attributes == {"site": "7"}


@BINDINGS
def test_a_foreign_record_gets_its_identity_from_its_place(binding: Binding) -> None:
    """Without CloudEvents headers id, source and time come from the log, so a redelivery has the same id."""
    message = decode([("site", "7")], b"x", "k", PLACE, binding)
    assert message == Message(
        b"x",
        "k",
        {"site": "7"},
        PLACE.id,
        "application/octet-stream",
        FOREIGN_TYPE,
        PLACE.source,
        None,
        PLACE.time,
    )
    assert decode([(binding.prefix + "id", "")], b"", None, PLACE, binding).id == PLACE.id


def test_the_last_of_repeated_headers_counts() -> None:
    """Kafka allows repetition; one value is shown, and it is the newest."""
    headers = [("ce_id", "1"), ("site", "1"), ("ce_id", "2"), ("site", "2")]
    message = decode(headers, b"", None, PLACE, KAFKA)
    assert (message.id, message.attributes) == ("2", {"site": "2"})


def test_names_are_case_sensitive() -> None:
    """The binding writes them in lower case; another case is an attribute of the application."""
    message = decode([("CE_ID", "1"), ("Content-Type", "x")], b"", None, PLACE, KAFKA)
    assert (message.id, message.content_type) == (PLACE.id, "application/octet-stream")
    assert message.attributes == {"CE_ID": "1", "Content-Type": "x"}


def test_a_foreign_identity_is_made_readable() -> None:
    """An id of raw bytes is still one id, the same each time, and any database and JSON take it."""
    message = decode([("ce_id", "a\udcff"), ("ce_type", "é")], b"", None, PLACE, KAFKA)
    assert (message.id, message.type) == ("a\\xff", "é")
    message.id.encode()


@pytest.mark.parametrize(
    "name", ["couturier-escaped-name-\udcff", "couturier-escaped-name-%zz", "couturier-escaped-"]
)
def test_a_forged_escape_harms_nothing(name: str) -> None:
    """What only looks like ours is an attribute, whatever it holds."""
    assert len(decode([(name, "\udcff")], b"", None, PLACE, KAFKA).attributes) == 1


@pytest.mark.parametrize(
    ("text", "time"),
    [
        ("2018-04-05T03:56:24Z", datetime(2018, 4, 5, 3, 56, 24, tzinfo=UTC)),
        ("2018-04-05t03:56:24.5z", datetime(2018, 4, 5, 3, 56, 24, 500_000, tzinfo=UTC)),
        ("2018-04-05T03:56:24.123456789Z", datetime(2018, 4, 5, 3, 56, 24, 123_456, tzinfo=UTC)),
        ("2018-04-05T03:56:24+05:30", datetime(2018, 4, 4, 22, 26, 24, tzinfo=UTC)),
        ("2018-04-05T03:56:24", PLACE.time),
        ("2018-04-05T23:59:60Z", PLACE.time),
        ("yesterday", PLACE.time),
        ("", PLACE.time),
        ("\udcff", PLACE.time),
    ],
)
def test_times_are_those_of_rfc_3339(text: str, time: datetime) -> None:
    """Any offset and any number of digits; what says no time is taken for the time of storage."""
    assert decode([("ce_time", text)], b"", None, PLACE, KAFKA).time == time


@pytest.mark.parametrize(
    "time",
    [
        datetime(1890, 1, 1, tzinfo=timezone(timedelta(minutes=53, seconds=28))),
        datetime(2024, 1, 1, tzinfo=timezone(timedelta(microseconds=1))),
        datetime(1, 1, 1, tzinfo=timezone(timedelta(hours=5, seconds=1))),
        datetime(9999, 12, 31, 23, 59, 59, tzinfo=timezone(-timedelta(hours=5, seconds=1))),
    ],
)
def test_an_offset_with_seconds_is_written_as_utc(time: datetime) -> None:
    """RFC 3339 knows minutes only; where the calendar has no room for UTC the time still comes back."""
    headers = encode(Message(b"", time=time), KAFKA)
    assert decode(headers.items(), b"", None, PLACE, KAFKA).time == time
    if 1 < time.year < 9999:
        assert headers["ce_time"].endswith("+00:00")


# The official SDK.


def said(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the attributes that are not None."""
    return {name: value for name, value in attributes.items() if value is not None}


def event(attributes: Mapping[str, Any], data: bytes = b"body") -> CloudEvent:
    """Return an event of the SDK."""
    return CloudEvent(said(attributes), data)


CORE = st.fixed_dictionaries(
    {
        "id": STRICT,
        "source": URI,
        "type": STRICT,
        "time": TIMES.filter(lambda time: not (time.utcoffset() or timedelta()) % timedelta(minutes=1)),
        "subject": st.none() | STRICT,
        "datacontenttype": st.none() | st.sampled_from(["application/octet-stream", "image/png"]),
    }
)


def fields(message: Message) -> dict[str, Any]:
    """Return the context attributes of a message as the SDK names them."""
    return {
        "specversion": "1.0",
        "id": message.id,
        "source": message.source,
        "type": message.type,
        "time": message.time,
        "datacontenttype": message.content_type,
        **({} if message.subject is None else {"subject": message.subject}),
    }


@given(core=CORE, extensions=EXTENSIONS)
def test_kafka_events_of_the_sdk_are_read(core: dict[str, Any], extensions: dict[str, str]) -> None:
    """Every context attribute arrives in its field, every extension under its wire name."""
    sent = kafka.to_binary_event(event({**core, **extensions}))
    headers = [(name, value.decode()) for name, value in sent.headers.items()]
    message = decode(headers, sent.value, sent.key if isinstance(sent.key, str) else None, PLACE, KAFKA)
    core["datacontenttype"] = core["datacontenttype"] or "application/octet-stream"
    assert fields(message) == {"specversion": "1.0", **said(core)}
    assert message.attributes == {f"ce_{name}": value for name, value in extensions.items()}
    assert (message.data, message.key) == (b"body", extensions.get("partitionkey"))


@given(message=MESSAGES)
@example(message=Message(b"", attributes=dict.fromkeys(TRAPS, "x")))
@example(message=Message(b"", attributes=dict.fromkeys(TRAPS, "")))
def test_the_sdk_reads_our_kafka_events(message: Message) -> None:
    """Every field is the same there, and no attribute of the application changes or breaks one."""
    # The SDK decodes every header, its own or not, as UTF-8.
    plain = {
        name: standing_for_bytes(value).encode("utf-8", "replace").decode()
        for name, value in message.attributes.items()
    }
    message = replace(message, attributes=plain)
    headers = {name: value.encode() for name, value in encode(message, KAFKA).items()}
    read = kafka.from_binary_event(kafka.KafkaMessage(headers, message.key, message.data))
    own = {name[3:]: plain[name] for name in plain if cloudevents._is_extension(name, plain[name], KAFKA)}
    key = {} if message.key is None else {"partitionkey": message.key}
    assert read.get_attributes() == {**fields(message), **own, **key}
    body = read.get_data() or b""
    assert (body.encode() if isinstance(body, str) else body) == message.data


@given(core=CORE, extensions=EXTENSIONS)
def test_events_of_the_sdk_are_read_from_pubsub(core: dict[str, Any], extensions: dict[str, str]) -> None:
    """Pub/Sub has HTTP's names, ``ce-…`` and ``content-type``; the SDK has no binding of its own for it."""
    sent = event({**core, **extensions})
    attributes = {f"ce-{name}": value for name, value in sent.get_attributes().items()}
    attributes["ce-time"] = core["time"].isoformat()
    if "ce-datacontenttype" in attributes:
        attributes["content-type"] = attributes.pop("ce-datacontenttype")
    assert set(http.to_binary_event(sent).headers) == set(attributes)
    message = decode(attributes.items(), b"body", None, PLACE, PUBSUB)
    core["datacontenttype"] = core["datacontenttype"] or "application/octet-stream"
    assert fields(message) == {"specversion": "1.0", **said(core)}
    assert message.attributes == {f"ce-{name}": value for name, value in extensions.items()}


@given(message=MESSAGES)
def test_our_pubsub_events_are_valid(message: Message) -> None:
    """The attributes, less their prefix, make an event that the SDK accepts."""
    headers = encode(message, PUBSUB)
    named = {name.removeprefix("ce-"): value for name, value in headers.items() if name.startswith("ce-")}
    time = datetime.fromisoformat(named.pop("time"))
    made = event({**named, "time": time, "datacontenttype": headers["content-type"]}).get_attributes()
    assert {name: made[name] for name in fields(message)} == fields(message)


def test_the_content_type_that_pubsub_shows_in_its_examples_is_read() -> None:
    """The text of that binding says ``content-type``, its examples ``ce-datacontenttype``; the text wins."""
    example_of_theirs = [("ce-datacontenttype", "application/json")]
    assert decode(example_of_theirs, b"", None, PLACE, PUBSUB).content_type == "application/json"
    both = [("content-type", "image/png"), *example_of_theirs]
    assert decode(both, b"", None, PLACE, PUBSUB).content_type == "image/png"


@given(
    st.lists(st.datetimes(timezones=st.just(UTC)), min_size=1),
    st.timedeltas(timedelta(0), timedelta(seconds=2)),
)
def test_a_time_is_written_as_python_writes_it(times: list[datetime], step: timedelta) -> None:
    """Whatever second was written before it."""
    for time in times:
        for each in (time, time + step if time.year < 9999 else time, time):
            assert encode(Message(data=b"", time=each), KAFKA)["ce_time"] == each.isoformat()
