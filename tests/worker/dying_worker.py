"""A worker that kills itself with SIGKILL at one stage of its work: ``dying_worker.py STAGE BATCH``."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import sys
from collections.abc import Sequence
from pathlib import Path

from broker import Batching, Delivery, Outcome, connect
from client.results import WriteReport, sqlite_path
from client.schema import ResultRow
from worker import ImageHandler
from worker.engine import Engine
from worker.sinks.sqlite import SqliteSink

STAGES = ("received", "predicted", "writing", "written", "answered")


class Dying:
    """Dies at its stage of its batch, and works like the real ones until then."""

    def __init__(self, stage: str, batch: int, path: Path) -> None:
        self.stage, self.left, self.path = stage, batch, path
        self.sink = SqliteSink(path)

    def at(self, stage: str) -> None:
        """End this process without a word if it is time."""
        if stage == self.stage and self.left <= 0:
            os.kill(os.getpid(), signal.SIGKILL)

    async def open(self) -> None:
        await self.sink.open()

    async def write(self, rows: Sequence[ResultRow]) -> WriteReport:
        self.at("predicted")
        if self.stage == "writing" and self.left <= 0:
            db = sqlite3.connect(self.path, isolation_level=None)
            db.execute("BEGIN IMMEDIATE")
            db.executemany(
                f"INSERT INTO results VALUES ({', '.join('?' * len(rows[0]))})", rows[: len(rows) // 2 + 1]
            )
            self.at("writing")
        report = await self.sink.write(rows)
        self.at("written")
        return report

    async def aclose(self) -> None:
        await self.sink.aclose()

    async def handle(self, handler: ImageHandler, deliveries: Sequence[Delivery]) -> Sequence[Outcome]:
        self.left -= 1
        self.at("received")
        outcomes = await handler(deliveries)
        if self.left <= 0 and self.stage == "answered":
            # The loop settles next; die somewhere within.
            asyncio.get_running_loop().call_soon(self.at, "answered")
        return outcomes


async def main(stage: str, batch: int) -> None:
    """Work as the command would, with smaller batches."""
    dying = Dying(stage, batch, sqlite_path(os.environ["SINK_URL"]))
    await dying.open()
    async with Engine() as engine, connect() as broker:
        handler = ImageHandler(engine, dying, f"dying-{os.getpid()}")
        await broker.process(
            "images",
            group="classifiers",
            handler=lambda deliveries: dying.handle(handler, deliveries),
            batch=Batching(max_messages=16, concurrency=2),
        )


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2])))
