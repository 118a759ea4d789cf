"""What the results table and the ledger have in common: one SQLite file, opened and guarded the same way."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import StoreError, StoreUnavailable

BUSY_TIMEOUT_S = 5.0
# Switching a new file to WAL does not wait for another process that is doing the same.
_OPEN_RETRY_S = 0.05


def open_writable(path: Path, ddl: str, busy_timeout_s: float = BUSY_TIMEOUT_S) -> sqlite3.Connection:
    """Open or create a file for one writer thread; what it commits survives a power loss.

    Args:
        path: the file; missing directories are made.
        ddl: statements that create what is missing and change nothing that exists.
        busy_timeout_s: longest wait for another writer, seconds.

    Raises:
        StoreError: it cannot be created, or is no SQLite file.
        StoreUnavailable: it stays locked.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"{path}: its directory cannot be made: {error.strerror or error}") from error
    deadline = time.monotonic() + busy_timeout_s
    while True:
        try:
            with guarded(path, opening=True):
                return _prepared(path, ddl, busy_timeout_s)
        except StoreUnavailable:
            if time.monotonic() >= deadline:
                raise
            time.sleep(_OPEN_RETRY_S)


def open_readable(path: Path, busy_timeout_s: float = BUSY_TIMEOUT_S) -> sqlite3.Connection:
    """Open an existing file, changing nothing.

    Raises:
        StoreError: it is missing, or cannot be read.
    """
    if not path.is_file():
        raise StoreError(f"{path} does not exist")
    with guarded(path, opening=True):
        db = sqlite3.connect(
            f"{path.absolute().as_uri()}?mode=ro",
            uri=True,
            timeout=busy_timeout_s,
            isolation_level=None,
            check_same_thread=False,
        )
        db.execute("SELECT count(*) FROM sqlite_master").fetchone()
    return db


@contextmanager
def transaction(db: sqlite3.Connection) -> Iterator[sqlite3.Connection]:
    """Commit what the block writes, or nothing of it."""
    db.execute("BEGIN IMMEDIATE")
    try:
        yield db
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise


@contextmanager
def guarded(path: Path, opening: bool = False) -> Iterator[None]:
    """Turn what SQLite says about the file into this package's errors; leave data errors alone.

    Args:
        path: the file, for the text.
        opening: a file that cannot be opened is then wrong; later on it is an outage.
    """
    try:
        yield
    except sqlite3.OperationalError as error:
        name = getattr(error, "sqlite_errorname", "SQLITE_ERROR")
        if opening and name.startswith(("SQLITE_CANTOPEN", "SQLITE_READONLY", "SQLITE_PERM")):
            raise StoreError(
                f"{path} cannot be opened: {error}; check the path and its permissions"
            ) from error
        raise StoreUnavailable(f"{path}: {error} ({name})") from error
    except sqlite3.DatabaseError as error:
        # The bare class stands for a damaged file; its subclasses are about the data.
        if type(error) is not sqlite3.DatabaseError:
            raise
        raise StoreError(f"{path} is damaged or no SQLite file ({error}); name another file") from error


def _prepared(path: Path, ddl: str, busy_timeout_s: float) -> sqlite3.Connection:
    db = sqlite3.connect(
        path.absolute(), timeout=busy_timeout_s, isolation_level=None, check_same_thread=False
    )
    try:
        db.execute("PRAGMA journal_mode = WAL").fetchone()
        # In WAL mode NORMAL loses the last commits at a power loss; an ack must not outlive its row.
        db.execute("PRAGMA synchronous = FULL")
        with transaction(db):
            for statement in ddl.split(";"):
                if statement.strip():
                    db.execute(statement)
    except BaseException:
        db.close()
        raise
    return db
