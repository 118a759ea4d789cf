"""A topic and its group as an outsider sees them, whatever the broker; and the queue file."""

from __future__ import annotations

import contextlib
import json
import sqlite3
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from broker import connect_blocking
from broker.blocking import BlockingBroker

GROUP = "classifiers"
OPERATORS = "operators"


class Letter(NamedTuple):
    """One dead letter, as it lies there.

    Attributes:
        message_id: of the message.
        reason: ``couturier-reason``.
        attempts: ``couturier-attempts``.
        data: the body; None for a null value.
        headers: all of them, in order.
    """

    message_id: str
    reason: str
    attempts: int
    data: bytes | None
    headers: tuple[tuple[str, bytes], ...]


class Place(Protocol):
    """A topic with its group on one broker.

    Attributes:
        name: of the backend.
        url: ``BROKER_URL`` of the workers.
        env: what else their environment needs.
        topic: of this place alone.
        lease_s: after so many seconds, what a dead worker held comes again.
        versions: of server and client.
    """

    name: str
    url: str
    env: dict[str, str]
    topic: str
    lease_s: float
    versions: dict[str, str]

    def open(self, partitions: int) -> None:
        """Make topic, group and dead-letter topic."""

    def client(self) -> contextlib.AbstractContextManager[BlockingBroker]:
        """Open a client of ours that takes no proxy."""

    def unsettled(self) -> int:
        """Return how many messages the group has not finished."""

    def letters(self) -> list[Letter]:
        """Return every dead letter that was ever written; removes none."""

    def close(self) -> None:
        """Let connections go."""


def new_topic() -> str:
    """Return a name that nobody else has."""
    return f"faults-{uuid.uuid4().hex[:12]}"


def ensure(place: Place, partitions: int) -> None:
    with place.client() as broker:
        broker.ensure(place.topic, GROUP, partitions=partitions)
        broker.ensure(f"{place.topic}.{GROUP}.dlq", OPERATORS)


def letter_of(headers: list[tuple[str, bytes | None]], data: bytes | None, id_name: str) -> Letter:
    plain = {name: (value or b"").decode(errors="replace") for name, value in headers}
    return Letter(
        plain.get(id_name) or plain.get("couturier-id", ""),
        plain.get("couturier-reason", ""),
        int(plain.get("couturier-attempts", "0")),
        data,
        tuple((name, value or b"") for name, value in headers),
    )


class SqlitePlace:
    """A queue file.

    Args:
        directory: where it lies.
        lease_s: of deliveries.
    """

    name = "sqlite"

    def __init__(self, directory: Path, lease_s: float = 2.0) -> None:
        self.path = directory / "queue.db"
        self.topic = new_topic()
        self.url = f"sqlite:///{self.path}?lease={lease_s:g}"
        self.env: dict[str, str] = {}
        self.lease_s = lease_s
        self.versions = {"sqlite": sqlite3.sqlite_version}

    def open(self, partitions: int) -> None:
        """Make topic, group and dead-letter topic."""
        ensure(self, partitions)

    def client(self) -> contextlib.AbstractContextManager[BlockingBroker]:
        """Open a client of ours."""
        return connect_blocking(self.url)

    def unsettled(self) -> int:
        """Count what is behind the cursor and what is pending before it."""
        query = """
            SELECT (SELECT count(*) FROM pending p WHERE p.group_id = g.group_id)
                 + (SELECT count(*) FROM messages m WHERE m.topic_id = g.topic_id AND m.seq > g.cursor)
            FROM groups g JOIN topics t USING (topic_id) WHERE t.name = ? AND g.name = ?"""
        return int(self._read(query, self.topic, GROUP)[0][0])

    def letters(self) -> list[Letter]:
        """Read the dead-letter topic's messages, settled ones included."""
        query = """SELECT m.id, m.attributes, m.data FROM messages m JOIN topics t USING (topic_id)
                   WHERE t.name = ? ORDER BY m.seq"""
        return [
            letter_of(
                [("ce-id", message_id.encode())]
                + [
                    (name, value.encode(errors="surrogateescape"))
                    for name, value in json.loads(attributes).items()
                ],
                data,
                "ce-id",
            )
            for message_id, attributes, data in self._read(query, f"{self.topic}.{GROUP}.dlq")
        ]

    @contextlib.contextmanager
    def blocked(self) -> Iterator[None]:
        """Hold the queue's write lock."""
        with contextlib.closing(sqlite3.connect(self.path, timeout=30, isolation_level=None)) as db:
            db.execute("BEGIN IMMEDIATE")
            yield
            db.execute("ROLLBACK")

    def close(self) -> None:
        """Nothing is open."""

    def _read(self, query: str, *values: str) -> list[Any]:
        with contextlib.closing(sqlite3.connect(self.path, timeout=30)) as db:
            return db.execute(query, values).fetchall()
