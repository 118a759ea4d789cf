"""The results table in a SQLite file."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from ..errors import StoreError
from ..schema import ResultRow
from ..store import BUSY_TIMEOUT_S, guarded, open_readable, open_writable, transaction
from .table import (
    COLUMNS,
    NAMES,
    REVISION,
    Content,
    Results,
    ResultsMissing,
    WriteReport,
    check_columns,
    check_version,
    chunks,
    firsts,
    judge,
    readable,
)

# SQLite takes at least 999 parameters in one statement, whatever it was built with.
_IDS_AT_ONCE = 900
# What the values of a row can be guilty of; everything else is the file's fault.
_DATA_ERRORS = (
    sqlite3.IntegrityError,
    sqlite3.DataError,
    sqlite3.InterfaceError,
    sqlite3.ProgrammingError,
    OverflowError,
    UnicodeEncodeError,
)
_INSERT = (
    f"INSERT INTO results ({NAMES}) VALUES ({', '.join('?' * len(COLUMNS))})"  # noqa: S608 - constants
    " ON CONFLICT (message_id) DO NOTHING"
)
# Revision n is what the first n steps make.
_STEPS = (
    (
        """
        CREATE TABLE IF NOT EXISTS results (
            message_id TEXT PRIMARY KEY NOT NULL,
            status TEXT NOT NULL CHECK (status IN ('ok', 'abstained', 'expired')),
            label TEXT, label_index INTEGER, confidence REAL,
            runner_up TEXT, runner_up_confidence REAL, group_label TEXT, tags TEXT NOT NULL,
            model TEXT, model_version TEXT, model_hash TEXT, engine TEXT,
            "key" TEXT, source TEXT NOT NULL, subject TEXT, attempt INTEGER NOT NULL, worker TEXT NOT NULL,
            queue_s REAL NOT NULL, process_s REAL NOT NULL, latency_s REAL NOT NULL, created_at TEXT NOT NULL
        )
        """,
        "CREATE TABLE IF NOT EXISTS results_schema (version INTEGER PRIMARY KEY)",
        "INSERT INTO results_schema SELECT 1 WHERE NOT EXISTS (SELECT 1 FROM results_schema)",
    ),
    (
        "CREATE INDEX IF NOT EXISTS results_created_at ON results (created_at)",
        "CREATE TABLE IF NOT EXISTS results_state (name TEXT PRIMARY KEY NOT NULL, value TEXT NOT NULL)",
    ),
    ("ALTER TABLE results ADD COLUMN context TEXT",),
)
_NOTE = (
    "INSERT INTO results_state VALUES (?, ?) ON CONFLICT (name)"
    " DO UPDATE SET value = excluded.value WHERE results_state.value < ?"
)


class ResultsWriter:
    """Writes rows to a SQLite file. For one thread at a time; any number of processes.

    Raises:
        StoreError: the file cannot be made, or holds something else.
        StoreUnavailable: another process keeps it locked.
    """

    def __init__(self, path: Path, busy_timeout_s: float = BUSY_TIMEOUT_S) -> None:
        self._path = path
        self._db = open_writable(path, "", busy_timeout_s)
        try:
            with guarded(path), transaction(self._db):
                _migrate(self._db, path)
        except BaseException:
            self._db.close()
            raise

    def write(self, rows: Sequence[ResultRow]) -> WriteReport:
        """Store rows in one transaction; when it returns they survive a power loss.

        Rows may repeat an id, in this call or from before: the first one stays. A row that the database
        refuses keeps no other row out.

        Raises:
            StoreUnavailable: the file is locked, its disk full or failing; nothing was written.
        """
        if not rows:
            return WriteReport()
        with guarded(self._path):
            try:
                with transaction(self._db):
                    new = self._db.executemany(_INSERT, rows).rowcount
                    return WriteReport(new) if new == len(rows) else self._compare(rows, new, {})
            except _DATA_ERRORS:
                return self._write_apart(rows)

    def claim_pruning(self, now: datetime, every_s: float, before: datetime) -> bool:
        """Say whether it is this process's turn to remove old rows, and if so note what will be missing.

        Args:
            now: aware, UTC.
            every_s: somebody's last turn is at least so long ago, seconds.
            before: rows made earlier are about to go, aware, UTC.

        Raises:
            StoreUnavailable: the file is locked or failing.
        """
        due = datetime.fromtimestamp(now.timestamp() - every_s, now.tzinfo)
        with guarded(self._path), transaction(self._db):
            if not self._db.execute(_NOTE, ("pruned_at", _text(now), _text(due))).rowcount:
                return False
            # Noted before the first row goes: whoever balances the books must not miss it.
            self._db.execute(_NOTE, ("kept_since", _text(before), _text(before)))
            return True

    def prune(self, before: datetime, at_most: int) -> int:
        """Remove some rows that were made before a time, aware, UTC; return how many.

        Raises:
            StoreUnavailable: the file is locked or failing; nothing was removed.
        """
        old = "SELECT message_id FROM results WHERE created_at < ? ORDER BY created_at LIMIT ?"
        query = f"DELETE FROM results WHERE message_id IN ({old})"  # noqa: S608 - constants
        with guarded(self._path), transaction(self._db):
            return self._db.execute(query, (before.isoformat(), at_most)).rowcount

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def _write_apart(self, rows: Sequence[ResultRow]) -> WriteReport:
        """Store rows one by one, still in one transaction, to find those that are refused."""
        refused: dict[str, str] = {}
        new = 0
        with transaction(self._db):
            for row in firsts(rows).values():
                try:
                    new += self._db.execute(_INSERT, row).rowcount
                except _DATA_ERRORS as error:
                    refused[row.message_id] = f"{type(error).__name__}: {error}"
            return self._compare(rows, new, refused)

    def _compare(self, rows: Sequence[ResultRow], new: int, refused: Mapping[str, str]) -> WriteReport:
        stored: dict[str, Content] = {}
        for ids in chunks((row.message_id for row in rows if row.message_id not in refused), _IDS_AT_ONCE):
            marks = ", ".join("?" * len(ids))
            query = f"SELECT message_id, label, model_hash FROM results WHERE message_id IN ({marks})"  # noqa: S608
            stored.update({each: (label, model) for each, label, model in self._db.execute(query, ids)})
        return judge(rows, new, stored, refused)


class ResultsReader(Results):
    """Reads a results file without changing it. Use as a context manager; any thread may use it.

    Raises:
        ResultsMissing: there is no such file, or no table in it yet.
        StoreError: it holds something else.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        if not path.is_file():
            raise ResultsMissing(f"{path} does not exist; {_NEXT_STEP}")
        self._db = open_readable(path)
        try:
            with guarded(path):
                if self._db.execute("SELECT 1 FROM sqlite_master").fetchone() is None:
                    raise ResultsMissing(f"{path} holds no results yet; {_NEXT_STEP}")
                self._columns = readable(_check(self._db, path))
        except BaseException:
            self._db.close()
            raise

    def close(self) -> None:
        self._db.close()

    def ids(self, status: str | None = None) -> Iterator[str]:
        where = "" if status is None else "WHERE status = :status"
        for (message_id,) in self._read(f"SELECT message_id FROM results {where}", {"status": status}):  # noqa: S608
            yield message_id

    def rows(
        self, label: str | None = None, limit: int | None = None, status: str | None = None
    ) -> Iterator[ResultRow]:
        given = {"label": label, "status": status}
        parts = [f"{name} = :{name}" for name, value in given.items() if value is not None]
        where = f"WHERE {' AND '.join(parts)}" if parts else ""
        query = f"SELECT {self._columns} FROM results {where} ORDER BY rowid DESC LIMIT :limit"  # noqa: S608
        for row in self._read(query, {**given, "limit": -1 if limit is None else limit}):
            yield ResultRow(*row)

    def find(self, ids: Iterable[str]) -> Iterator[ResultRow]:
        for chunk in chunks(ids, _IDS_AT_ONCE):
            marks = ", ".join("?" * len(chunk))
            query = f"SELECT {self._columns} FROM results WHERE message_id IN ({marks})"  # noqa: S608
            for row in self._read(query, chunk):
                yield ResultRow(*row)

    def kept_since(self) -> datetime | None:
        with guarded(self._path):
            value = _state(self._db, "kept_since")
        return None if value is None else datetime.fromisoformat(value)

    def _read(
        self, query: str, values: Sequence[str] | Mapping[str, object] = ()
    ) -> Iterator[tuple[Any, ...]]:
        with guarded(self._path):
            yield from self._db.execute(query, values)


_NEXT_STEP = "results appear once a worker runs: `couturier worker`"


def _migrate(db: sqlite3.Connection, path: Path) -> None:
    """Apply the steps that are lacking; for a transaction."""
    if not _has(db, "results"):
        _apply(db, 1)
    _check(db, path)
    for step in range(int(_state(db, "revision") or 1) + 1, REVISION + 1):
        _apply(db, step)
        db.execute("INSERT OR REPLACE INTO results_state VALUES ('revision', ?)", (str(step),))


def _apply(db: sqlite3.Connection, step: int) -> None:
    for statement in _STEPS[step - 1]:
        db.execute(statement)


def _check(db: sqlite3.Connection, path: Path) -> set[str]:
    """Return the columns of the table, which has to be ours."""
    names = {row[1] for row in db.execute("PRAGMA table_info(results)")}
    check_columns(names, str(path))
    if not _has(db, "results_schema"):
        raise StoreError(f"{path} holds a table of results, but not its version; name another file")
    (version,) = db.execute("SELECT max(version) FROM results_schema").fetchone()
    check_version(version or 0, str(path))
    return names


def _state(db: sqlite3.Connection, name: str) -> str | None:
    if not _has(db, "results_state"):
        return None
    found = db.execute("SELECT value FROM results_state WHERE name = ?", (name,)).fetchone()
    return None if found is None else str(found[0])


def _has(db: sqlite3.Connection, table: str) -> bool:
    return bool(db.execute("SELECT 1 FROM sqlite_master WHERE name = ?", (table,)).fetchone())


def _text(time: datetime) -> str:
    """Text that sorts like the time; a time without microseconds would be shorter than its neighbours."""
    return time.isoformat(timespec="microseconds")
