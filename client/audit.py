"""The books: every message that was published is a row, a dead letter, or still in the queue.

``missing = published - stored - dead-lettered``. A missing message that is still in the queue is in flight,
any other one is lost.
"""

from __future__ import annotations

import asyncio
from collections.abc import Set as AbstractSet
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from broker import OPERATORS, Broker, NotFound, dead_letter_topic

from .ledger import Ledger
from .results import ResultsReader

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
_UNCONFIRMED = "the sender never learnt whether {} message(s) were stored; they may still appear"


@dataclass(frozen=True, slots=True)
class Books:
    """Message ids by where they were seen.

    Attributes:
        confirmed: the broker said that it stored them.
        unconfirmed: sent, without an answer; they may or may not exist.
        unsettled: in the queue, not finished.
        dead: dead letters.
        stored: rows of the results table.
        duplicate_rows: rows that repeat an id.
    """

    confirmed: AbstractSet[str] = NO_IDS
    unconfirmed: AbstractSet[str] = NO_IDS
    unsettled: AbstractSet[str] = NO_IDS
    dead: AbstractSet[str] = NO_IDS
    stored: AbstractSet[str] = NO_IDS
    duplicate_rows: int = 0


@dataclass(frozen=True, slots=True)
class Balance:
    """The result of an audit: ``published = stored + dead_lettered + in_flight + lost``.

    Attributes:
        published: messages that the broker stored; None where nobody counted.
        stored: of those, rows.
        dead_lettered: of those, dead letters without a row.
        in_flight: of those, neither, and still in the queue.
        lost: of those, none of the three; None where ``published`` is.
        duplicate_rows: rows that repeat an id.
        unconfirmed: sent without an answer and seen nowhere.
        unexpected: rows of messages that the ledger does not know.
        lost_ids: the ids of ``lost``; empty where only counts are known.
        basis: what ``published`` rests on.
        notes: what this audit cannot prove.
    """

    published: int | None
    stored: int
    dead_lettered: int
    in_flight: int
    lost: int | None
    duplicate_rows: int = 0
    unconfirmed: int = 0
    unexpected: int = 0
    lost_ids: tuple[str, ...] = ()
    basis: Literal["ledger", "broker"] = "ledger"
    notes: tuple[str, ...] = ()

    @property
    def missing(self) -> int | None:
        """Published, but neither stored nor dead-lettered; None where nobody can tell."""
        return None if self.lost is None else self.in_flight + self.lost

    @property
    def balanced(self) -> bool:
        """It is certain that nothing is missing, and no row is there twice."""
        return self.missing == 0 and self.duplicate_rows == 0

    def to_dict(self) -> dict[str, Any]:
        """Return all figures, for JSON."""
        return {**asdict(self), "missing": self.missing, "balanced": self.balanced}


def balance(books: Books) -> Balance:
    """Balance by id. A row counts before a dead letter, a dead letter before a place in the queue."""
    seen = books.stored | books.dead | books.unsettled
    # What is in the queue or among the dead letters was published, whether the ledger knows it or not.
    published = books.confirmed | (books.unconfirmed & seen) | books.unsettled | books.dead
    stored = published & books.stored
    dead = (published & books.dead) - stored
    waiting = (published & books.unsettled) - stored - dead
    lost = published - stored - dead - waiting
    silent = len(books.unconfirmed - published)
    strangers = len(published - books.confirmed - books.unconfirmed)
    notes = [_UNCONFIRMED.format(silent)] if silent else []
    if strangers:
        notes.append(_STRANGERS.format(strangers))
    return Balance(
        published=len(published),
        stored=len(stored),
        dead_lettered=len(dead),
        in_flight=len(waiting),
        lost=len(lost),
        duplicate_rows=books.duplicate_rows,
        unconfirmed=silent,
        unexpected=len(books.stored - published),
        lost_ids=tuple(sorted(lost)),
        notes=tuple(notes),
    )


def balance_counts(
    published: int | None, unsettled: int, dead: int, rows: int, duplicate_rows: int = 0
) -> Balance:
    """Balance by number, where nobody wrote down the ids.

    Args:
        published: what the broker's group was to see; None where it keeps no count, and nothing is proven.
        unsettled: of those, not finished.
        dead: dead letters.
        rows: rows of the results table, wherever they came from.
        duplicate_rows: of those, repeated ids.
    """
    if published is None:
        stored = rows - duplicate_rows
        return Balance(
            None, stored, dead, unsettled, None, duplicate_rows, basis="broker", notes=(_NO_COUNT,)
        )
    dead = min(dead, published)
    stored = min(rows - duplicate_rows, published - dead)
    waiting = min(unsettled, published - dead - stored)
    lost = published - dead - stored - waiting
    return Balance(
        published,
        stored,
        dead,
        waiting,
        lost,
        duplicate_rows=duplicate_rows,
        unexpected=rows - duplicate_rows - stored,
        basis="broker",
        notes=(_COUNTS_ONLY,),
    )


async def audit(broker: Broker, topic: str, group: str, results: Path, ledger: Ledger | None) -> Balance:
    """Balance the books of one topic and group, while everything may be running.

    Args:
        broker: open.
        topic: ensured before.
        group: whose workers write ``results``.
        results: the results file; one that does not exist has no rows.
        ledger: what was published; None uses the broker's counts.

    Raises:
        NotFound: topic or group was never ensured.
        ClientError: the results or the ledger cannot be read.
    """
    if ledger is None or not await asyncio.to_thread(ledger.knows, topic, broker.address):
        return await _audit_counts(broker, topic, group, results)
    first = await _audit_ids(broker, topic, group, results, ledger)
    if not first.lost:
        return first
    # A dead letter that is replayed between two looks is seen in neither place: only what is gone twice is.
    second = await _audit_ids(broker, topic, group, results, ledger)
    gone = set(first.lost_ids)
    lost = tuple(each for each in second.lost_ids if each in gone)
    moved = len(second.lost_ids) - len(lost)
    return replace(second, lost=len(lost), lost_ids=lost, in_flight=second.in_flight + moved)


async def _audit_ids(broker: Broker, topic: str, group: str, results: Path, ledger: Ledger) -> Balance:
    # Read against the stream, from queue to table: what moves on meanwhile is seen twice, never not at all.
    confirmed = await asyncio.to_thread(ledger.ids, topic, "confirmed", broker.address)
    unconfirmed = await asyncio.to_thread(ledger.ids, topic, "sent", broker.address)
    unsettled = {each.message.id async for each in broker.browse(topic, group)}
    dead = await _dead(broker, topic, group)
    stored, duplicate_rows = await asyncio.to_thread(_rows, results)
    return balance(Books(confirmed, unconfirmed, unsettled, dead, stored, duplicate_rows))


async def _audit_counts(broker: Broker, topic: str, group: str, results: Path) -> Balance:
    stats = await broker.stats(topic, group)
    dead = await _dead(broker, topic, group)
    stored, duplicate_rows = await asyncio.to_thread(_rows, results)
    return balance_counts(
        stats.published, stats.unsettled, len(dead), len(stored) + duplicate_rows, duplicate_rows
    )


async def _dead(broker: Broker, topic: str, group: str) -> set[str]:
    """The ids of all dead letters; a group that never lost a message has no topic for them."""
    try:
        return {each.message.id async for each in broker.browse(dead_letter_topic(topic, group), OPERATORS)}
    except NotFound:
        return set()


def _rows(results: Path) -> tuple[set[str], int]:
    if not results.exists():
        return set(), 0
    with ResultsReader(results) as reader:
        return set(reader.ids()), reader.duplicates()
