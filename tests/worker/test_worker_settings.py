"""The worker's settings and its log: what the environment says, and one line per event."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import structlog

import client.settings
from broker.drivers.options import public_url
from worker.log import configure
from worker.settings import environment, load


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing of this machine's environment counts."""
    for name in list(os.environ):
        if name.startswith(("BROKER_", "SINK_", "COUTURIER_", "LOG_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("COUTURIER_HOME", str(tmp_path))


def test_the_defaults_are_those_of_the_page(tmp_path: Path) -> None:
    """What a newcomer gets with nothing configured."""
    settings = load()
    assert (settings.topic, settings.group, settings.create) == ("images", "classifiers", True)
    assert settings.sink_url == f"sqlite:///{tmp_path}/results.db"
    assert (settings.model, settings.engine, settings.batch_size) == (None, "onnx", 128)
    assert (settings.attempts, settings.drain_timeout_s) == (5, 25.0)
    assert (settings.crashes, settings.predict_timeout_s, settings.memory_mb) == (3, 30.0, None)
    assert (settings.processes, settings.threads) == (1, 1)


def test_a_flag_wins_over_a_variable_and_a_variable_over_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty variable is one that is not set."""
    monkeypatch.setenv("COUTURIER_TOPIC", "from-variable")
    monkeypatch.setenv("COUTURIER_GROUP", "from-variable")
    monkeypatch.setenv("SINK_URL", "")
    settings = load(topic="from-flag", group=None)
    assert (settings.topic, settings.group) == ("from-flag", "from-variable")
    assert settings.sink_url.startswith("sqlite:///")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("COUTURIER_BATCH_SIZE", "0"),
        ("COUTURIER_BATCH_SIZE", "many"),
        ("COUTURIER_CREATE", "perhaps"),
        ("COUTURIER_ATTEMPTS", "-1"),
        ("COUTURIER_DRAIN_TIMEOUT", "-1"),
        ("LOG_LEVEL", "loud"),
        ("LOG_FORMAT", "xml"),
        ("COUTURIER_RESULTS_RETENTION", "inf"),
    ],
)
def test_a_value_that_does_not_work_is_named_with_its_variable(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    """Where it came from and what it was."""
    monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=f"{name}='{value}' does not work"):
        load()


def test_every_value_that_does_not_work_is_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody corrects them one by one."""
    for name in ("COUTURIER_BATCH_SIZE", "COUTURIER_CREATE", "LOG_LEVEL"):
        monkeypatch.setenv(name, "perhaps")
    with pytest.raises(ValueError, match=r"CREATE='perhaps'.*BATCH_SIZE='perhaps'.*LOG_LEVEL='perhaps'"):
        load()


def test_every_worker_process_has_a_name_of_its_own() -> None:
    """Host and process, as it stands in the rows."""
    assert load().worker_id.endswith(f"-{os.getpid()}")


def test_a_password_is_never_shown() -> None:
    """URLs are logged; what stands before the @ is not."""
    assert public_url("postgresql://bob:secret@host/db") == "postgresql://***@host/db"
    assert public_url("sqlite:////tmp/queue.db") == "sqlite:////tmp/queue.db"
    secret = "postgresql://bob:hunter2@host/db"
    assert "hunter2" not in repr(load(sink_url=secret))
    assert "hunter2" not in repr(client.settings.load(sink_url=secret))
    with pytest.raises(ValueError, match=r"jsonl:///x,mysql://\*\*\*@host/db") as error:
        client.settings.load(sink_url="jsonl:///x,mysql://bob:hunter2@host/db").results_url()
    assert "hunter2" not in str(error.value)


@pytest.fixture
def logged(capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[[], str]]:
    """Tells what was logged; the loggers are put back afterwards."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield lambda: capsys.readouterr().err
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


def test_both_kinds_of_logger_write_json_lines(logged: Callable[[], str]) -> None:
    """The broker logs with the standard library, the worker with structlog; readers see one stream."""
    configure("info", "auto")
    structlog.stdlib.get_logger("worker").info("ready", count=3)
    logging.getLogger("broker").warning("outage (try %d)", 2)
    logging.getLogger("broker").debug("not shown")
    first, second = map(json.loads, logged().splitlines())
    assert (first["event"], first["count"], first["level"], first["logger"]) == ("ready", 3, "info", "worker")
    assert first["pid"] == second["pid"] == os.getpid()  # several workers write to one place
    assert (second["event"], second["level"], second["logger"]) == ("outage (try 2)", "warning", "broker")


@pytest.mark.parametrize("form", ["json", "console"])
def test_a_strangers_text_cannot_forge_a_line(logged: Callable[[], str], form: str) -> None:
    """Ids and errors come from messages; line breaks and control codes in them stay harmless."""
    configure("info", form)
    logging.getLogger("broker").warning("message %s is dead", "x\r\n2026 forged\x1b[2J")
    structlog.stdlib.get_logger("worker").warning("conflict", first="x\nforged\x1b[2J")
    shown = logged()
    assert len(shown.splitlines()) == 2
    assert "\x1b" not in shown


def test_other_processes_are_told_what_the_flags_say(monkeypatch: pytest.MonkeyPatch) -> None:
    """A supervisor's workers see the same settings, whether they came as a flag or as a variable."""
    monkeypatch.setenv("COUTURIER_GROUP", "from-variable")
    flags = {"topic": "from-flag", "batch_size": 16, "model": Path("/a/bundle"), "processes": None}
    told = environment(**flags)
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    settings = load()
    assert (settings.topic, settings.group, settings.batch_size) == ("from-flag", "from-variable", 16)
    assert (settings.model, settings.processes) == (Path("/a/bundle"), 1)
