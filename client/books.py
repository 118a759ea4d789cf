"""The arithmetic of an audit: where message ids were seen, and what follows from it. Pure."""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from dataclasses import dataclass, fields
from typing import Any, Literal

NO_IDS: frozenset[str] = frozenset()
_COUNTS_ONLY = (
    "no ledger knows this queue and topic, so these are the broker's counts: they cannot show which messages"
    " are missing, nor tell this topic's rows from those of others in the same results file; and a dead"
    " letter that was replayed was published twice"
)
_NO_COUNT = (
    "no ledger knows this queue and topic, and this broker keeps no count of what was published: this is what"
    " can be seen, and nobody can tell what cannot; audit where the images were sent from, or name its"
    " ledger with --ledger"
)
_STRANGERS = (
    "{} message(s) came from senders without this ledger; of theirs only what is still in the queue or a dead"
    " letter can be seen"
)
_ELSEWHERE = (
    "no row belongs to these messages: if the workers have another SINK_URL, or another --group, name it"
)
_UNCONFIRMED = "the sender never learnt whether {} message(s) were stored; they may still appear"


@dataclass(frozen=True, slots=True)
class Books:
    """Message ids by where they were seen.

    Attributes:
        confirmed: the broker said that it stored them.
        unconfirmed: sent, without an answer; they may or may not exist.
        unsettled: in the queue, not finished.
        dead: dead letters.
        purged: dead letters that an operator removed for good.
        stored: rows of the results table, with whatever status.
        expired: of those, rows that only say that the deadline had passed.
        duplicate_rows: rows that repeat an id.
    """

    confirmed: AbstractSet[str] = NO_IDS
    unconfirmed: AbstractSet[str] = NO_IDS
    unsettled: AbstractSet[str] = NO_IDS
    dead: AbstractSet[str] = NO_IDS
    purged: AbstractSet[str] = NO_IDS
    stored: AbstractSet[str] = NO_IDS
    expired: AbstractSet[str] = NO_IDS
    duplicate_rows: int = 0


@dataclass(frozen=True, slots=True)
class Balance:
    """The result of an audit.

    ``published = stored + expired + dead_lettered + purged + beyond_retention + in_flight + lost``

    Attributes:
        published: messages that the broker stored; None where nobody counted.
        stored: of those, rows with a result.
        dead_lettered: of those, dead letters without a row.
        in_flight: of those, none of all these, and still in the queue.
        lost: of those, seen nowhere; None where ``published`` is.
        expired: of those, rows that only say that the deadline had passed.
        purged: of those, dead letters that an operator removed for good.
        beyond_retention: of those, seen nowhere, and so old that their rows may have been removed.
        duplicate_rows: rows that repeat an id.
        conflicts: ids that were sent with different bodies.
        unconfirmed: sent without an answer and seen nowhere.
        unexpected: rows of messages that the ledger does not know.
        lost_ids: the ids of ``lost``; empty where only counts are known.
        in_flight_ids: the ids of ``in_flight``, likewise.
        basis: what ``published`` rests on.
        notes: what this audit cannot prove, and what may be wrong.
    """

    published: int | None
    stored: int
    dead_lettered: int
    in_flight: int
    lost: int | None
    expired: int = 0
    purged: int = 0
    beyond_retention: int = 0
    duplicate_rows: int = 0
    conflicts: int = 0
    unconfirmed: int = 0
    unexpected: int = 0
    lost_ids: tuple[str, ...] = ()
    in_flight_ids: tuple[str, ...] = ()
    basis: Literal["ledger", "broker"] = "ledger"
    notes: tuple[str, ...] = ()

    @property
    def missing(self) -> int | None:
        """Published, and neither finished nor given up; None where nobody can tell."""
        return None if self.lost is None else self.in_flight + self.lost

    @property
    def balanced(self) -> bool:
        """It is certain that nothing is missing, and no row is there twice."""
        return self.missing == 0 and self.duplicate_rows == 0

    def to_dict(self) -> dict[str, Any]:
        """Return all figures, for JSON."""
        figures = {each.name: getattr(self, each.name) for each in fields(self)}
        return {**figures, "missing": self.missing, "balanced": self.balanced}


def balance(books: Books) -> Balance:
    """Balance by id: a row counts before a dead letter, that before a place in the queue, a purge last."""
    # What is in the queue or was a dead letter was published, whether the ledger knows it or not.
    published = set(books.confirmed).union(books.unsettled, books.dead, books.purged)
    published.update(books.unconfirmed & books.stored)
    stored = published & books.stored
    lost = published - stored
    dead = lost & books.dead
    lost -= dead
    waiting = lost & books.unsettled
    lost -= waiting
    purged = lost & books.purged
    lost -= purged
    expired = len(stored & books.expired)
    silent = len(books.unconfirmed - published)
    strangers = len(published - books.confirmed - books.unconfirmed)
    notes = [_UNCONFIRMED.format(silent)] if silent else []
    if strangers:
        notes.append(_STRANGERS.format(strangers))
    if lost and not stored:
        notes.append(_ELSEWHERE)
    return Balance(
        published=len(published),
        stored=len(stored) - expired,
        dead_lettered=len(dead),
        in_flight=len(waiting),
        lost=len(lost),
        expired=expired,
        purged=len(purged),
        duplicate_rows=books.duplicate_rows,
        unconfirmed=silent,
        unexpected=len(books.stored) - len(stored),
        lost_ids=tuple(sorted(lost)),
        in_flight_ids=tuple(sorted(waiting)),
        notes=tuple(notes),
    )


def balance_counts(
    published: int | None,
    unsettled: int,
    dead: int,
    rows: int,
    duplicate_rows: int = 0,
    expired: int = 0,
    purged: int = 0,
) -> Balance:
    """Balance by number, where nobody wrote down the ids.

    Args:
        published: what the broker's group was to see; None where it keeps no count, and nothing is proven.
        unsettled: of those, not finished.
        dead: dead letters.
        rows: rows of the results table, wherever they came from.
        duplicate_rows: of those, repeated ids.
        expired: of those, rows that only say that the deadline had passed.
        purged: dead letters that were removed for good.
    """
    rows -= duplicate_rows
    if published is None:
        return Balance(
            None,
            rows - expired,
            dead,
            unsettled,
            None,
            expired,
            purged,
            duplicate_rows=duplicate_rows,
            basis="broker",
            notes=(_NO_COUNT,),
        )
    dead = min(dead, published)
    purged = min(purged, published - dead)
    found = min(rows, published - dead - purged)
    waiting = min(unsettled, published - dead - purged - found)
    expired = min(expired, found)
    return Balance(
        published,
        found - expired,
        dead,
        waiting,
        published - dead - purged - found - waiting,
        expired,
        purged,
        duplicate_rows=duplicate_rows,
        unexpected=rows - found,
        basis="broker",
        notes=(_COUNTS_ONLY,),
    )
