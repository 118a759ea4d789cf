"""The main job as a newcomer runs it, recounted independently of the demo's own figures."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from broker import OPERATORS, connect, dead_letter_topic
from classifier import Classifier, validation_set
from client.schema import encode_png

IMAGES, BAD_RATIO = 10_000, 0.02
PLANTED = 200


def environment(home: Path, **more: str) -> dict[str, str]:
    """The environment of a newcomer: nothing set but where state goes."""
    ours = ("BROKER_", "SINK_URL", "COUTURIER_", "KAFKA_", "PUBSUB_", "GOOGLE_")
    clean = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    return {**clean, "COUTURIER_HOME": str(home), **more}


def couturier(*arguments: str, env: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """Run one command to its end."""
    command = [sys.executable, "-m", "couturier", *arguments]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=300, check=False)


def workers_of(home: Path) -> list[int]:
    """The processes whose environment names this home."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if f"COUTURIER_HOME={home}\0".encode() in (process / "environ").read_bytes():
                found.append(int(process.name))
        except OSError:
            continue
    return found


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def report(home: Path) -> dict[str, Any]:
    """One demo over every validation image, some of them corrupt."""
    done = couturier(
        "demo", "--images", str(IMAGES), "--bad-ratio", str(BAD_RATIO), "--json", env=environment(home)
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_the_books_of_the_demo_balance(report: dict[str, Any]) -> None:
    """Nothing is lost, nothing is doubled, and exactly the planted images are dead letters."""
    assert report["backend"] == "sqlite"
    assert report["published"] == IMAGES
    assert report["stored"] == IMAGES - PLANTED
    assert report["dead_lettered"] == PLANTED
    assert (report["lost"], report["duplicate_rows"]) == (0, 0)
    assert set(report["latency_ms"]) == {"p50", "p95", "p99"}
    assert report["workers"] >= 2
    assert report["images_per_second"] > 0
    assert report["efficiency"] == pytest.approx(
        report["images_per_second"] / report["engine_images_per_second"]
    )


def test_plain_sql_counts_the_same_rows(home: Path, report: dict[str, Any]) -> None:
    """Anyone with the sqlite3 shell gets the demo's numbers."""
    with sqlite3.connect(home / "results.db") as db:
        rows, ids, expired = db.execute(
            "SELECT count(*), count(DISTINCT message_id), sum(status = 'expired') FROM results"
        ).fetchone()
    assert (rows, ids, expired) == (report["stored"], report["stored"], 0)


def test_the_queue_is_empty_and_the_letters_are_the_planted_images(
    home: Path, report: dict[str, Any]
) -> None:
    """Queue and dead letters agree with the ledger, read by the public API alone."""

    async def look() -> tuple[int, list[tuple[str, str, bytes]]]:
        async with connect(f"sqlite:///{home}/queue.db") as broker:
            stats = await broker.stats("images", "classifiers")
            assert stats.published == IMAGES
            found = [
                (each.message.id, each.message.attributes["couturier-reason"], each.message.data)
                async for each in broker.browse(dead_letter_topic("images", "classifiers"), OPERATORS)
            ]
            return stats.unsettled, found

    unsettled, letters = asyncio.run(look())
    with sqlite3.connect(home / "ledger.db") as db:
        planted = dict(db.execute("SELECT message_id, sha256 FROM ledger WHERE kind = 'bad'"))
    assert unsettled == 0
    assert len(letters) == PLANTED
    assert {message_id for message_id, _, _ in letters} == set(planted)
    assert {reason for _, reason, _ in letters} == {"invalid-image"}


def test_labels_equal_offline_prediction_id_by_id(home: Path, report: dict[str, Any]) -> None:
    """The pipeline says of every image what the library says of it, and is as accurate."""
    data = validation_set()
    offline = Classifier.load().predict([encode_png(image) for image in data.images])
    with sqlite3.connect(home / "results.db") as db:
        rows = db.execute("SELECT subject, label, confidence FROM results").fetchall()
    right = 0
    for subject, label, confidence in rows:
        index = int(subject.rsplit("/", 1)[1])
        expected = offline[index]
        assert (label, confidence) == (expected.label, pytest.approx(expected.confidence, abs=1e-5))
        right += label == data.class_names[data.labels[index]]
    assert report["accuracy"] == pytest.approx(right / len(rows))
    assert report["labels_unlike_offline"] == 0


def test_the_other_commands_see_what_the_demo_did(home: Path, report: dict[str, Any]) -> None:
    """``audit``, ``results`` and ``dlq list`` read the same queue, table and letters."""
    env = environment(home)
    audit = couturier("audit", "--json", env=env)
    assert audit.returncode == 0, audit.stderr
    assert json.loads(audit.stdout)["lost"] == 0
    listed = json.loads(couturier("dlq", "list", "--json", env=env).stdout)
    assert len(listed) == PLANTED
    assert {"message_id", "reason", "stage", "attempts", "error"} <= set(listed[0])
    results = json.loads(couturier("results", "--limit", "5", "--json", env=env).stdout)
    assert len(results) == 5


def test_a_picture_is_drawn(report: dict[str, Any]) -> None:
    """The contact sheet exists and is a picture."""
    assert Path(report["picture"]).read_bytes().startswith(b"\x89PNG")


def test_no_process_is_left_behind(home: Path, report: dict[str, Any]) -> None:
    """When the demo has ended, so have its workers."""
    assert workers_of(home) == []


@pytest.mark.parametrize(
    "options", [("--images", "1", "--bad-ratio", "0"), ("--images", "5", "--bad-ratio", "1")]
)
def test_the_report_for_people_works_at_the_edges(tmp_path: Path, options: tuple[str, ...]) -> None:
    """One image, or none that is sound: what has no value is a dash, and the books balance all the same.

    The workers do not quarrel over a port that is set for a single one.
    """
    done = couturier("demo", *options, env=environment(tmp_path, COUTURIER_HTTP_PORT="9464"))
    assert done.returncode == 0, done.stderr
    assert "0 lost; 0 duplicate rows" in done.stdout
    assert "as planned  yes" in done.stdout


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_demo_leaves_no_process_behind(tmp_path: Path, number: signal.Signals) -> None:
    """Ctrl-C, an init system or a crash of the demo ends its workers too."""
    demo = subprocess.Popen(
        [sys.executable, "-m", "couturier", "demo", "--images", "10000"],
        env=environment(tmp_path),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    deadline = time.monotonic() + 60
    while not (tmp_path / "demo" / "worker-0.ready").exists():
        assert demo.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    demo.send_signal(number)
    _, errors = demo.communicate(timeout=60)
    if number == signal.SIGINT:
        assert demo.returncode == 130, errors
    deadline = time.monotonic() + 60
    while left := workers_of(tmp_path):
        assert time.monotonic() < deadline, f"still running: {left}"
        time.sleep(0.05)
