"""What was published, with the truth: one SQLite file on the sender's side.

A message is recorded *before* it is sent and marked once the broker says that it is stored, so a crash in
between leaves an entry that may or may not appear, never a message that nobody knows of. The messages
themselves carry no truth.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from broker.settings import home

from .errors import StoreError
from .sources.base import Kind, Submission
from .store import guarded, open_readable, open_writable, transaction

State = Literal["sent", "confirmed", "refused"]

_DDL = """
CREATE TABLE IF NOT EXISTS ledger (
    message_id TEXT PRIMARY KEY NOT NULL,
    sha256 TEXT NOT NULL,
    broker TEXT NOT NULL,
    topic TEXT NOT NULL,
    run_id TEXT NOT NULL,
    subject TEXT,
    label TEXT,
    kind TEXT NOT NULL CHECK (kind IN ('good', 'bad')),
    sent_at TEXT NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('sent', 'confirmed', 'refused'))
);
CREATE INDEX IF NOT EXISTS ledger_run ON ledger (run_id);
CREATE TABLE IF NOT EXISTS ledger_conflicts (
    message_id TEXT NOT NULL,
    sha256 TEXT NOT NULL,
    PRIMARY KEY (message_id, sha256)
)
"""
_COLUMNS = "message_id, sha256, broker, topic, run_id, subject, label, kind, sent_at, state"
_IDS_AT_ONCE = 900


@dataclass(frozen=True, slots=True)
class Entry:
    """One message that was, or was to be, published.

    Attributes:
        message_id: its id.
        sha256: of its body, hexadecimal.
        broker: whose message it was, the broker's ``address``.
        topic: where it went.
        run_id: the send that it belonged to.
        subject: its subject.
        label: the true class, or None.
        kind: ``bad`` if it was damaged on purpose.
        sent_at: when it was recorded, ISO 8601 in UTC.
        state: ``sent``: no answer yet, it may appear; ``confirmed``: the broker stored it; ``refused``: it
            did not.
    """

    message_id: str
    sha256: str
    broker: str
    topic: str
    run_id: str
    subject: str | None
    label: str | None
    kind: Kind
    sent_at: str
    state: State


def default_path() -> Path:
    """Return the ledger in the state directory."""
    return home() / "ledger.db"


class Ledger:
    """Writes and reads the ledger. For one thread at a time; any number of processes.

    Args:
        path: the file; None means the default place.
        read_only: the file must exist and is not changed.

    Raises:
        StoreError: the file is missing, cannot be made, or holds something else.
        StoreUnavailable: another process keeps it locked; any call may raise it.
    """

    def __init__(self, path: Path | None = None, read_only: bool = False) -> None:
        self.path = path or default_path()
        self._db = open_readable(self.path) if read_only else open_writable(self.path, _DDL)
        with guarded(self.path):
            names = {row[1] for row in self._db.execute("PRAGMA table_info(ledger)")}
        if not names >= set(_COLUMNS.split(", ")):
            self._db.close()
            raise StoreError(f"{self.path} is no ledger of couturier; name another file")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def record(self, run_id: str, topic: str, submissions: Iterable[Submission], broker: str = "") -> None:
        """Write down what is about to be sent; an id that is there already keeps its first entry.

        If that had another body, this one is noted as a conflict: only one of the two can become a row.

        Args:
            run_id: names the send.
            topic: where it goes.
            submissions: what is sent.
            broker: ``Broker.address``, because one ledger may serve several.
        """
        now = datetime.now(UTC).isoformat()
        rows = [
            (
                each.request.id,
                hashlib.sha256(each.request.image).hexdigest(),
                broker,
                topic,
                run_id,
                each.request.subject,
                each.label,
                each.kind,
                now,
                "sent",
            )
            for each in submissions
        ]
        statement = (
            f"INSERT INTO ledger ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING"  # noqa: S608
        )
        with guarded(self.path), transaction(self._db):
            if self._db.executemany(statement, rows).rowcount < len(rows):
                self._db.executemany(
                    "INSERT OR IGNORE INTO ledger_conflicts SELECT ?1, ?2"
                    " WHERE EXISTS (SELECT 1 FROM ledger WHERE message_id = ?1 AND sha256 != ?2)",
                    [row[:2] for row in rows],
                )

    def confirm(self, ids: Iterable[str]) -> None:
        """The broker stored these."""
        self._mark(ids, "confirmed")

    def refuse(self, ids: Iterable[str]) -> None:
        """The broker did not store these and never will."""
        self._mark(ids, "refused")

    def entries(self, topic: str | None = None, run_id: str | None = None) -> Iterator[Entry]:
        """Yield what was recorded, oldest first.

        Args:
            topic: only messages to this topic.
            run_id: only messages of this send.
        """
        query = (
            f"SELECT {_COLUMNS} FROM ledger WHERE topic = coalesce(:topic, topic)"  # noqa: S608
            " AND run_id = coalesce(:run_id, run_id) ORDER BY rowid"
        )
        with guarded(self.path):
            for row in self._db.execute(query, {"topic": topic, "run_id": run_id}):
                yield Entry(*row)

    def knows(self, topic: str, broker: str | None = None) -> bool:
        """Return whether anything was recorded for ``topic``, of one broker or of any."""
        with guarded(self.path):
            query = "SELECT EXISTS (SELECT 1 FROM ledger WHERE topic = ?1 AND broker = coalesce(?2, broker))"
            return bool(self._db.execute(query, (topic, broker)).fetchone()[0])

    def ids(self, topic: str, state: State, broker: str | None = None) -> set[str]:
        """Return the ids of all messages to ``topic`` that are in ``state``, of one broker or of any."""
        query = """SELECT message_id FROM ledger
                   WHERE topic = ?1 AND state = ?2 AND broker = coalesce(?3, broker)"""
        with guarded(self.path):
            return {message_id for (message_id,) in self._db.execute(query, (topic, state, broker))}

    def conflicts(self, topic: str, broker: str | None = None) -> set[str]:
        """Return the ids under which messages to ``topic`` with different bodies were sent."""
        query = """SELECT message_id FROM ledger JOIN ledger_conflicts USING (message_id)
                   WHERE topic = ?1 AND broker = coalesce(?2, broker)"""
        with guarded(self.path):
            if not self._db.execute("SELECT 1 FROM sqlite_master WHERE name = 'ledger_conflicts'").fetchone():
                return set()  # written by an older couturier, and by no newer one since
            return {message_id for (message_id,) in self._db.execute(query, (topic, broker))}

    def known(self, ids: Iterable[str]) -> set[str]:
        """Return those of these ids that were recorded, and not refused."""
        return self._asked(" AND state != 'refused'", (), ids)

    def find(self, ids: Iterable[str]) -> dict[str, Entry]:
        """Return the entries of these messages, by id; what was never recorded is left out."""
        source, found = iter(ids), dict[str, Entry]()
        with guarded(self.path):
            while chunk := list(islice(source, _IDS_AT_ONCE)):
                marks = ", ".join("?" * len(chunk))
                query = f"SELECT {_COLUMNS} FROM ledger WHERE message_id IN ({marks})"  # noqa: S608
                found.update((row[0], Entry(*row)) for row in self._db.execute(query, chunk))
        return found

    def sent_before(self, ids: Iterable[str], when: datetime) -> set[str]:
        """Return those of these ids that were recorded before a time, aware."""
        return self._asked(" AND sent_at < ?", (when.astimezone(UTC).isoformat(),), ids)

    def places(self) -> list[tuple[str, str]]:
        """Return the brokers' addresses and topics of which anything was recorded."""
        with guarded(self.path):
            return self._db.execute("SELECT DISTINCT broker, topic FROM ledger ORDER BY 1, 2").fetchall()

    def _asked(self, condition: str, values: tuple[str, ...], ids: Iterable[str]) -> set[str]:
        source, found = iter(ids), set[str]()
        with guarded(self.path):
            while chunk := list(islice(source, _IDS_AT_ONCE)):
                marks = ", ".join("?" * len(chunk))
                query = f"SELECT message_id FROM ledger WHERE message_id IN ({marks}){condition}"  # noqa: S608
                found.update(message_id for (message_id,) in self._db.execute(query, (*chunk, *values)))
        return found

    def _mark(self, ids: Iterable[str], state: State) -> None:
        source = iter(ids)
        with guarded(self.path), transaction(self._db):
            while chunk := list(islice(source, _IDS_AT_ONCE)):
                self._update(chunk, state)

    def _update(self, ids: Sequence[str], state: State) -> None:
        marks = ", ".join("?" * len(ids))
        # A message that is sent twice under one id and refused the second time is stored all the same.
        query = f"UPDATE ledger SET state = ? WHERE state != 'confirmed' AND message_id IN ({marks})"  # noqa: S608
        self._db.execute(query, (state, *ids))
