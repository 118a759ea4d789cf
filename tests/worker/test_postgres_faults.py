"""A server that is slow, gone, silent, locked or read-only is an outage: nobody is blamed, no row is lost."""

from __future__ import annotations

import asyncio
import json
import time

import pytest
from sink_bench import PostgresProxy, opened, row, until

from broker import Unavailable
from client.results import WriteReport
from tests.services.postgres import PostgresService
from worker import SinkUnavailable
from worker.sinks import write_patiently
from worker.sinks.postgres import PostgresSink

pytestmark = pytest.mark.anyio


@pytest.fixture
def url(postgres_service: PostgresService) -> str:
    return postgres_service.new_database()


def count(service: PostgresService, url: str) -> int:
    return int(service.sql("SELECT count(*) FROM results", url))


async def test_a_commit_whose_reply_was_lost_is_repeated_without_a_trace(
    postgres_service: PostgresService, url: str
) -> None:
    """The rows are there when the line is cut; the second write finds them and says so."""
    rows = [row(f"m-{n}") for n in range(64)]
    async with PostgresProxy(url) as proxy, opened(PostgresSink(proxy.url)) as sink:
        proxy.lose_replies(1)
        with pytest.raises(SinkUnavailable):
            await sink.write(rows)
        assert proxy.lost == 1
        assert count(postgres_service, url) == 64
        assert await sink.write(rows) == WriteReport(identical=64)
        proxy.lose_replies(2)
        more = [row(f"n-{n}") for n in range(64)]
        assert await write_patiently(sink, more, 30.0) == WriteReport(identical=64)
        assert proxy.lost == 3
    assert count(postgres_service, url) == 128


async def test_a_silent_line_is_noticed_and_given_up(postgres_service: PostgresService, url: str) -> None:
    """Packets are dropped, nothing is reset: the write ends at its deadline, the next one connects anew."""
    async with PostgresProxy(url) as proxy, opened(PostgresSink(proxy.url, statement_s=0.5)) as sink:
        await asyncio.gather(sink.write([row("a")]), sink.write([row("b")]))
        proxy.freeze()
        start = time.monotonic()
        with pytest.raises(SinkUnavailable, match="no answer"):
            await sink.write([row("c")])
        assert time.monotonic() - start < 10
        assert proxy.held
        proxy.thaw()
        before = proxy.connections
        assert await sink.write([row("c")]) == WriteReport(new=1)
        # The other idle connection was silent as well; it was not tried first.
        assert proxy.connections == before + 1
    assert count(postgres_service, url) == 3


async def test_a_line_that_is_silent_from_the_start_is_noticed_too(url: str) -> None:
    """Connecting has a deadline of its own, and so has closing."""
    async with PostgresProxy(url) as proxy:
        async with opened(PostgresSink(proxy.url, statement_s=0.5)) as sink:
            await sink.write([row("a")])
            proxy.freeze()
            proxy.reset()
            with pytest.raises(SinkUnavailable):
                await sink.write([row("b")])  # the dead connection
            start = time.monotonic()
            with pytest.raises(SinkUnavailable, match=r"(?i)time"):
                await sink.write([row("b")])  # none to be had
            assert 2 < time.monotonic() - start < 20
            assert proxy.held
            start = time.monotonic()
        assert time.monotonic() - start < 2


async def test_a_write_that_is_cancelled_on_a_silent_line_ends_at_once(url: str) -> None:
    """The worker's own end does not wait for the network."""
    async with PostgresProxy(url) as proxy, opened(PostgresSink(proxy.url)) as sink:
        await sink.write([row("a")])
        proxy.freeze()
        task = asyncio.create_task(sink.write([row("b")]))
        await until(lambda: proxy.held, "the write never reached the silent line")
        start = time.monotonic()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert time.monotonic() - start < 2
        proxy.thaw()
        assert (await sink.write([row("b")])).new == 1


async def test_a_table_that_someone_locks_is_an_outage_until_he_lets_go(url: str) -> None:
    """The statement gives up by itself, so no connection piles up behind the lock."""
    import psycopg

    sink = PostgresSink(url, statement_s=0.5)
    async with opened(sink), await psycopg.AsyncConnection.connect(url) as other:
        await other.execute("LOCK TABLE results IN ACCESS EXCLUSIVE MODE")
        with pytest.raises(SinkUnavailable, match="55P03"):
            await sink.write([row("a")])
        with pytest.raises(Unavailable, match="lock"):
            await write_patiently(sink, [row("a")], 0.1)
        await other.rollback()
        assert await write_patiently(sink, [row("a")], 30.0) == WriteReport(new=1)


async def test_a_row_that_another_session_is_writing_is_waited_for(url: str) -> None:
    """Its commit makes ours a replay, its rollback makes ours the first; nothing is written twice."""
    import psycopg

    for ending, expected in (("commit", WriteReport(identical=1)), ("rollback", WriteReport(new=1))):
        async with PostgresProxy(url) as proxy, opened(PostgresSink(proxy.url)) as sink:
            async with await psycopg.AsyncConnection.connect(url) as other:
                await other.execute(
                    "INSERT INTO results SELECT (json_populate_record(null::results, %s::json)).*",
                    (json.dumps({**row(ending)._asdict(), "tags": []}),),
                )
                before = proxy.statements
                task = asyncio.create_task(sink.write([row(ending)]))
                query = (
                    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
                    " AND wait_event_type = 'Lock'"
                )
                async with await psycopg.AsyncConnection.connect(url, autocommit=True) as watcher:
                    for _ in range(3000):
                        if (await (await watcher.execute(query)).fetchone()) != (0,):
                            break
                        await asyncio.sleep(0.01)
                    else:
                        pytest.fail("the write did not wait for the other session")
                assert proxy.statements == before + 1
                await getattr(other, ending)()
            assert await task == expected


async def test_a_server_that_has_become_read_only_is_an_outage_and_left(
    postgres_service: PostgresService, url: str
) -> None:
    """After a failover the old primary answers, but the row goes to the new one."""
    name = url.rpartition("/")[2]
    async with PostgresProxy(url) as proxy, opened(PostgresSink(proxy.url)) as sink:
        postgres_service.sql(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
        proxy.reset()
        with pytest.raises(SinkUnavailable):
            await sink.write([row("a")])
        with pytest.raises(SinkUnavailable, match="25006"):
            await sink.write([row("a")])
        postgres_service.sql(
            "SET default_transaction_read_only = off;"
            f" ALTER DATABASE {name} RESET default_transaction_read_only"
        )
        before = proxy.connections
        assert await sink.write([row("a")]) == WriteReport(new=1)
        assert proxy.connections == before + 1


async def test_sessions_that_an_administrator_ends_are_made_anew(
    postgres_service: PostgresService, url: str
) -> None:
    """One write at most notices."""
    sink = PostgresSink(url)
    async with opened(sink):
        await asyncio.gather(*(sink.write([row(each)]) for each in "ab"))
        name = url.rpartition("/")[2]
        ended = postgres_service.sql(
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
            f" WHERE datname = '{name}' AND application_name = 'couturier'"
        )
        assert int(ended) >= 1
        with pytest.raises(SinkUnavailable):
            await sink.write([row("c")])
        assert await sink.write([row("c")]) == WriteReport(new=1)


async def test_a_database_that_takes_no_more_connections_is_an_outage(
    postgres_service: PostgresService, url: str
) -> None:
    """Rather than an error of the login, or of a message."""
    role = f"narrow_{url[-16:]}"
    own = url.replace("postgres@", f"{role}@")
    async with opened(PostgresSink(url)):
        pass
    postgres_service.sql(
        f"CREATE ROLE {role} LOGIN CONNECTION LIMIT 1; GRANT ALL ON DATABASE postgres TO {role}"
    )
    postgres_service.sql(f"GRANT SELECT, INSERT ON ALL TABLES IN SCHEMA public TO {role}", url)
    try:
        async with opened(PostgresSink(own)) as sink:
            both = await asyncio.gather(
                sink.write([row("a")]), sink.write([row("b")]), return_exceptions=True
            )
            assert sum(isinstance(each, SinkUnavailable) for each in both) == 1
            rows = [row("a"), row("b")]
            assert (await write_patiently(sink, rows, 30.0)).new == 1
    finally:
        postgres_service.sql(f"DROP OWNED BY {role}", url)
        postgres_service.sql(f"DROP OWNED BY {role}; DROP ROLE {role}")


@pytest.mark.parametrize("kill", [False, True], ids=["clean", "kill"])
async def test_a_server_that_restarts_under_writes_loses_and_doubles_nothing(
    mortal_postgres: PostgresService, kill: bool
) -> None:
    """Four batches are under way at any time; every one is stored once in the end."""
    url = mortal_postgres.new_database()
    sink = PostgresSink(url, statement_s=2.0)
    outages = done = 0

    async def write(name: str) -> None:
        nonlocal outages, done
        for batch in range(60):
            rows = [row(f"{name}-{batch}-{n}") for n in range(20)]
            while True:
                try:
                    report = await sink.write(rows)
                except SinkUnavailable:
                    outages += 1
                    await asyncio.sleep(0.02)
                else:
                    assert report.new + report.identical == 20
                    done += 1
                    break

    async with opened(sink):
        writers = [asyncio.create_task(write(name)) for name in "abcd"]
        await until(lambda: done > 20, "nothing is written")
        await asyncio.to_thread(mortal_postgres.restart, kill)
        assert done < 240, "the restart came too late to matter"
        await asyncio.gather(*writers)
    assert outages
    assert count(mortal_postgres, url) == 4 * 60 * 20


async def test_a_disk_that_is_full_is_an_outage(postgres_service: PostgresService, url: str) -> None:
    """Raised by the server as it would be; whose row it was does not matter."""
    async with opened(PostgresSink(url)) as sink:
        postgres_service.sql(
            """
            CREATE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS
                $$ BEGIN RAISE 'could not extend file' USING ERRCODE = '53100'; END $$;
            CREATE TRIGGER full_disk BEFORE INSERT ON results FOR EACH ROW EXECUTE FUNCTION full_disk();
            """,
            url,
        )
        with pytest.raises(SinkUnavailable, match="53100"):
            await sink.write([row("a"), row("b")])
        postgres_service.sql("DROP TRIGGER full_disk ON results", url)
        assert (await sink.write([row("a"), row("b")])).new == 2
