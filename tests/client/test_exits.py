"""How a command ends: exit codes by cause, and a Kafka client that does not talk over the error."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from broker import BrokerError, DeadlineExceeded, NotFound, PermissionDenied, Unavailable
from classifier import validation_set
from client.errors import StoreError
from client.exits import exit_code, last_words, listen
from client.schema import encode_png

FAIL = "FAIL [rdkafka#producer-1] [thrd:h:1/bootstrap]: h:1/bootstrap: refused (after {}ms in state CONNECT)"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (BrokerError("x"), 69),
        (Unavailable("x"), 69),
        (DeadlineExceeded("a call took too long; no drain did"), 69),
        (StoreError("x"), 1),
        (OSError("x"), 1),
        (ValueError("x"), 78),
        (KeyboardInterrupt(), 130),
        (UnicodeDecodeError("utf-8", b"", 0, 1, "a bug of ours"), None),
        (KeyError("a bug of ours"), None),
    ],
    ids=lambda each: type(each).__name__ if isinstance(each, BaseException) else str(each),
)
def test_a_cause_has_one_exit_code(error: BaseException, code: int | None) -> None:
    """As the documentation lists them."""
    assert exit_code(error) == code


def test_the_next_command_is_named() -> None:
    """The library advises calls; who types needs commands."""
    call = "topic 'x' does not exist; create it with `await broker.ensure('x'{})`"
    said = (
        "topic 'x' does not exist; `couturier topics ensure x --group {}` creates it, as do"
        " `couturier worker` and `couturier client send`, unless COUTURIER_CREATE=false"
    )
    assert last_words(NotFound(call.format(""))) == said.format("GROUP")
    assert last_words(NotFound(call.format(", group='g'"))) == said.format("g")
    assert last_words(PermissionDenied("no")) == "no; `couturier doctor` looks closer"
    assert last_words(Unavailable("away"), "h:1: refused").startswith("away (h:1: refused); ")
    assert last_words(Unavailable("away: h:1: refused"), "h:1: refused").count("refused") == 1
    assert last_words(ValueError("x"), "refused") == "x"


@pytest.fixture
def logger() -> Iterator[logging.Logger]:
    """The Kafka client's logger, put back afterwards."""
    logger = logging.getLogger("broker.kafka")
    filters, handlers = logger.filters[:], logger.handlers[:]
    yield logger
    logger.filters[:], logger.handlers[:] = filters, handlers


def test_the_kafka_client_says_a_thing_once(
    logger: logging.Logger, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """It tries ten times a second; what it said last is kept for the error."""
    words = listen()
    for milliseconds in range(20):
        logger.error(FAIL.format(milliseconds))
    logger.warning("GETPID [rdkafka#producer-1] [thrd:main]: retrying")
    logger.error("FAIL [rdkafka#producer-1] [thrd:h:1/bootstrap]: h:1/bootstrap: refused again")
    assert len(caplog.records) == 3
    assert words.last == "h:1/bootstrap: refused again"
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("command", [("config", "show"), ("predict", "1.png")], ids=" ".join)
def test_a_reader_that_leaves_ends_a_command_without_a_word(
    command: tuple[str, ...], tmp_path: Path, env: dict[str, str]
) -> None:
    """As in ``couturier predict photos/ | head -1``: no error, no traceback, the end of every filter."""
    image = validation_set().images[0]
    (tmp_path / "1.png").write_bytes(encode_png(image))
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-m", "couturier", *command],
        stdout=writing,
        stderr=subprocess.PIPE,
        cwd=tmp_path,
        env=env,
        check=False,
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (-signal.SIGPIPE, b"")
