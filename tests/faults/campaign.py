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
import random
import shlex
import signal
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any

from tests.services import KafkaService, PostgresService, PubSubService, Run

from .brokers import Place, SqlitePlace
from .campaign_report import Facts, commit, machine, markdown, write_section
from .fleet import Worker, until
from .kafka_place import KafkaPlace
from .pictures import Item, garments, stream
from .pubsub_place import PubsubPlace
from .scene import Report, Scene
from .stages import engine_pid
from .tables import PostgresTable, SqliteTable, Table

POISON, DUPLICATES, VARIETY = 0.01, 0.01, 5_000
_BATCH = 1_000
_LOOK_S = 1.0
_PATIENCE_S = 600.0


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
