"""The books: arithmetic by id, and the whole round with a real broker and a real table."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker import Broker, Delivery, NotFound, connect, dead_letter_topic
from client import Client, Ledger
from client.audit import Books, audit, balance, balance_counts
from client.results import ResultsWriter
from client.schema import ResultRow

TOPIC, GROUP = "images", "classifiers"
IDS = st.frozensets(st.integers(0, 30).map(str))


@given(IDS, IDS, IDS, IDS, IDS)
def test_every_message_is_in_exactly_one_place(
    confirmed: frozenset[str],
    unconfirmed: frozenset[str],
    unsettled: frozenset[str],
    dead: frozenset[str],
    stored: frozenset[str],
) -> None:
    """published = stored + dead + in flight + lost, whatever the sets, and lost is what is nowhere."""
    found = balance(Books(confirmed, unconfirmed - confirmed, unsettled, dead, stored))
    assert found.published == found.stored + found.dead_lettered + found.in_flight + found.lost
    assert found.missing == found.published - found.stored - found.dead_lettered
    assert set(found.lost_ids) == confirmed - stored - dead - unsettled
    assert found.balanced == (not (confirmed | unsettled) - stored - dead)
    assert found.stored + found.unexpected == len(stored)
    seen = stored | dead | unsettled
    assert found.unconfirmed == len(unconfirmed - confirmed - seen)


@given(st.integers(0, 50), st.integers(0, 50), st.integers(0, 50), st.integers(0, 50))
def test_counts_balance_too(published: int, unsettled: int, dead: int, rows: int) -> None:
    """Without ids nothing gets negative, and what the numbers cannot prove is said."""
    found = balance_counts(published, unsettled, dead, rows)
    assert found.published == found.stored + found.dead_lettered + found.in_flight + found.lost
    assert min(found.stored, found.dead_lettered, found.in_flight, found.lost, found.unexpected) >= 0
    assert found.lost == max(0, published - min(dead, published) - rows - unsettled)
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
        before = await audit(broker, TOPIC, GROUP, path, ledger)
        assert (before.published, before.in_flight, before.balanced) == (10, 10, False)

        await settle(broker, path, row, rows=5, dead=2)
        half = await audit(broker, TOPIC, GROUP, path, ledger)
        assert (half.stored, half.dead_lettered, half.in_flight, half.lost) == (5, 2, 3, 0)

        await settle(broker, path, row, rows=3, dead=0)
        done = await audit(broker, TOPIC, GROUP, path, ledger)
        assert (done.stored, done.dead_lettered, done.missing, done.balanced) == (8, 2, 0, True)
        assert done.basis == "ledger"

        counted = await audit(broker, TOPIC, GROUP, path, None)
        assert (counted.published, counted.stored, counted.dead_lettered, counted.balanced) == (
            10,
            8,
            2,
            True,
        )
        assert counted.basis == "broker"

        path.unlink()
        gone = await audit(broker, TOPIC, GROUP, path, ledger)
        assert (gone.lost, len(gone.lost_ids), gone.balanced) == (8, 8, False)


@pytest.mark.anyio
async def test_an_unknown_topic_has_no_books(tmp_path: Path, ledger: Ledger) -> None:
    """A misspelt name is an error, not an empty balance."""
    async with connect(f"memory://{tmp_path.name}") as broker:
        with pytest.raises(NotFound):
            await audit(broker, "nowhere", GROUP, tmp_path / "results.db", ledger)


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
        found = await audit(broker, TOPIC, GROUP, path, ledger)
    assert (found.stored, found.dead_lettered, found.in_flight, found.lost) == (8, 2, 0, 0)


@pytest.mark.anyio
async def test_messages_of_other_senders_are_not_passed_over(tmp_path: Path, ledger: Ledger) -> None:
    """A ledger that knows nothing of a topic proves nothing; one that knows some says what it does not."""
    path = tmp_path / "results.db"
    async with connect(f"sqlite:///{tmp_path}/queue.db") as broker:
        await broker.ensure(TOPIC, GROUP)
        await Client(broker, TOPIC).publish([b"x"] * 5)
        unknown = await audit(broker, TOPIC, GROUP, path, ledger)
        assert (unknown.basis, unknown.in_flight, unknown.balanced) == ("broker", 5, False)
        await Client(broker, TOPIC, ledger).publish([b"x"] * 2)
        partly = await audit(broker, TOPIC, GROUP, path, ledger)
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
            found = await audit(broker, TOPIC, GROUP, path, ledger)
            assert (found.published, found.in_flight, found.lost) == (count, count, 0)
