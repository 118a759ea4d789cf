"""One run: a place, a table, a fleet and a ledger; and the report in which they must agree."""

from __future__ import annotations

import json
import os
import platform
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Self

from broker import BrokerError, PublishError
from broker.blocking import BlockingBroker

from .brokers import GROUP, Letter, Place
from .fleet import Fleet, until
from .ledger import Entry, Ledger, digest
from .pictures import Item
from .tables import Row, Table

_AT_ONCE = 1000


@dataclass
class Report:
    """The figures of one run.

    Attributes:
        name: of the run.
        backend: broker and sink.
        sent: messages handed to the broker, repeated ids included.
        acked: of those, confirmed; the others may have been stored or not.
        stored: rows.
        distinct_stored: ids with a row.
        redelivered: rows that a worker found there already, beyond the repeated ids, and attempts above the
            first; what killed workers found is not counted.
        duplicate_rows: rows that repeat an id.
        lost: confirmed ids with neither row nor dead letter.
        dead: dead letters by reason, each id once.
        dead_copies: dead letters that repeat an id.
        wrong_class: rows with another label than offline, and letters for another reason than planned.
        both: ids with a row and a dead letter.
        extra: rows and letters of ids that were never sent.
        altered: dead letters whose body is not byte-equal.
        unsettled: messages that the group has not finished.
        times: of recovery and the like, by name, seconds.
        peak_rss_bytes: of any worker, its children included.
        faults: what was done, by name.
        kinds: sent ids by kind.
        seed: of the load.
        versions: of everything that took part.
    """

    name: str
    backend: str
    sent: int = 0
    acked: int = 0
    stored: int = 0
    distinct_stored: int = 0
    redelivered: int = 0
    duplicate_rows: int = 0
    lost: int = 0
    dead: dict[str, int] = field(default_factory=dict)
    dead_copies: int = 0
    wrong_class: int = 0
    both: int = 0
    extra: int = 0
    altered: int = 0
    unsettled: int = 0
    times: dict[str, float] = field(default_factory=dict)
    peak_rss_bytes: int = 0
    faults: dict[str, int] = field(default_factory=dict)
    kinds: dict[str, int] = field(default_factory=dict)
    seed: int = 0
    versions: dict[str, str] = field(default_factory=dict)

    def line(self) -> str:
        """Return it as one line of JSON."""
        return json.dumps(asdict(self), sort_keys=True)

    @property
    def sound(self) -> bool:
        """Whether nothing is lost, doubled, wrong, altered or left."""
        return not (
            self.lost
            or self.duplicate_rows
            or self.wrong_class
            or self.both
            or self.extra
            or self.altered
            or self.unsettled
        )


class Scene:
    """A context manager around everything that one run needs.

    Args:
        name: for the report.
        place: where messages go; opened here.
        table: where rows come.
        directory: for ledger, logs and state.
        partitions: of the topic.
        sink_url: what the workers are told, where that differs from the table's.
        env: of the workers.
        seed: of the load.
    """

    def __init__(
        self,
        name: str,
        place: Place,
        table: Table,
        directory: Path,
        partitions: int = 6,
        sink_url: str | None = None,
        seed: int = 0,
        **env: str,
    ) -> None:
        self.place = place
        self.table = table
        self.ledger = Ledger(directory / "ledger.db")
        self.directory = directory
        self.env = {
            "BROKER_URL": place.url,
            "SINK_URL": sink_url or table.url,
            "COUTURIER_TOPIC": place.topic,
            "COUTURIER_GROUP": GROUP,
            **place.env,
            **env,
        }
        self.fleet = Fleet(directory, self.env)
        self.report = Report(name, f"{place.name}+{table.url.partition(':')[0]}", seed=seed)
        self._partitions = partitions
        self._stack = ExitStack()
        self.client: BlockingBroker

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            stack.callback(self.ledger.close)
            stack.callback(self.table.close)
            stack.callback(self.place.close)
            self.place.open(self._partitions)
            self.client = stack.enter_context(self.place.client())
            stack.enter_context(self.fleet)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def send(self, items: Iterable[Item]) -> list[str]:
        """Publish items, each batch written down before and confirmed after; return the ids."""
        source: Iterator[Item] = iter(items)
        ids: list[str] = []
        while batch := list(islice(source, _AT_ONCE)):
            self.offer(batch)
            ids += [each.id for each in batch]
        return ids

    def offer(self, batch: Sequence[Item]) -> set[str]:
        """Publish one batch; return the ids that the broker confirmed."""
        self.plan(batch)
        failed: set[str] = set()
        try:
            self.client.publish(self.place.topic, [each.message() for each in batch])
        except PublishError as error:
            failed = set(error.failed)
        except BrokerError:
            return set()  # they may be stored or not
        confirmed = [each.id for each in batch if each.id not in failed]
        self.ledger.confirm(confirmed)
        return set(confirmed)

    @contextmanager
    def load(self, items: Iterable[Item], rate: float) -> Iterator[None]:
        """Publish items at so many a second while the block runs."""
        failures: list[BaseException] = []
        over = threading.Event()

        def run() -> None:
            source, begin, sent = iter(items), time.monotonic(), 0
            try:
                while not over.wait(max(0.0, begin + sent / rate - time.monotonic())):
                    sent += len(self.send(islice(source, max(1, int(rate / 20)))))
            except BaseException as error:
                failures.append(error)

        thread = threading.Thread(target=run, name="load")
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
        if failures:
            raise failures[0]

    def plan(self, items: Iterable[Item]) -> None:
        """Write down what is about to be sent, by us or by others."""
        self.ledger.plan(Entry(e.id, digest(e.data), e.label, e.reason, e.kind) for e in items)

    def did(self, fault: str, count: int = 1) -> None:
        """Count a fault that was seen to land."""
        self.report.faults[fault] = self.report.faults.get(fault, 0) + count

    def timed(self, name: str, seconds: float) -> float:
        """Keep the longest time of this name."""
        self.report.times[name] = round(max(seconds, self.report.times.get(name, 0.0)), 3)
        return seconds

    def all_work(self) -> None:
        """Wait until every worker that runs has written a row."""
        until(lambda: len({row.worker for row in self.table.rows()}) >= len(self.fleet.alive), "all work")

    def progress(self, patience_s: float = 60.0) -> float:
        """Wait until there is a row more than now; return how long that took, seconds."""
        begin = self.table.count()
        return until(lambda: self.table.count() > begin, "a row more", patience_s)

    def settle(self, patience_s: float = 120.0) -> float:
        """Wait until the group has finished everything; return how long that took, seconds."""
        begin = time.monotonic()
        rows, letters = self.ledger.totals()
        until(lambda: self.table.count() >= rows, f"{rows} rows", patience_s, 0.05)
        until(
            lambda: len({e.message_id for e in self.place.letters()}) >= letters,
            f"{letters} letters",
            patience_s,
            0.2,
        )
        until(lambda: self.place.unsettled() == 0, "nothing unsettled", patience_s, 0.2)
        return self.timed("to_lag_0", time.monotonic() - begin)

    def check(self) -> Report:
        """Compare ledger, rows and letters; print the figures; nothing may be lost, doubled or wrong."""
        report = self.figures()
        print(report.line())
        if target := os.environ.get("FAULT_FIGURES"):
            with Path(target).open("a") as file:
                file.write(report.line() + "\n")
        assert report.sound, report.line()
        return report

    def figures(self) -> Report:
        """Compare ledger, rows and letters."""
        report, entries = self.report, self.ledger.entries()
        rows = list(self.table.rows())
        letters = self.place.letters()
        stored = {each.message_id: each for each in rows}
        dead: dict[str, Letter] = {}
        for letter in letters:
            dead.setdefault(letter.message_id, letter)
        report.sent = sum(each.sent for each in entries.values())
        report.acked = sum(each.acked for each in entries.values())
        report.stored, report.distinct_stored = len(rows), len(stored)
        report.duplicate_rows = len(rows) - len(stored)
        report.lost = sum(
            1 for each in entries.values() if each.acked and each.id not in stored and each.id not in dead
        )
        report.dead = dict(Counter(each.reason for each in dead.values()))
        report.dead_copies = len(letters) - len(dead)
        report.wrong_class = _wrong(entries, stored, dead)
        report.both = sum(1 for each in stored.keys() & dead.keys() if not _redriven(entries.get(each)))
        report.extra = len((stored.keys() | dead.keys()) - entries.keys())
        report.altered = sum(
            1
            for each in dead.values()
            if each.message_id in entries and _altered(entries[each.message_id], each)
        )
        report.unsettled = self.place.unsettled()
        again = sum(each.attempt - 1 for each in rows)
        repeats = sum(max(0, each.acked - 1) for each in entries.values() if each.label)
        report.redelivered = max(0, again + self.fleet.total("replays") - repeats)
        report.peak_rss_bytes = self.fleet.peak_bytes
        report.kinds = dict(self.ledger.kinds())
        report.versions = {**_versions(), **self.place.versions}
        return report


def _wrong(entries: dict[str, Entry], stored: dict[str, Row], dead: dict[str, Letter]) -> int:
    """Count outcomes that are not those planned."""
    wrong = 0
    for each in entries.values():
        row, letter = stored.get(each.id), dead.get(each.id)
        wrong += row is not None and (row.status == "expired" or row.label != each.label)
        wrong += letter is not None and letter.reason != each.reason
    return wrong


def _redriven(entry: Entry | None) -> bool:
    return entry is not None and entry.label is not None and entry.reason is not None


def _altered(entry: Entry, letter: Letter) -> bool:
    return digest(letter.data or b"") != entry.sha256


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    return {
        "couturier": version("couturier"),
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
        "psycopg": version("psycopg"),
    }
