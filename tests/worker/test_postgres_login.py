"""A table that cannot be used is a clear error at the start; one that can grows with the code."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import closing
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest
from sink_bench import opened, row

from client import StoreError, StoreUnavailable
from client.results import COLUMNS, WriteReport, open_results
from client.results import postgres as table
from tests.commands import Run, env, run
from tests.services.engines import free_ports
from tests.services.postgres import PostgresService
from worker.sinks.postgres import PostgresSink

__all__ = ["env", "run"]
pytestmark = pytest.mark.anyio


@pytest.fixture
def url(postgres_service: PostgresService) -> str:
    return postgres_service.new_database()


def as_user(url: str, user: str) -> str:
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=f"{user}@{parts.netloc.rpartition('@')[2]}"))


@pytest.fixture
def role(postgres_service: PostgresService, url: str) -> Iterator[str]:
    """A user without any rights of its own."""
    name = f"worker_{url[-16:]}"
    postgres_service.sql(f"CREATE ROLE {name} LOGIN")
    postgres_service.sql("REVOKE CREATE ON SCHEMA public FROM PUBLIC", url)
    yield name
    postgres_service.sql(f"DROP OWNED BY {name}", url)
    postgres_service.sql(f"DROP ROLE {name}")


async def complaint(url: str, kind: type[Exception]) -> str:
    """What opening says; the server is there, so it has no reason to take long."""
    start = time.monotonic()
    with pytest.raises(kind) as caught:
        await PostgresSink(url).open()
    assert time.monotonic() - start < 8
    assert type(caught.value) is kind
    assert "SINK_URL" in str(caught.value)
    assert "hush" not in str(caught.value)
    with pytest.raises(kind) as caught:
        open_results(url)
    assert "hush" not in str(caught.value)
    return str(caught.value)


async def test_a_missing_database_or_user_is_an_error_of_the_variable(url: str) -> None:
    """At once, and again by the reader; the password is hidden."""
    missing = await complaint(as_user(f"{url}x", "postgres:hush"), ValueError)
    assert "does not exist" in missing
    assert "user, password and database" in missing
    assert "role" in await complaint(as_user(url, "nobody-here:hush"), ValueError)


def test_a_worker_that_cannot_log_in_ends_with_78(url: str, run: Run) -> None:
    """Wrong configuration, before any message is taken; the last line is the error."""
    done = run("worker", SINK_URL=as_user(f"{url}x", "postgres:hush"))
    assert done.returncode == 78
    assert "does not exist" in done.stderr.splitlines()[-1]
    assert "hush" not in done.stdout + done.stderr


async def test_a_wrong_password_is_an_error_of_the_variable(mortal_postgres: PostgresService) -> None:
    """A server that asks for passwords says so; the right one works."""
    assert mortal_postgres.keeper, "what it asks for is changed for good, so it is our own or none"
    url = mortal_postgres.new_database()
    mortal_postgres.sql("CREATE ROLE locked LOGIN SUPERUSER PASSWORD 'open sesame'")
    path = mortal_postgres.sql("SHOW hba_file")
    mortal_postgres.sql(
        "CREATE TABLE hba (line text); INSERT INTO hba VALUES"
        " ('host all locked all scram-sha-256'), ('host all all all trust')"
    )
    mortal_postgres.sql(f"COPY hba TO '{path}'")
    mortal_postgres.sql("SELECT pg_reload_conf(); DROP TABLE hba")
    limit = time.monotonic() + 20
    while True:  # the server reads it when it gets to it
        try:
            psycopg.connect(as_user(url, "locked:hush")).close()
        except psycopg.OperationalError:
            break
        assert time.monotonic() < limit, "the server still trusts everybody"
    assert "password authentication failed" in await complaint(as_user(url, "locked:hush"), ValueError)
    await complaint(as_user(url, "locked"), ValueError)
    async with opened(PostgresSink(as_user(url, "locked:open%20sesame"))) as sink:
        assert (await sink.write([row("a")])).new == 1


async def test_a_server_that_is_away_is_waited_for_but_not_for_ever() -> None:
    """The error names the place."""
    (port,) = free_ports(1)
    away = f"postgresql://me:hush@127.0.0.1:{port}/db"
    start = time.monotonic()
    with pytest.raises(StoreUnavailable, match=rf"{port}.*cannot be reached") as caught:
        await PostgresSink(away, opening_s=1.0).open()
    assert time.monotonic() - start >= 1.0
    assert "hush" not in str(caught.value)
    with pytest.raises(StoreUnavailable):
        open_results(away)


async def test_a_server_that_comes_up_a_little_later_is_found(mortal_postgres: PostgresService) -> None:
    """Containers start in any order."""
    url = mortal_postgres.new_database()
    sink = PostgresSink(url, opening_s=60)
    with mortal_postgres.outage():
        task = asyncio.create_task(sink.open())
        await asyncio.sleep(0.5)
        assert not task.done()
    await task
    assert (await sink.write([row("a")])).new == 1
    await sink.aclose()


@pytest.mark.parametrize(
    "text", ["postgresql://u:hush@[x/db", "postgresql://u:hush%zz@h/db", "postgresql://h/d?no=1"]
)
def test_a_url_that_does_not_work_is_named_without_its_password(text: str) -> None:
    """Before anything is connected."""
    with pytest.raises(ValueError, match=r"SINK_URL=.*postgresql://user:password@host") as caught:
        PostgresSink(text)
    assert "hush" not in str(caught.value)


async def test_who_may_not_create_is_told_what_to_do(
    postgres_service: PostgresService, url: str, role: str
) -> None:
    """And once an administrator has done it, the fewest rights are enough."""
    own = as_user(url, role)
    with pytest.raises(StoreError, match=r"42501.*client\.results\.postgres.*psql"):
        await PostgresSink(own).open()
    postgres_service.sql(table.ddl(), url)
    with pytest.raises(StoreError, match=r"42501.*GRANT"):
        await PostgresSink(own).open()
    postgres_service.sql(
        f"GRANT SELECT, INSERT ON results TO {role}; GRANT SELECT ON results_schema, results_state TO {role}",
        url,
    )
    async with opened(PostgresSink(own)) as sink:
        assert await sink.write([row("a"), row("a")]) == WriteReport(new=1, identical=1)
    with open_results(own) as results:
        assert list(results.ids()) == ["a"]


async def test_a_table_of_an_administrators_own_is_enough(
    postgres_service: PostgresService, url: str, role: str
) -> None:
    """Other types that take the values, more columns, no tables beside it: nothing is created."""
    columns = ", ".join(f'"{name}" text' for name in COLUMNS if name not in ("message_id", "created_at"))
    postgres_service.sql(
        f"CREATE TABLE results (message_id varchar(40) UNIQUE, {columns}, created_at timestamptz,"
        f" note text DEFAULT 'x'); GRANT SELECT, INSERT ON results TO {role}",
        url,
    )
    async with opened(PostgresSink(as_user(url, role))) as sink:
        report = await sink.write([row("a"), row("b" * 41)])
        assert (report.new, list(report.refused)) == (1, ["b" * 41])
    assert postgres_service.sql("SELECT message_id, attempt, note FROM results", url) == "a|1|x"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("ALTER TABLE results DROP CONSTRAINT results_pkey", "ON CONFLICT"),
        ("ALTER TABLE results DROP COLUMN worker", "lacking: worker"),
        ("ALTER TABLE results ALTER label TYPE int USING 1", "label"),
        ("DROP TABLE results; CREATE TABLE results (id int)", "no results of couturier"),
        ("UPDATE results_schema SET version = 2", "newer couturier"),
    ],
)
async def test_a_table_that_cannot_take_rows_is_refused_before_any_message(
    postgres_service: PostgresService, url: str, change: str, words: str
) -> None:
    """Otherwise every row would be refused, and every message a dead letter."""
    postgres_service.sql(table.ddl(), url)
    postgres_service.sql(change, url)
    with pytest.raises(StoreError, match=words):
        await PostgresSink(url).open()


def _state(url: str) -> tuple[object, ...]:
    query = (
        "SELECT (SELECT max(version) FROM results_schema),"
        " (SELECT value FROM results_state WHERE name = 'revision'),"
        " to_regclass('results_created_at') IS NOT NULL, (SELECT count(*) FROM results)"
    )
    with closing(psycopg.connect(url)) as db:
        found = db.execute(query).fetchone()
        assert found is not None
        return found


async def test_workers_that_start_together_make_one_table(url: str) -> None:
    """One after the other, so that none meets the half-made table of another."""
    sinks = [PostgresSink(url, opening_s=0) for _ in range(8)]  # no second try
    await asyncio.gather(*(each.open() for each in sinks))
    reports = await asyncio.gather(*(each.write([row("a")]) for each in sinks))
    assert sum(each.new for each in reports) == 1
    await asyncio.gather(*(each.aclose() for each in sinks))
    assert _state(url) == (1, "3", True, 1)


# What the first version of couturier made and wrote; kept as it was, whatever the code does now.
FIRST_COLUMNS = """
    message_id text PRIMARY KEY, status text NOT NULL, label text, label_index integer,
    confidence double precision, runner_up text, runner_up_confidence double precision, group_label text,
    tags jsonb NOT NULL, model text, model_version text, model_hash text, engine text, key text,
    source text NOT NULL, subject text, attempt integer NOT NULL, worker text NOT NULL,
    queue_s double precision NOT NULL, process_s double precision NOT NULL,
    latency_s double precision NOT NULL, created_at timestamptz NOT NULL
"""
FIRST_INSERT = (
    "INSERT INTO results (message_id, status, tags, source, attempt, worker, queue_s, process_s, latency_s,"
    " created_at) VALUES ('old', 'expired', '[]', '/old', 1, 'w', 0, 0, 0, now()) ON CONFLICT DO NOTHING"
)


async def test_an_old_table_grows_under_old_and_new_workers(
    postgres_service: PostgresService, url: str
) -> None:
    """The old worker goes on writing, and finds its own version in the table when it starts again."""
    postgres_service.sql(
        f"CREATE TABLE results ({FIRST_COLUMNS}); CREATE TABLE results_schema (version integer PRIMARY KEY);"
        " INSERT INTO results_schema VALUES (1)",
        url,
    )
    postgres_service.sql(FIRST_INSERT, url)
    sinks = [PostgresSink(url) for _ in range(3)]
    await asyncio.gather(*(each.open() for each in sinks))
    assert (await sinks[0].write([row("new")])).new == 1
    await asyncio.gather(*(each.aclose() for each in sinks))
    assert _state(url) == (1, "3", True, 2)
    postgres_service.sql(FIRST_INSERT.replace("'old'", "'older'"), url)
    with open_results(url) as results:
        assert set(results.ids()) == {"old", "older", "new"}


async def test_a_table_of_a_newer_couturier_is_left_as_it_is(
    postgres_service: PostgresService, url: str
) -> None:
    """What it added may be null, so this one writes beside it."""
    postgres_service.sql(table.ddl(), url)
    postgres_service.sql(
        "ALTER TABLE results ADD COLUMN mood text;"
        " UPDATE results_state SET value = '9' WHERE name = 'revision'",
        url,
    )
    async with opened(PostgresSink(url)) as sink:
        assert (await sink.write([row("a")])).new == 1
    assert _state(url) == (1, "9", True, 1)
    with open_results(url) as results:
        assert [each.message_id for each in results.rows()] == ["a"]


async def test_a_database_without_an_encoding_is_refused(postgres_service: PostgresService, url: str) -> None:
    """SQL_ASCII, what initdb makes under the locale C of old images: the error says how to make another."""
    ascii_url = f"{url}_ascii"
    postgres_service.sql(
        f"CREATE DATABASE {urlsplit(ascii_url).path[1:]}"
        " ENCODING 'SQL_ASCII' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0"
    )
    with pytest.raises(StoreError, match=r"SQL_ASCII.*createdb --encoding UTF8"):
        await PostgresSink(ascii_url).open()
