"""PostgreSQL that is away, loses its answers, or refuses a row: matrix rows 11, 13 and 14."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from itertools import islice
from urllib.parse import urlsplit, urlunsplit

import pytest

from .conftest import Stage
from .fleet import resident_bytes, until
from .kafka_place import KafkaPlace
from .pictures import Item, garments, stream
from .proxy import Proxy
from .scene import Scene
from .tables import PostgresTable, Table

# Two minutes in a campaign.
OUTAGE_S = float(os.environ.get("FAULT_OUTAGE_S", "12"))
RESUME_S = 5.0


@pytest.fixture(
    params=[pytest.param("kafka", marks=pytest.mark.kafka), pytest.param("pubsub", marks=pytest.mark.pubsub)]
)
def backend(request: pytest.FixtureRequest) -> str:
    """Those that write to PostgreSQL."""
    return str(request.param)


@pytest.fixture
def proxy(table: Table) -> Iterator[Proxy]:
    """Stands between workers and PostgreSQL."""
    with Proxy(urlsplit(table.url).netloc.rpartition("@")[2]) as proxy:
        yield proxy


@pytest.fixture
def sink_url(table: Table, proxy: Proxy) -> str:
    """The database, through the proxy."""
    parts = urlsplit(table.url)
    user = parts.netloc.rpartition("@")[0]
    return urlunsplit(parts._replace(netloc=f"{user}@{proxy.address}"))


def test_postgresql_misbehaves(stage: Stage, proxy: Proxy, sink_url: str, table: Table) -> None:
    """Nothing is lost or doubled; nobody is blamed but the rows that are refused."""
    assert isinstance(table, PostgresTable)
    with stage(sink_url=sink_url) as scene:
        scene.fleet.start_all(2, "--batch-size", "64")
        is_down_under_load(scene, proxy)
        scene.settle()
        assert scene.place.letters() == [], "an outage made dead letters"
        loses_answers(scene, proxy)
        refuses_single_rows(scene, table)
        assert scene.fleet.stop() == [0, 0]
        report = scene.check()
        assert report.dead == {"row-refused": 5}
        assert {each.attempt for each in table.rows()} == {1}


def is_down_under_load(scene: Scene, proxy: Proxy) -> None:
    """Row 11: intake pauses, nobody is blamed or leaves the group, memory stays flat; then it goes on."""
    workers = scene.fleet.workers
    with scene.load(stream(11), rate=100):
        scene.all_work()
        members = scene.place.members() if isinstance(scene.place, KafkaPlace) else {}
        assert proxy.down() > 0, "there was no connection to cut"
        before = [resident_bytes(each.pid) for each in workers]
        deadline = time.monotonic() + OUTAGE_S
        until(lambda: all(each.status()["outage"] for each in workers), "both workers have noticed")
        # Not before: PostgreSQL finishes a statement whose client is gone.
        rows = scene.table.count()
        until(lambda: time.monotonic() > deadline, "the outage is over", OUTAGE_S + 10)
        assert scene.table.count() == rows
        grown = [resident_bytes(each.pid) / was for each, was in zip(workers, before, strict=True)]
        assert max(grown) < 1.1, grown
        assert proxy.refused > 0
        if isinstance(scene.place, KafkaPlace):
            assert scene.place.members() == members, "there was a rebalance"
        proxy.up()
        scene.did("sink down")
        assert scene.timed("to_first_progress", scene.progress()) <= RESUME_S


def loses_answers(scene: Scene, proxy: Proxy) -> None:
    """Row 14: rows are stored, the worker never hears of it and writes them again."""
    before = sum(each.status()["rows"]["replays"] for each in scene.fleet.workers)
    for number in range(3):
        muted, rows = proxy.muted_bytes, scene.table.count()
        proxy.mute(b"INSERT 0 ")
        scene.send(islice(stream(number), 60))
        until(lambda muted=muted: proxy.muted_bytes > muted, "an answer was kept back")  # type: ignore[misc]
        assert scene.table.count() > rows, "the answer was not about rows that are stored"
        scene.did("answer lost")
        scene.settle()
    assert sum(each.status()["rows"]["replays"] for each in scene.fleet.workers) > before


def refuses_single_rows(scene: Scene, table: PostgresTable) -> None:
    """Row 13: of 64 rows one is refused, by a constraint of the table or by the type of its column."""
    data, label = garments(10)[0]
    table.sql("ALTER TABLE results ADD CONSTRAINT picky CHECK (subject IS DISTINCT FROM 'refuse')")
    for index in (0, 1, 31, 62, 63):
        batch = [Item(data, label, None, "good") for _ in range(64)]
        subject = "refuse" if index % 2 else "NUL \0"
        batch[index] = Item(data, None, "row-refused", "refused", subject=subject)
        scene.send(batch)
        scene.settle()
        scene.did("row refused")
