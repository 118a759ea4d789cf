"""The ledger is fit to find losses: each bug that is planted in a worker is seen by the same check.

What the drivers may do wrong below a worker (no epoch check, verdicts before their copies) is planted in
``tests/broker/test_kafka_planted_bugs.py``.
"""

from __future__ import annotations

import sqlite3
import time
from contextlib import closing
from itertools import islice
from pathlib import Path

import pytest

from .brokers import Place, SqlitePlace
from .buggy_worker import BUGS
from .fleet import COMMAND, until
from .kafka_place import KafkaPlace
from .pictures import Item, garments, stream
from .scene import Scene
from .tables import SqliteTable

# A bug shows within half a second, the interval of commits; a sound worker is watched for so long.
WATCHED_S = 4.0


@pytest.fixture
def scene(request: pytest.FixtureRequest, tmp_path: Path) -> Scene:
    """A scene with one partition, on the backend that the test names."""
    if request.param == "sqlite":
        place: Place = SqlitePlace(tmp_path)
    else:
        place = KafkaPlace(request.getfixturevalue("kafka_service").bootstrap, session_s=3.0)
    # Not PostgreSQL: there the server ends the statement of a client that was killed.
    return Scene(request.node.name, place, SqliteTable(tmp_path / "results.db"), tmp_path, 1)


def killed_while_rows_cannot_be_written(scene: Scene, command: tuple[str, ...]) -> None:
    """A batch waits for its table, poison behind it dies; the worker is killed, and another one comes."""
    data, label = garments(10)[0]
    victim = scene.fleet.start("--batch-size", "64", command=command)
    with scene.table.blocked():
        scene.send(Item(data, label, None, "good") for _ in range(64))
        until(lambda: victim.status()["totals"]["received"] == 64, "the victim has the good ones")
        scene.send(Item(b"poison %d" % n, None, "invalid-image", "poison") for n in range(64))
        deadline = time.monotonic() + WATCHED_S
        while scene.place.unsettled() and time.monotonic() < deadline:
            time.sleep(0.05)
        victim.kill()
        scene.did("SIGKILL")
    scene.fleet.start()
    until(lambda: scene.place.unsettled() == 0, "nothing is unsettled")
    assert scene.fleet.stop() == [0]
    scene.check()


BACKENDS = ["sqlite", pytest.param("kafka", marks=pytest.mark.kafka)]


@pytest.mark.parametrize("scene", BACKENDS, indirect=True)
def test_the_worker_passes(scene: Scene) -> None:
    """Without a bug nothing is lost."""
    with scene:
        killed_while_rows_cannot_be_written(scene, COMMAND)


@pytest.mark.parametrize(
    ("scene", "bug"),
    [
        ("sqlite", "ack_before_write"),
        ("sqlite", "ack_before_letter"),
        pytest.param("kafka", "auto_commit", marks=pytest.mark.kafka),
        pytest.param("kafka", "highest_offset", marks=pytest.mark.kafka),
    ],
    indirect=["scene"],
)
def test_a_planted_bug_is_found(scene: Scene, bug: str) -> None:
    """With the bug the same check finds that messages are lost."""
    assert bug in BUGS
    with scene:
        with pytest.raises(AssertionError, match='"lost": '):
            killed_while_rows_cannot_be_written(scene, ("-m", "tests.faults.buggy_worker", bug))
        assert scene.report.lost > 0
        assert scene.report.faults == {"SIGKILL": 1}


def test_the_books_see_what_is_wrong(tmp_path: Path) -> None:
    """A wrong class, a stranger, a row beside a letter, an altered letter, a lost message: a figure each."""
    scene = Scene("books", SqlitePlace(tmp_path), SqliteTable(tmp_path / "results.db"), tmp_path)
    with scene:
        good = list(islice(stream(1), 5))
        bad = [Item(b"poison %d" % number, None, "invalid-image", "poison") for number in range(2)]
        scene.fleet.start()
        scene.send([*good, *bad])
        scene.settle()
        assert scene.fleet.stop() == [0]
        assert scene.check().sound
        with closing(sqlite3.connect(tmp_path / "results.db", isolation_level=None)) as db:
            db.execute("DELETE FROM results WHERE message_id = ?", (good[0].id,))
            db.execute("UPDATE results SET label = 'Hat' WHERE message_id = ?", (good[1].id,))
            db.execute("UPDATE results SET message_id = 'stranger' WHERE message_id = ?", (good[2].id,))
            db.execute("UPDATE results SET message_id = ? WHERE message_id = ?", (bad[0].id, good[3].id))
        with closing(sqlite3.connect(tmp_path / "queue.db", isolation_level=None)) as db:
            db.execute("UPDATE messages SET data = X'00' WHERE id = ?", (bad[1].id,))
        report = scene.figures()
        assert not report.sound
        found = (report.lost, report.wrong_class, report.extra, report.both, report.altered)
        assert found == (3, 2, 1, 1, 1)
