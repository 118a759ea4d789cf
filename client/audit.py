"""``couturier audit``: looks where every message is, while everything may be running."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from datetime import datetime

from broker import OPERATORS, Broker, NotFound, dead_letter_topic

from .books import NO_IDS, Balance, Books, balance, balance_counts
from .dlq import purged_ids
from .ledger import Ledger
from .results import Results, ResultsMissing

__all__ = ["Balance", "Books", "audit", "balance", "balance_counts"]

OpenResults = Callable[[], Results]
OnLook = Callable[[str, int], None]

_CONFLICTS = (
    "{} id(s) were sent more than once, with different bodies: the first row stays, so of each only one body"
    " counts; the first is {}"
)
_OTHER_PLACES = "the ledger knows other places: {}"
# Between two signs of life.
_TOLD_EVERY = 1_000
_PLACES_NAMED = 5


async def audit(
    broker: Broker,
    topic: str,
    group: str,
    open_results: OpenResults,
    ledger: Ledger | None,
    on_look: OnLook | None = None,
) -> Balance:
    """Balance the books of one topic and group, while everything may be running.

    Args:
        broker: open.
        topic: ensured before.
        group: whose workers write the results.
        open_results: opens the results table; one that was not made yet has no rows.
        ledger: what was published; None uses the broker's counts.
        on_look: told what is looked at, and how much of it was seen so far.

    Raises:
        NotFound: topic or group was never ensured.
        ClientError: the results or the ledger cannot be read.
    """
    look = _Look(broker, topic, group, open_results, on_look or (lambda _, __: None))
    if ledger is None or not await asyncio.to_thread(ledger.knows, topic, broker.address):
        return await look.counts(ledger)
    first = await look.ids(ledger)
    if not first.lost:
        return first
    # A dead letter that is replayed between two looks is seen in neither place: only what is gone twice is.
    second = await look.ids(ledger)
    gone = set(first.lost_ids)
    lost = tuple(each for each in second.lost_ids if each in gone)
    moved = tuple(each for each in second.lost_ids if each not in gone)
    return replace(
        second,
        lost=len(lost),
        lost_ids=lost,
        in_flight=second.in_flight + len(moved),
        in_flight_ids=second.in_flight_ids + moved,
    )


@dataclass(frozen=True, slots=True)
class _Table:
    """What the results table says."""

    ids: AbstractSet[str] = NO_IDS
    expired: AbstractSet[str] = NO_IDS
    duplicates: int = 0
    kept_since: datetime | None = None
    problem: str = ""


class _Look:
    """One look after the other at queue, dead letters, notes of purges, and table."""

    def __init__(
        self, broker: Broker, topic: str, group: str, open_results: OpenResults, on_look: OnLook
    ) -> None:
        self._broker = broker
        self._topic = topic
        self._group = group
        self._open_results = open_results
        self._on_look = on_look

    async def ids(self, ledger: Ledger) -> Balance:
        """Balance by id."""
        table, books = await self._books(ledger)
        found = await asyncio.to_thread(balance, books)
        conflicts = await asyncio.to_thread(ledger.conflicts, self._topic, self._broker.address)
        notes = list(found.notes)
        if conflicts:
            notes.append(_CONFLICTS.format(len(conflicts), min(conflicts)))
        if found.lost and table.problem:
            notes.append(table.problem)
        found = replace(found, conflicts=len(conflicts), notes=tuple(notes))
        if not found.lost or table.kept_since is None:
            return found
        old = await asyncio.to_thread(ledger.sent_before, found.lost_ids, table.kept_since)
        lost = tuple(each for each in found.lost_ids if each not in old)
        return replace(found, lost=len(lost), lost_ids=lost, beyond_retention=len(old))

    async def _books(self, ledger: Ledger) -> tuple[_Table, Books]:
        # Read against the stream, from queue to table: what moves on meanwhile is seen twice, and not missed.
        confirmed = await asyncio.to_thread(ledger.ids, self._topic, "confirmed", self._broker.address)
        unconfirmed = await asyncio.to_thread(ledger.ids, self._topic, "sent", self._broker.address)
        unsettled = {each async for each in self._browse("in the queue", self._topic, self._group)}
        dead = await self._dead()
        purged = await purged_ids(self._broker, self._topic, self._group)
        table = await asyncio.to_thread(self._table)
        # What was sent since the ledger was read is for the next audit.
        strangers = (unsettled | dead | purged) - confirmed - unconfirmed
        new = await asyncio.to_thread(ledger.known, strangers)
        found = (confirmed, unconfirmed, unsettled - new, dead - new, purged - new)
        return table, Books(*found, table.ids, table.expired, table.duplicates)

    async def counts(self, ledger: Ledger | None) -> Balance:
        """Balance by number."""
        stats = await self._broker.stats(self._topic, self._group)
        dead = await self._dead()
        purged = await purged_ids(self._broker, self._topic, self._group)
        table = await asyncio.to_thread(self._table)
        found = balance_counts(
            stats.published,
            stats.unsettled,
            len(dead),
            len(table.ids) + table.duplicates,
            table.duplicates,
            len(table.expired),
            len(purged - dead - table.ids),
        )
        notes = found.notes + ((table.problem,) if table.problem else ())
        if places := await asyncio.to_thread(ledger.places) if ledger is not None else []:
            known = "; ".join(f"topic {topic!r} at {address}" for address, topic in places[:_PLACES_NAMED])
            notes += (_OTHER_PLACES.format(known),)
        return replace(found, notes=notes)

    async def _dead(self) -> set[str]:
        """The ids of all dead letters; a group that never lost a message has no topic for them."""
        topic = dead_letter_topic(self._topic, self._group)
        try:
            return {each async for each in self._browse("dead letters", topic, OPERATORS)}
        except NotFound:
            return set()

    async def _browse(self, what: str, topic: str, group: str) -> AsyncIterator[str]:
        count = 0
        async for each in self._broker.browse(topic, group):
            count += 1
            if count % _TOLD_EVERY == 0:
                self._on_look(what, count)
            yield each.message.id

    def _table(self) -> _Table:
        try:
            with self._open_results() as results:
                self._on_look("results", 0)
                ids = set(results.ids())
                return _Table(ids, set(results.ids("expired")), results.duplicates(), results.kept_since())
        except ResultsMissing as error:
            return _Table(problem=str(error))
