"""Worker processes as they are run: started by hand, stopped by signals, killed at any moment."""

from __future__ import annotations

import random
import signal
import sqlite3
import time
from contextlib import closing
from pathlib import Path

import pytest
from dying_worker import STAGES
from rig import Rig, expected

from classifier import Classifier, Prediction
from client import Submission
from client.sources.fashion_mnist import FashionMnist

pytestmark = pytest.mark.anyio


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
    worker = await rig.worker("--batch-size", "16", COUTURIER_UNTIL_STDIN_CLOSES="true")
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
    assert str(start["model"]).startswith("student")
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
