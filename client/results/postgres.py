"""The results table in PostgreSQL: what it is made of, how to log in, and its reader.

``python -m client.results.postgres`` prints the statements that make the table, for an administrator.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from broker.drivers.options import public_url

from ..errors import StoreError, StoreUnavailable
from ..schema import ResultRow
from .table import COLUMNS, Results, ResultsMissing, check_columns, check_version, chunks, readable

if TYPE_CHECKING:
    import psycopg

CONNECT_S = 5.0
_READ_S = 60.0
_IDS_AT_ONCE = 5_000
_PAGE = 2_000
# Types of the columns, also for the rows of one statement.
TYPES = {
    "message_id": "text",
    "label_index": "integer",
    "confidence": "double precision",
    "runner_up_confidence": "double precision",
    "tags": "jsonb",
    "attempt": "integer",
    "queue_s": "double precision",
    "process_s": "double precision",
    "latency_s": "double precision",
    "created_at": "timestamptz",
    "context": "jsonb",
}
# Text on the way in and on the way out.
JSON = ("tags", "context")
_OPTIONAL = {
    *("label", "label_index", "confidence", "runner_up", "runner_up_confidence", "group_label"),
    *("model", "model_version", "model_hash", "engine", "key", "subject"),
    "context",
}
_TABLE = ",\n".join(
    f'    "{name}" {TYPES.get(name, "text")}'
    + ("" if name in _OPTIONAL else " PRIMARY KEY" if name == "message_id" else " NOT NULL")
    for name in COLUMNS
)
# Revision n is what the first n steps make.
STEPS = (
    (
        f"CREATE TABLE IF NOT EXISTS results (\n{_TABLE},\n"
        "    CHECK (status IN ('ok', 'abstained', 'expired'))\n)",
        "CREATE TABLE IF NOT EXISTS results_schema (version integer PRIMARY KEY)",
        "INSERT INTO results_schema SELECT 1 WHERE NOT EXISTS (SELECT 1 FROM results_schema)",
    ),
    (
        "CREATE INDEX IF NOT EXISTS results_created_at ON results (created_at)",
        "CREATE TABLE IF NOT EXISTS results_state (name text PRIMARY KEY, value text NOT NULL)",
    ),
    ("ALTER TABLE results ADD COLUMN IF NOT EXISTS context jsonb",),
)
SET_REVISION = (
    "INSERT INTO results_state VALUES ('revision', '{}')"
    " ON CONFLICT (name) DO UPDATE SET value = excluded.value"
)
# Which tables there are, in the schema that the session writes to.
LOOK = "SELECT to_regclass('results'), to_regclass('results_schema'), to_regclass('results_state')"
READ_VERSION = "SELECT coalesce(max(version), 0) FROM results_schema"
READ_STATE = "SELECT value FROM results_state WHERE name = %s"
READ_COLUMNS = (
    "SELECT attname FROM pg_attribute"
    " WHERE attrelid = to_regclass('results') AND attnum > 0 AND NOT attisdropped"
)
# What the server or libpq say about a login that will not work the next time either. libpq tells no SQLSTATE.
# Source: PostgreSQL 15, src/backend/libpq/auth.c, src/backend/utils/init/postinit.c, libpq's fe-connect.c.
_HOPELESS = re.compile(
    r"authentication failed|does not exist|no pg_hba\.conf entry|not permitted to log in|no password supplied"
    r"|permission denied for database|not currently accepting connections|does not support SSL|certificate"
)
_NO_SYNC = re.compile(r"synchronous_commit\s*=\s*(off|false|no|0)\b", re.IGNORECASE)
_UNKNOWN_OPTION = re.compile(r'invalid URI query parameter: "\w+"')


def login(url: str, session: Mapping[str, str], origin: str = "SINK_URL") -> dict[str, Any]:
    """Return the connection parameters of a URL, with deadlines and what a session is to set.

    Args:
        url: ``postgresql://user:password@host:port/database?option=value``; the options are libpq's and win.
        session: server settings, such as ``statement_timeout``.
        origin: where the URL came from, for the error.

    Raises:
        ValueError: it does not work; the text repeats no password.
    """
    from psycopg import ProgrammingError
    from psycopg.conninfo import conninfo_to_dict

    try:
        given = conninfo_to_dict(url)
    except ProgrammingError as error:
        what = _UNKNOWN_OPTION.search(str(error))  # the rest may repeat parts of the password
        raise ValueError(
            f"{origin}={public_url(url)!r} does not work{f' ({what[0]})' if what else ''}; use"
            " postgresql://user:password@host:5432/database, with special characters percent-encoded"
        ) from None
    options = str(given.get("options") or "")
    if _NO_SYNC.search(options):
        raise ValueError(
            f"{origin} switches synchronous_commit off; rows that were acknowledged would be lost in a crash"
        )
    ours = " ".join(f"-c {name}={value}" for name, value in session.items())
    several = "," in str(given.get("host") or "")
    return {
        "connect_timeout": int(CONNECT_S),
        "application_name": "couturier",
        "client_encoding": "UTF8",  # psycopg gives names as bytes where the database has SQL_ASCII
        "keepalives_idle": 10,
        "keepalives_interval": 5,
        "keepalives_count": 3,
        "tcp_user_timeout": 10_000,
        **({"target_session_attrs": "read-write"} if several else {}),
        **given,
        "options": f"{ours} {options}".strip(),
    }


def login_problem(error: Exception, url: str, origin: str = "SINK_URL") -> Exception:
    """Return what to raise for a connection that was not made."""
    detail = " ".join(str(error).split())
    where = f"{origin}={public_url(url)!r}"
    if _HOPELESS.search(detail):
        return ValueError(f"{where}: {detail}; check user, password and database of {origin}")
    detail = detail.partition(" Is the server running")[0]
    return StoreUnavailable(f"{where} cannot be reached: {detail}; is PostgreSQL running there?")


def cast(names: str, kind: str) -> str:
    """Return a list of columns with those that hold JSON cast to a type: ``text`` or ``jsonb``."""
    for name in JSON:
        names = names.replace(f'"{name}"', f'"{name}"::{kind}') if f' AS "{name}"' not in names else names
    return names


def ddl() -> str:
    """Return the statements that make everything, for ``psql``."""
    statements = [each for step in STEPS for each in step] + [SET_REVISION.format(len(STEPS))]
    return "".join(f"{each};\n" for each in statements)


class PostgresReader(Results):
    """Reads the results table of a database. Use as a context manager; any thread may use it.

    Args:
        url: ``postgresql://...``.

    Raises:
        ValueError: the URL, or its login, does not work.
        StoreUnavailable: the server is away.
        ResultsMissing: there is no table yet.
        StoreError: the table holds something else.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._place = public_url(url)
        session = {
            "statement_timeout": f"{_READ_S * 1000:.0f}",
            "default_transaction_read_only": "on",
            "timezone": "UTC",
        }
        self._login = {**login(url, session), "target_session_attrs": "any"}
        # One after the other, also where the table is asked by several threads.
        self._lock = threading.Lock()
        self._db: psycopg.Connection[tuple[Any, ...]] | None = None
        try:
            self._check()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        if self._db is not None:
            self._db.close()
            self._db = None

    def ids(self, status: str | None = None) -> Iterator[str]:
        only, values = ("", ()) if status is None else ("AND status = %s", (status,))
        query = f"SELECT message_id FROM results WHERE message_id > %s {only} ORDER BY message_id LIMIT %s"  # noqa: S608
        last = ""
        while page := self._read(query, (last, *values, _IDS_AT_ONCE)):
            yield from (message_id for (message_id,) in page)
            last = page[-1][0]

    def rows(
        self, label: str | None = None, limit: int | None = None, status: str | None = None
    ) -> Iterator[ResultRow]:
        left = limit
        last: ResultRow | None = None
        while left is None or left > 0:
            parts: list[tuple[str, tuple[object, ...]]] = []
            if label is not None:
                parts.append(("label = %s", (label,)))
            if status is not None:
                parts.append(("status = %s", (status,)))
            if last is not None:
                parts.append(("(created_at, message_id) < (%s, %s)", (last.created_at, last.message_id)))
            where = f"WHERE {' AND '.join(text for text, _ in parts)}" if parts else ""
            page_size = _PAGE if left is None else min(_PAGE, left)
            page = self._read(
                f"SELECT {self._columns} FROM results {where}"  # noqa: S608 - constants
                " ORDER BY created_at DESC, message_id DESC LIMIT %s",
                (*(value for _, values in parts for value in values), page_size),
            )
            if not page:
                return
            for values in page:
                last = _row(values)
                yield last
            left = None if left is None else left - len(page)

    def find(self, ids: Iterable[str]) -> Iterator[ResultRow]:
        query = f"SELECT {self._columns} FROM results WHERE message_id = ANY(%s)"  # noqa: S608 - constants
        for chunk in chunks(ids, _IDS_AT_ONCE):
            # An id that holds NUL has no row, and may not even be asked for.
            yield from map(_row, self._read(query, ([each for each in chunk if "\0" not in each],)))

    def kept_since(self) -> datetime | None:
        if self._read(LOOK)[0][2] is None:
            return None
        found = self._read(READ_STATE, ("kept_since",))
        return datetime.fromisoformat(found[0][0]) if found else None

    def _check(self) -> None:
        table, schema, _ = self._read(LOOK)[0]
        if table is None:
            raise ResultsMissing(
                f"{self._place} holds no results yet; results appear once a worker runs: `couturier worker`"
            )
        names = {name for (name,) in self._read(READ_COLUMNS)}
        check_columns(names, self._place)
        self._columns = cast(readable(names), "text")
        if schema is not None:
            check_version(self._read(READ_VERSION)[0][0], self._place)

    def _read(self, query: str, values: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        import psycopg

        with self._lock:
            if self._db is None or self._db.closed:
                try:
                    self._db = psycopg.connect(**self._login, autocommit=True)
                except psycopg.Error as error:
                    raise login_problem(error, self._url) from error
            try:
                return self._db.execute(query, values).fetchall()
            except psycopg.errors.InsufficientPrivilege as error:
                raise StoreError(f"{self._place}: {error}; GRANT SELECT on it to this user") from error
            except psycopg.Error as error:
                raise StoreUnavailable(f"{self._place}: {' '.join(str(error).split())}") from error


def _row(values: tuple[Any, ...]) -> ResultRow:
    row = ResultRow._make(values)
    created_at: object = row.created_at
    if isinstance(created_at, datetime):
        row = row._replace(created_at=created_at.astimezone(UTC).isoformat())
    return row


if __name__ == "__main__":
    print(ddl(), end="")
