"""Several sinks at once: stored is what all have; and a URL may hold what looks like a separator."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from sink_bench import opened, row

from client import StoreError
from client.results import WriteReport, open_results, public_urls, sink_urls
from client.schema import ResultRow
from tests.services.postgres import PostgresService
from worker import SinkUnavailable, open_sink
from worker.sinks import write_patiently
from worker.sinks.jsonl import JsonlSink
from worker.sinks.several import SeveralSinks
from worker.sinks.sqlite import SqliteSink

pytestmark = pytest.mark.anyio


class Flaky:
    """A file that is away for its first writes."""

    def __init__(self, path: Path, outages: int) -> None:
        self.sink = JsonlSink(path)
        self.outages = outages
        self.closed = False

    async def open(self) -> None:
        await self.sink.open()

    async def write(self, rows: Sequence[ResultRow]) -> WriteReport:
        if self.outages:
            self.outages -= 1
            raise SinkUnavailable("away")
        return await self.sink.write(rows)

    async def aclose(self) -> None:
        self.closed = True
        await self.sink.aclose()


def ids(path: Path) -> list[str]:
    return [json.loads(line)["message_id"] for line in path.read_text().splitlines()]


async def test_every_place_has_every_row(postgres_service: PostgresService, tmp_path: Path) -> None:
    """And the first database of them can be read."""
    database = postgres_service.new_database()
    url = f"jsonl:///{tmp_path}/a,b.jsonl,{database},sqlite:///{tmp_path}/r.db"
    async with opened(open_sink(url)) as sink:
        assert await sink.write([row("a"), row("b")]) == WriteReport(new=2)
        again = [row("a"), row("b", label="Bag"), row("c")]
        assert await sink.write(again) == WriteReport(new=1, identical=1, conflicts=("b",))
    assert ids(tmp_path / "a,b.jsonl") == ["a", "b", "c"]
    for readable in (database, f"sqlite:///{tmp_path}/r.db"):
        with open_results(readable) as results:
            assert set(results.ids()) == {"a", "b", "c"}
    postgres_service.sql("DELETE FROM results", database)
    with open_results(url) as results:
        assert results.count() == 0


async def test_after_an_outage_of_one_the_whole_write_is_repeated(tmp_path: Path) -> None:
    """Those that have the rows notice nothing, and a new row counts as new."""
    first, second = JsonlSink(tmp_path / "1"), Flaky(tmp_path / "2", outages=2)
    async with opened(SeveralSinks([first, second])) as sink:
        report = await write_patiently(sink, [row("a"), row("b")], 30.0)
        assert report == WriteReport(new=2)
        assert second.outages == 0
        assert await sink.write([row("b")]) == WriteReport(identical=1)
    assert ids(tmp_path / "1") == ids(tmp_path / "2") == ["a", "b"]


async def test_a_row_that_one_refuses_is_refused_and_not_offered_further(tmp_path: Path) -> None:
    """Those named before it keep what they took."""
    before, after = JsonlSink(tmp_path / "before"), JsonlSink(tmp_path / "after")
    strict = SqliteSink(tmp_path / "r.db")
    async with opened(SeveralSinks([before, strict, after])) as sink:
        report = await sink.write([row("a"), row("bad", status="nonsense"), row("b")])
        assert report.new == 2
        assert report.identical == 0
        assert list(report.refused) == ["bad"]
        alone = await sink.write([row("worse", status="nonsense")])
        assert (alone.new, list(alone.refused)) == (0, ["worse"])
    assert ids(tmp_path / "before") == ["a", "bad", "b", "worse"]
    assert ids(tmp_path / "after") == ["a", "b"]


async def test_when_one_cannot_be_opened_none_stays_open(tmp_path: Path) -> None:
    """The error is that of the one."""
    (tmp_path / "file").touch()
    first = Flaky(tmp_path / "1", outages=0)
    sink = SeveralSinks([first, SqliteSink(tmp_path / "file" / "r.db")])
    with pytest.raises(StoreError, match="cannot be made"):
        await sink.open()
    assert first.closed


@pytest.mark.parametrize(
    ("text", "places"),
    [
        ("console:", ["console:"]),
        ("sqlite:///a.db , console:", ["sqlite:///a.db", "console:"]),
        (
            "postgresql://u:p%2Cq@h1:5432,h2:5432/d,jsonl:///x",
            ["postgresql://u:p%2Cq@h1:5432,h2:5432/d", "jsonl:///x"],
        ),
        ("jsonl:///with,comma,topic:out", ["jsonl:///with,comma", "topic:out"]),
        ("postgres://h/d,postgresql://h/e", ["postgres://h/d", "postgresql://h/e"]),
    ],
)
def test_a_comma_separates_only_before_another_place(text: str, places: list[str]) -> None:
    """Hosts, file names and passwords may hold one."""
    assert sink_urls(text) == places


def test_no_password_is_shown_wherever_its_place_stands() -> None:
    """A file before it does not hide the user part from the one who hides passwords."""
    shown = public_urls("jsonl:///x,postgresql://me:secret@h/d?sslpassword=secret2,console:")
    assert "secret" not in shown
    assert shown.startswith("jsonl:///x,postgresql://***@h/d")


@pytest.mark.parametrize("url", ["console:,console:", "sqlite:///a.db,redis://h", "jsonl:///x,sqlite://y"])
def test_a_list_that_does_not_work_is_an_error_of_the_variable(url: str) -> None:
    """Before anything is opened."""
    with pytest.raises(ValueError, match="SINK_URL="):
        open_sink(url)
