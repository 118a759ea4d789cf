"""Whatever is written in whatever order, every database sink does what a dictionary would."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sink_bench import row

from client.results import WriteReport, open_results
from client.schema import ResultRow
from tests.services.postgres import PostgresService
from worker import Sink, open_sink

_ROWS = st.builds(
    lambda name, label, model, bad: row(name, label=label, model_hash=model, status="bad" if bad else "ok"),
    st.sampled_from("abcdefgh"),
    st.sampled_from(["Coat", "Bag", None]),
    st.sampled_from(["abc", "def"]),
    st.integers(0, 9).map(lambda number: number == 0),
)
_BATCHES = st.lists(st.lists(_ROWS, min_size=1, max_size=20), min_size=1, max_size=6)


class Model:
    """One row per id, the first stays; a batch offers the first row of each id."""

    def __init__(self) -> None:
        self.stored: dict[str, ResultRow] = {}

    def write(self, rows: list[ResultRow]) -> tuple[WriteReport, set[str]]:
        offered: dict[str, ResultRow] = {}
        for each in rows:
            offered.setdefault(each.message_id, each)
        refused = {name for name, each in offered.items() if each.status == "bad"}
        new = {name for name in offered if name not in refused and name not in self.stored}
        self.stored |= {name: offered[name] for name in new}
        told = [each for each in rows if each.message_id not in refused]
        conflicts = tuple(
            each.message_id
            for each in told
            if (each.label, each.model_hash)
            != (self.stored[each.message_id].label, self.stored[each.message_id].model_hash)
        )
        return WriteReport(len(new), len(told) - len(new) - len(conflicts), conflicts), refused


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/results.db"
    service: PostgresService = request.getfixturevalue("postgres_service")
    return service.new_database()


@pytest.fixture
def empty(request: pytest.FixtureRequest, url: str) -> Iterator[object]:
    """Empties the table, behind the sink's back."""

    def work() -> None:
        if url.startswith("sqlite"):
            with closing(sqlite3.connect(url.removeprefix("sqlite:///"), isolation_level=None)) as db:
                db.execute("DELETE FROM results")
        else:
            request.getfixturevalue("postgres_service").sql("TRUNCATE results", url)

    return work


def test_a_sink_is_a_dictionary_that_keeps_the_first(url: str, empty: object) -> None:
    """Reports and rows agree with the model after every batch, and once more when all is written again."""
    with asyncio.Runner() as runner:
        sink: Sink = open_sink(url)
        runner.run(sink.open())

        @given(_BATCHES)
        @settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
        def check(batches: list[list[ResultRow]]) -> None:
            empty()  # type: ignore[operator]
            model = Model()
            for batch in (*batches, *batches):
                report = runner.run(sink.write(batch))
                expected, refused = model.write(batch)
                assert (report.new, report.identical, report.conflicts) == (
                    expected.new,
                    expected.identical,
                    expected.conflicts,
                )
                assert set(report.refused) == refused
            with open_results(url) as results:
                assert {each.message_id: each for each in results.rows()} == model.stored
                assert results.count() == len(model.stored)

        check()
        runner.run(sink.aclose())
