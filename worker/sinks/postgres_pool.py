"""Connections to PostgreSQL on which nothing waits for ever.

The server ends a statement that takes too long or waits too long for a lock. When the server or the network
says nothing at all, a clock of our own shuts the socket down: whoever waits for it wakes with an error. No
cancel request is sent, since that would wait for the same silent network.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any

from client.results.postgres import CONNECT_S, login

if TYPE_CHECKING:
    from psycopg import AsyncConnection

Rows = list[tuple[Any, ...]]
# How much longer than the server our own clock waits: the server knows more about what went wrong.
_GRACE_S = 1.0
# A lock that is held for longer is an outage; the statement is repeated.
_LOCK_SHARE = 0.6
# What SQLSTATE classes say about the values of a row; all others are about the server or the session.
# 54 is a value too long for an index, P0 what an operator's trigger raised.
# Source: PostgreSQL 17, appendix A.
_ROW_CLASSES = {"22", "23", "44", "54", "P0"}


class Session:
    """One connection, lent to one user.

    Args:
        connection: open, in autocommit mode.
        statement_s: what the server grants a statement, seconds.
    """

    def __init__(self, connection: AsyncConnection[tuple[Any, ...]], statement_s: float) -> None:
        self._connection = connection
        self._statement_s = statement_s

    async def run(self, query: str, values: Sequence[object] = (), statement_s: float | None = None) -> Rows:
        """Run one statement and return its rows.

        Args:
            query: with ``%s`` where values go.
            values: bound to it.
            statement_s: what the server grants it, if the session was told another limit, seconds.

        Raises:
            psycopg.Error: it failed, or there was no answer in time; the connection is dead then.
        """
        from psycopg import OperationalError

        deadline_s = (statement_s or self._statement_s) + _GRACE_S
        task = asyncio.ensure_future(self._execute(query, values))
        try:
            answered, _ = await asyncio.wait({task}, timeout=deadline_s)
        finally:
            if not task.done():
                await self._cut(task)
        if not answered:
            raise OperationalError(f"no answer within {deadline_s:g} s")
        return task.result()

    async def _execute(self, query: str, values: Sequence[object]) -> Rows:
        cursor = await self._connection.execute(query, values or None)
        return [] if cursor.description is None else await cursor.fetchall()

    async def _cut(self, task: asyncio.Task[Rows]) -> None:
        """Make a running statement fail now; whether it took effect is not known."""
        from psycopg import Error

        with suppress(OSError, Error), socket.socket(fileno=os.dup(self._connection.fileno())) as handle:
            handle.shutdown(socket.SHUT_RDWR)
        await asyncio.wait({task}, timeout=_GRACE_S)
        if task.done() and not task.cancelled():
            task.exception()  # seen; otherwise asyncio complains


class Pool:
    """As many connections as statements run at once; any task may use it.

    Args:
        url: ``postgresql://...``.
        statement_s: what the server grants a statement, seconds.

    Raises:
        ValueError: the URL does not work.
    """

    def __init__(self, url: str, statement_s: float) -> None:
        self._statement_s = statement_s
        session = {
            "statement_timeout": f"{statement_s * 1000:.0f}",
            "lock_timeout": f"{statement_s * _LOCK_SHARE * 1000:.0f}",
            # A database or a role may have it off; an ack must not outlive its row.
            "synchronous_commit": "on",
        }
        self._login = login(url, session)
        self._idle: list[AsyncConnection[tuple[Any, ...]]] = []

    async def run(self, query: str, values: Sequence[object] = ()) -> Rows:
        """Run one statement in a transaction of its own and return its rows.

        Raises:
            psycopg.Error: it failed, there was no answer in time, or no connection.
        """
        async with self.session() as session:
            return await session.run(query, values)

    @asynccontextmanager
    async def session(self) -> AsyncIterator[Session]:
        """Lend a connection; after a failure that is not about a row, all are made anew.

        Raises:
            psycopg.Error: there is none.
        """
        connection = self._idle.pop() if self._idle else await self._connect()
        keep = False
        try:
            yield Session(connection, self._statement_s)
            keep = True
        except Exception as error:
            keep = refusal(error) is not None and connection.info.transaction_status.name == "IDLE"
            if not keep:
                # They lead to the same server, which may be gone, or be no longer the one to write to.
                await self.aclose()
            raise
        finally:
            if keep:
                self._idle.append(connection)
            else:
                await connection.close()

    async def aclose(self) -> None:
        """Close the connections that nobody uses."""
        while self._idle:
            await self._idle.pop().close()

    async def _connect(self) -> AsyncConnection[tuple[Any, ...]]:
        from psycopg import AsyncConnection, OperationalError

        hosts = str(self._login.get("host") or "").count(",") + 1
        deadline_s = hosts * CONNECT_S + _GRACE_S  # looking up a name has no deadline of its own
        try:
            async with asyncio.timeout(deadline_s):
                # Nothing is prepared: it saves no time here, and poolers before the server lose track.
                return await AsyncConnection.connect(**self._login, autocommit=True, prepare_threshold=None)
        except TimeoutError:
            raise OperationalError(f"no connection within {deadline_s:g} s") from None


def refusal(error: BaseException) -> str | None:
    """Return why a row was refused, or None when the error is not about a row."""
    from psycopg import Error

    if isinstance(error, Error) and error.sqlstate is not None and error.sqlstate[:2] in _ROW_CLASSES:
        # The detail of a broken constraint repeats the whole row.
        detail = error.diag.message_detail if error.sqlstate.startswith("22") else None
        return f"{error.sqlstate} {error.diag.message_primary}" + (f": {detail}" if detail else "")
    return None
