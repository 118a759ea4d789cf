"""The books: arithmetic by id, and the whole round with a real broker and a real table."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker import Broker, Delivery, Message, NotFound, connect, dead_letter_topic
from client import Client, Ledger
from client.audit import Balance, Books, audit, balance, balance_counts
from client.dlq import Choice, letters, purge, purged_topic, replay
from client.results import ResultsReader, ResultsWriter, open_results
from client.results.postgres import ddl
from client.schema import ClassifyRequest, ResultRow
from tests.services.postgres import PostgresService

TOPIC, GROUP = "images", "classifiers"
IDS = st.frozensets(st.integers(0, 30).map(str))


def places(found: Balance) -> list[int]:
    """All places where a published message can be."""
    finished = [found.stored, found.expired, found.dead_lettered, found.purged, found.beyond_retention]
    return [*finished, found.in_flight, found.lost or 0]


@given(IDS, IDS, IDS, IDS, IDS, IDS, IDS)
def test_every_message_is_in_exactly_one_place(
    confirmed: frozenset[str],
    unconfirmed: frozenset[str],
    unsettled: frozenset[str],
    dead: frozenset[str],
    purged: frozenset[str],
    stored: frozenset[str],
    expired: frozenset[str],
) -> None:
    """published is the sum of all places, whatever the sets, and lost is what is nowhere."""
    unconfirmed, expired = unconfirmed - confirmed, expired & stored
    found = balance(Books(confirmed, unconfirmed, unsettled, dead, purged, stored, expired))
    assert found.published == sum(places(found))
    assert set(found.lost_ids) == confirmed - stored - dead - unsettled - purged
    assert set(found.in_flight_ids) == unsettled - stored - dead
    assert found.missing == len(found.lost_ids) + len(found.in_flight_ids)
    assert found.balanced == (not (confirmed - purged | unsettled) - stored - dead)
    assert found.stored + found.expired + found.unexpected == len(stored)
    seen = stored | dead | unsettled | purged
    assert found.unconfirmed == len(unconfirmed - seen)
    assert found.purged == len(purged - stored - dead - unsettled)


@given(*[st.integers(0, 50)] * 6)
def test_counts_balance_too(
    published: int, unsettled: int, dead: int, rows: int, expired: int, purged: int
) -> None:
    """Without ids nothing gets negative, and what the numbers cannot prove is said."""
    found = balance_counts(published, unsettled, dead, rows, 0, min(expired, rows), purged)
    assert found.published == sum(places(found))
    assert min(*places(found), found.unexpected) >= 0
    assert found.lost == max(0, published - dead - purged - rows - unsettled)
    assert found.notes


@given(st.integers(0, 50), st.integers(0, 50), st.integers(0, 50))
def test_where_nobody_counted_nothing_is_proven(unsettled: int, dead: int, rows: int) -> None:
    """What can be seen is said; what was published, and so what is lost, is unknown and never 0."""
    found = balance_counts(None, unsettled, dead, rows)
    assert (found.published, found.lost, found.missing, found.balanced) == (None, None, None, False)
    assert (found.stored, found.dead_lettered, found.in_flight) == (rows, dead, unsettled)
    assert "no count" in found.notes[0]


def test_a_sent_message_without_an_answer_may_appear_but_is_not_missed() -> None:
    """It counts once it is seen."""
    silent = balance(Books(unconfirmed=frozenset("ab"), stored=frozenset("a")))
    assert (silent.published, silent.stored, silent.lost, silent.unconfirmed) == (1, 1, 0, 1)
    assert silent.balanced
    assert "may still appear" in silent.notes[0]


def test_a_repeated_row_is_never_balanced() -> None:
    """Even with nothing missing."""
    assert not balance(Books(duplicate_rows=1)).balanced


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger(tmp_path / "ledger.db") as ledger:
        yield ledger


async def settle(broker: Broker, path: Path, row: Callable[..., ResultRow], *, rows: int, dead: int) -> None:
    """Do a worker's work by hand: some messages to rows, some to dead letters."""
    await broker.ensure(dead_letter_topic(TOPIC, GROUP), "operators")
    writer = ResultsWriter(path)
    async with broker.subscribe(TOPIC, group=GROUP) as subscription:
        taken = await subscription.receive(rows + dead)
        assert len(taken) == rows + dead
        writer.write([row(each.message.id) for each in taken[:rows]])
        for each in taken[rows:]:
            await subscription.forward(each, dead_letter_topic(TOPIC, GROUP), {})
        await subscription.ack(taken)
    writer.close()


@pytest.mark.anyio
async def test_the_books_follow_the_messages(
    tmp_path: Path, ledger: Ledger, row: Callable[..., ResultRow]
) -> None:
    """From all in flight to balanced; a row that vanishes is a lost message."""
    path = tmp_path / "results.db"
    async with connect(f"sqlite:///{tmp_path}/queue.db") as broker:
        await broker.ensure(TOPIC, GROUP)
        await Client(broker, TOPIC, ledger).publish([b"x"] * 10)
        before = await audit(broker, TOPIC, GROUP, lambda: ResultsReader(path), ledger)
        assert (before.published, before.in_flight, before.balanced) == (10, 10, False)

        await settle(broker, path, row, rows=5, dead=2)
        half = await audit(broker, TOPIC, GROUP, lambda: ResultsReader(path), ledger)
        assert (half.stored, half.dead_lettered, half.in_flight, half.lost) == (5, 2, 3, 0)

        await settle(broker, path, row, rows=3, dead=0)
        done = await audit(broker, TOPIC, GROUP, lambda: ResultsReader(path), ledger)
        assert (done.stored, done.dead_lettered, done.missing, done.balanced) == (8, 2, 0, True)
        assert done.basis == "ledger"

        counted = await audit(broker, TOPIC, GROUP, lambda: ResultsReader(path), None)
        assert (counted.published, counted.stored, counted.dead_lettered, counted.balanced) == (
            10,
            8,
            2,
            True,
        )
        assert counted.basis == "broker"

        path.unlink()
        gone = await audit(broker, TOPIC, GROUP, lambda: ResultsReader(path), ledger)
        assert (gone.lost, len(gone.lost_ids), gone.balanced) == (8, 8, False)


@pytest.mark.anyio
async def test_an_unknown_topic_has_no_books(tmp_path: Path, ledger: Ledger) -> None:
    """A misspelt name is an error, not an empty balance."""
    async with connect(f"memory://{tmp_path.name}") as broker:
        with pytest.raises(NotFound):
            await audit(broker, "nowhere", GROUP, lambda: ResultsReader(tmp_path / "r.db"), ledger)


class Moving(Broker):
    """A broker whose workers finish messages while somebody looks."""

    def __init__(self, name: str, move: Callable[[Broker], Awaitable[None]]) -> None:
        super().__init__(connect(f"memory://{name}")._driver)
        self.move = move

    async def browse(self, topic: str, group: str) -> AsyncIterator[Delivery]:
        """Show what is there between two steps of the workers."""
        if topic == TOPIC:
            await self.move(self)
        async for each in super().browse(topic, group):
            yield each
        if topic == TOPIC:
            await self.move(self)


@pytest.mark.anyio
async def test_a_message_that_moves_while_the_books_are_read_is_not_missed(
    tmp_path: Path, ledger: Ledger, row: Callable[..., ResultRow]
) -> None:
    """Stored just before or just after the look at the queue, it counts as stored."""
    path = tmp_path / "results.db"
    async with Moving(tmp_path.name, lambda broker: settle(broker, path, row, rows=4, dead=1)) as broker:
        await broker.ensure(TOPIC, GROUP)
        await Client(broker, TOPIC, ledger).publish([b"x"] * 10)
        found = await audit(broker, TOPIC, GROUP, lambda: ResultsReader(path), ledger)
    assert (found.stored, found.dead_lettered, found.in_flight, found.lost) == (8, 2, 0, 0)


@pytest.mark.anyio
async def test_messages_of_other_senders_are_not_passed_over(tmp_path: Path, ledger: Ledger) -> None:
    """A ledger that knows nothing of a topic proves nothing; one that knows some says what it does not."""
    path = tmp_path / "results.db"
    async with connect(f"sqlite:///{tmp_path}/queue.db") as broker:
        await broker.ensure(TOPIC, GROUP)
        await Client(broker, TOPIC).publish([b"x"] * 5)
        unknown = await audit(broker, TOPIC, GROUP, lambda: ResultsReader(path), ledger)
        assert (unknown.basis, unknown.in_flight, unknown.balanced) == ("broker", 5, False)
        await Client(broker, TOPIC, ledger).publish([b"x"] * 2)
        partly = await audit(broker, TOPIC, GROUP, lambda: ResultsReader(path), ledger)
        assert (partly.published, partly.in_flight, partly.balanced) == (7, 7, False)
        assert "5 message(s)" in partly.notes[0]


@pytest.mark.anyio
async def test_one_ledger_serves_several_queues(tmp_path: Path, ledger: Ledger) -> None:
    """What went to another queue is neither missed nor counted here."""
    path = tmp_path / "results.db"
    for name, count in (("one", 3), ("two", 4)):
        async with connect(f"sqlite:///{tmp_path}/{name}.db") as broker:
            await broker.ensure(TOPIC, GROUP)
            await Client(broker, TOPIC, ledger).publish([b"x"] * count)
            found = await audit(broker, TOPIC, GROUP, lambda: ResultsReader(path), ledger)
            assert (found.published, found.in_flight, found.lost) == (count, count, 0)


@pytest.mark.anyio
async def test_expired_purged_and_forgotten_messages_are_not_lost(
    tmp_path: Path, ledger: Ledger, row: Callable[..., ResultRow]
) -> None:
    """Each has a place of its own; what vanished without a trace is lost all the same."""
    path = tmp_path / "results.db"
    async with connect(f"sqlite:///{tmp_path}/queue.db") as broker:
        await broker.ensure(TOPIC, GROUP)
        sent = await Client(broker, TOPIC, ledger).publish([b"x"] * 10)
        await settle(broker, path, row, rows=6, dead=4)
        await purge(broker, TOPIC, GROUP, Choice(), create=True)
        with contextlib.closing(sqlite3.connect(path)) as db, db:
            db.execute("UPDATE results SET status = 'expired' WHERE rowid IN (1, 2)")
        found = await audit(broker, TOPIC, GROUP, lambda: ResultsReader(path), ledger)
        assert (found.stored, found.expired, found.dead_lettered, found.purged) == (4, 2, 0, 4)
        assert (found.published, found.balanced) == (10, True)
        counted = await audit(broker, TOPIC, GROUP, lambda: ResultsReader(path), None)
        assert (counted.stored, counted.expired, counted.purged, counted.lost) == (4, 2, 4, 0)

        writer = ResultsWriter(path)
        start = datetime.fromisoformat(next(ledger.entries(run_id=sent.run_id)).sent_at)
        assert writer.claim_pruning(datetime.now(UTC), 3600.0, start)
        with contextlib.closing(sqlite3.connect(path)) as db, db:
            db.execute("DELETE FROM results WHERE rowid = 3")
        gone = await audit(broker, TOPIC, GROUP, lambda: ResultsReader(path), ledger)
        assert (gone.lost, gone.beyond_retention, gone.balanced) == (1, 0, False)
        assert writer.claim_pruning(
            datetime.now(UTC) + timedelta(hours=2), 3600.0, datetime.now(UTC) + timedelta(seconds=1)
        )
        old = await audit(broker, TOPIC, GROUP, lambda: ResultsReader(path), ledger)
        assert (old.lost, old.beyond_retention, old.balanced) == (0, 1, True)
        writer.close()


@pytest.mark.anyio
async def test_a_purge_that_was_cut_short_counts_as_a_letter(
    tmp_path: Path, ledger: Ledger, row: Callable[..., ResultRow]
) -> None:
    """Between note and ack a message is in both places, and counted once; replayed instead, it is a row."""
    path = tmp_path / "results.db"
    async with connect(f"sqlite:///{tmp_path}/queue.db") as broker:
        await broker.ensure(TOPIC, GROUP)
        await Client(broker, TOPIC, ledger).publish([b"x"] * 3)
        await settle(broker, path, row, rows=0, dead=3)
        letter = await anext(letters(broker, TOPIC, GROUP))
        await broker.ensure(purged_topic(TOPIC, GROUP), "operators")
        note = json.dumps({"message_id": letter.message_id}).encode()
        await broker.publish(purged_topic(TOPIC, GROUP), [Message(data=note)])
        found = await audit(broker, TOPIC, GROUP, lambda: ResultsReader(path), ledger)
        assert (found.dead_lettered, found.purged, found.balanced) == (3, 0, True)

        await replay(broker, TOPIC, GROUP, Choice(frozenset([letter.message_id])))
        again = await audit(broker, TOPIC, GROUP, lambda: ResultsReader(path), ledger)
        assert (again.dead_lettered, again.purged, again.in_flight) == (2, 0, 1)
        await settle(broker, path, row, rows=1, dead=0)
        done = await audit(broker, TOPIC, GROUP, lambda: ResultsReader(path), ledger)
        assert (done.stored, done.dead_lettered, done.purged, done.balanced) == (1, 2, 0, True)


class Sending(Broker):
    """A broker to which somebody sends while somebody else looks."""

    def __init__(self, name: str, ledger: Ledger) -> None:
        super().__init__(connect(f"memory://{name}")._driver)
        self.ledger = ledger

    async def browse(self, topic: str, group: str) -> AsyncIterator[Delivery]:
        """Send two more before each look at the queue."""
        if topic == TOPIC:
            await Client(self, TOPIC, self.ledger).publish([b"x"] * 2)
        async for each in super().browse(topic, group):
            yield each


@pytest.mark.anyio
async def test_what_is_sent_while_the_books_are_read_is_no_stranger(tmp_path: Path, ledger: Ledger) -> None:
    """It is left to the next audit; nothing is said of other senders."""
    async with Sending(tmp_path.name, ledger) as broker:
        await broker.ensure(TOPIC, GROUP)
        await Client(broker, TOPIC, ledger).publish([b"x"] * 3)
        found = await audit(broker, TOPIC, GROUP, lambda: ResultsReader(tmp_path / "r.db"), ledger)
    assert (found.published, found.in_flight, found.lost, found.notes) == (3, 3, 0, ())


@pytest.mark.anyio
async def test_ids_that_were_sent_with_different_bodies_are_named(tmp_path: Path, ledger: Ledger) -> None:
    """Only one of the bodies can become a row; the same body twice is no conflict."""
    async with connect(f"memory://{tmp_path.name}") as broker:
        await broker.ensure(TOPIC, GROUP)
        client = Client(broker, TOPIC, ledger)
        requests = [ClassifyRequest(image=body, id=name) for name, body in (("a", b"1"), ("b", b"2"))]
        await client.publish(requests)
        await client.publish([requests[0], ClassifyRequest(image=b"3", id="b")])
        found = await audit(broker, TOPIC, GROUP, lambda: ResultsReader(tmp_path / "r.db"), ledger)
    assert (found.published, found.conflicts) == (2, 1)
    assert "the first is b" in found.notes[0]


@pytest.mark.anyio
async def test_rows_in_postgresql_are_audited(
    tmp_path: Path, ledger: Ledger, row: Callable[..., ResultRow], postgres_service: PostgresService
) -> None:
    """The books are the same wherever the rows are; before the first worker there are none."""
    url = postgres_service.new_database()
    async with connect(f"sqlite:///{tmp_path}/queue.db") as broker:
        await broker.ensure(TOPIC, GROUP)
        sent = await Client(broker, TOPIC, ledger).publish([b"x"] * 5)
        before = await audit(broker, TOPIC, GROUP, lambda: open_results(url), ledger)
        assert (before.in_flight, before.stored) == (5, 0)
        ids = [each.message_id for each in ledger.entries(run_id=sent.run_id)]
        statuses = ["ok", "abstained", "expired"]
        store_in_postgres(
            url, [row(each, status=status) for each, status in zip(ids, statuses, strict=False)]
        )
        found = await audit(broker, TOPIC, GROUP, lambda: open_results(url), ledger)
    assert (found.stored, found.expired, found.in_flight, found.lost) == (2, 1, 2, 0)


def store_in_postgres(url: str, rows: Sequence[ResultRow]) -> None:
    """Make the table and store rows in it."""
    import psycopg

    names = ", ".join(f'"{name}"' for name in ResultRow._fields)
    marks = ", ".join(["%s"] * len(ResultRow._fields))
    with psycopg.connect(url) as db:
        db.execute(ddl())
        db.cursor().executemany(f"INSERT INTO results ({names}) VALUES ({marks})", rows)
