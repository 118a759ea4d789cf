"""``doctor``: what it finds on every backend, what it advises, and what it never shows."""

from __future__ import annotations

import json
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from broker import connect
from client.workers import ask, listed
from tests.commands import Run, env, run
from tests.services import KafkaService, PostgresService, PubSubService
from worker import doctor_broker, doctor_self
from worker.settings import load

__all__ = ["env", "run"]


def findings(run: Run, *options: str, code: int = 0, **where: str) -> dict[str, dict[str, str]]:
    """Return what it found, by name."""
    done = run("doctor", "--json", *options, **where)
    assert done.returncode == code, done.stdout + done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return {each["what"]: each for each in found}


def test_a_newcomer_needs_nothing(run: Run) -> None:
    """The embedded queue, a round trip through it, and what is not there yet."""
    found = findings(run, "--probe")
    assert {each["state"] for name, each in found.items() if name not in ("training data", "torch")} == {
        "ok",
        "missing",
    }
    assert found["broker"]["detail"].startswith("sqlite at sqlite:////")
    assert found["topic"]["next"] == "`couturier topics ensure images --group classifiers`"
    assert "received and acknowledged" in found["round trip"]["detail"]


def test_text_for_people_says_what_to_do_next(run: Run) -> None:
    """One line for each finding, one for each advice."""
    shown = run("doctor").stdout
    assert "missing  topic" in shown
    assert "next: `couturier topics ensure" in shown


@pytest.mark.kafka
def test_on_kafka_it_knows_partitions_and_login(run: Run, kafka_service: KafkaService) -> None:
    """More workers than partitions is a warning, since some would get nothing."""
    topic = f"orders-{uuid4().hex[:8]}"
    where = {"BROKER_URL": f"kafka://{kafka_service.bootstrap}", "COUTURIER_TOPIC": topic}
    assert findings(run, **where)["topic"]["state"] == "missing"
    made = run("topics", "ensure", topic, "--group", "classifiers", "--partitions", "3", **where)
    assert made.returncode == 0, made.stderr
    found = findings(run, "--workers", "5", "--probe", **where)
    assert found["topic"]["state"] == "warning"
    assert "2 would get nothing" in found["topic"]["detail"]
    assert "--partitions 5" in found["topic"]["next"]
    assert "no login" in found["credentials"]["detail"]
    assert kafka_service.bootstrap in found["broker"]["detail"]
    assert "1,000,000 bytes" in found["limits"]["detail"]
    assert found["round trip"]["state"] == "ok"
    assert found["clock"]["state"] == "skipped"
    assert findings(run, "--workers", "3", **where)["topic"]["state"] == "ok"


@pytest.mark.pubsub
def test_on_pubsub_it_tells_the_emulator_and_compares_clocks(run: Run, pubsub_service: PubSubService) -> None:
    """What forgets everything is a warning; the service's clock is compared with ours."""
    where = {"BROKER_URL": f"pubsub://p-{uuid4().hex[:8]}", "PUBSUB_EMULATOR_HOST": pubsub_service.host}
    found = findings(run, "--probe", COUTURIER_CREATE="false", code=1, **where)
    assert found["broker"]["state"] == "warning"
    assert "emulator" in found["broker"]["detail"]
    assert found["credentials"]["detail"] == "the emulator asks for none"
    assert "of the broker's" in found["clock"]["detail"]
    assert found["topic"]["state"] == "failed"
    assert "COUTURIER_CREATE=false" in found["topic"]["detail"]
    run("topics", "ensure", "images", "--group", "classifiers", **where)
    assert findings(run, COUTURIER_CREATE="false", **where)["topic"]["state"] == "ok"


def test_it_makes_no_result_topic_where_nothing_is_to_be_made(run: Run, tmp_path: Path) -> None:
    """As a worker would not."""
    where = {"BROKER_URL": f"sqlite:///{tmp_path}/q.db", "SINK_URL": "topic:answers"}
    assert run("topics", "ensure", "images", "--group", "classifiers", **where).returncode == 0
    found = findings(run, COUTURIER_CREATE="false", code=1, **where)
    assert found["results"]["state"] == "failed"
    assert "COUTURIER_CREATE=false makes none" in found["results"]["detail"]
    assert findings(run, **where)["results"]["state"] == "ok"


@pytest.mark.anyio
async def test_a_slow_probe_takes_nothing_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The broker answered in time: what was found stands, whatever becomes of the probe."""
    monkeypatch.setenv("BROKER_URL", f"sqlite:///{tmp_path}/q.db")
    monkeypatch.setattr(doctor_broker, "_CONNECT_S", 3.0)
    monkeypatch.setattr(doctor_broker, "_PROBE_S", 4.0)
    async with connect() as broker:
        await broker.ensure("images", "classifiers")
    with closing(sqlite3.connect(tmp_path / "q.db", isolation_level=None)) as thief:
        thief.execute("CREATE TRIGGER steal AFTER INSERT ON messages BEGIN DELETE FROM messages; END")
    found = {each.what: each for each in await doctor_broker.examine_broker(load(), 1, probe=True)}
    assert {name: each.state for name, each in found.items()} == {
        "broker": "ok",
        "topic": "ok",
        "limits": "ok",
        "round trip": "failed",
    }
    assert "within 4 s" in found["round trip"].detail


@pytest.mark.parametrize(
    ("where", "what", "text", "advice"),
    [
        (
            {"BROKER_URL": "pubsub://p", "PUBSUB_EMULATOR_HOST": "127.0.0.1:1"},
            "broker",
            "127.0.0.1:1",
            "ping",
        ),
        ({"BROKER_URL": "kafka://127.0.0.1:1"}, "broker", "Connection refused", "KAFKA_BOOTSTRAP_SERVERS"),
        ({"BROKER_BACKEND": "pubsub"}, "broker", "GOOGLE_CLOUD_PROJECT", "config show"),
        ({"COUTURIER_BATCH_SIZE": "0", "LOG_LEVEL": "loud"}, "settings", "LOG_LEVEL", "config show"),
        ({"COUTURIER_TOPIC": "bad name"}, "settings", "COUTURIER_TOPIC='bad name'", "config show"),
        (
            {"BROKER_URL": "kafka://127.0.0.1:1", "KAFKA_CLIENT_CONFIG": '{"linger.mss": 5}'},
            "broker",
            'settings: No such configuration property: "linger.mss"; see KAFKA_CLIENT_CONFIG',
            "config show",
        ),
    ],
    ids=["pubsub", "kafka", "no project", "settings", "topic", "client key"],
)
def test_what_fails_comes_with_its_reason_and_the_next_step(
    run: Run, where: dict[str, str], what: str, text: str, advice: str
) -> None:
    """Exit code 1."""
    failed = findings(run, code=1, **where)[what]
    assert failed["state"] == "failed"
    assert text in failed["detail"]
    assert advice in failed["next"]


def test_refused_credentials_are_told_from_a_broker_that_is_away(run: Run, tmp_path_factory: Any) -> None:
    """A key file that is none."""
    file = tmp_path_factory.mktemp("keys") / "key.json"
    file.write_text("{}")
    where = {"BROKER_URL": "pubsub://proj-1", "GOOGLE_APPLICATION_CREDENTIALS": str(file)}
    failed = findings(run, code=1, **where)["credentials"]
    assert failed["state"] == "failed"
    assert str(file) in failed["detail"]


def test_no_password_is_ever_shown(run: Run) -> None:
    """Neither in what works nor in what does not."""
    done = run("doctor", SINK_URL="postgresql://bob:hunter2@host/db", BROKER_URL="kafka://bob:hunter2@host:1")
    assert done.returncode == 1
    assert "postgresql://***@host/db" in done.stdout
    assert "hunter2" not in done.stdout + done.stderr


def test_a_postgresql_sink_is_opened(run: Run, postgres_service: PostgresService) -> None:
    """It connects and finds, or makes, the table."""
    url = postgres_service.new_database()
    found = findings(run, SINK_URL=url)["results"]
    assert found["state"] == "ok"
    assert "can be written" in found["detail"]
    missing = findings(run, code=1, SINK_URL="postgresql://bob:hunter2@127.0.0.1:1/db")["results"]
    assert missing["state"] == "failed"
    assert "hunter2" not in str(missing)


PATIENCE_S = 90.0


@pytest.fixture
def worker(env: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Iterator[subprocess.Popen[bytes]]:
    """A real worker that is ready; it runs on the embedded queue."""
    monkeypatch.setenv("COUTURIER_HOME", env["COUTURIER_HOME"])
    with subprocess.Popen(
        [sys.executable, "-m", "couturier", "worker"], env=env, stderr=subprocess.PIPE
    ) as process:
        deadline = time.monotonic() + PATIENCE_S
        while not (found := listed()) or ask(found[0].url, "/readyz").code != 200:
            assert process.poll() is None, process.stderr and process.stderr.read()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        yield process
        process.kill()


def test_of_itself_it_knows_the_workers_that_run_here(
    run: Run, worker: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Well, of another version, and hanging."""
    found = findings(run, "--self")
    assert found["worker"]["state"] == "ok"
    assert "running, couturier" in found["worker"]["detail"]
    assert "all use student" in found["models"]["detail"]
    assert {"files", "disk", "memory", "cores", "clock"} <= set(found)
    monkeypatch.setattr(doctor_self, "version", lambda _: "99.9")
    other = findings(run, "--self")["worker"]
    assert (other["state"], "this is 99.9" in other["detail"]) == ("warning", True)
    worker.send_signal(signal.SIGSTOP)
    frozen = findings(run, "--self", code=1)["worker"]
    assert (frozen["state"], "does not answer" in frozen["detail"]) == ("failed", True)
    assert f"kill -KILL {worker.pid}" in frozen["next"]
    worker.send_signal(signal.SIGCONT)


def test_of_itself_without_workers(run: Run) -> None:
    """It says how to start one, and looks at no broker."""
    found = findings(run, "--self", BROKER_URL="kafka://127.0.0.1:1")
    assert (found["workers"]["state"], "couturier worker" in found["workers"]["next"]) == ("missing", True)
    assert "broker" not in found
    assert run("doctor", "--self", "--probe").returncode == 2


def test_of_the_machine_it_knows_what_is_scarce(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk fails; small limits of memory, cores and files warn."""
    (tmp_path / "memory.max").write_text("104857600\n")
    (tmp_path / "cpu.max").write_text("50000 100000\n")
    monkeypatch.setattr(doctor_self, "_CGROUP", tmp_path)
    monkeypatch.setattr(doctor_self, "_FILES", 10**9)
    monkeypatch.setattr(doctor_self, "_FULL_DISK_BYTES", shutil.disk_usage(tmp_path).total * 2)
    monkeypatch.setattr(doctor_self, "_LOW_DISK_BYTES", shutil.disk_usage(tmp_path).total * 2)
    sink = f"jsonl:///{tmp_path}/rows.jsonl"
    found = findings(run, "--self", code=1, SINK_URL=sink)
    assert {name: found[name]["state"] for name in ("files", "disk", "memory", "cores")} == {
        "files": "warning",
        "disk": "failed",
        "memory": "warning",
        "cores": "warning",
    }
    assert "0.1 GiB in this container" in found["memory"]["detail"]
    assert "0.5 core(s)" in found["cores"]["detail"]
    assert "results" in found["disk"]["detail"]
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "cpu.max").write_text("max 100000\n")
    found = findings(run, "--self", code=1, SINK_URL=sink)
    assert "this machine" in found["memory"]["detail"]
