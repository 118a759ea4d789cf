"""Worker processes as they are run, on one queue file and one results file."""

from __future__ import annotations

import asyncio
import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Awaitable, Callable, Sequence
from contextlib import closing
from pathlib import Path

from broker import connect, dead_letter_topic
from broker.message import GroupStats
from classifier import Classifier, Prediction
from client import Submission
from client.results import ResultsReader
from client.schema import ResultRow

TOPIC, GROUP = "images", "classifiers"
LEASE_S = 1.0
PATIENCE_S = 60.0


class Rig:
    """One queue file and one results file, and the processes that a test starts on them."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.url = f"sqlite:///{directory}/queue.db?lease={LEASE_S}"
        self.results = directory / "results.db"
        self.started: list[subprocess.Popen[bytes]] = []
        ours = ("BROKER_", "SINK_", "COUTURIER_")
        self.env = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
        self.env |= {"BROKER_URL": self.url, "SINK_URL": f"sqlite:///{self.results}"}

    def start(self, *command: str, **env: str) -> subprocess.Popen[bytes]:
        """Start a command of Python in a state directory of its own, with its log in a file."""
        name = f"process-{len(self.started)}"
        home = {"COUTURIER_HOME": str(self.directory / name)}
        with (self.directory / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, *command],
                env={**self.env, **home, **env},
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=log,
            )
        self.started.append(process)
        return process

    async def worker(self, *options: str, **env: str) -> subprocess.Popen[bytes]:
        """Start a worker and return when it receives."""
        return await self.ready("-m", "couturier", "worker", *options, **env)

    async def ready(self, *command: str, **env: str) -> subprocess.Popen[bytes]:
        """Start a command that takes ``--ready-file`` and return when it has made that file."""
        ready = self.directory / f"ready-{len(self.started)}"
        process = self.start(*command, "--ready-file", str(ready), **env)
        await self.until(lambda: ready.exists() or process.poll() is not None)
        assert ready.exists(), self.log_of(process)
        return process

    def log_of(self, process: subprocess.Popen[bytes]) -> str:
        """What a process said."""
        return (self.directory / f"process-{self.started.index(process)}.log").read_text()

    def events(self, process: subprocess.Popen[bytes]) -> dict[str, dict[str, object]]:
        """The structured lines of a worker's log, by event."""
        lines = [line for line in self.log_of(process).splitlines() if line.startswith("{")]
        return {each["event"]: each for each in map(json.loads, lines)}

    def engine_of(self, worker: int) -> int:
        """The process that decodes and predicts for a worker, whose pid is given."""
        return children(worker)[0]

    async def publish(self, submissions: Sequence[Submission]) -> list[str]:
        """Publish images; return their ids."""
        async with connect(self.url) as broker:
            await broker.ensure(TOPIC, GROUP)
            messages = [each.request.to_message() for each in submissions]
            await broker.publish(TOPIC, messages)
        return [each.id for each in messages]

    async def stats(self) -> GroupStats:
        """What the group has before it."""
        async with connect(self.url) as broker:
            return await broker.stats(TOPIC, GROUP)

    async def letters(self) -> dict[str, str]:
        """Dead letters: id to reason."""
        async with connect(self.url) as broker:
            return {
                each.message.id: each.message.attributes["couturier-reason"]
                async for each in broker.browse(dead_letter_topic(TOPIC, GROUP), "operators")
            }

    async def settled(self) -> bool:
        """Whether nothing is left in the queue."""
        return (await self.stats()).unsettled == 0

    def count(self) -> int:
        """Rows so far."""
        if not self.results.exists():
            return 0
        with closing(sqlite3.connect(self.results, timeout=30)) as db:
            try:
                return int(db.execute("SELECT count(*) FROM results").fetchone()[0])
            except sqlite3.OperationalError:
                return 0

    def rows(self) -> dict[str, ResultRow]:
        """All rows; none may be there twice."""
        with ResultsReader(self.results) as reader:
            rows = list(reader.rows())
        found = {row.message_id: row for row in rows}
        assert len(found) == len(rows)
        return found

    async def until(self, met: Callable[[], bool | Awaitable[bool]]) -> None:
        """Return when something becomes true."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                answer = met()
                if answer if isinstance(answer, bool) else await answer:
                    return
                await asyncio.sleep(0.005)

    async def ended(self, process: subprocess.Popen[bytes]) -> int:
        """Wait for a process; return its exit code."""
        return await asyncio.to_thread(process.wait, PATIENCE_S)


def children(pid: int) -> list[int]:
    """The processes that a process started and that still run."""
    found = []
    for each in Path("/proc").glob("[0-9]*"):
        try:
            state, parent = (each / "stat").read_text().rsplit(")", 1)[1].split()[:2]
        except OSError:  # it ended meanwhile
            continue
        if int(parent) == pid and state not in "ZX":
            found.append(int(each.name))
    return sorted(found)


def runs(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except OSError:
        return False


def expected(classifier: Classifier, ids: Sequence[str], sent: Sequence[Submission]) -> dict[str, str]:
    """The offline label of every good image."""
    answers = classifier.predict([each.request.image for each in sent])
    return {
        message_id: answer.label
        for message_id, answer in zip(ids, answers, strict=True)
        if isinstance(answer, Prediction)
    }
