"""A long run with many kills: ``python -m tests.faults.campaign --messages 900000 --kills 90``.

Workers are real commands with the shipped model; the services are started for the run and may be restarted.
Kills hit workers and engines at random progress; dead ones are replaced. The report is written as JSON, and
into a document between ``<!-- campaign BACKEND -->`` and ``<!-- /campaign BACKEND -->``.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import random
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any

from tests.services import KafkaService, PostgresService, PubSubService, Run

from .brokers import KafkaPlace, Place, PubsubPlace, SqlitePlace
from .fleet import ROOT, Worker, until
from .pictures import Item, garments, stream
from .scene import Report, Scene
from .stages import engine_pid
from .tables import PostgresTable, SqliteTable, Table

POISON, DUPLICATES, VARIETY = 0.01, 0.01, 5_000
_BATCH = 1_000
_LOOK_S = 1.0
_PATIENCE_S = 600.0


@dataclass
class Facts:
    """What a reader of the report wants to know beside the figures of the run.

    Attributes:
        command: that repeats it.
        date: when it began.
        commit: of the code.
        machine: cores, memory, processor, system.
        workers: at a time.
        started: worker processes in all.
        left_alone: workers that ended without having been killed.
        wall_s: from the first message to the last.
        rate: messages a second over all of it, faults included.
        recoveries_s: from each fault to the next row.
    """

    command: str
    date: str
    commit: str
    machine: str
    workers: int
    started: int = 0
    left_alone: int = 0
    wall_s: float = 0.0
    rate: float = 0.0
    recoveries_s: list[float] = field(default_factory=list)


class Campaign:
    """One run.

    Args:
        scene: opened.
        messages: to send.
        kills: of workers and engines.
        workers: at a time.
        restarts: what else is done, spread over the run, each a name and a call.
        facts: for the report.
    """

    def __init__(
        self,
        scene: Scene,
        messages: int,
        kills: int,
        workers: int,
        restarts: Sequence[tuple[str, Callable[[], object]]],
        facts: Facts,
    ) -> None:
        self.scene = scene
        self.facts = facts
        self._messages = messages
        self._workers = workers
        self._chance = random.Random(f"chaos/{scene.report.seed}")
        self._plan = self._planned(kills, restarts)
        # Enough for every worker to be busy at any time, and little enough to find the end of it again.
        self._ahead = max(2_000, min(40_000, messages // 10))
        self._sent = self._stored = 0
        self._failure: BaseException | None = None
        self._stop = threading.Event()

    def run(self) -> Report:
        """Send, kill, settle, compare.

        Raises:
            AssertionError: it does not settle.
        """
        scene, begin = self.scene, time.monotonic()
        scene.fleet.start_all(self._workers)
        publisher = threading.Thread(target=self._publish, name="publisher", daemon=True)
        publisher.start()
        try:
            while publisher.is_alive() or self._plan:
                self._look()
                # What the last faults were to hit may have been faster than we looked.
                if self._plan and (self._stored >= self._plan[0][0] or not publisher.is_alive()):
                    self._strike(*self._plan.popleft()[1:])
                else:
                    time.sleep(_LOOK_S)
        finally:
            self._stop.set()
            publisher.join(60)
        if self._failure is not None:
            raise self._failure
        self._replace()
        scene.settle(_PATIENCE_S)
        self.facts.wall_s = round(time.monotonic() - begin, 1)
        self.facts.rate = round(self._messages / self.facts.wall_s, 1)
        codes = scene.fleet.stop()
        assert set(codes) == {0}, codes
        self.facts.started = len(scene.fleet.workers)
        return scene.figures()

    def _planned(
        self, kills: int, restarts: Sequence[tuple[str, Callable[[], object]]]
    ) -> deque[tuple[int, str, Callable[[], object]]]:
        """Spread all faults over the rows to come, with jitter."""
        faults: list[tuple[str, Callable[[], object]]] = [
            ("engine killed", self._kill_engine) if number % 3 == 2 else ("worker killed", self._kill_worker)
            for number in range(kills)
        ]
        for number, restart in enumerate(restarts):
            faults.insert((number + 1) * len(faults) // (len(restarts) + 1), restart)
        # The last ones hit the drain of the backlog.
        step = self._messages * (1 - POISON - DUPLICATES) / max(1, len(faults))
        goals = [int(step * (number + self._chance.uniform(0.1, 0.9))) for number in range(len(faults))]
        return deque((goal, *fault) for goal, fault in zip(goals, faults, strict=True))

    def _publish(self) -> None:
        items = islice(stream(self.scene.report.seed, POISON, DUPLICATES, VARIETY), self._messages)
        try:
            while batch := list(islice(items, _BATCH)):
                while self._sent - self._stored > self._ahead and not self._stop.wait(0.05):
                    pass
                self._send(batch)
                if self._stop.is_set():
                    return
        except BaseException as error:
            self._failure = error

    def _send(self, batch: Sequence[Item]) -> None:
        """Publish until all of it is confirmed, as a producer does that must lose nothing."""
        left = list(batch)
        while left and not self._stop.is_set():
            confirmed = self.scene.offer(left)
            left = [each for each in left if each.id not in confirmed]
            if left:
                self._stop.wait(1.0)
        self._sent += len(batch)

    def _count(self) -> int:
        self._stored = self.scene.table.count()
        return self._stored

    def _look(self) -> None:
        """See how far it is, and have every worker replaced that is gone."""
        self._count()
        for each in self.scene.fleet.alive:
            each.note()
        self._replace()

    def _replace(self) -> None:
        fleet = self.scene.fleet
        missing = self._workers - len(fleet.alive)
        for _ in range(missing):
            fleet.start(wait=False)
        self.facts.left_alone += missing

    def _strike(self, name: str, fault: Callable[[], object]) -> None:
        """Do it, count it, and wait for the next row."""
        fault()
        self.scene.did(name)
        begin, struck = self._count(), time.monotonic()
        if begin < self.scene.ledger.totals()[0]:
            until(lambda: self._count() > begin, f"a row after: {name}", _PATIENCE_S)
            taken = self.scene.timed(f"to_first_progress, {name}", time.monotonic() - struck)
            self.facts.recoveries_s.append(round(taken, 3))
        say(f"{self._stored:>9,} rows of {self._sent:,} sent; {name}")

    def _victim(self) -> Worker:
        """Choose a worker that is at work."""
        ready: list[Worker] = []

        def look() -> bool:
            self._replace()
            ready[:] = [each for each in self.scene.fleet.alive if each.is_ready]
            return bool(ready)

        until(look, "a worker is at work", _PATIENCE_S)
        return self._chance.choice(ready)

    def _kill_worker(self) -> None:
        victim = self._victim()
        victim.note()
        victim.kill()
        self.scene.fleet.start(wait=False)

    def _kill_engine(self) -> None:
        victim = self._victim()
        pid = engine_pid(victim)
        os.kill(pid, signal.SIGKILL)
        until(lambda: engine_pid(victim) != pid, "the engine was started again")


def say(text: str) -> None:
    """Tell whoever watches."""
    print(f"{datetime.now(UTC):%H:%M:%S} {text}", file=sys.stderr, flush=True)


def open_place(
    backend: str, directory: Path, run: Run, stack: ExitStack
) -> tuple[Place, list[tuple[str, Callable[[], object]]]]:
    """Start the broker; return it and how it is restarted."""
    if backend == "kafka":
        kafka = KafkaService.start(run)
        stack.callback(kafka.stop)
        restarts = [
            ("broker restarted", kafka.restart),
            ("broker killed", lambda: kafka.restart(kill=True)),
            ("broker restarted", kafka.restart),
            ("broker killed", lambda: kafka.restart(kill=True)),
        ]
        return KafkaPlace(kafka.bootstrap), restarts
    if backend == "pubsub":
        # The emulator keeps everything in memory: it cannot be restarted without losing it all.
        pubsub = PubSubService.start(run)
        stack.callback(pubsub.stop)
        return PubsubPlace(pubsub.host), []
    return SqlitePlace(directory), []


def open_table(
    sink: str, directory: Path, run: Run, stack: ExitStack
) -> tuple[Table, list[tuple[str, Callable[[], object]]]]:
    """Start the database; return it and how it is restarted."""
    if sink == "sqlite":
        return SqliteTable(directory / "results.db"), []
    postgres = PostgresService.start(run)
    stack.callback(postgres.stop)
    restarts = [
        ("database restarted", postgres.restart),
        ("database killed", lambda: postgres.restart(kill=True)),
    ]
    return PostgresTable(postgres.new_database()), restarts


def machine() -> str:
    """Return what the run was on, in a line."""
    cores = os.cpu_count()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1024**3
    with suppress(OSError):
        found = re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text())
        if found:
            return f"{cores} cores, {found[1]}, {memory:.0f} GiB, Linux {platform.release()}"
    return f"{cores} cores, {memory:.0f} GiB, {platform.platform()}"


def commit() -> str:
    """Return the commit of the code; with a plus where the tree differs from it."""
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty=+"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return done.stdout.strip() or "unknown"


def markdown(report: Report, facts: Facts) -> str:
    """Return the section of a document."""
    recoveries = sorted(facts.recoveries_s) or [0.0]
    lines = {
        "messages sent (confirmed)": f"{report.sent:,} ({report.acked:,})",
        "of these": ", ".join(f"{count:,} {kind}" for kind, count in sorted(report.kinds.items()))
        + f", {report.sent - sum(report.kinds.values()):,} repeated ids",
        "faults": ", ".join(f"{count} × {name}" for name, count in sorted(report.faults.items())),
        "**lost**": f"**{report.lost}**",
        "**duplicate rows**": f"**{report.duplicate_rows}**",
        "wrong class or reason, both row and letter, altered, unknown": (
            f"{report.wrong_class}, {report.both}, {report.altered}, {report.extra}"
        ),
        "rows (distinct)": f"{report.stored:,} ({report.distinct_stored:,})",
        "dead letters": ", ".join(f"{count:,} {reason}" for reason, count in sorted(report.dead.items()))
        + f"; {report.dead_copies} second copies",
        "redelivered (rows found there already, attempts above 1)": f"{report.redelivered:,}",
        "left unsettled": str(report.unsettled),
        "from a fault to the next row": (
            f"median {recoveries[len(recoveries) // 2]:.2f} s, longest {recoveries[-1]:.2f} s"
        ),
        "workers (started in all; ended by themselves)": (
            f"{facts.workers} ({facts.started}; {facts.left_alone})"
        ),
        "most memory of a worker, engine included": f"{report.peak_rss_bytes / 1024**2:.0f} MiB",
        "wall time, rate with all faults": f"{facts.wall_s:,.0f} s, {facts.rate:,.0f} messages/s",
        "seed, commit, date": f"{report.seed}, {facts.commit}, {facts.date}",
        "machine": facts.machine,
        "versions": ", ".join(f"{name} {value}" for name, value in sorted(report.versions.items())),
        "command": f"`{facts.command}`",
    }
    rows = "\n".join(f"| {name} | {value} |" for name, value in lines.items())
    return f"| {report.backend} | |\n|---|---|\n{rows}\n"


def write_section(path: Path, backend: str, text: str) -> None:
    """Put a section between its markers.

    Raises:
        ValueError: the document has no such markers.
    """
    begin, end = f"<!-- campaign {backend} -->", f"<!-- /campaign {backend} -->"
    old = path.read_text()
    if begin not in old or end not in old:
        raise ValueError(f"{path} has no {begin} and {end}")
    head, rest = old.split(begin, 1)
    path.write_text(f"{head}{begin}\n{text}{end}{rest.split(end, 1)[1]}")


def fight(options: argparse.Namespace, directory: Path) -> tuple[Report, Facts]:
    """Open everything, run, and return what was found."""
    for name in ("TEST_KAFKA_BOOTSTRAP", "TEST_PUBSUB_EMULATOR_HOST", "TEST_POSTGRES_URL"):
        os.environ.pop(name, None)  # what is restarted must be ours
    facts = Facts(
        command=shlex.join(["python", "-m", "tests.faults.campaign", *options.arguments]),
        date=f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        commit=commit(),
        machine=machine(),
        workers=options.workers,
    )
    # Brokers that go down on purpose are no news.
    logging.getLogger("broker").setLevel(logging.CRITICAL)
    say("judging the pictures offline")
    garments(VARIETY)
    with ExitStack() as stack:
        run = Run.alone()
        stack.callback(run.remove)
        place, restarts = open_place(options.backend, directory, run, stack)
        table, more = open_table(options.sink, directory, run, stack)
        name = f"campaign {options.backend}"
        scene = stack.enter_context(Scene(name, place, table, directory, 12, seed=options.seed))
        campaign = Campaign(
            scene, options.messages, options.kills, options.workers, [*restarts, *more], facts
        )
        say(f"{options.messages:,} messages, {options.kills} kills")
        return campaign.run(), facts


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it; 0 when nothing was lost, doubled or wrong."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    parser = argparse.ArgumentParser(prog="python -m tests.faults.campaign", description=__doc__)
    parser.add_argument("--messages", type=int, default=20_000)
    parser.add_argument("--kills", type=int, default=10, help="of workers and, every third, of engines")
    parser.add_argument("--backend", choices=["kafka", "pubsub", "sqlite"], default="kafka")
    parser.add_argument("--sink", choices=["postgresql", "sqlite"], default="postgresql")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--workers", type=int, default=3, help="at a time")
    parser.add_argument("--report", type=Path, help="JSON")
    parser.add_argument("--document", type=Path, help="whose section of this backend is replaced")
    options = parser.parse_args(given)
    options.arguments = given
    with tempfile.TemporaryDirectory(prefix="couturier-campaign-") as directory:
        report, facts = fight(options, Path(directory))
    found: dict[str, Any] = {**asdict(report), "run": asdict(facts), "sound": report.sound}
    print(json.dumps(found, sort_keys=True))
    if options.report:
        options.report.write_text(json.dumps(found, indent=2, sort_keys=True) + "\n")
    if options.document:
        write_section(options.document, options.backend, markdown(report, facts))
    return 0 if report.sound else 1


if __name__ == "__main__":
    sys.exit(main())
