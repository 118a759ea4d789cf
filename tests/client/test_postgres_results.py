"""The results table in PostgreSQL reads like the one in a file."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import psycopg
import pytest
from psycopg.types.json import Jsonb

from client import ResultsTimeout, StoreUnavailable
from client.results import COLUMNS, Results, ResultsMissing, open_results, wait_for
from client.results import postgres as table
from client.schema import ResultRow
from client.settings import load
from tests.services.postgres import PostgresService

Row = Callable[..., ResultRow]
START = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


@pytest.fixture
def url(postgres_service: PostgresService) -> str:
    return postgres_service.new_database()


@pytest.fixture
def made(postgres_service: PostgresService, url: str) -> str:
    postgres_service.sql(table.ddl(), url)
    return url


def put(url: str, rows: list[ResultRow]) -> None:
    """Write without the worker."""
    marks = ", ".join(["%s"] * len(COLUMNS))
    with psycopg.connect(url) as db, db.cursor() as cursor:
        values = [each._replace(tags=Jsonb([])) for each in rows]  # type: ignore[arg-type]
        cursor.executemany(f"INSERT INTO results VALUES ({marks})", values)


def at(second: int) -> str:
    return (START + timedelta(seconds=second)).isoformat()


def test_rows_come_back_as_they_were_written(made: str, row: Row) -> None:
    """Types and all, the newest first."""
    rows = [
        row("a", created_at=at(1), confidence=0.1 + 0.2, key="k\u00e9y"),
        row("b", created_at=at(2), label=None, status="expired"),
        row("c", created_at="2026-01-02T03:04:08.000001+00:00"),
    ]
    put(made, rows)
    with open_results(made) as results:
        assert list(results.rows()) == rows[::-1]
        assert results.count() == 3
        assert results.duplicates() == 0
        assert results.statuses() == {"ok": 2, "expired": 1}
        assert results.kept_since() is None
        assert next(iter(results.find(["b"]))).result().created_at == START + timedelta(seconds=2)


def test_rows_are_found_page_by_page_by_label_number_and_id(made: str, row: Row) -> None:
    """More than a page, many of one time; unknown and impossible ids are left out."""
    put(
        made,
        [row(f"m-{n:05}", label="Bag" if n % 2 else "Coat", created_at=at(n // 50)) for n in range(6000)],
    )
    with open_results(made) as results:
        bags = [each.message_id for each in results.rows("Bag")]
        assert bags == [f"m-{n:05}" for n in range(5999, 0, -2)]
        assert [each.message_id for each in results.rows(limit=2)] == ["m-05999", "m-05998"]
        assert sum(1 for _ in results.rows(limit=2001)) == 2001
        asked = [f"m-{n:05}" for n in range(8000)] + ["\0"]
        assert {each.message_id for each in results.find(asked)} == set(asked[:6000])
        assert sorted(results.ids()) == asked[:6000]


def test_reading_changes_nothing_and_needs_a_table(url: str) -> None:
    """The error names the next step; a missing table is made by workers only."""
    with pytest.raises(ResultsMissing, match="couturier worker"):
        open_results(url)
    with psycopg.connect(url) as db:
        assert db.execute("SELECT to_regclass('results')").fetchone() == (None,)


def test_the_settings_open_what_sink_url_names(made: str, row: Row, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first place of several that can be read."""
    put(made, [row("a")])
    monkeypatch.setenv("SINK_URL", f"console:,jsonl:///x.jsonl,{made}")
    with load().open_results() as results:
        assert results.count() == 1
    monkeypatch.setenv("SINK_URL", "jsonl:///x.jsonl,topic:out")
    with pytest.raises(ValueError, match=r"SINK_URL=.*cannot be read.*postgresql://"):
        load().open_results()


def _end_sessions(service: PostgresService, url: str) -> int:
    name = url.rpartition("/")[2]
    ended = service.sql(
        "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
        f" WHERE datname = '{name}' AND application_name = 'couturier'"
    )
    return int(ended)


def test_a_connection_that_was_lost_is_made_anew(
    postgres_service: PostgresService, made: str, row: Row
) -> None:
    """One question at most is answered with an error."""
    put(made, [row("a")])
    with open_results(made) as results:
        assert results.count() == 1
        assert _end_sessions(postgres_service, made) == 1
        with pytest.raises(StoreUnavailable):
            results.count()
        assert results.count() == 1


@pytest.mark.anyio
async def test_results_are_waited_for_and_the_table_with_them(
    postgres_service: PostgresService, url: str, row: Row
) -> None:
    """Also across a lost connection."""
    waiting = asyncio.create_task(wait_for(["a", "b"], 60, url))
    await asyncio.to_thread(postgres_service.sql, table.ddl(), url)
    await asyncio.to_thread(put, url, [row("b")])
    ended = 0
    for _ in range(500):
        ended += await asyncio.to_thread(_end_sessions, postgres_service, url)
        if ended:
            break
    assert ended
    await asyncio.to_thread(put, url, [row("a")])
    assert [each.message_id for each in await waiting] == ["a", "b"]
    with pytest.raises(ResultsTimeout) as caught:
        await wait_for(["a", "never"], 0.0, url)
    assert caught.value.missing == ("never",)


def test_a_reader_answers_several_threads(made: str, row: Row) -> None:
    """As the demo asks it."""
    put(made, [row(f"m-{n}") for n in range(100)])

    async def ask(results: Results) -> list[int]:
        return await asyncio.gather(*(asyncio.to_thread(results.count) for _ in range(20)))

    with open_results(made) as results:
        assert asyncio.run(ask(results)) == [100] * 20
