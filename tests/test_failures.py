"""What a newcomer can get wrong: one clear line, the value, the next step, and the agreed exit code."""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

import classifier

from .test_demo import environment

SHIPPED = Path(classifier.__file__).parent / "assets" / "student"


@dataclass(frozen=True)
class Mistake:
    """One wrong move.

    Attributes:
        command: what is typed.
        says: what the error must contain.
        code: the exit code.
        env: what is set; ``{tmp}`` is a fresh directory.
    """

    command: str
    says: tuple[str, ...]
    code: int
    env: dict[str, str] = field(default_factory=dict)


MISTAKES = {
    "unknown backend": Mistake("worker", ("BROKER_BACKEND", "rabbitmq"), 78, {"BROKER_BACKEND": "rabbitmq"}),
    "unknown scheme": Mistake(
        "worker",
        ("BROKER_URL", "amqp://h", "kafka://, memory://, pubsub://, sqlite://"),
        78,
        {"BROKER_URL": "amqp://h"},
    ),
    "two slashes": Mistake("audit", ("BROKER_URL", "three slashes"), 78, {"BROKER_URL": "sqlite://queue.db"}),
    "unknown option": Mistake(
        "client send", ("leese", "lease"), 78, {"BROKER_URL": "sqlite:///{tmp}/q.db?leese=3"}
    ),
    "contradiction": Mistake(
        "worker",
        ("BROKER_URL", "BROKER_BACKEND"),
        78,
        {"BROKER_URL": "sqlite:///{tmp}/q.db", "BROKER_BACKEND": "memory"},
    ),
    "no project": Mistake(
        "worker", ("GOOGLE_CLOUD_PROJECT", "gcloud config set project"), 78, {"BROKER_BACKEND": "pubsub"}
    ),
    "login that is never used": Mistake(
        "worker",
        ("KAFKA_SASL_USERNAME", "KAFKA_SECURITY_PROTOCOL", "SASL_SSL"),
        78,
        {"BROKER_BACKEND": "kafka", "KAFKA_SASL_USERNAME": "bob"},
    ),
    "two addresses": Mistake(
        "audit",
        ("BROKER_URL='kafka://a:9092'", "KAFKA_BOOTSTRAP_SERVERS='b:9092'"),
        78,
        {"BROKER_URL": "kafka://a:9092", "KAFKA_BOOTSTRAP_SERVERS": "b:9092"},
    ),
    "emulator in production": Mistake(
        "worker",
        ("PUBSUB_EMULATOR_HOST", "COUTURIER_ENV"),
        78,
        {"BROKER_BACKEND": "pubsub", "PUBSUB_EMULATOR_HOST": "localhost:8085", "COUTURIER_ENV": "production"},
    ),
    "configuration that does not work": Mistake(
        "config show", ("BROKER_BACKEND", "rabbitmq", "kafka"), 78, {"BROKER_BACKEND": "rabbitmq"}
    ),
    "unknown backend of a demo": Mistake("demo --backend rabbitmq", ("--backend", "rabbitmq"), 2),
    "two brokers for a demo": Mistake(
        "demo --backend kafka", ("BROKER_URL", "BROKER_BACKEND"), 78, {"BROKER_URL": "sqlite:///{tmp}/q.db"}
    ),
    "Kafka is away": Mistake(
        "client send --images 1",
        ("kafka://127.0.0.1:1", "Connection refused", "couturier doctor"),
        69,
        {"BROKER_URL": "kafka://127.0.0.1:1"},
    ),
    "Pub/Sub is away": Mistake(
        "dlq list",
        ("127.0.0.1:1", "couturier doctor"),
        69,
        {"BROKER_BACKEND": "pubsub", "PUBSUB_EMULATOR_HOST": "127.0.0.1:1"},
    ),
    "no key file": Mistake(
        "audit",
        ("{tmp}/file", "gcloud auth application-default login"),
        69,
        {"BROKER_URL": "pubsub://proj-1", "GOOGLE_APPLICATION_CREDENTIALS": "{tmp}/file"},
    ),
    "several at once": Mistake(
        "worker",
        ("COUTURIER_CREATE='perhaps'", "COUTURIER_ATTEMPTS='0'"),
        78,
        {"COUTURIER_CREATE": "perhaps", "COUTURIER_ATTEMPTS": "0"},
    ),
    "memory in production": Mistake(
        "worker",
        ("BROKER_BACKEND", "COUTURIER_ENV"),
        78,
        {"BROKER_BACKEND": "memory", "COUTURIER_ENV": "production"},
    ),
    "memory between processes": Mistake("demo", ("one process", "sqlite"), 78, {"BROKER_BACKEND": "memory"}),
    "queue is a directory": Mistake(
        "worker", ("{tmp}", "BROKER_URL"), 69, {"BROKER_URL": "sqlite:////{tmp}"}
    ),
    "queue cannot be created": Mistake(
        "worker", ("{tmp}/file",), 69, {"BROKER_URL": "sqlite:////{tmp}/file/q.db"}
    ),
    "queue is another file": Mistake("worker", ("{tmp}/file",), 69, {"BROKER_URL": "sqlite:////{tmp}/file"}),
    "queue of another program": Mistake(
        "worker", ("another program",), 69, {"BROKER_URL": "sqlite:////{tmp}/other.db"}
    ),
    "state directory is a file": Mistake("worker", ("{tmp}/file",), 1, {"COUTURIER_HOME": "{tmp}/file"}),
    "unknown sink": Mistake("worker", ("SINK_URL", "ftp://x"), 78, {"SINK_URL": "ftp://x"}),
    "sink cannot be created": Mistake(
        "worker", ("{tmp}/file",), 1, {"SINK_URL": "sqlite:////{tmp}/file/r.db"}
    ),
    "no model": Mistake("worker", ("{tmp}/nowhere", "manifest"), 78, {"COUTURIER_MODEL": "{tmp}/nowhere"}),
    "model is a file": Mistake("worker", ("{tmp}/file",), 78, {"COUTURIER_MODEL": "{tmp}/file"}),
    "tampered model": Mistake("worker", ("model.onnx", "sha256"), 78, {"COUTURIER_MODEL": "{tmp}/tampered"}),
    "unknown engine": Mistake("worker --engine gpu", ("--engine", "gpu", "onnx"), 2),
    "not created": Mistake("worker", ("images", "COUTURIER_CREATE"), 69, {"COUTURIER_CREATE": "false"}),
    "no results yet": Mistake("results", ("results.db", "couturier worker"), 1),
    "no topic to audit": Mistake("audit", ("images",), 69),
    "no such picture": Mistake("predict {tmp}/nothing.png", ("{tmp}/nothing.png",), 2),
    "no picture at all": Mistake("predict {tmp}/file", ("PNG and JPEG",), 1),
    "nothing to send": Mistake("client send {tmp}/nothing.png", ("{tmp}/nothing.png",), 1),
    "empty folder": Mistake("client send {tmp}/empty", ("{tmp}/empty",), 1),
    "too many images": Mistake("demo --images 20000", ("--images", "10000"), 2),
    "unknown command": Mistake("demos", ("No such command",), 2),
    "no data set": Mistake("train {tmp}/empty", ("{tmp}/empty", "no PNG or JPEG file"), 1),
    "wrong data": Mistake("train {tmp}/wrong", ("{tmp}/wrong",), 1),
    "nothing sent yet": Mistake("dlq list", ("images", "couturier client send"), 69),
    "replay of what?": Mistake("dlq replay", ("--reason", "--all"), 2),
}


@pytest.fixture
def tmp(tmp_path: Path) -> Path:
    """A directory with everything that can be mistaken for something else."""
    (tmp_path / "file").write_text("just a text")
    (tmp_path / "empty").mkdir()
    (tmp_path / "wrong").mkdir()
    (tmp_path / "wrong" / "train-images-idx3-ubyte").write_bytes(b"\0\0\x08\x03" + b"\0" * 12)
    with sqlite3.connect(tmp_path / "other.db") as db:
        db.execute("CREATE TABLE invoices (id)")
    shutil.copytree(SHIPPED, tmp_path / "tampered")
    model = tmp_path / "tampered" / "model.onnx"
    data = bytearray(model.read_bytes())
    data[len(data) // 2] ^= 1
    model.write_bytes(data)
    return tmp_path


@pytest.mark.parametrize("mistake", MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_gets_one_clear_line_and_its_exit_code(tmp: Path, mistake: Mistake) -> None:
    """No traceback, and the text names the value and what to do."""
    env = {name: value.format(tmp=tmp).replace("////", "///") for name, value in mistake.env.items()}
    done = subprocess.run(
        [sys.executable, "-m", "couturier", *mistake.command.format(tmp=tmp).split()],
        env=environment(tmp / "home", **env) | env,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    said = " ".join(done.stderr.replace("│", " ").split())
    assert done.returncode == mistake.code, done.stderr
    assert "Traceback" not in done.stderr
    # The command's frame, a note about the default places, the error: no log of a client's tries.
    assert len(done.stderr.splitlines()) < 12
    for part in mistake.says:
        assert part.format(tmp=tmp).replace(" ", "") in said.replace(" ", ""), done.stderr
