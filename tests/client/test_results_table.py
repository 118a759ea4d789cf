"""The results table: one row per id, first row stays, strangers' values do no harm."""

from __future__ import annotations

import asyncio
import multiprocessing
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from client import ResultsTimeout, StoreError, StoreUnavailable
from client.results import ResultsReader, ResultsWriter, WriteReport, default_url, sqlite_path, wait_for
from client.schema import ResultRow

Row = Callable[..., ResultRow]

COLUMNS = [
    "message_id",
    "status",
    "label",
    "label_index",
    "confidence",
    "runner_up",
    "runner_up_confidence",
    "group_label",
    "tags",
    "model",
    "model_version",
    "model_hash",
    "engine",
    "key",
    "source",
    "subject",
    "attempt",
    "worker",
    "queue_s",
    "process_s",
    "latency_s",
    "created_at",
    "context",
]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "results.db"


def test_the_table_has_exactly_the_promised_columns(path: Path) -> None:
    """Scripts and dashboards select them by name."""
    ResultsWriter(path).close()
    with sqlite3.connect(path) as db:
        assert [name for _, name, *_ in db.execute("PRAGMA table_info(results)")] == COLUMNS
        assert db.execute("SELECT version FROM results_schema").fetchall() == [(1,)]
    db.close()


def test_what_is_written_can_be_read(path: Path, row: Row) -> None:
    """Every column comes back with its value and type."""
    writer = ResultsWriter(path)
    rows = [row("a", key="k\u00e9y", tags='["striped"]'), row("b", label=None, status="expired")]
    assert writer.write(rows) == WriteReport(new=2)
    with ResultsReader(path) as reader:
        assert list(reader.rows()) == rows[::-1]
        assert reader.count() == 2
        assert next(iter(reader.find(["a"]))).result().tags == ["striped"]
    writer.close()


def test_rows_are_found_by_label_number_and_id(path: Path, row: Row) -> None:
    """The newest come first; unknown ids are left out, however many are asked for."""
    writer = ResultsWriter(path)
    writer.write([row(f"m-{n}", label="Bag" if n % 2 else "Coat") for n in range(2000)])
    with ResultsReader(path) as reader:
        assert [each.message_id for each in reader.rows("Bag", limit=2)] == ["m-1999", "m-1997"]
        asked = [f"m-{n}" for n in range(3000)]
        assert {each.message_id for each in reader.find(asked)} == set(asked[:2000])
        assert set(reader.ids()) == set(asked[:2000])
        assert reader.duplicates() == 0
    writer.close()


def test_a_replay_changes_nothing_and_a_contradiction_is_reported(path: Path, row: Row) -> None:
    """The first row stays, and all three cases are told apart."""
    writer = ResultsWriter(path)
    writer.write([row("a"), row("b")])
    again = [row("a", attempt=2), row("b", label="Bag"), row("c")]
    assert writer.write(again) == WriteReport(new=1, identical=1, conflicts=("b",))
    other_model = [row("a", model_hash="other")]
    assert writer.write(other_model).conflicts == ("a",)
    with ResultsReader(path) as reader:
        stored = {each.message_id: each for each in reader.rows()}
    assert stored["a"].attempt == 1
    assert stored["b"].label == "Coat"
    writer.close()


def test_one_id_several_times_in_one_write_is_one_row(path: Path, row: Row) -> None:
    """A producer may send an id twice, and a batch may hold both."""
    writer = ResultsWriter(path)
    report = writer.write([row("a"), row("a"), row("a", label="Bag")])
    assert report == WriteReport(new=1, identical=1, conflicts=("a",))
    assert writer.write([]) == WriteReport()
    writer.close()


@pytest.mark.parametrize("place", [0, 31, 63])
@pytest.mark.parametrize(
    "poison",
    [
        {"subject": "\udc80"},
        {"status": "nonsense"},
        {"attempt": 2**70},
        {"worker": None},
        {"confidence": object()},
    ],
    ids=lambda each: next(iter(each)),
)
def test_a_row_that_is_refused_keeps_no_other_out(path: Path, row: Row, place: int, poison: dict) -> None:
    """Text that is no Unicode, a broken constraint, a huge number, a missing value, a wrong type."""
    writer = ResultsWriter(path)
    rows = [row(f"m-{n}") for n in range(64)]
    rows[place] = row("poison", **poison)
    report = writer.write(rows)
    assert report.new == 63
    assert list(report.refused) == ["poison"]
    with ResultsReader(path) as reader:
        assert set(reader.ids()) == {each.message_id for each in rows} - {"poison"}
    writer.close()


def test_a_locked_file_is_an_outage_not_an_error_of_the_data(path: Path, row: Row) -> None:
    """Nothing is written, and the same write works once the lock is gone."""
    writer = ResultsWriter(path, busy_timeout_s=0.01)
    blocker = sqlite3.connect(path, isolation_level=None)
    blocker.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreUnavailable, match="locked"):
        writer.write([row("a")])
    blocker.execute("ROLLBACK")
    assert writer.write([row("a")]) == WriteReport(new=1)
    blocker.close()
    writer.close()


def test_what_is_committed_is_on_the_disk(path: Path) -> None:
    """An ack follows the row: the log is synced at every commit."""
    writer = ResultsWriter(path)
    assert writer._db.execute("PRAGMA synchronous").fetchone() == (2,)
    assert writer._db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    writer.close()


def _write_all(path: Path, first: int, make: list[ResultRow]) -> None:
    writer = ResultsWriter(path, busy_timeout_s=30)
    order = make[first:] + make[:first]
    for start in range(0, len(order), 7):
        writer.write(order[start : start + 7])
    writer.close()


def test_processes_that_write_the_same_rows_leave_one_of_each(path: Path, row: Row) -> None:
    """Two workers with the same messages, in different order, starting on a file that is not there yet."""
    rows = [row(f"m-{n}") for n in range(300)]
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=_write_all, args=(path, first, rows)) for first in (0, 150)]
    for each in writers:
        each.start()
    for each in writers:
        each.join()
    assert [each.exitcode for each in writers] == [0, 0]
    with ResultsReader(path) as reader:
        assert reader.count() == 300
        assert set(reader.ids()) == {each.message_id for each in rows}


def test_a_missing_file_is_an_error_with_the_next_step(path: Path) -> None:
    """Reading creates nothing."""
    with pytest.raises(StoreError, match=r"does not exist.*couturier worker"):
        ResultsReader(path)
    assert not path.exists()


def test_a_file_that_is_something_else_is_refused(path: Path) -> None:
    """Text, somebody's database, and a table of a later version."""
    path.write_text("not a database, but long enough to be taken for one" * 100)
    for opener in (ResultsReader, ResultsWriter):
        with pytest.raises(StoreError, match="no SQLite file"):
            opener(path)
    path.unlink()
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE results (id INTEGER)")
    db.close()
    for opener in (ResultsReader, ResultsWriter):
        with pytest.raises(StoreError, match="no results of couturier"):
            opener(path)
    path.unlink()
    ResultsWriter(path).close()
    with sqlite3.connect(path) as db:
        db.execute("UPDATE results_schema SET version = 2")
    db.close()
    with pytest.raises(StoreError, match="newer"):
        ResultsReader(path)


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    """A file where a directory should be stops everybody, root included."""
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="cannot be made"):
        ResultsWriter(tmp_path / "file" / "results.db")
    with pytest.raises(StoreError, match="cannot be opened"):
        ResultsWriter(tmp_path)


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("sqlite:///results.db", "results.db"),
        ("sqlite:////var/lib/results.db", "/var/lib/results.db"),
        ("sqlite:///with%20space/r.db", "with space/r.db"),
    ],
)
def test_a_url_names_a_relative_or_an_absolute_file(url: str, path: str) -> None:
    """Three slashes or four, as SQLAlchemy has it."""
    assert sqlite_path(url) == Path(path)


@pytest.mark.parametrize(
    "url",
    [
        "sqlite://results.db",
        "sqlite:///",
        "sqlite:results.db",
        "sqlite:///a.db?mode=ro",
        "postgresql://h/d",
        "",
    ],
)
def test_a_url_that_does_not_work_is_named_with_its_variable(url: str) -> None:
    """The error says what would work."""
    with pytest.raises(ValueError, match=r"SINK_URL=.*sqlite:///"):
        sqlite_path(url)


def test_the_default_place_is_the_state_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever characters its name has."""
    monkeypatch.setenv("COUTURIER_HOME", str(tmp_path / "50% off"))
    assert sqlite_path(default_url()) == tmp_path / "50% off" / "results.db"


@pytest.mark.anyio
async def test_results_are_waited_for(path: Path, row: Row) -> None:
    """They may come later, in any order, and the file with them."""
    url = f"sqlite:///{path}"

    async def work() -> None:
        writer = await asyncio.to_thread(ResultsWriter, path)
        await asyncio.to_thread(writer.write, [row("b")])
        await asyncio.to_thread(writer.write, [row("a")])
        await asyncio.to_thread(writer.close)

    found, _ = await asyncio.gather(wait_for(["a", "b"], 20, url), work())
    assert [each.message_id for each in found] == ["a", "b"]
    with pytest.raises(ResultsTimeout) as caught:
        await wait_for(["a", "never"], 0.0, url)
    assert caught.value.missing == ("never",)


def test_a_file_in_which_no_table_is_yet_is_waited_for(path: Path, row: Row) -> None:
    """Whoever waits may look between the making of the file and that of its tables."""
    path.touch()
    with pytest.raises(ResultsTimeout):
        asyncio.run(wait_for(["a"], 0.0, f"sqlite:///{path}"))
    writer = ResultsWriter(path)
    writer.write([row("a")])
    writer.close()
    assert [each.message_id for each in asyncio.run(wait_for(["a"], 0.0, f"sqlite:///{path}"))] == ["a"]
