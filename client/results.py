"""The results table: its columns, its place (``SINK_URL``), its reader and its writer.

One row per message id. The first row stays: a replay with the same content changes nothing, a replay with
other content is counted and reported, never stored.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import quote, unquote, urlsplit

from broker.drivers.options import public_url
from broker.settings import home

from .errors import ResultsTimeout, StoreError
from .schema import ClassifyResult, ResultRow
from .store import guarded, open_readable, open_writable, transaction

SCHEMA_VERSION = 1
# SQLite takes at least 999 parameters in one statement, whatever it was built with.
_IDS_AT_ONCE = 900
_POLL_S = 0.1
# What the values of a row can be guilty of; everything else is the file's fault.
_DATA_ERRORS = (
    sqlite3.IntegrityError,
    sqlite3.DataError,
    sqlite3.InterfaceError,
    sqlite3.ProgrammingError,
    OverflowError,
    UnicodeEncodeError,
)


COLUMNS = ResultRow._fields
_NAMES = ", ".join(f'"{name}"' for name in COLUMNS)
_INSERT = (
    f"INSERT INTO results ({_NAMES}) VALUES ({', '.join('?' * len(COLUMNS))})"  # noqa: S608 - constants
    " ON CONFLICT (message_id) DO NOTHING"
)
_DDL = """
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


@dataclass(frozen=True, slots=True)
class WriteReport:
    """What became of the rows of one write.

    Attributes:
        new: rows that were not there before.
        identical: replays with the same content.
        conflicts: ids of replays with another label or model; the first row was kept.
        refused: message id to the reason why the database does not take its row.
    """

    new: int = 0
    identical: int = 0
    conflicts: tuple[str, ...] = ()
    refused: Mapping[str, str] = field(default_factory=dict)


def default_url() -> str:
    """Return where results go when ``SINK_URL`` is not set: one file in the state directory."""
    return f"sqlite:///{quote(str(home().absolute() / 'results.db'))}"


def sqlite_path(url: str, origin: str = "SINK_URL") -> Path:
    """Return the file that a ``sqlite:`` URL names: three slashes and a relative path, or four.

    Args:
        url: the URL.
        origin: where it came from, for the error.

    Raises:
        ValueError: it is no such URL.
    """
    parts = urlsplit(url)
    if parts.scheme != "sqlite":
        raise ValueError(
            f"{origin}={public_url(url)!r} cannot be read; only rows in SQLite can: run the workers with"
            " SINK_URL=sqlite:////absolute/results.db"
        )
    path = unquote(parts.path[1:])
    if not url.startswith("sqlite:///") or not path or parts.query or parts.fragment:
        raise ValueError(
            f"{origin}={public_url(url)!r} does not work; use sqlite:///relative.db (three slashes) or"
            " sqlite:////absolute.db (four), without options"
        )
    return Path(path)


class ResultsWriter:
    """Writes rows to a SQLite file. For one thread at a time; any number of processes.

    Raises:
        StoreError: the file cannot be made, or holds something else.
        StoreUnavailable: another process keeps it locked.
    """

    def __init__(self, path: Path, busy_timeout_s: float = 5.0) -> None:
        self._path = path
        self._db = open_writable(path, _DDL, busy_timeout_s)
        try:
            _check_schema(self._db, path)
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

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def _write_apart(self, rows: Sequence[ResultRow]) -> WriteReport:
        """Store rows one by one, still in one transaction, to find those that are refused."""
        refused: dict[str, str] = {}
        taken: list[ResultRow] = []
        new = 0
        with transaction(self._db):
            for row in rows:
                try:
                    new += self._db.execute(_INSERT, row).rowcount
                    taken.append(row)
                except _DATA_ERRORS as error:
                    refused[row.message_id] = f"{type(error).__name__}: {error}"
            return self._compare(taken, new, refused)

    def _compare(self, rows: Sequence[ResultRow], new: int, refused: Mapping[str, str]) -> WriteReport:
        """Tell replays that repeat what is stored from those that contradict it."""
        stored: dict[str, tuple[str | None, str | None]] = {}
        for ids in _chunks(row.message_id for row in rows):
            marks = ", ".join("?" * len(ids))
            query = f"SELECT message_id, label, model_hash FROM results WHERE message_id IN ({marks})"  # noqa: S608
            stored.update({each: (label, model) for each, label, model in self._db.execute(query, ids)})
        conflicts = tuple(
            row.message_id for row in rows if stored[row.message_id] != (row.label, row.model_hash)
        )
        return WriteReport(new, len(rows) - new - len(conflicts), conflicts, refused)


class ResultsReader:
    """Reads a results file without changing it. Use as a context manager; any thread may use it.

    Raises:
        StoreError: there is no such file, or it holds no results.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._db = open_readable(path)
        except StoreError as error:
            raise StoreError(f"{error}; results appear once a worker runs: `couturier worker`") from error
        try:
            _check_schema(self._db, path)
        except BaseException:
            self._db.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def count(self) -> int:
        """Return how many rows there are."""
        return int(self._read("SELECT count(*) FROM results").fetchone()[0])

    def duplicates(self) -> int:
        """Return how many rows repeat an id; 0, unless someone else made the table."""
        return int(self._read("SELECT count(*) - count(DISTINCT message_id) FROM results").fetchone()[0])

    def ids(self) -> Iterator[str]:
        """Yield the message id of every row."""
        for (message_id,) in self._read("SELECT message_id FROM results"):
            yield message_id

    def rows(self, label: str | None = None, limit: int | None = None) -> Iterator[ResultRow]:
        """Yield rows, newest first.

        Args:
            label: only these.
            limit: at most so many.
        """
        where = "" if label is None else "WHERE label = :label"
        query = f"SELECT {_NAMES} FROM results {where} ORDER BY rowid DESC LIMIT :limit"  # noqa: S608
        for row in self._read(query, {"label": label, "limit": -1 if limit is None else limit}):
            yield ResultRow(*row)

    def find(self, ids: Iterable[str]) -> Iterator[ResultRow]:
        """Yield the rows of these messages, in no particular order; what has no row is left out."""
        for chunk in _chunks(ids):
            marks = ", ".join("?" * len(chunk))
            query = f"SELECT {_NAMES} FROM results WHERE message_id IN ({marks})"  # noqa: S608
            for row in self._read(query, chunk):
                yield ResultRow(*row)

    def _read(self, query: str, values: Sequence[str] | Mapping[str, object] = ()) -> sqlite3.Cursor:
        with guarded(self._path):
            return self._db.execute(query, values)


async def wait_for(ids: Sequence[str], timeout: float, url: str | None = None) -> list[ClassifyResult]:
    """Return the results of these messages, in order, as soon as all are there.

    Args:
        ids: message ids.
        timeout: seconds.
        url: where the results are; None means the default place.

    Raises:
        ResultsTimeout: some are still missing; ``missing`` names them.
        ValueError: ``url`` does not work.
    """
    path = sqlite_path(url or default_url())
    deadline = time.monotonic() + timeout
    missing = set(ids)
    found: dict[str, ResultRow] = {}
    while True:
        found.update(await asyncio.to_thread(_find, path, missing))
        missing -= found.keys()
        if not missing:
            return [found[each].result() for each in ids]
        if time.monotonic() >= deadline:
            raise ResultsTimeout(sorted(missing), timeout)
        await asyncio.sleep(_POLL_S)


def _find(path: Path, ids: Iterable[str]) -> dict[str, ResultRow]:
    if not path.exists() or _is_blank(path):
        return {}
    with ResultsReader(path) as reader:
        return {row.message_id: row for row in reader.find(ids)}


def _is_blank(path: Path) -> bool:
    """Whether a file is there in which the first worker has made no table yet."""
    with guarded(path), contextlib.closing(sqlite3.connect(path)) as db:
        return db.execute("SELECT 1 FROM sqlite_master").fetchone() is None


def _check_schema(db: sqlite3.Connection, path: Path) -> None:
    with guarded(path):
        names = {row[1] for row in db.execute("PRAGMA table_info(results)")}
        if not names >= set(COLUMNS):
            lacking = ", ".join(sorted(set(COLUMNS) - names))
            raise StoreError(f"{path} holds no results of couturier (lacking: {lacking}); name another file")
        (version,) = db.execute("SELECT max(version) FROM results_schema").fetchone()
    if version > SCHEMA_VERSION:
        raise StoreError(f"{path} was written by a newer couturier (schema {version}); upgrade this one")


def _chunks(ids: Iterable[str]) -> Iterator[list[str]]:
    source = iter(ids)
    while chunk := list(islice(source, _IDS_AT_ONCE)):
        yield chunk
