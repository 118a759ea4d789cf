"""Old and new workers share a results file."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from client import StoreError
from client.results import ResultsReader, ResultsWriter, WriteReport
from client.schema import ResultRow

Row = Callable[..., ResultRow]

# What the first version of couturier ran whenever it opened a file, and how it wrote; kept as it was.
FIRST_DDL = """
CREATE TABLE IF NOT EXISTS results (
    message_id TEXT PRIMARY KEY NOT NULL,
    status TEXT NOT NULL CHECK (status IN ('ok', 'abstained', 'expired')),
    label TEXT, label_index INTEGER, confidence REAL,
    runner_up TEXT, runner_up_confidence REAL, group_label TEXT, tags TEXT NOT NULL,
    model TEXT, model_version TEXT, model_hash TEXT, engine TEXT,
    "key" TEXT, source TEXT NOT NULL, subject TEXT, attempt INTEGER NOT NULL, worker TEXT NOT NULL,
    queue_s REAL NOT NULL, process_s REAL NOT NULL, latency_s REAL NOT NULL, created_at TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS results_schema (version INTEGER PRIMARY KEY);
INSERT INTO results_schema SELECT 1 WHERE NOT EXISTS (SELECT 1 FROM results_schema)
"""
FIRST_COLUMNS = (
    *("message_id", "status", "label", "label_index", "confidence", "runner_up", "runner_up_confidence"),
    *("group_label", "tags", "model", "model_version", "model_hash", "engine", "key", "source", "subject"),
    *("attempt", "worker", "queue_s", "process_s", "latency_s", "created_at"),
)
NAMES = ", ".join(f'"{name}"' for name in FIRST_COLUMNS)
FIRST_INSERT = (
    f"INSERT INTO results ({NAMES}) VALUES ({', '.join('?' * len(FIRST_COLUMNS))})"
    " ON CONFLICT (message_id) DO NOTHING"
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "results.db"


def open_as_first(path: Path) -> sqlite3.Connection:
    """Open a file as the first version did; it refused a version above 1."""
    db = sqlite3.connect(path, isolation_level=None)
    db.execute("PRAGMA journal_mode = WAL").fetchone()
    for statement in FIRST_DDL.split(";"):
        db.execute(statement)
    assert {each[1] for each in db.execute("PRAGMA table_info(results)")} >= set(FIRST_COLUMNS)
    assert db.execute("SELECT max(version) FROM results_schema").fetchone() == (1,)
    return db


def first(row: ResultRow) -> tuple[object, ...]:
    """The values that the first version wrote."""
    return tuple(getattr(row, name) for name in FIRST_COLUMNS)


def revision(path: Path) -> str:
    with closing(sqlite3.connect(path)) as db:
        return str(db.execute("SELECT value FROM results_state WHERE name = 'revision'").fetchone()[0])


def test_a_file_of_the_first_version_grows_and_serves_both(path: Path, row: Row) -> None:
    """An old worker writes before, meanwhile, and after a restart of its own."""
    with closing(open_as_first(path)) as old:
        old.execute(FIRST_INSERT, first(row("before")))
        with ResultsReader(path) as reader:
            assert reader.kept_since() is None
            assert list(reader.rows()) == [row("before")]  # without the column of today
        writer = ResultsWriter(path)
        rows = [row("before"), row("new", context='{"title": "Coat"}')]
        assert writer.write(rows) == WriteReport(new=1, identical=1)
        old.execute(FIRST_INSERT, first(row("meanwhile")))
    with closing(open_as_first(path)) as old:
        old.execute(FIRST_INSERT, first(row("after")))
    assert writer.write([row("after"), row("meanwhile")]) == WriteReport(identical=2)
    writer.close()
    assert revision(path) == "3"
    with ResultsReader(path) as reader:
        assert set(reader.ids()) == {"before", "new", "meanwhile", "after"}
        assert reader.statuses() == {"ok": 4}
        (new,) = reader.find(["new"])
        assert new.result().context == {"title": "Coat"}
        assert {each.context for each in reader.find(["before", "meanwhile", "after"])} == {None}


def test_a_new_file_serves_the_first_version(path: Path, row: Row) -> None:
    """It opens it and writes."""
    ResultsWriter(path).close()
    with closing(open_as_first(path)) as old:
        assert old.execute(FIRST_INSERT, first(row("a"))).rowcount == 1


def test_a_file_of_a_newer_version_is_left_as_it_is(path: Path, row: Row) -> None:
    """Columns that may be null do no harm; a version that does is refused."""
    ResultsWriter(path).close()
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("ALTER TABLE results ADD COLUMN mood TEXT")
        db.execute("UPDATE results_state SET value = '9' WHERE name = 'revision'")
        writer = ResultsWriter(path)
        assert writer.write([row("a")]).new == 1
        writer.close()
        assert revision(path) == "9"
        with ResultsReader(path) as reader:
            assert list(reader.rows()) == [row("a")]
        db.execute("UPDATE results_schema SET version = 2")
    for opener in (ResultsReader, ResultsWriter):
        with pytest.raises(StoreError, match="newer couturier"):
            opener(path)


def test_somebody_elses_file_is_not_touched(path: Path) -> None:
    """A table of the same name that holds something else: no index, no other table."""
    with closing(sqlite3.connect(path)) as db:
        db.execute("CREATE TABLE results (id INTEGER)")
        db.commit()
        with pytest.raises(StoreError, match="no results of couturier"):
            ResultsWriter(path)
        assert db.execute("SELECT name FROM sqlite_master").fetchall() == [("results",)]


def test_times_are_compared_whatever_their_length(path: Path, row: Row) -> None:
    """A time with microseconds sorts after the same second without."""
    now = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    writer = ResultsWriter(path)
    times = {"a": now, "b": now + timedelta(microseconds=1), "c": now + timedelta(seconds=1)}
    writer.write([row(name, created_at=each.isoformat()) for name, each in times.items()])
    assert writer.prune(now, 10) == 0
    assert writer.prune(now + timedelta(microseconds=1), 10) == 1
    assert writer.prune(now + timedelta(seconds=1), 10) == 1
    assert writer.claim_pruning(now, 3600, now)
    with ResultsReader(path) as reader:
        assert list(reader.ids()) == ["c"]
        assert reader.kept_since() == now
    writer.close()
