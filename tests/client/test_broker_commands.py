"""``topics`` and ``broker``, as typed: the same words do the same on every backend."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

import pytest

from tests.commands import Done, Run
from tests.services import KafkaService

Typed = Callable[..., Done]
BACKENDS = [
    "sqlite",
    pytest.param("kafka", marks=pytest.mark.kafka),
    pytest.param("pubsub", marks=pytest.mark.pubsub),
]


@pytest.fixture(params=BACKENDS)
def typed(request: pytest.FixtureRequest, run: Run, tmp_path: Path) -> Typed:
    """Runs a command on a backend."""
    if request.param == "kafka":
        where = {"BROKER_URL": f"kafka://{request.getfixturevalue('kafka_service').bootstrap}"}
    elif request.param == "pubsub":
        host = request.getfixturevalue("pubsub_service").host
        where = {"BROKER_URL": f"pubsub://p-{uuid4().hex[:8]}", "PUBSUB_EMULATOR_HOST": host}
    else:
        where = {"BROKER_URL": f"sqlite:///{tmp_path}/q.db"}

    def typed(*arguments: str, code: int = 0) -> Done:
        done = run(*arguments, **where)
        assert done.returncode == code, done.stderr
        return done

    return typed


@pytest.fixture
def topic() -> str:
    return f"orders-{uuid4().hex[:8]}"


def lines(done: Done) -> list[dict[str, object]]:
    return [json.loads(line) for line in done.stdout.splitlines()]


def unsettled(typed: Typed, topic: str) -> int:
    parts = json.loads(typed("topics", "lag", topic, "--group", "billing", "--json").stdout)
    return sum(part["unsettled"] for part in parts)


def test_a_message_goes_in_is_looked_at_and_comes_out_once(typed: Typed, topic: str, tmp_path: Path) -> None:
    """With key, attributes, id and content type; --peek changes nothing, an acked message is gone."""
    made = json.loads(typed("topics", "ensure", topic, "--group", "billing", "--json").stdout)
    assert (made["topic"], made["groups"]) == (topic, ["billing"])
    text = ("--key", "k-1", "--attribute", "a=b=c", "--attribute", "empty=", "--id", "m-1")
    stored = typed("broker", "publish", topic, "grüße", *text, "--content-type", "text/x-greeting", "--json")
    assert [each["id"] for each in lines(stored)] == ["m-1"]
    (tmp_path / "a.png").write_bytes(b"\x89PNG\xff\x00")
    typed("broker", "publish", topic, "--file", str(tmp_path / "a.png"))

    peeked = lines(typed("broker", "consume", topic, "--group", "billing", "--peek", "--json"))
    greeting, picture = sorted(peeked, key=lambda each: "data_base64" in each)
    assert (greeting["id"], greeting["key"], greeting["data"]) == ("m-1", "k-1", "grüße")
    assert greeting["attributes"] == {"a": "b=c", "empty": ""}
    assert greeting["content_type"] == "text/x-greeting"
    assert (picture["data_base64"], picture["content_type"]) == ("iVBOR/8A", "image/png")
    assert unsettled(typed, topic) == 2

    most = ("--max", "2", "--timeout", "30", "--json")
    taken = lines(typed("broker", "consume", topic, "--group", "billing", *most))
    assert sorted(each["id"] for each in taken) == sorted(each["id"] for each in peeked)
    assert unsettled(typed, topic) == 0
    again = typed("broker", "consume", topic, "--group", "billing", "--timeout", "0.5")
    assert again.stdout == ""


def test_at_most_so_many_are_taken(typed: Typed, topic: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Standard input, line by line; what --max leaves is still there."""
    typed("topics", "ensure", topic, "--group", "billing", "--partitions", "1")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"one\ntwo\nthree\n")))
    assert len(typed("broker", "publish", topic, "--lines").stdout.splitlines()) == 3
    taken = typed("broker", "consume", topic, "--group", "billing", "--max", "2", "--timeout", "30")
    assert len(taken.stdout.splitlines()) == 4  # a line of facts and one of the body, each
    assert unsettled(typed, topic) == 1


@pytest.mark.parametrize(
    ("given", "options", "code", "bodies"),
    [
        (b"a\rb\r\nc\n\nd\r", ("--lines",), 0, ["a\rb", "c", "", "d\r"]),
        (b"a\n", (), 0, ["a\n"]),
        (b"", (), 2, []),
        (b"", ("",), 0, [""]),
    ],
    ids=["lines", "whole", "nothing", "said to be empty"],
)
def test_the_input_is_taken_as_it_is(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    given: bytes, options: tuple[str, ...], code: int, bodies: list[str],
) -> None:  # fmt: skip
    """A line ends at a line feed and nowhere else; nothing at all is no message unless one says so."""
    where = {"BROKER_URL": f"sqlite:///{tmp_path}/q.db"}
    run("topics", "ensure", "t", "--group", "g", **where)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(given)))
    assert run("broker", "publish", "t", *options, **where).returncode == code
    peeked = run("broker", "consume", "t", "--group", "g", "--peek", "--json", **where)
    assert [each["data"] for each in lines(peeked)] == bodies


def test_topics_are_listed_with_their_groups(typed: Typed, topic: str) -> None:
    """And --partitions counts where there are any."""
    typed("topics", "ensure", topic, "--group", "billing", "--group", "archive", "--partitions", "3")
    found = json.loads(typed("topics", "list", "--json").stdout)
    (mine,) = (each for each in found if each["topic"] == topic)
    assert mine["groups"] == ["archive", "billing"]
    assert mine["partitions"] in (3, None)
    assert topic in typed("topics", "list").stdout
    lag = json.loads(typed("topics", "lag", topic, "--json").stdout)
    assert {each["group"] for each in lag} == {"archive", "billing"}
    assert len(lag) == 2 * (mine["partitions"] or 1)
    assert "0 message(s) not finished" in typed("topics", "lag", topic).stdout


def test_what_does_not_exist_is_a_clear_error(typed: Typed, topic: str) -> None:
    """Nothing is made on the way; the next command is named."""
    for command in (
        ("topics", "lag", topic),
        ("broker", "publish", topic, "x"),
        ("broker", "consume", topic, "--group", "billing"),
        ("broker", "consume", topic, "--group", "billing", "--peek"),
    ):
        said = typed(*command, code=69).stderr
        assert topic in said
        assert f"couturier topics ensure {topic} --group " in said


def test_a_ping_says_who_answers(typed: Typed) -> None:
    """And how fast, in milliseconds."""
    found = json.loads(typed("broker", "ping", "--json").stdout)
    assert found["round_trip_ms"] > 0
    assert found["connect_ms"] > 0
    assert found["address"].startswith(f"{found['backend']}://")
    assert found["address"] in typed("broker", "ping").stdout


@pytest.mark.parametrize(
    ("where", "code", "text"),
    [
        ({"BROKER_URL": "kafka://127.0.0.1:1"}, 69, "Connection refused"),
        ({"BROKER_URL": "pubsub://p", "PUBSUB_EMULATOR_HOST": "127.0.0.1:1"}, 69, "127.0.0.1:1"),
        ({"BROKER_URL": "kafka://bob:hunter2@h:1"}, 78, "KAFKA_SASL"),
        ({"BROKER_BACKEND": "pubsub"}, 78, "GOOGLE_CLOUD_PROJECT"),
    ],
    ids=["kafka", "pubsub", "password in the URL", "no project"],
)
def test_a_broker_that_does_not_answer_is_one_line_within_seconds(
    run: Run, where: dict[str, str], code: int, text: str
) -> None:
    """The address, the reason as far as it is known, the next command; no password."""
    done = run("broker", "ping", "--timeout", "1", **where)
    assert done.returncode == code
    assert text in done.stderr
    assert "hunter2" not in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert code == 78 or "couturier doctor" in done.stderr


@pytest.mark.kafka
def test_a_refused_login_is_one_line(run: Run, kafka_service: KafkaService) -> None:
    """Told by the broker, within seconds, without the password."""
    login = {"KAFKA_SASL_MECHANISM": "PLAIN", "KAFKA_SASL_USERNAME": "bob", "KAFKA_SASL_PASSWORD": "hunter2"}
    where = {"BROKER_URL": f"kafka://{kafka_service.bootstrap}", "KAFKA_SECURITY_PROTOCOL": "SASL_PLAINTEXT"}
    done = run("broker", "ping", "--timeout", "30", **login, **where)
    assert done.returncode == 69
    assert "SASL" in done.stderr
    assert "hunter2" not in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("publish", "t", "x", "--attribute", "a"), "NAME=VALUE"),
        (("publish", "t", "x", "--file", "pyproject.toml"), "exclude each other"),
        (("publish", "t", "--lines", "--id", "x"), "--id names one"),
        (("publish", "bad name", "x"), "'bad name': a name is a letter"),
        (("consume", "t", "--group", "bad name"), "'bad name': a name is a letter"),
        (("consume", "t"), "--group"),
        (("consume", "t", "--group", "g", "--max", "0"), "--max"),
    ],
)
def test_wrong_use_is_explained(run: Run, arguments: tuple[str, ...], text: str) -> None:
    """Before anything is connected to."""
    done = run("broker", *arguments, BROKER_URL="kafka://127.0.0.1:1")
    assert done.returncode == 2
    assert text in " ".join(done.stderr.replace("│", " ").split())


def test_what_the_broker_refuses_is_said_and_the_rest_is_stored(run: Run, tmp_path: Path) -> None:
    """A body over the limit; exit code 1."""
    where = {"BROKER_URL": f"sqlite:///{tmp_path}/q.db"}
    run("topics", "ensure", "images", "--group", "billing", **where)
    (tmp_path / "small").write_bytes(b"x")
    with (tmp_path / "large").open("wb") as file:
        file.truncate(65 * 1024 * 1024)
    files = ("--file", str(tmp_path / "small"), "--file", str(tmp_path / "large"))
    done = run("broker", "publish", "images", *files, "--json", **where)
    assert done.returncode == 1
    assert "the backend takes at most" in done.stderr
    assert len(lines(done)) == 1
    peeked = run("broker", "consume", "images", "--group", "billing", "--peek", "--json", **where)
    assert [each["data"] for each in lines(peeked)] == ["x"]
