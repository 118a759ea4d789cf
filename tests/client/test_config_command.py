"""``config show`` and ``config reference``: all variables, and none of their secrets."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import couturier
from client.config_cli import SETTINGS, markdown, variables

PLACES = [*SETTINGS, "worker.settings:WorkerSettings"]
NAMES = [each.name for each in variables(PLACES, {})]
PAGE = Path(__file__).resolve().parent.parent.parent / "docs" / "configuration.md"
MASK = "**********"
CANARY = "hunter2"
LOGIN = {
    "BROKER_BACKEND": "kafka",
    "KAFKA_SECURITY_PROTOCOL": "SASL_SSL",
    "KAFKA_SASL_MECHANISM": "PLAIN",
    "KAFKA_SASL_USERNAME": "bob",
    "KAFKA_SASL_PASSWORD": CANARY,
}


class Shown:
    """What ``config show`` said.

    Attributes:
        code: its exit code.
        out: standard output.
        err: standard error.
    """

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    def value(self, name: str) -> tuple[str, str]:
        """Return source and value of a variable, as the lines have it."""
        (line,) = [each for each in self.out.splitlines() if each.split()[1:2] == [name]]
        source, _, value = line.split(None, 2)
        return source, value

    def json(self) -> dict[str, Any]:
        """Return the object on standard output, variables by name."""
        found: dict[str, Any] = json.loads(self.out)
        return found | {"variables": {each["name"]: each for each in found["variables"]}}


Show = Callable[..., Shown]


@pytest.fixture
def show(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Show:
    """Runs the command in this process, with these variables and no others."""
    for name in [*os.environ]:
        if name.upper() in NAMES:
            monkeypatch.delenv(name)
    monkeypatch.setenv("COUTURIER_HOME", str(tmp_path / "home"))

    def run(*arguments: str, **more: str) -> Shown:
        with monkeypatch.context() as patch:
            patch.setattr(sys, "argv", ["couturier", "config", *(arguments or ["show"])])
            for name, value in more.items():
                patch.setenv(name, value)
            with pytest.raises(SystemExit) as end:
                couturier.main()
        return Shown(end.value.code or 0, *capsys.readouterr())  # type: ignore[arg-type]

    return run


def test_a_newcomer_sees_defaults_and_where_the_queue_is(show: Show, tmp_path: Path) -> None:
    """Every variable in one line each; nothing is created by looking."""
    shown = show()
    assert shown.code == 0, shown.err
    assert shown.value("COUTURIER_TOPIC") == ("default", "images")
    assert shown.value("COUTURIER_HOME") == ("environment", str(tmp_path / "home"))
    assert shown.value("KAFKA_SASL_PASSWORD") == ("default", "(not set)")
    assert f"sqlite:///{tmp_path}/home/queue.db" in shown.out
    for name in NAMES:
        assert shown.value(name)
    assert not (tmp_path / "home").exists()


def test_machines_get_the_same_as_json(show: Show, tmp_path: Path) -> None:
    """Source, readers and meaning of each variable, and what follows."""
    shown = show("show", "--json", COUTURIER_BATCH_SIZE="7", couturier_group="lower", LOG_LEVEL="")
    found = shown.json()
    assert shown.code == 0, shown.err
    assert found["error"] is None
    assert found["broker_url"] == f"sqlite:///{tmp_path}/home/queue.db"
    assert list(found["variables"]) == NAMES
    assert found["variables"]["COUTURIER_BATCH_SIZE"] == {
        "name": "COUTURIER_BATCH_SIZE",
        "value": "7",
        "source": "environment",
        "secret": False,
        "read_by": ["worker"],
        "description": "most images at once",
    }
    assert found["variables"]["COUTURIER_GROUP"]["value"] == "lower"
    assert found["variables"]["COUTURIER_TOPIC"]["read_by"] == ["client", "worker"]
    assert found["variables"]["LOG_LEVEL"]["source"] == "default"


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"BROKER_BACKEND": "rabbit"}, "BROKER_BACKEND='rabbit'"),
        ({"BROKER_URL": "sqlite:///q.db?leese=5"}, "'leese'"),
        ({"BROKER_URL": "amqp://host"}, "amqp://host"),
        ({"COUTURIER_BATCH_SIZE": "none"}, "COUTURIER_BATCH_SIZE='none'"),
        ({"COUTURIER_CREATE": "perhaps"}, "COUTURIER_CREATE='perhaps'"),
        ({"BROKER_CLAIM_CHECK_RETENTION": "-1"}, "BROKER_CLAIM_CHECK_RETENTION='-1'"),
        ({"BROKER_URL": "kafka://a:1", "KAFKA_BOOTSTRAP_SERVERS": "b:1"}, "KAFKA_BOOTSTRAP_SERVERS='b:1'"),
        ({"COUTURIER_ENGINE": "tpu"}, "COUTURIER_ENGINE='tpu'"),
        ({"COUTURIER_GROUP": "bad name"}, "COUTURIER_GROUP='bad name'"),
        ({"SINK_URL": "carrier-pigeon:x"}, "SINK_URL='carrier-pigeon:x'"),
        ({"BROKER_BACKEND": "pubsub"}, "gcloud config set project"),
    ],
)
def test_what_does_not_work_is_said_and_exits_78(show: Show, variables: dict[str, str], said: str) -> None:
    """With all variables beside it, because that is what one needs to see now."""
    for arguments in ([], ["show", "--json"]):
        shown = show(*arguments, **variables)
        assert shown.code == 78
        assert said in shown.err
        assert len(shown.err.splitlines()) == 1
        assert shown.err.count(said) == 1
        for value in variables.values():
            assert value in shown.out
    assert said in shown.json()["error"]


def test_every_package_has_its_say(show: Show) -> None:
    """Nobody wants to meet errors one by one."""
    shown = show(BROKER_BACKEND="rabbit", LOG_LEVEL="loud")
    assert shown.code == 78
    assert "BROKER_BACKEND='rabbit'" in shown.err
    assert "LOG_LEVEL='loud'" in shown.err


SECRETS = {
    "password": LOGIN,
    "key password": {
        "BROKER_URL": "kafka://a:1",
        "KAFKA_SECURITY_PROTOCOL": "SSL",
        "KAFKA_SSL_KEY_PASSWORD": CANARY,
    },
    "JSON": {**LOGIN, "KAFKA_CLIENT_CONFIG": json.dumps({"ssl.key.pem": CANARY, "ssl.key.password": CANARY})},
    "contradicting JSON": {**LOGIN, "KAFKA_CLIENT_CONFIG": '{"sasl.password": "other-hunter2"}'},
    "broken JSON": {"BROKER_BACKEND": "kafka", "KAFKA_CLIENT_CONFIG": '{"sasl.password": "hunter2'},
    "nested JSON": {"BROKER_BACKEND": "kafka", "KAFKA_CLIENT_CONFIG": '{"a": {"b": "hunter2"}}'},
    "unused login": {"KAFKA_SASL_PASSWORD": CANARY, "BROKER_BACKEND": "kafka"},
    "URL": {"BROKER_URL": f"kafka://bob:{CANARY}@a:1"},
    "URL without scheme": {"BROKER_URL": f"bob:{CANARY}@a:1"},
    "URL of a stranger": {"BROKER_URL": f"amqp://bob:{CANARY}@a:1"},
    "option": {"BROKER_URL": f"sqlite:///q.db?password={CANARY}"},
    "hosts": {"BROKER_BACKEND": "kafka", "KAFKA_BOOTSTRAP_SERVERS": f"bob:{CANARY}@a:1"},
    "claim check": {"BROKER_CLAIM_CHECK_URL": f"s3://bob:{CANARY}@bucket"},
    "sink": {"SINK_URL": f"postgresql://bob:{CANARY}@db/results?password={CANARY}"},
}


@pytest.mark.parametrize("variables", SECRETS.values(), ids=SECRETS)
def test_no_secret_is_ever_shown(
    show: Show, variables: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    """Wherever it was put, whether the configuration works or not."""
    caplog.set_level(0)
    for arguments in ([], ["show", "--json"], ["reference"]):
        shown = show(*arguments, **variables)
        assert shown.code in (0, 78)
        assert CANARY not in shown.out + shown.err + caplog.text
        if not arguments:
            assert "***" in shown.out


def test_what_is_no_secret_stays_readable(show: Show) -> None:
    """An operator must see which keys are set, and who logs in."""
    shown = show(**LOGIN, KAFKA_CLIENT_CONFIG='{"linger.ms": 5, "ssl.key.pem": "hunter2"}')
    assert shown.value("KAFKA_SASL_USERNAME") == ("environment", "bob")
    assert shown.value("KAFKA_SASL_PASSWORD") == ("environment", MASK)
    assert shown.value("KAFKA_CLIENT_CONFIG")[1] == f'{{"linger.ms": 5, "ssl.key.pem": "{MASK}"}}'
    assert "kafka://localhost:9092" in shown.out


def test_a_value_cannot_steer_the_terminal(show: Show) -> None:
    """Control codes in a variable stay harmless, and one variable is one line."""
    shown = show(COUTURIER_TOPIC="x\n\x1b[2Jforged")
    assert shown.value("COUTURIER_TOPIC")[1] == "x??[2Jforged"


def test_the_page_lists_every_variable() -> None:
    """``docs/configuration.md`` is what the settings say; to mend it: ``couturier config reference``."""
    table = PAGE.read_text().split("<!-- couturier config reference -->\n")[1].split("<!-- end -->")[0]
    assert table == markdown(PLACES)


def test_the_reference_is_the_same_everywhere(show: Show) -> None:
    """No value of this machine's environment gets into the page."""
    shown = show("reference", COUTURIER_TOPIC="other", SINK_URL="console:", XDG_STATE_HOME="/elsewhere")
    assert shown.out == markdown(PLACES)
    assert "$COUTURIER_HOME/results.db" in shown.out
