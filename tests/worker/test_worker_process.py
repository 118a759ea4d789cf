"""Worker processes as they are run: started by hand, stopped by signals, killed at any moment."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path

import pytest
from dying_worker import STAGES

from broker import connect, dead_letter_topic
from broker.message import GroupStats
from classifier import Classifier, Prediction
from client import Submission
from client.results import ResultsReader
from client.schema import ResultRow
from client.sources.fashion_mnist import FashionMnist

pytestmark = pytest.mark.anyio

TOPIC, GROUP = "images", "classifiers"
LEASE_S = 1.0
PATIENCE_S = 60.0


class Rig:
    """One queue file and one results file, and the processes that a test starts on them."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.url = f"sqlite:///{directory}/queue.db?lease={LEASE_S}"
        self.results = directory / "results.db"
        self.started: list[subprocess.Popen[bytes]] = []
        ours = ("BROKER_", "SINK_", "COUTURIER_")
        self.env = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
        self.env |= {"BROKER_URL": self.url, "SINK_URL": f"sqlite:///{self.results}"}

    def start(self, *command: str, **env: str) -> subprocess.Popen[bytes]:
        """Start a command of Python in a state directory of its own, with its log in a file."""
        name = f"process-{len(self.started)}"
        home = {"COUTURIER_HOME": str(self.directory / name)}
        with (self.directory / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, *command],
                env={**self.env, **home, **env},
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=log,
            )
        self.started.append(process)
        return process

    async def worker(self, *options: str, **env: str) -> subprocess.Popen[bytes]:
        """Start a worker and return when it is about to receive."""
        ready = self.directory / f"ready-{len(self.started)}"
        process = self.start("-m", "couturier", "worker", "--ready-file", str(ready), *options, **env)
        await self.until(lambda: ready.exists() or process.poll() is not None)
        assert ready.exists(), self.log_of(process)
        return process

    def log_of(self, process: subprocess.Popen[bytes]) -> str:
        """What a process said."""
        return (self.directory / f"process-{self.started.index(process)}.log").read_text()

    def events(self, process: subprocess.Popen[bytes]) -> dict[str, dict[str, object]]:
        """The structured lines of a worker's log, by event."""
        lines = [line for line in self.log_of(process).splitlines() if line.startswith("{")]
        return {each["event"]: each for each in map(json.loads, lines)}

    async def publish(self, submissions: Sequence[Submission]) -> list[str]:
        """Publish images; return their ids."""
        async with connect(self.url) as broker:
            await broker.ensure(TOPIC, GROUP)
            messages = [each.request.to_message() for each in submissions]
            await broker.publish(TOPIC, messages)
        return [each.id for each in messages]

    async def stats(self) -> GroupStats:
        """What the group has before it."""
        async with connect(self.url) as broker:
            return await broker.stats(TOPIC, GROUP)

    async def letters(self) -> dict[str, str]:
        """Dead letters: id to reason."""
        async with connect(self.url) as broker:
            return {
                each.message.id: each.message.attributes["couturier-reason"]
                async for each in broker.browse(dead_letter_topic(TOPIC, GROUP), "operators")
            }

    async def settled(self) -> bool:
        """Whether nothing is left in the queue."""
        return (await self.stats()).unsettled == 0

    def count(self) -> int:
        """Rows so far."""
        if not self.results.exists():
            return 0
        with closing(sqlite3.connect(self.results, timeout=30)) as db:
            try:
                return int(db.execute("SELECT count(*) FROM results").fetchone()[0])
            except sqlite3.OperationalError:
                return 0

    def rows(self) -> dict[str, ResultRow]:
        """All rows; none may be there twice."""
        with ResultsReader(self.results) as reader:
            rows = list(reader.rows())
        found = {row.message_id: row for row in rows}
        assert len(found) == len(rows)
        return found

    async def until(self, met: Callable[[], bool | Awaitable[bool]]) -> None:
        """Return when something becomes true."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                answer = met()
                if answer if isinstance(answer, bool) else await answer:
                    return
                await asyncio.sleep(0.005)

    async def ended(self, process: subprocess.Popen[bytes]) -> int:
        """Wait for a process; return its exit code."""
        return await asyncio.to_thread(process.wait, PATIENCE_S)


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    rig = Rig(tmp_path)
    yield rig
    for process in rig.started:
        process.kill()
        process.wait()
        if process.stdin is not None:
            process.stdin.close()


def expected(classifier: Classifier, ids: Sequence[str], sent: Sequence[Submission]) -> dict[str, str]:
    """The offline label of every good image."""
    answers = classifier.predict([each.request.image for each in sent])
    return {
        message_id: answer.label
        for message_id, answer in zip(ids, answers, strict=True)
        if isinstance(answer, Prediction)
    }


async def test_workers_and_client_need_nothing_in_common_but_two_urls(
    rig: Rig, classifier: Classifier
) -> None:
    """Started by hand as separate commands: exact rows, exact dead letters, balanced books."""
    workers = [await rig.worker() for _ in range(2)]
    sender = rig.start("-m", "couturier", "client", "send", "--images", "600", "--bad-ratio", "0.05")
    assert await rig.ended(sender) == 0, rig.log_of(sender)
    await rig.until(rig.settled)
    ledger = rig.directory / f"process-{rig.started.index(sender)}" / "ledger.db"
    audit = rig.start("-m", "couturier", "audit", "--ledger", str(ledger))
    assert await rig.ended(audit) == 0, rig.log_of(audit)

    with closing(sqlite3.connect(ledger)) as db:
        entries = db.execute("SELECT message_id, kind FROM ledger").fetchall()
    rows, letters = rig.rows(), await rig.letters()
    assert set(letters) == {message_id for message_id, kind in entries if kind == "bad"}
    assert set(letters.values()) == {"invalid-image"}
    assert len(letters) == 30
    assert set(rows) == {message_id for message_id, kind in entries if kind == "good"}
    images = {each.request.subject: each.request.image for each in FashionMnist(600, bad_ratio=0.05)}
    offline = classifier.predict([images[row.subject] for row in rows.values()])
    for row, answer in zip(rows.values(), offline, strict=True):
        assert isinstance(answer, Prediction)
        assert (row.label, row.attempt) == (answer.label, 1)
        assert row.confidence == pytest.approx(answer.confidence, abs=1e-5)

    for worker in workers:
        worker.send_signal(signal.SIGTERM)
    assert [await rig.ended(worker) for worker in workers] == [0, 0]


@pytest.mark.parametrize("how", ["SIGTERM", "SIGINT", "stdin"])
async def test_a_worker_that_is_asked_to_stop_finishes_what_it_holds(
    rig: Rig, classifier: Classifier, how: str
) -> None:
    """Exit 0 in mid-run; every row that it wrote is settled, so nothing is done twice."""
    sent = list(FashionMnist(1_500, bad_ratio=0.01))
    ids = await rig.publish(sent)
    worker = await rig.worker("--until-stdin-closes", "--batch-size", "16")
    await rig.until(lambda: rig.count() > 100)
    if how == "stdin":
        assert worker.stdin is not None
        worker.stdin.close()
    else:
        worker.send_signal(signal.Signals[how])
    assert await rig.ended(worker) == 0, rig.log_of(worker)
    stats = await rig.stats()
    assert stats.in_flight == stats.delayed == 0
    assert stats.settled == rig.count() + len(await rig.letters())
    assert 0 < stats.ready < len(ids)
    events = rig.events(worker)
    assert events["rows"]["rows"] == rig.count()
    assert events["rows"]["replays"] == 0

    second = await rig.worker()
    await rig.until(rig.settled)
    second.send_signal(signal.SIGTERM)
    assert await rig.ended(second) == 0
    assert rig.events(second)["rows"]["replays"] == 0
    assert {each: row.label for each, row in rig.rows().items()} == expected(classifier, ids, sent)


@pytest.mark.parametrize("stage", STAGES)
async def test_a_worker_killed_at_any_stage_loses_and_doubles_nothing(
    rig: Rig, classifier: Classifier, stage: str
) -> None:
    """Received, predicted, in the middle of the write, written, being settled: another one takes over."""
    sent = list(FashionMnist(200, seed=STAGES.index(stage), bad_ratio=0.05))
    ids = await rig.publish(sent)
    dying = rig.start(str(Path(__file__).with_name("dying_worker.py")), stage, "3")
    assert await rig.ended(dying) == -signal.SIGKILL, rig.log_of(dying)
    before = rig.count()
    assert (await rig.stats()).unsettled > 0
    worker = await rig.worker()
    await rig.until(rig.settled)
    worker.send_signal(signal.SIGTERM)
    assert await rig.ended(worker) == 0
    rows, truth = rig.rows(), expected(classifier, ids, sent)
    assert {each: row.label for each, row in rows.items()} == truth
    assert set(await rig.letters()) == set(ids) - set(truth)
    # A crash is nobody's failure: no attempt was counted.
    assert {row.attempt for row in rows.values()} == {1}
    if stage == "written":
        assert before > 0
        replays = rig.events(worker)["rows"]["replays"]
        assert isinstance(replays, int)
        assert replays > 0


async def test_workers_killed_at_random_lose_and_double_nothing(rig: Rig, classifier: Classifier) -> None:
    """Ten kills while the queue is full, at random progress; the other worker goes on, a new one joins."""
    chance = random.Random(20261121)
    sent: list[Submission] = []
    ids: list[str] = []
    workers = [await rig.worker("--batch-size", "8") for _ in range(2)]
    for kill in range(10):
        load = list(FashionMnist(600, seed=kill, bad_ratio=0.02))
        done = rig.count()
        ids += await rig.publish(load)
        sent += load
        goal = done + chance.randrange(400)
        await rig.until(lambda goal=goal: rig.count() >= goal)  # type: ignore[misc]
        victim = workers.pop(chance.randrange(2))
        victim.kill()
        assert (await rig.stats()).unsettled > 0, "the kill came too late to prove anything"
        assert await rig.ended(victim) == -signal.SIGKILL
        workers.append(await rig.worker("--batch-size", "8"))
    await rig.until(rig.settled)
    for worker in workers:
        worker.send_signal(signal.SIGTERM)
    assert [await rig.ended(worker) for worker in workers] == [0, 0]
    truth = expected(classifier, ids, sent)
    assert {each: row.label for each, row in rig.rows().items()} == truth
    assert set(await rig.letters()) == set(ids) - set(truth)
    with closing(sqlite3.connect(rig.results)) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)


async def test_a_drain_that_takes_too_long_is_given_up(rig: Rig, classifier: Classifier) -> None:
    """Exit 75 while the results file is locked; nothing is lost, counted or dead-lettered."""
    worker = await rig.worker("--drain-timeout", "0.2")
    sent = list(FashionMnist(32))
    with closing(sqlite3.connect(rig.results, isolation_level=None)) as blocker:
        blocker.execute("BEGIN IMMEDIATE")
        ids = await rig.publish(sent)
        await rig.until(lambda: _in_flight(rig))
        worker.send_signal(signal.SIGTERM)
        assert await rig.ended(worker) == 75, rig.log_of(worker)
        assert "drain timed out" in rig.events(worker)
        blocker.execute("ROLLBACK")
    assert (await rig.stats()).unsettled == 32
    second = await rig.worker()
    await rig.until(rig.settled)
    second.send_signal(signal.SIGTERM)
    assert await rig.ended(second) == 0
    rows = rig.rows()
    assert {each: row.label for each, row in rows.items()} == expected(classifier, ids, sent)
    assert {row.attempt for row in rows.values()} == {1}


async def test_a_second_signal_ends_a_worker_at_once(rig: Rig) -> None:
    """Exit 130; what it held comes again elsewhere."""
    worker = await rig.worker("--drain-timeout", "600")
    with closing(sqlite3.connect(rig.results, isolation_level=None)) as blocker:
        blocker.execute("BEGIN IMMEDIATE")
        await rig.publish(list(FashionMnist(32)))
        await rig.until(lambda: _in_flight(rig))
        worker.send_signal(signal.SIGTERM)
        await rig.until(lambda: any(each.startswith("draining") for each in rig.events(worker)))
        begin = time.monotonic()
        worker.send_signal(signal.SIGTERM)
        assert await rig.ended(worker) == 130, rig.log_of(worker)
        # The write that is being tried ends with SQLite's own timeout.
        assert time.monotonic() - begin < 10
        blocker.execute("ROLLBACK")
    assert (await rig.stats()).unsettled == 32


async def _in_flight(rig: Rig) -> bool:
    return (await rig.stats()).in_flight > 0


async def test_a_worker_says_what_it_works_with(rig: Rig) -> None:
    """One line at the start, ``ready`` when it receives, totals at the end; never a password."""
    env = {"SINK_URL": f"jsonl:///{rig.directory}/results.jsonl", "LOG_FORMAT": "json"}
    worker = await rig.worker("--group", "others", **env)
    worker.send_signal(signal.SIGTERM)
    assert await rig.ended(worker) == 0
    events = rig.events(worker)
    start = events["starting"]
    assert start["broker"] == rig.url
    assert (start["topic"], start["group"], start["sink"]) == ("images", "others", env["SINK_URL"])
    assert str(start["model"]).startswith("fashion-cnn")
    assert {"ready", "rows", "stopped"} <= set(events)
    assert events["stopped"]["done"] == 0


async def test_a_worker_without_the_right_to_create_fails_at_once(rig: Rig) -> None:
    """A topic that nobody made is an error within seconds, before any message is taken."""
    worker = rig.start("-m", "couturier", "worker", COUTURIER_CREATE="false")
    assert await rig.ended(worker) == 69
    assert "images" in rig.log_of(worker)


async def test_a_worker_alone_with_its_broker_is_refused(rig: Rig) -> None:
    """Nobody could ever send to a queue that lives in the worker's own memory."""
    worker = rig.start("-m", "couturier", "worker", BROKER_URL="memory://")
    assert await rig.ended(worker) == 78
    assert "one process" in rig.log_of(worker)


async def test_a_worker_runs_without_the_front_door(rig: Rig) -> None:
    """``python -m worker`` is the same command."""
    ready = rig.directory / "ready"
    worker = rig.start("-m", "worker", "--ready-file", str(ready))
    await rig.until(ready.exists)
    worker.send_signal(signal.SIGTERM)
    assert await rig.ended(worker) == 0
