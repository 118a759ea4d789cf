"""The queue file: its tables, transactions, what is forced to disk when, and what its errors mean."""

from __future__ import annotations

import contextlib
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import BrokerError, PermissionDenied, Unavailable

# "cout": marks the file as ours, so that no other database is ever written to.
_APPLICATION_ID = 0x636F7574
_SCHEMA_VERSION = 1
# Short, because whoever meets `Unavailable` tries again, and a shutdown may meet it several times in a row.
_BUSY_TIMEOUT_S = 3.0
_PRUNED_AT_ONCE = 1000

_SCHEMA = """
CREATE TABLE topics (
    topic_id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, partitions INTEGER NOT NULL
);
CREATE TABLE groups (
    group_id INTEGER PRIMARY KEY, topic_id INTEGER NOT NULL REFERENCES topics, name TEXT NOT NULL,
    start INTEGER NOT NULL, cursor INTEGER NOT NULL, UNIQUE (topic_id, name)
);
CREATE TABLE messages (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, topic_id INTEGER NOT NULL REFERENCES topics,
    stored_at REAL NOT NULL, id TEXT NOT NULL, key TEXT, content_type TEXT NOT NULL, type TEXT NOT NULL,
    source TEXT NOT NULL, subject TEXT, time TEXT NOT NULL, attributes TEXT NOT NULL, data BLOB NOT NULL,
    origin TEXT
);
CREATE INDEX messages_of_topic ON messages (topic_id, seq);
CREATE UNIQUE INDEX forwarded_once ON messages (topic_id, origin) WHERE origin IS NOT NULL;
CREATE TABLE pending (
    group_id INTEGER NOT NULL REFERENCES groups, seq INTEGER NOT NULL, available_at REAL NOT NULL,
    failures INTEGER NOT NULL, token INTEGER, key TEXT, PRIMARY KEY (group_id, seq)
) WITHOUT ROWID;
CREATE INDEX due ON pending (group_id, available_at);
CREATE INDEX keys ON pending (group_id, key, seq) WHERE key IS NOT NULL;
"""
# Beside the schema, so that workers of before, which know nothing of it, can go on with the file.
_RETENTIONS = """
CREATE TABLE IF NOT EXISTS retentions (
    topic_id INTEGER PRIMARY KEY REFERENCES topics, seconds REAL NOT NULL
)"""


class QueueFile:
    """One connection to a queue file.

    Args:
        path: created when missing.
        forget_before: settled messages that were stored before this time are deleted.

    Raises:
        PermissionDenied: the file or its directory cannot be read and written.
        BrokerError: the file is something else.
    """

    def __init__(self, path: Path, forget_before: float) -> None:
        self.path = path
        self._unsynced = False
        with mapped(path):
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise PermissionDenied(f"cannot create the directory of the queue {path}: {error}") from error
            self.db = sqlite3.connect(path, isolation_level=None, timeout=_BUSY_TIMEOUT_S)
            try:
                self._create()
                self._prune(forget_before)
            except BaseException:
                self.db.close()
                raise

    def close(self) -> None:
        """Close the connection; verdicts are forced to disk before."""
        with contextlib.suppress(BrokerError):
            self.sync()
        self.db.close()

    def _create(self) -> None:
        # One statement, one snapshot: another process may be creating the same file.
        application, version, is_used, has_retentions = self.db.execute(
            """SELECT (SELECT application_id FROM pragma_application_id),
                      (SELECT user_version FROM pragma_user_version), EXISTS (SELECT 1 FROM sqlite_schema),
                      EXISTS (SELECT 1 FROM sqlite_schema WHERE name = 'retentions')"""
        ).fetchone()
        if is_used and application != _APPLICATION_ID:
            raise BrokerError(f"{self.path} is a database of another program, not a couturier queue")
        if version > _SCHEMA_VERSION:
            raise BrokerError(f"{self.path} was written by a newer couturier (schema {version}); upgrade")
        self._use_wal()
        if version == _SCHEMA_VERSION and has_retentions:
            return
        with self.transaction(durable=True):
            self.db.execute(_RETENTIONS)
            # Another process may have been quicker between the look and the lock.
            if self.db.execute("PRAGMA user_version").fetchone()[0] == _SCHEMA_VERSION:
                return
            for statement in _SCHEMA.split(";\n"):
                self.db.execute(statement)
            self.db.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
            self.db.execute(f"PRAGMA user_version = {_SCHEMA_VERSION}")

    def _use_wal(self) -> None:
        """Switch to the write-ahead log, where readers do not block the writer."""
        deadline = time.monotonic() + _BUSY_TIMEOUT_S
        while True:
            try:
                self.db.execute("PRAGMA journal_mode = WAL")
                return
            except sqlite3.OperationalError as error:
                # The switch of a new file by two processes at once fails without waiting for the lock.
                if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                    raise
                time.sleep(0.01)

    def _prune(self, before: float) -> None:
        """Delete what was stored ``before`` and lies ahead of everything that a group has not settled.

        A topic with a retention of its own is left to ``expire``.
        """
        settled = self.query(
            """SELECT topic_id, min(coalesce(
                   (SELECT min(seq) - 1 FROM pending p WHERE p.group_id = g.group_id), cursor))
               FROM groups g WHERE topic_id NOT IN (SELECT topic_id FROM retentions) GROUP BY topic_id""",
            (),
        )
        statement = """DELETE FROM messages WHERE seq IN (SELECT seq FROM messages
            WHERE topic_id = ? AND seq <= ? AND stored_at < ? ORDER BY seq LIMIT ?)"""
        for topic_id, last in settled:
            # In small steps, because publishers and lease keepers wait meanwhile.
            count = _PRUNED_AT_ONCE
            while count == _PRUNED_AT_ONCE:
                with self.transaction(durable=False):
                    values = (topic_id, last, before, _PRUNED_AT_ONCE)
                    count = self.db.execute(statement, values).rowcount

    @contextlib.contextmanager
    def transaction(self, *, durable: bool) -> Iterator[None]:
        """Take the write lock; commit, with an fsync when ``durable``, or roll back."""
        with mapped(self.path):
            self.db.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
            self.db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self.db.execute("COMMIT")
            except BaseException:
                # Some failures, such as a full disk, have rolled back already.
                if self.db.in_transaction:
                    self.db.execute("ROLLBACK")
                raise
        # An fsync of the log covers everything that was committed before it.
        self._unsynced = not durable

    def query(self, statement: str, values: tuple[Any, ...]) -> list[Any]:
        """Return the rows of a read outside a transaction."""
        with mapped(self.path):
            return self.db.execute(statement, values).fetchall()

    def sync(self) -> None:
        """Force every earlier commit of this connection to disk."""
        if self._unsynced:
            with self.transaction(durable=True):
                self.db.execute(f"PRAGMA user_version = {_SCHEMA_VERSION}")


@contextlib.contextmanager
def mapped(path: Path) -> Iterator[None]:
    """Turn every error of sqlite3 into one of ours."""
    try:
        yield
    except sqlite3.Error as error:
        raise map_error(error, path) from error


def map_error(error: sqlite3.Error, path: Path) -> BrokerError:
    """Return our error for one of sqlite3.

    Source: the primary result codes of sqlite.org/rescode.html.
    """
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL):
        return Unavailable(f"the queue {path} was locked by another process for {_BUSY_TIMEOUT_S:g} s")
    if code in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_NOMEM):
        return Unavailable(f"the queue {path} cannot be written: {error}; is the disk full?")
    if code in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM, sqlite3.SQLITE_AUTH):
        return PermissionDenied(
            f"the queue {path} cannot be opened for writing: {error}; check the directory's permissions or"
            " choose another place with BROKER_URL=sqlite:///PATH"
        )
    if code in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT):
        return BrokerError(f"{path} is no couturier queue, or is damaged: {error}")
    return BrokerError(f"the queue {path} failed: {error}")
