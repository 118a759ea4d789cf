"""The messages in the queue file: stored, leased, settled, copied. Blocking; one connection, one thread."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NoReturn

from ..errors import LeaseLost, NotFound
from ..message import Delivery, Message, Redelivery, utc_now
from .base import Room
from .sqlite_admin import NOT_ITS_TURN, Membership, QueueAdmin

_FIELDS = "id, key, content_type, type, source, subject, time, attributes, data"
_PAGE = Room(messages=200, size_bytes=16 * 1024 * 1024, alone=True)
# SQLite takes at least 999 parameters in one statement, whatever it was built with.
_SEQS_AT_ONCE = 500
# The first message of a key that this group has not settled; those behind it wait.
_IN_TURN = """ AND NOT EXISTS (
    SELECT 1 FROM pending q WHERE q.group_id = p.group_id AND q.key = p.key AND q.seq < p.seq)"""


@dataclass(frozen=True, slots=True)
class Lease:
    """Receipt of a delivery: the row and the token that must still stand there."""

    seq: int
    token: int


class SqliteStore(QueueAdmin):
    """The operations of a queue on one connection."""

    def append(self, topic: str, messages: Sequence[Message], now: float) -> list[int]:
        """Store messages in order, all or none; return their positions."""
        topic_id = self.topic_id(topic)
        rows = [
            (
                topic_id, now, m.id, m.key, m.content_type, m.type, m.source, m.subject,
                m.time.isoformat(), json.dumps(dict(m.attributes)) if m.attributes else "{}", m.data,
            )
            for m in messages
        ]  # fmt: skip
        with self.transaction(durable=True):
            self.db.executemany(
                f"INSERT INTO messages (topic_id, stored_at, {_FIELDS}) VALUES (?,?,?,?,?,?,?,?,?,?,?)",  # noqa: S608
                rows,
            )
            last = int(self.db.execute("SELECT last_insert_rowid()").fetchone()[0])
        return list(range(last - len(rows) + 1, last + 1))

    def has_news(self, member: Membership, now: float) -> bool:
        """Return whether ``claim`` would find anything; takes no lock.

        Raises:
            NotFound: the group is gone.
        """
        rows = self.query(
            """SELECT EXISTS (SELECT 1 FROM pending WHERE group_id = g.group_id AND available_at <= ?)
                   OR EXISTS (SELECT 1 FROM messages WHERE topic_id = g.topic_id AND seq > g.cursor)
               FROM groups g WHERE group_id = ?""",
            (now, member.group_id),
        )
        return bool((rows or self.gone(member))[0][0])

    def gone(self, member: Membership) -> NoReturn:
        """Raise ``NotFound``: somebody removed the group of this member."""
        raise NotFound(f"the group of topic {member.topic!r} was deleted from {self.path}")

    def claim(self, member: Membership, limit: Room, now: float, lease: float, token: int) -> list[Delivery]:
        """Lease what came back first, then the log from the cursor on."""
        with self.transaction(durable=False):
            found = self._returned(member, limit.messages, now)
            (cursor,) = self.db.execute(
                "SELECT cursor FROM groups WHERE group_id = ?", (member.group_id,)
            ).fetchone() or self.gone(member)
            found += self._unread(member, limit.messages - len(found), cursor, now)
            taken = found[: limit.fitting(row[3] for row in found)]
            self.db.executemany(
                """INSERT INTO pending (group_id, seq, available_at, failures, token, key)
                   VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE
                   SET available_at = excluded.available_at, token = excluded.token""",
                [
                    (member.group_id, seq, now + lease, failures, token, key)
                    for seq, failures, key, _ in taken
                ],
            )
            if taken and taken[-1][0] > cursor:
                self.db.execute(
                    "UPDATE groups SET cursor = max(cursor, ?) WHERE group_id = ?",
                    (taken[-1][0], member.group_id),
                )
        return self._deliveries(member, taken, token)

    def _returned(self, member: Membership, limit: int, now: float) -> list[Any]:
        """Return position, failures, key and size of what had its lease or delay end."""
        in_turn = _IN_TURN if member.by_key else ""
        return self.db.execute(
            f"""SELECT p.seq, p.failures, p.key, length(m.data)
                FROM pending p JOIN messages m ON m.seq = p.seq
                WHERE p.group_id = ? AND p.available_at <= ?{in_turn}
                ORDER BY p.available_at, p.seq LIMIT ?""",  # noqa: S608 - fixed texts
            (member.group_id, now, limit),
        ).fetchall()

    def _unread(self, member: Membership, limit: int, cursor: int, now: float) -> list[Any]:
        """Return the same of what lies behind the cursor; with ``order="key"`` busy keys are set aside."""
        rows = self.db.execute(
            """SELECT seq, 0, key, length(data) FROM messages
               WHERE topic_id = ? AND seq > ? ORDER BY seq LIMIT ?""",
            (member.topic_id, cursor, limit),
        ).fetchall()
        if not member.by_key:
            return rows
        in_turn = []
        for row in rows:
            is_first = (row[2] is None) or not self.db.execute(
                "SELECT EXISTS (SELECT 1 FROM pending WHERE group_id = ? AND key = ?)",
                (member.group_id, row[2]),
            ).fetchone()[0]
            # Every row enters `pending`, so that the cursor can pass those that must wait their turn.
            self.db.execute(
                "INSERT INTO pending (group_id, seq, available_at, failures, key) VALUES (?, ?, ?, 0, ?)",
                (member.group_id, row[0], now if is_first else NOT_ITS_TURN, row[2]),
            )
            if is_first:
                in_turn.append(row)
        if rows:
            self.db.execute("UPDATE groups SET cursor = ? WHERE group_id = ?", (rows[-1][0], member.group_id))
        return in_turn

    def _deliveries(self, member: Membership, rows: Sequence[Any], token: int) -> list[Delivery]:
        """Read the messages of (position, failures, ...) rows; only now their bodies enter memory."""
        received_at = utc_now()
        found: dict[int, Any] = {}
        for first in range(0, len(rows), _SEQS_AT_ONCE):
            seqs = [row[0] for row in rows[first : first + _SEQS_AT_ONCE]]
            marks = ", ".join("?" * len(seqs))
            query = f"SELECT seq, {_FIELDS} FROM messages WHERE seq IN ({marks})"  # noqa: S608 - constants
            found.update((row[0], row[1:]) for row in self.query(query, tuple(seqs)))
        return [
            Delivery(_message(found[row[0]]), member.topic, row[1] + 1, received_at, Lease(row[0], token))
            for row in rows
        ]

    def settle(
        self,
        member: Membership,
        acks: Sequence[Delivery],
        releases: Sequence[Delivery],
        retries: Sequence[Redelivery],
        now: float,
    ) -> list[Delivery]:
        """Persist verdicts; return those whose lease is no longer this one."""
        delete = "DELETE FROM pending WHERE group_id = ? AND seq = ? AND token = ? RETURNING key"
        update = """UPDATE pending SET token = NULL, available_at = ?, failures = ?
                    WHERE group_id = ? AND seq = ? AND token = ?"""
        lost = []
        with self.transaction(durable=False):
            for each in acks:
                where = (member.group_id, each.receipt.seq, each.receipt.token)
                row = self.db.execute(delete, where).fetchone()
                if row is None:
                    lost.append(each)
                elif row[0] is not None:
                    self._wake_next(member, row[0], now)
            back = [(each, now, each.attempt - 1) for each in releases]
            back += [(retry.delivery, now + retry.delay, retry.attempt - 1) for retry in retries]
            for each, available_at, failures in back:
                where = (member.group_id, each.receipt.seq, each.receipt.token)
                if not self.db.execute(update, (available_at, failures, *where)).rowcount:
                    lost.append(each)
        return lost

    def _wake_next(self, member: Membership, key: str, now: float) -> None:
        """Let the next message of a key take its turn, if it was set aside."""
        self.db.execute(
            """UPDATE pending SET available_at = ? WHERE available_at = ? AND group_id = ? AND seq = (
                   SELECT min(seq) FROM pending WHERE group_id = ? AND key = ?)""",
            (now, NOT_ITS_TURN, member.group_id, member.group_id, key),
        )

    def extend(self, member: Membership, deliveries: Sequence[Delivery], until: float) -> list[Delivery]:
        """Renew leases; return those that are no longer ours."""
        lost = []
        with self.transaction(durable=False):
            for each in deliveries:
                done = self.db.execute(
                    "UPDATE pending SET available_at = ? WHERE group_id = ? AND seq = ? AND token = ?",
                    (until, member.group_id, each.receipt.seq, each.receipt.token),
                )
                if not done.rowcount:
                    lost.append(each)
        return lost

    def forward(
        self, member: Membership, delivery: Delivery, topic: str, extra: Mapping[str, str], now: float
    ) -> None:
        """Copy a held row to ``topic`` with ``extra`` attributes; a second time changes nothing.

        Raises:
            LeaseLost: the lease is no longer this one.
        """
        lease: Lease = delivery.receipt
        target = self.topic_id(topic)
        with self.transaction(durable=True):
            row = self.db.execute(
                """SELECT m.attributes FROM pending p JOIN messages m ON m.seq = p.seq
                   WHERE p.group_id = ? AND p.seq = ? AND p.token = ?""",
                (member.group_id, lease.seq, lease.token),
            ).fetchone()
            if row is None:
                raise LeaseLost([delivery.message.id])
            attributes = json.dumps({**json.loads(row[0]), **extra})
            self.db.execute(
                """INSERT INTO messages (topic_id, stored_at, id, key, content_type, type, source, subject,
                       time, attributes, data, origin)
                   SELECT ?, ?, id, key, content_type, type, source, subject, time, ?, data, ?
                   FROM messages WHERE seq = ? ON CONFLICT DO NOTHING""",
                (target, now, attributes, f"{member.group_id}/{lease.seq}", lease.seq),
            )

    def browse(self, member: Membership, after: int) -> list[Delivery]:
        """Return a page of what the group has not settled, in the order of the log."""
        rows = self.query(
            """SELECT m.seq, coalesce(p.failures, 0), length(m.data)
               FROM groups g JOIN messages m ON m.topic_id = g.topic_id
               LEFT JOIN pending p ON p.group_id = g.group_id AND p.seq = m.seq
               WHERE g.group_id = ? AND m.seq > ? AND (p.seq IS NOT NULL OR m.seq > g.cursor)
               ORDER BY m.seq LIMIT ?""",
            (member.group_id, after, _PAGE.messages),
        )
        return self._deliveries(member, rows[: _PAGE.fitting(row[2] for row in rows)], token=0)


def _message(row: Any) -> Message:
    message_id, key, content_type, kind, source, subject, when, attributes, data = row
    return Message(
        data=data,
        key=key,
        attributes={} if attributes == "{}" else json.loads(attributes),
        id=message_id,
        content_type=content_type,
        type=kind,
        source=source,
        subject=subject,
        time=datetime.fromisoformat(when),
    )
