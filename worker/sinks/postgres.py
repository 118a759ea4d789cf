"""Results in PostgreSQL; any number of workers may share the table."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

import structlog

from broker.drivers.options import public_url
from client.errors import StoreError, StoreUnavailable
from client.results import COLUMNS
from client.results import postgres as table
from client.results.table import (
    ADDED,
    REVISION,
    Content,
    check_columns,
    check_version,
    content,
    firsts,
    judge,
)
from client.schema import ResultRow

from .base import SinkUnavailable, WriteReport
from .postgres_pool import Pool, Session, refusal

if TYPE_CHECKING:
    from psycopg import Error

log = structlog.stdlib.get_logger("worker")

_STATEMENT_S = 5.0
_OPENING_S = 10.0
_OPENING_POLL_S = 0.25
_MIGRATION_S = 60.0
# Any number that nobody else takes: "couturie" in ASCII.
_MIGRATION_LOCK = 0x636F7574_75726965
# All rows in one parameter: text that the client library need not take apart column by column, and that the
# server refuses row by row, for NUL as for half a surrogate.
_FIELDS = ", ".join(
    f'"{name}" {"text" if name in table.JSON else table.TYPES.get(name, "text")}' for name in COLUMNS
)
_STORED = "SELECT message_id, label, model_hash FROM results WHERE message_id = ANY(%s)"
_NOTE = (
    "INSERT INTO results_state VALUES (%s, %s) ON CONFLICT (name)"
    " DO UPDATE SET value = excluded.value WHERE results_state.value < %s RETURNING 1"
)
_PRUNE = (
    "WITH gone AS (DELETE FROM results WHERE message_id IN (SELECT message_id FROM results"
    " WHERE created_at < %s ORDER BY created_at LIMIT %s FOR UPDATE SKIP LOCKED) RETURNING 1)"
    " SELECT count(*) FROM gone"
)
# Undefined table or column, no unique index on message_id, a type that does not fit, ...
_WRONG_TABLE = "42"


class PostgresSink:
    """One statement a batch, in a transaction of its own; writes may overlap, each on its own connection.

    Args:
        url: ``postgresql://user:password@host:port/database``.
        statement_s: what the server grants a statement, seconds; a second later the connection is given up.
        opening_s: for how long ``open`` waits for a server that is away, seconds.

    Raises:
        ValueError: the URL does not work.
    """

    def __init__(self, url: str, statement_s: float = _STATEMENT_S, opening_s: float = _OPENING_S) -> None:
        self._url = url
        self._place = public_url(url)
        self._opening_s = opening_s
        self._pool = Pool(url, statement_s)
        self._statement = _insert(COLUMNS)

    async def open(self) -> None:
        """Connect, create what is missing, and try the statement that writes.

        A table that an administrator made is enough; the right to create is not needed then.
        """
        from psycopg import Error

        deadline = time.monotonic() + self._opening_s
        while True:
            try:
                return await self._prepare()
            except Error as error:
                problem = self._problem(error)
                if not isinstance(problem, StoreUnavailable) or time.monotonic() >= deadline:
                    raise problem from error
            await asyncio.sleep(_OPENING_POLL_S)

    async def write(self, rows: Sequence[ResultRow]) -> WriteReport:
        """Store rows durably; a row that the database refuses is found by halving the batch."""
        from psycopg import Error

        mine = firsts(rows)
        try:
            # In one order everywhere, so that two workers with the same ids never wait for each other.
            new, refused = await self._insert([mine[each] for each in sorted(mine)])
            if len(new) == len(rows):
                return WriteReport(len(new))
            stored: dict[str, Content] = {each: content(mine[each]) for each in new}
            if old := [each for each in mine if each not in new and each not in refused]:
                found = await self._pool.run(_STORED, (old,))
                stored.update({each: (label, model) for each, label, model in found})
        except Error as error:
            raise SinkUnavailable(f"{self._place}: {_detail(error)}") from error
        return judge(rows, len(new), stored, refused)

    async def claim_pruning(self, now: datetime, every_s: float, before: datetime) -> bool:
        """Say whether it is this worker's turn to remove old rows, and if so note what will be missing."""
        if not await self._note("pruned_at", now, now - timedelta(seconds=every_s)):
            return False
        # Noted before the first row goes: whoever balances the books must not miss it.
        await self._note("kept_since", before, before)
        return True

    async def prune(self, before: datetime, at_most: int) -> int:
        """Remove some rows that were made before a time; return how many."""
        from psycopg import Error

        try:
            return int((await self._pool.run(_PRUNE, (before, at_most)))[0][0])
        except Error as error:
            raise SinkUnavailable(f"{self._place}: {_detail(error)}") from error

    async def aclose(self) -> None:
        """Close the connections."""
        await self._pool.aclose()

    async def _insert(self, rows: list[ResultRow]) -> tuple[set[str], dict[str, str]]:
        """Store rows; return the ids of the new ones, and why others were refused."""
        from psycopg import Error

        new: set[str] = set()
        refused: dict[str, str] = {}
        parts = [rows]
        while parts:
            part = parts.pop()
            try:
                new.update(each for (each,) in await self._pool.run(self._statement, (_json(part),)))
            except (Error, ValueError, TypeError) as error:
                # What JSON cannot say never reached the server.
                why = refusal(error) if isinstance(error, Error) else f"{type(error).__name__}: {error}"
                if why is None:
                    raise
                if len(part) == 1:
                    refused[part[0].message_id] = why
                else:
                    middle = len(part) // 2
                    parts += [part[middle:], part[:middle]]
        return new, refused

    async def _note(self, name: str, value: datetime, older_than: datetime) -> bool:
        from psycopg import Error

        texts = (each.isoformat(timespec="microseconds") for each in (value, older_than))
        try:
            return bool(await self._pool.run(_NOTE, (name, *texts)))
        except Error as error:
            raise SinkUnavailable(f"{self._place}: {_detail(error)}") from error

    async def _prepare(self) -> None:
        from psycopg.errors import InsufficientPrivilege

        async with self._pool.session() as session:
            revision = await self._check(session)
        if revision < REVISION:
            try:
                async with self._pool.session() as session:
                    await self._migrate(session)
            except InsufficientPrivilege as error:
                if revision == 0:
                    raise
                log.warning("the results table is kept as it is", sink=self._place, reason=_detail(error))
        await self._fit()
        await self._pool.run(self._statement, ("[]",))

    async def _fit(self) -> None:
        """Leave out what the table has no column for, where this user may not add it."""
        there = {name for (name,) in await self._pool.run(table.READ_COLUMNS)}
        if lacking := ADDED - there:
            log.warning(
                "columns are left out until the owner of the table adds them:"
                " `python -m client.results.postgres | psql URL`, then start the workers again",
                sink=self._place,
                columns=sorted(lacking),
            )
        self._statement = _insert([name for name in COLUMNS if name not in lacking])

    async def _migrate(self, session: Session) -> None:
        """Apply the steps that are lacking; one worker at a time."""
        await session.run("BEGIN")
        for name in ("statement_timeout", "lock_timeout"):
            await session.run(f"SET LOCAL {name} = '{_MIGRATION_S:.0f}s'")
        limit_s = _MIGRATION_S
        await session.run("SELECT pg_advisory_xact_lock(%s)", (_MIGRATION_LOCK,), limit_s)
        for step in table.STEPS[await self._check(session) :]:
            for statement in step:
                await session.run(statement, (), limit_s)
        await session.run(table.SET_REVISION.format(REVISION))
        await session.run("COMMIT")

    async def _check(self, session: Session) -> int:
        """Return how many steps are applied.

        Raises:
            StoreError: the table is somebody else's, or of a later version, or the database knows ASCII only.
        """
        if (await session.run("SELECT current_setting('server_encoding')"))[0][0] == "SQL_ASCII":
            raise StoreError(
                f"SINK_URL={self._place!r}: the encoding of this database is SQL_ASCII, which cannot keep"
                " every label; make one with `createdb --encoding UTF8 --template template0 NAME`"
            )
        results, schema, state = (await session.run(table.LOOK))[0]
        if results is None:
            return 0
        check_columns({name for (name,) in await session.run(table.READ_COLUMNS)}, self._place)
        if schema is not None:
            check_version((await session.run(table.READ_VERSION))[0][0], self._place)
        found = [] if state is None else await session.run(table.READ_STATE, ("revision",))
        return int(found[0][0]) if found else 1

    def _problem(self, error: Error) -> Exception:
        """Return what to raise when the table cannot be prepared."""
        if error.sqlstate is None:
            return table.login_problem(error, self._url)
        if error.sqlstate == "42501":
            return StoreError(
                f"SINK_URL={self._place!r}: {_detail(error)}; let its owner GRANT SELECT, INSERT, DELETE ON"
                " results, results_schema, results_state to this user, after making them where they are"
                " missing: `python -m client.results.postgres | psql URL`"
            )
        if error.sqlstate.startswith(_WRONG_TABLE):
            return StoreError(
                f"SINK_URL={self._place!r}: the table results is not as it has to be: {_detail(error)};"
                " `python -m client.results.postgres` prints how"
            )
        return StoreUnavailable(f"SINK_URL={self._place!r}: {_detail(error)}")


def _insert(columns: Sequence[str]) -> str:
    names = ", ".join(f'"{name}"' for name in columns)
    return (
        f"INSERT INTO results ({names}) SELECT {table.cast(names, 'jsonb')}"  # noqa: S608 - constants
        f" FROM json_to_recordset(%s) AS rows ({_FIELDS})"
        " ON CONFLICT (message_id) DO NOTHING RETURNING message_id"
    )


def _json(rows: Sequence[ResultRow]) -> str:
    return json.dumps([dict(zip(COLUMNS, row, strict=True)) for row in rows], allow_nan=False)


def _detail(error: Error) -> str:
    text = error.diag.message_primary or " ".join(str(error).split())
    return f"{error.sqlstate} {text}" if error.sqlstate else text
