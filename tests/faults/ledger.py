"""What was sent and what must become of it, written before it is sent; uses no code of the packages."""

from __future__ import annotations

import hashlib
import sqlite3
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

_DDL = """
CREATE TABLE IF NOT EXISTS ledger (
    id TEXT PRIMARY KEY, sha256 BLOB NOT NULL, label TEXT, reason TEXT, kind TEXT NOT NULL,
    sent INTEGER NOT NULL, acked INTEGER NOT NULL
) WITHOUT ROWID
"""


class Entry(NamedTuple):
    """What one message is, and what must become of it.

    Attributes:
        id: of the message.
        sha256: of the body that was sent first.
        label: of the row that it must end as; None for a dead letter.
        reason: of the dead letter that it must end as; None for a row. With a label, too: the letter was
            sent through again.
        kind: the sender's word for it, for the report.
        sent: how often it was handed to the broker.
        acked: how often the broker said that it is stored.
    """

    id: str
    sha256: bytes
    label: str | None
    reason: str | None
    kind: str
    sent: int = 0
    acked: int = 0


def digest(data: bytes) -> bytes:
    """Return the SHA-256 of a body."""
    return hashlib.sha256(data).digest()


class Ledger:
    """A file of entries; the first entry of an id stands.

    Args:
        path: of the file; survives the run for whoever wants to look.
    """

    def __init__(self, path: Path) -> None:
        self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = NORMAL")
        self._db.execute(_DDL)

    def plan(self, entries: Iterable[Entry]) -> None:
        """Write down what is about to be sent, in one transaction."""
        self._db.execute("BEGIN")
        self._db.executemany(
            "INSERT INTO ledger VALUES (?, ?, ?, ?, ?, 1, 0) ON CONFLICT DO UPDATE SET sent = sent + 1",
            (entry[:5] for entry in entries),
        )
        self._db.execute("COMMIT")

    def redrive(self, entries: Iterable[Entry]) -> None:
        """Write down that dead letters are sent through again: they must end as rows now, too."""
        self._db.execute("BEGIN")
        self._db.executemany(
            "UPDATE ledger SET label = ?, kind = ? WHERE id = ?", ((e.label, e.kind, e.id) for e in entries)
        )
        self._db.execute("COMMIT")

    def confirm(self, ids: Iterable[str]) -> None:
        """Write down what the broker says it has stored."""
        self._db.execute("BEGIN")
        self._db.executemany("UPDATE ledger SET acked = acked + 1 WHERE id = ?", ((each,) for each in ids))
        self._db.execute("COMMIT")

    def entries(self) -> dict[str, Entry]:
        """Return everything, by id."""
        return {row[0]: Entry(*row) for row in self._db.execute("SELECT * FROM ledger")}

    def totals(self) -> tuple[int, int]:
        """Return how many rows and how many dead letters the confirmed messages must end as."""
        query = "SELECT count(label), count(reason) FROM ledger WHERE acked > 0"
        rows, letters = self._db.execute(query).fetchone()
        return int(rows), int(letters)

    def kinds(self) -> Counter[str]:
        """Return how many messages of each kind there are."""
        return Counter(dict(self._db.execute("SELECT kind, count(*) FROM ledger GROUP BY kind")))

    def close(self) -> None:
        """Close the file."""
        self._db.close()
