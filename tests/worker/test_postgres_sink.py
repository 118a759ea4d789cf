"""PostgreSQL keeps one row per message id, whatever the rows say and whoever else writes."""

from __future__ import annotations

import asyncio
import random

import pytest
from sink_bench import PostgresProxy, opened, row

from client.results import WriteReport
from client.schema import ResultRow
from tests.services.postgres import PostgresService
from worker import open_sink
from worker.sinks.postgres import PostgresSink

pytestmark = pytest.mark.anyio
MOST_STATEMENTS = 13


@pytest.fixture
def url(postgres_service: PostgresService) -> str:
    return postgres_service.new_database()


def stored(service: PostgresService, url: str) -> list[str]:
    """The ids in the table, read without our own code."""
    return service.sql("SELECT message_id FROM results ORDER BY message_id", url).splitlines()


async def test_the_columns_hold_what_was_written(postgres_service: PostgresService, url: str) -> None:
    """For psql and dashboards: real numbers, a real time, real JSON."""
    full = row(
        "a",
        label_index=4,
        confidence=0.1 + 0.2,
        runner_up="Shirt",
        runner_up_confidence=1e-9,
        group_label="Upper",
        tags='["a", "\u00e9"]',
        model="m",
        model_version="1",
        engine="onnx",
        key="k\u00e9y",
        subject='it\'s "quoted", {a,b} \\ NULL',
        created_at="2026-01-02T03:04:05.123456+00:00",
    )
    async with opened(open_sink(url)) as sink:
        assert await sink.write([full, row("b", label=None, status="expired")]) == WriteReport(new=2)
    assert postgres_service.sql("SELECT count(*) FROM results", url) == "2"
    query = (
        "SELECT confidence = 0.1::float8 + 0.2::float8, tags->>1, key, subject,"
        " created_at = '2026-01-02 03:04:05.123456Z', label_index + 1 FROM results WHERE message_id = 'a'"
    )
    line = postgres_service.sql(query, url)
    assert line == f"t|\u00e9|k\u00e9y|{full.subject}|t|5"
    query = "SELECT label IS NULL, confidence IS NULL, status FROM results WHERE message_id = 'b'"
    assert postgres_service.sql(query, url) == "t|t|expired"


async def test_a_batch_is_one_statement_and_one_with_a_replay_two(url: str) -> None:
    """Counted on the wire, opening left out."""
    async with PostgresProxy(url) as proxy, opened(PostgresSink(proxy.url)) as sink:
        before = proxy.statements
        assert (await sink.write([row(f"m-{n}") for n in range(128)])).new == 128
        assert proxy.statements - before == 1
        report = await sink.write([row(f"m-{n}") for n in range(127, 200)])
        assert report == WriteReport(new=72, identical=1)
        assert proxy.statements - before == 3
        assert proxy.connections == 1


async def test_replays_and_contradictions_are_told_apart(postgres_service: PostgresService, url: str) -> None:
    """The first row stays."""
    async with opened(open_sink(url)) as sink:
        await sink.write([row("a"), row("b"), row("c")])
        again = [row("a", attempt=2), row("b", label="Bag"), row("c", model_hash="other"), row("d")]
        assert await sink.write(again) == WriteReport(new=1, identical=1, conflicts=("b", "c"))
    found = postgres_service.sql("SELECT string_agg(label || attempt, ',') FROM results", url)
    assert found == "Coat1,Coat1,Coat1,Coat1"


@pytest.mark.parametrize("copies", [1, 2, 33, 64])
async def test_one_id_many_times_in_a_batch_is_one_row(
    postgres_service: PostgresService, url: str, copies: int
) -> None:
    """Producers repeat ids, and PostgreSQL refuses to touch a row twice in one upsert."""
    rows = [row("same") for _ in range(copies)] + [row(f"m-{n}") for n in range(64 - copies)]
    random.Random(copies).shuffle(rows)
    async with opened(open_sink(url)) as sink:
        assert await sink.write(rows) == WriteReport(new=65 - copies, identical=copies - 1)
        assert (await sink.write([row("same", label="Bag")] * copies)).conflicts == ("same",) * copies
        report = await sink.write([row("x"), row("x", label="Bag"), row("x")])
        assert report == WriteReport(new=1, identical=1, conflicts=("x",))
    assert len(stored(postgres_service, url)) == 66 - copies


async def test_a_refused_row_costs_thirteen_statements_at_every_place(
    postgres_service: PostgresService, url: str
) -> None:
    """Exactly that one is refused, the 63 others are stored, at every index of a batch of 64."""
    async with PostgresProxy(url) as proxy, opened(PostgresSink(proxy.url)) as sink:
        for place in range(64):
            # Sorted by id as the sink does, so that the place is the place in the statement too.
            rows = [row(f"{place:02}-{n:02}") for n in range(64)]
            rows[place] = rows[place]._replace(subject="a\0b")
            before = proxy.statements
            report = await sink.write(rows)
            assert report.new == 63
            assert report.refused.keys() == {rows[place].message_id}
            assert proxy.statements - before <= MOST_STATEMENTS
        assert proxy.connections == 1
    expected = [f"{place:02}-{n:02}" for place in range(64) for n in range(64) if n != place]
    assert stored(postgres_service, url) == expected


REFUSED = {
    "nul": ({"subject": "\0"}, "22P05"),
    "half a surrogate": ({"key": "\ud83d"}, "surrogate"),
    "unknown status": ({"status": "nonsense"}, "23514"),
    "huge number": ({"attempt": 2**70}, "22003"),
    "missing value": ({"worker": None}, "23502"),
    "no time": ({"created_at": "yesterday-ish"}, "22007"),
    "no JSON": ({"tags": "[oops"}, "22P02"),
    "no number": ({"confidence": float("nan")}, "ValueError"),
    "no value at all": ({"confidence": object()}, "TypeError"),
    "an operator's limit": ({"label": "Overcoat"}, "23514"),
    "an operator's trigger": ({"subject": "forbidden"}, "P0001"),
    "an operator's unique index": ({"subject": "taken"}, "23505"),
}


@pytest.fixture
def strict_url(postgres_service: PostgresService, url: str) -> str:
    """A database to which an operator added rules of his own."""

    async def make() -> None:
        async with opened(open_sink(url)) as sink:
            await sink.write([row("first", subject="taken")])

    asyncio.run(make())
    postgres_service.sql(
        """
        ALTER TABLE results ADD CHECK (length(label) < 6);
        CREATE UNIQUE INDEX ON results (subject) WHERE subject = 'taken';
        CREATE FUNCTION guard() RETURNS trigger LANGUAGE plpgsql AS
            $$ BEGIN IF NEW.subject = 'forbidden' THEN RAISE 'not this one'; END IF; RETURN NEW; END $$;
        CREATE TRIGGER guard BEFORE INSERT ON results FOR EACH ROW EXECUTE FUNCTION guard();
        """,
        url,
    )
    return url


@pytest.mark.parametrize("what", REFUSED)
async def test_what_the_database_refuses_is_named_with_the_reason(
    postgres_service: PostgresService, strict_url: str, what: str
) -> None:
    """The neighbours are stored."""
    columns, code = REFUSED[what]
    async with opened(open_sink(strict_url)) as sink:
        report = await sink.write([row("a"), row("bad", **columns), row("z"), row("bad", **columns)])
    assert report.new == 2
    assert report.identical == 0
    assert list(report.refused) == ["bad"]
    assert code in report.refused["bad"]
    assert stored(postgres_service, strict_url) == ["a", "first", "z"]


async def test_an_id_too_long_for_the_index_is_refused_and_a_long_label_stored(
    postgres_service: PostgresService, url: str
) -> None:
    """Strangers choose ids; a megabyte of text that does not compress fits into no index."""
    noise = random.Random(7).randbytes(500_000).hex()
    async with opened(open_sink(url)) as sink:
        report = await sink.write([row("a"), row(noise), row("long", label=noise)])
    assert report.new == 2
    assert list(report.refused) == [noise]
    assert "54000" in report.refused[noise]
    assert (
        postgres_service.sql("SELECT length(label) FROM results WHERE message_id = 'long'", url) == "1000000"
    )


async def test_writers_with_the_same_ids_in_opposite_order_never_wait_in_a_ring(
    postgres_service: PostgresService, url: str
) -> None:
    """Four at once, no deadlock in the server's own count."""
    rows = [row(f"m-{n:04}") for n in range(512)]

    async def write(order: list[ResultRow]) -> int:
        async with opened(PostgresSink(url)) as sink:
            reports = [await sink.write(order[start : start + 64]) for start in range(0, 512, 64)]
            return sum(each.new for each in reports)

    mixed = random.Random(1).sample(rows, 512)
    new = await asyncio.gather(*(write(each) for each in (rows, rows[::-1], mixed, mixed[::-1])))
    assert sum(new) == 512
    assert len(stored(postgres_service, url)) == 512
    name = url.rpartition("/")[2]
    deadlocks = f"SELECT deadlocks FROM pg_stat_database WHERE datname = '{name}'"
    assert postgres_service.sql(deadlocks) == "0"


async def test_overlapping_writes_have_a_connection_each(url: str) -> None:
    """Two batches at once take two, and later writes no more."""
    async with PostgresProxy(url) as proxy, opened(PostgresSink(proxy.url)) as sink:
        for turn in range(5):
            pair = ([row(f"{turn}-{half}-{n}") for n in range(50)] for half in "ab")
            assert [each.new for each in await asyncio.gather(*map(sink.write, pair))] == [50, 50]
        assert proxy.connections == 2


async def test_what_was_acknowledged_is_on_the_disk_whatever_the_database_says(
    postgres_service: PostgresService, url: str
) -> None:
    """A database with synchronous_commit off loses the last commits in a crash, so a session has it on."""
    name = url.rpartition("/")[2]
    postgres_service.sql(f"ALTER DATABASE {name} SET synchronous_commit = off")
    sink = PostgresSink(url)
    async with opened(sink):
        assert await sink._pool.run("SHOW synchronous_commit") == [("on",)]
    with pytest.raises(ValueError, match="synchronous_commit"):
        PostgresSink(f"{url}?options=-c%20synchronous_commit%3Doff")
