"""``/livez``, ``/readyz``, ``/metrics`` and ``/status`` of real worker processes, well and unwell."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
from prometheus_client.parser import text_string_to_metric_families

from broker import connect
from client.schema import ClassifyRequest
from client.status import report
from client.workers import Answer, ask, listed

PATIENCE_S = 90.0
TOPIC, GROUP = "images", "classifiers"
# A worker whose event loop stands still for a while, as in a call that somebody forgot to make elsewhere.
BLOCKED = """
import asyncio, signal, sys, time
from worker.log import configure
from worker.main import run
from worker.settings import load

async def main():
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, time.sleep, 8)
    return await run(load())

configure("info", "json")
sys.exit(asyncio.run(main()))
"""


@dataclass
class Rig:
    """A queue, a results file, and workers on them.

    Attributes:
        directory: for all of it.
        started: processes, to be ended.
    """

    directory: Path
    started: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def url(self) -> str:
        """Of the broker."""
        return f"sqlite:///{self.directory}/queue.db?lease=2"

    @property
    def results(self) -> Path:
        """The results file."""
        return self.directory / "results.db"

    @property
    def log(self) -> str:
        """What the workers said."""
        return (self.directory / "log").read_text()

    def start(self, *command: str, **env: str) -> subprocess.Popen[bytes]:
        """Start a worker."""
        ours = ("BROKER_", "SINK_", "COUTURIER_")
        clean = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
        mine = {
            "BROKER_URL": self.url,
            "SINK_URL": f"sqlite:///{self.results}",
            "COUTURIER_HOME": str(self.directory),
            "COUTURIER_LAG_INTERVAL": "0.2",
        }
        with (self.directory / "log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, *(command or ("-m", "couturier", "worker"))],
                env={**clean, **mine, **env},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
            )
        self.started.append(process)
        return process

    def ready(self, process: subprocess.Popen[bytes]) -> str:
        """Return the URL of a worker once it is ready."""

        def up() -> str:
            assert process.poll() is None, self.log
            mine = [each.url for each in listed() if each.pid == process.pid]
            return mine[0] if mine and ask(mine[0], "/readyz").code == 200 else ""

        return self.until(up)

    def until(self, met: Callable[[], Any]) -> Any:
        """Return what becomes true."""
        deadline = time.monotonic() + PATIENCE_S
        while not (found := met()):
            assert time.monotonic() < deadline, self.log
            time.sleep(0.02)
        return found

    def publish(self, pictures: list[bytes]) -> None:
        """Store images."""

        async def send() -> None:
            async with connect(self.url) as broker:
                await broker.ensure(TOPIC, GROUP)
                await broker.publish(TOPIC, [ClassifyRequest(image=each).to_message() for each in pictures])

        asyncio.run(send())


@pytest.fixture
def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    monkeypatch.setenv("COUTURIER_HOME", str(tmp_path))
    made = Rig(tmp_path)
    yield made
    for each in made.started:
        each.kill()
        each.wait()


def figure(url: str, name: str, **labels: str) -> float:
    """One sample of ``/metrics``; NaN when there is none."""
    with urlopen(f"{url}/metrics", timeout=PATIENCE_S) as reply:
        text = reply.read().decode()
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name == name and labels.items() <= sample.labels.items():
                return float(sample.value)
    return float("nan")


def test_a_worker_from_ready_to_gone(rig: Rig, pictures: list[bytes]) -> None:
    """Ready, at work, paused by a results file that is locked, well again, draining, gone."""
    worker = rig.start()
    url = rig.ready(worker)
    assert ask(url, "/livez").text == "ok"
    rig.publish(pictures[:50])
    rig.until(lambda: figure(url, "couturier_rows_total", outcome="new") == 50)
    rig.until(lambda: figure(url, "couturier_messages_consumed_total", outcome="ok") == 50)
    rig.until(lambda: figure(url, "couturier_consumer_lag_messages") == 0)
    said = ask(url, "/status").body
    assert (said["pid"], said["state"], said["held"], said["outage"]) == (worker.pid, "running", 0, None)
    assert said["totals"]["done"] == said["rows"]["rows"] == 50

    with closing(sqlite3.connect(rig.results, isolation_level=None)) as thief:
        thief.execute("BEGIN IMMEDIATE")
        rig.publish(pictures[50:80])
        rig.until(lambda: figure(url, "couturier_outage") == 1)
        unready = ask(url, "/readyz")
        assert (unready.code, "locked" in unready.text) == (503, True)
        # An outage elsewhere is no reason to end a worker.
        assert ask(url, "/livez").code == 200
        said = ask(url, "/status").body
        assert said["state"] == "paused"
        assert "locked" in said["outage"]
        assert said["held"] == figure(url, "couturier_in_flight_messages") == 30
        wanted = said["oldest_held"]["message_id"]
        assert ask(url, f"/status?message={wanted}").body["message"]["message_id"] == wanted
        assert ask(url, "/status?message=other").body["message"] is None
        worker.send_signal(signal.SIGTERM)
        rig.until(lambda: ask(url, "/status").body["state"] == "draining")
        assert ask(url, "/readyz").code == 503
        assert ask(url, "/livez").code == 200
        thief.execute("ROLLBACK")
    assert worker.wait(PATIENCE_S) == 0, rig.log
    assert listed() == []
    assert ask(url, "/livez").error


def test_an_event_loop_that_stands_still_is_told_by_a_thread_that_does_not(rig: Rig) -> None:
    """``/livez`` fails, and everything else still answers; then it is well again."""
    worker = rig.start("-c", BLOCKED)
    url = rig.ready(worker)
    worker.send_signal(signal.SIGUSR1)
    sick = rig.until(lambda: (found := ask(url, "/livez")).code == 503 and found)
    assert "the event loop has not turned for" in sick.text
    assert ask(url, "/readyz").code == 503
    assert figure(url, "couturier_in_flight_messages") == 0
    answer = ask(url, "/status")
    assert [each.reason for each in report(TOPIC, GROUP, OSError("not asked"), [answer], 60.0).stuck] == [
        "worker-frozen"
    ]
    rig.until(lambda: ask(url, "/livez").code == 200 and ask(url, "/readyz").code == 200)
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(PATIENCE_S) == 0, rig.log


def engine_of(process: subprocess.Popen[bytes]) -> list[int]:
    """The processes that a worker has started."""
    return [
        int(each) for each in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    ]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_frozen_engine_is_replaced_and_the_worker_lives(rig: Rig, pictures: list[bytes]) -> None:
    """SIGSTOP: the engine is killed for making no progress, counted, and every row is written."""
    worker = rig.start(COUTURIER_PREDICT_TIMEOUT="2")
    url = rig.ready(worker)
    before = engine_of(worker)
    assert len(before) == 1
    os.kill(before[0], signal.SIGSTOP)
    rig.publish(pictures[:20])
    rig.until(lambda: figure(url, "couturier_in_flight_messages") == 20)
    while figure(url, "couturier_engine_crashes_total") == 0:
        assert ask(url, "/livez").code == 200
        time.sleep(0.1)
    rig.until(lambda: figure(url, "couturier_rows_total", outcome="new") == 20)
    assert figure(url, "couturier_engine_restarts_total") == 1
    assert engine_of(worker) != before
    assert ask(url, "/readyz").code == 200


def test_a_taken_port_is_a_wrong_configuration(rig: Rig) -> None:
    """Exit 78 before any message is taken, and the variable is named."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        worker = rig.start(COUTURIER_HTTP_PORT=str(port))
        assert worker.wait(PATIENCE_S) == 78, rig.log
    assert f"127.0.0.1:{port}" in rig.log
    assert "COUTURIER_HTTP_PORT" in rig.log


def test_a_worker_that_was_killed_is_not_listed(rig: Rig) -> None:
    """Although nobody removed its file."""
    worker = rig.start()
    url = rig.ready(worker)
    assert [each.url for each in listed()] == [url]
    files = list((rig.directory / "workers").iterdir())
    assert json.loads(files[0].read_text())["pid"] == worker.pid
    worker.kill()
    worker.wait()
    assert rig.until(lambda: listed() == [])
    assert ask(url, "/livez") == Answer(url, error=ask(url, "/livez").error)
