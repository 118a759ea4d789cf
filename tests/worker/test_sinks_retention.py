"""Old rows go, a few at a time, once an hour for all workers, and what went is on record."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sink_bench import opened, row, until

from client.results import WriteReport, open_results
from client.schema import ResultRow
from tests.services.postgres import PostgresService
from worker import SinkUnavailable, open_sink
from worker.sinks.postgres import PostgresSink
from worker.sinks.retention import KeptForDays, Prunable
from worker.sinks.sqlite import SqliteSink

pytestmark = pytest.mark.anyio


def aged(name: str, days: float) -> ResultRow:
    return row(name, created_at=(datetime.now(UTC) - timedelta(days=days)).isoformat())


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/results.db"
    service: PostgresService = request.getfixturevalue("postgres_service")
    return service.new_database()


@pytest.fixture
def make(url: str) -> Callable[[], Prunable]:
    def sink() -> Prunable:
        return SqliteSink(Path(url.removeprefix("sqlite:///"))) if "sqlite" in url else PostgresSink(url)

    return sink


def kept(url: str) -> set[str]:
    with open_results(url) as results:
        return set(results.ids())


async def test_rows_past_their_days_go_and_the_others_stay(url: str) -> None:
    """Through the URL and the setting, as a worker does it; the books know since when they are whole."""
    old = [aged(f"old-{n:04}", 30 + n / 100) for n in range(1, 1301)]
    async with opened(open_sink(url)) as sink:
        await sink.write([*old, aged("young", 29), aged("new", 0)])
    with open_results(url) as results:
        assert results.kept_since() is None
    async with opened(open_sink(url, keep_days=30)) as sink:
        await until(lambda: len(kept(url)) <= 2, "the old rows stay")
        assert await sink.write([aged("newer", 0)]) == WriteReport(new=1)
    assert kept(url) == {"young", "new", "newer"}
    with open_results(url) as results:
        since = results.kept_since()
        assert since is not None
        assert timedelta(0) <= datetime.now(UTC) - timedelta(days=30) - since < timedelta(minutes=5)


async def test_one_worker_an_hour_removes(make: Callable[[], Prunable], url: str) -> None:
    """The mark never goes back, also when workers disagree about the days."""
    async with opened(make()) as one, opened(make()) as two:
        month, week = datetime.now(UTC) - timedelta(days=30), datetime.now(UTC) - timedelta(days=7)
        assert await one.claim_pruning(datetime.now(UTC), 3600, week)
        assert not await two.claim_pruning(datetime.now(UTC), 3600, week)
        assert not await one.claim_pruning(datetime.now(UTC) + timedelta(minutes=59), 3600, week)
        assert await two.claim_pruning(datetime.now(UTC) + timedelta(minutes=61), 3600, month)
    with open_results(url) as results:
        assert results.kept_since() == week


async def test_a_few_rows_go_at_a_time_the_oldest_first(make: Callable[[], Prunable], url: str) -> None:
    """So that no write waits for long."""
    async with opened(make()) as sink:
        await sink.write([aged(f"m-{n}", n) for n in range(10)])
        before = datetime.now(UTC) - timedelta(days=4.5)
        assert await sink.prune(before, 3) == 3
        assert kept(url) == {f"m-{n}" for n in range(7)}
        assert await sink.prune(before, 3) == 2
        assert await sink.prune(before, 3) == 0
    assert kept(url) == {f"m-{n}" for n in range(5)}


class Away:
    """A sink that cannot remove anything at first."""

    def __init__(self) -> None:
        self.asked = 0

    async def open(self) -> None:
        """Nothing to do."""

    async def write(self, rows: Sequence[ResultRow]) -> WriteReport:
        return WriteReport(len(rows))

    async def claim_pruning(self, now: datetime, every_s: float, before: datetime) -> bool:
        self.asked += 1
        if self.asked < 3:
            raise SinkUnavailable("away")
        return False

    async def prune(self, before: datetime, at_most: int) -> int:
        raise AssertionError("it was nobody's turn")

    async def aclose(self) -> None:
        """Nothing to do."""


async def test_an_outage_ends_neither_the_worker_nor_the_removing() -> None:
    """It is tried again."""
    away = Away()
    async with opened(KeptForDays(away, days=1, every_s=0.01)) as sink:
        await until(lambda: away.asked >= 4, "it was not tried again")
        assert await sink.write([row("a")]) == WriteReport(new=1)


@pytest.mark.parametrize("url", ["console:", "jsonl:///x.jsonl", "jsonl:///x.jsonl,console:"])
def test_where_nothing_can_be_removed_the_setting_is_refused(url: str) -> None:
    """Rather than ignored."""
    with pytest.raises(ValueError, match=r"COUTURIER_RESULTS_RETENTION.*database"):
        open_sink(url, keep_days=1)
