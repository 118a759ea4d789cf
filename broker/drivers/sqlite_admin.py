"""Topics and groups in the queue file: made, found, listed and counted. Blocking; one connection."""

from __future__ import annotations

import math
import secrets
import sqlite3
from dataclasses import dataclass

from ..errors import NotFound, Unavailable
from ..message import GroupStats, Lag, TopicInfo
from .sqlite_file import QueueFile

# Of each topic; publishers and lease keepers wait meanwhile.
_EXPIRED_AT_ONCE = 1000
_OLDEST = """SELECT seq FROM (SELECT seq, stored_at FROM messages WHERE topic_id = ? ORDER BY seq LIMIT ?)
    WHERE stored_at <= ?"""
_TAKEN = """SELECT seq, token IS NOT NULL AND available_at > ? FROM groups JOIN pending USING (group_id)
    WHERE topic_id = ? AND seq <= ?"""
_FORGET = "DELETE FROM pending WHERE group_id IN (SELECT group_id FROM groups WHERE topic_id = ?) AND seq = ?"
# Whose turn was to come after a message that is gone.
_WAKE_FIRST = """UPDATE pending SET available_at = ? WHERE available_at = ?
    AND group_id IN (SELECT group_id FROM groups WHERE topic_id = ?) AND seq = (
        SELECT min(seq) FROM pending q WHERE q.group_id = pending.group_id AND q.key = pending.key)"""
# Later than any clock: it waits until the message before it with the same key is settled.
NOT_ITS_TURN = float("inf")


@dataclass(frozen=True, slots=True)
class Membership:
    """What one subscription reads: ids resolved once."""

    topic: str
    topic_id: int
    group_id: int
    by_key: bool


class QueueAdmin(QueueFile):
    """What is asked about topics and groups."""

    def topic_id(self, topic: str) -> int:
        """Return the id of a topic, or raise ``NotFound``."""
        rows = self.query("SELECT topic_id FROM topics WHERE name = ?", (topic,))
        if not rows:
            raise NotFound(
                f"topic {topic!r} does not exist in {self.path}; create it with"
                f" `await broker.ensure({topic!r})`"
            )
        return int(rows[0][0])

    def member(self, topic: str, group: str, *, by_key: bool = False) -> Membership:
        """Return what a subscription reads, or raise ``NotFound``."""
        topic_id = self.topic_id(topic)
        rows = self.query("SELECT group_id FROM groups WHERE topic_id = ? AND name = ?", (topic_id, group))
        if not rows:
            raise NotFound(
                f"group {group!r} of topic {topic!r} does not exist in {self.path}; create it with"
                f" `await broker.ensure({topic!r}, group={group!r})`"
            )
        return Membership(topic, topic_id, int(rows[0][0]), by_key)

    def ensure(
        self, topic: str, group: str | None, partitions: int, earliest: bool, retention: float | None = None
    ) -> float | None:
        """Create what is missing; return the retention of a topic that was there, if it is another one."""
        with self.transaction(durable=True):
            is_new = self.db.execute(
                "INSERT INTO topics (name, partitions) VALUES (?, ?) ON CONFLICT DO NOTHING",
                (topic, partitions),
            ).rowcount
            if is_new and retention is not None:
                self.db.execute(
                    "INSERT INTO retentions SELECT topic_id, ? FROM topics WHERE name = ?", (retention, topic)
                )
            if group is not None:
                bound = "min(seq) - 1" if earliest else "max(seq)"
                self.db.execute(
                    f"""INSERT INTO groups (group_id, topic_id, name, start, cursor)
                        SELECT ?, topic_id, ?, at, at FROM (SELECT topic_id, coalesce(
                            (SELECT {bound} FROM messages m WHERE m.topic_id = t.topic_id),
                            (SELECT max(seq) FROM messages), 0) AS at FROM topics t WHERE name = ?) WHERE true
                        ON CONFLICT DO NOTHING""",  # noqa: S608 - two fixed texts
                    # At random: the id of a group that was removed must not come again.
                    (secrets.randbits(48), group, topic),
                )
        rows = self.query(
            "SELECT seconds FROM retentions JOIN topics USING (topic_id) WHERE name = ?", (topic,)
        )
        kept = rows[0][0] if rows else None
        return None if kept == retention else kept or math.inf

    def remove_group(self, topic: str, group: str) -> None:
        """Forget a group and what it had before it."""
        with self.transaction(durable=True):
            found = self.db.execute(
                """SELECT group_id FROM groups g JOIN topics t USING (topic_id)
                   WHERE t.name = ? AND g.name = ?""",
                (topic, group),
            ).fetchone()
            if found is not None:
                self.db.execute("DELETE FROM pending WHERE group_id = ?", found)
                self.db.execute("DELETE FROM groups WHERE group_id = ?", found)

    def expire(self, now: float) -> tuple[dict[str, int], bool]:
        """Delete what is older than its topic's retention, a thousand messages of each topic at most.

        What a member holds is left to it.

        Returns:
            How many of them some group had not settled, by topic; and whether there is more.
        """
        missed: dict[str, int] = {}
        more = False
        topics = self.query("SELECT topic_id, name, seconds FROM retentions JOIN topics USING (topic_id)", ())
        for topic_id, name, seconds in topics:
            old = [row[0] for row in self.query(_OLDEST, (topic_id, _EXPIRED_AT_ONCE, now - seconds))]
            if old:
                gone, unsettled = self._remove(topic_id, old, now)
                more |= gone == _EXPIRED_AT_ONCE
                if unsettled:
                    missed[name] = unsettled
        return missed, more

    def _remove(self, topic_id: int, seqs: list[int], now: float) -> tuple[int, int]:
        """Delete what nobody holds; return how much that was, and how much of it was not settled."""
        with self.transaction(durable=False):
            taken = self.db.execute(_TAKEN, (now, topic_id, seqs[-1])).fetchall()
            held = {seq for seq, is_held in taken if is_held}
            unsettled = {seq for seq, _ in taken}
            cursor = self.db.execute(
                "SELECT min(cursor) FROM groups WHERE topic_id = ?", (topic_id,)
            ).fetchone()[0]
            gone = [seq for seq in seqs if seq not in held]
            self.db.executemany(_FORGET, [(topic_id, seq) for seq in gone])
            self.db.executemany("DELETE FROM messages WHERE seq = ?", [(seq,) for seq in gone])
            if taken:
                self.db.execute(_WAKE_FIRST, (now, NOT_ITS_TURN, topic_id))
        return len(gone), sum(seq in unsettled or (cursor is not None and seq > cursor) for seq in gone)

    def stats(self, member: Membership, now: float) -> GroupStats:
        """Count what a group has before it."""
        rows = self.query(
            """SELECT (SELECT count(*) FROM messages m WHERE m.topic_id = g.topic_id AND m.seq > g.start),
                      (SELECT count(*) FROM messages m WHERE m.topic_id = g.topic_id AND m.seq > g.cursor),
                      count(p.seq) FILTER (WHERE available_at > ? AND token IS NOT NULL),
                      count(p.seq) FILTER (WHERE available_at > ? AND available_at < ? AND token IS NULL),
                      count(p.seq)
               FROM groups g LEFT JOIN pending p USING (group_id) WHERE group_id = ?""",
            (now, now, NOT_ITS_TURN, member.group_id),
        )
        published, unread, in_flight, delayed, pending = rows[0]
        return GroupStats(
            published=published,
            settled=published - unread - pending,
            in_flight=in_flight,
            delayed=delayed,
            ready=unread + pending - in_flight - delayed,
        )

    def topics(self) -> list[TopicInfo]:
        """List topics by name; whatever number of partitions was asked for, the file has none."""
        rows = self.query("SELECT topic_id, name FROM topics ORDER BY name", ())
        groups: dict[int, list[str]] = {topic_id: [] for topic_id, _ in rows}
        for topic_id, name in self.query("SELECT topic_id, name FROM groups ORDER BY name", ()):
            # A topic that was made between the two looks is listed next time.
            groups.get(topic_id, []).append(name)
        return [TopicInfo(name, None, tuple(groups[topic_id])) for topic_id, name in rows]

    def lag(self, member: Membership) -> Lag:
        """Say how far the group is behind the end of its topic; coordinates are those of receipts."""
        rows = self.query(
            """SELECT g.cursor, (SELECT max(seq) FROM messages m WHERE m.topic_id = g.topic_id),
                   (SELECT count(*) FROM messages m WHERE m.topic_id = g.topic_id AND m.seq > g.cursor)
                   + (SELECT count(*) FROM pending p WHERE p.group_id = g.group_id)
               FROM groups g WHERE g.group_id = ?""",
            (member.group_id,),
        )
        cursor, end, unsettled = rows[0]
        return Lag(None, unsettled, str(cursor), "" if end is None else str(end))

    def describe(self) -> dict[str, str]:
        """Return facts about the file.

        Raises:
            Unavailable: it was deleted while it was open, so that others would open a new one.
        """
        if not self.path.exists():
            raise Unavailable(f"the queue {self.path} was deleted while it was open; start again")
        pages, page_bytes, mode = self.query(
            """SELECT page_count, page_size, journal_mode
               FROM pragma_page_count, pragma_page_size, pragma_journal_mode""",
            (),
        )[0]
        return {
            "store": f"SQLite {sqlite3.sqlite_version}",
            "file": str(self.path.absolute()),
            "size_bytes": str(pages * page_bytes),
            "journal_mode": mode,
        }
