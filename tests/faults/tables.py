"""The results table as an outsider reads it: plain SQL, no code of ours."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol

_COLUMNS = "message_id, label, status, attempt, worker"


class Row(NamedTuple):
    """What the checks look at."""

    message_id: str
    label: str | None
    status: str
    attempt: int
    worker: str


class Table(Protocol):
    """One results table.

    Attributes:
        url: its ``SINK_URL``.
    """

    url: str

    def count(self) -> int:
        """Return how many rows there are; 0 while there is no table."""

    def rows(self) -> Iterator[Row]:
        """Yield every row."""

    def blocked(self) -> contextlib.AbstractContextManager[None]:
        """Keep everybody else from writing while the block runs."""

    def close(self) -> None:
        """Let the connection go."""


class SqliteTable:
    """A file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.url = f"sqlite:///{path}"

    def _read(self, query: str) -> list[Any]:
        if not self.path.exists():
            return []
        with contextlib.closing(sqlite3.connect(self.path, timeout=30)) as db:
            try:
                return db.execute(query).fetchall()
            except sqlite3.OperationalError as error:
                if "no such table" in str(error):
                    return []
                raise

    def count(self) -> int:
        """Return how many rows there are."""
        return int((self._read("SELECT count(*) FROM results") or [(0,)])[0][0])

    def rows(self) -> Iterator[Row]:
        """Yield every row."""
        yield from map(Row._make, self._read(f"SELECT {_COLUMNS} FROM results"))

    @contextlib.contextmanager
    def blocked(self) -> Iterator[None]:
        """Hold the file's write lock."""
        with contextlib.closing(sqlite3.connect(self.path, timeout=30, isolation_level=None)) as db:
            db.execute("BEGIN IMMEDIATE")
            yield
            db.execute("ROLLBACK")

    def close(self) -> None:
        """Nothing is open."""


class PostgresTable:
    """A table in a database of its own.

    Args:
        url: of the database, without a proxy.
    """

    def __init__(self, url: str) -> None:
        import psycopg

        self.url = url
        self._db = psycopg.connect(url, autocommit=True)

    def sql(self, query: str) -> list[Any]:
        """Run a statement; return its rows."""
        import psycopg

        try:
            with self._db.cursor() as cursor:
                cursor.execute(query)  # type: ignore[arg-type]
                return cursor.fetchall() if cursor.description else []
        except psycopg.errors.UndefinedTable:
            return []
        except psycopg.OperationalError:
            if not self._db.closed:
                raise
            self._db = psycopg.connect(self.url, autocommit=True)  # the server was restarted
            return self.sql(query)

    def count(self) -> int:
        """Return how many rows there are."""
        return int((self.sql("SELECT count(*) FROM results") or [(0,)])[0][0])

    def rows(self) -> Iterator[Row]:
        """Yield every row."""
        yield from map(Row._make, self.sql(f"SELECT {_COLUMNS} FROM results"))

    @contextlib.contextmanager
    def blocked(self) -> Iterator[None]:
        """Hold a lock that only reading passes."""
        import psycopg

        with psycopg.connect(self.url) as other:
            other.execute("LOCK TABLE results IN SHARE MODE")
            yield
            other.rollback()

    def waiting(self) -> int:
        """Return how many writers wait for a lock."""
        query = (
            "SELECT count(*) FROM pg_stat_activity"
            " WHERE wait_event_type = 'Lock' AND datname = current_database()"
        )
        return int(self.sql(query)[0][0])

    def close(self) -> None:
        """Let the connection go."""
        self._db.close()
