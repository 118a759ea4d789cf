"""How far workers multiply: processes on one topic whose model sleeps, as one on a device of its own does.

``python -m benchmarks.scaling --backend kafka --markdown docs/scaling.md``; a minute or two for each backend.

A worker (``scaling_member``) needs no processor while its model sleeps. What keeps N of them from N times the
rate of one is then the queue, the loop and the cores, which broker, workers and publisher share here.

The broker is that of ``KAFKA_BOOTSTRAP_SERVERS`` or ``PUBSUB_EMULATOR_HOST``; without it one is started, as
for the tests. The clock starts once every worker has had its first batch and ends before the first is told to
stop; a batch that only partly falls into that time counts with that part. What the group has settled in the
end must be what the workers acked, or nothing is reported.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import os
import sys
import time
import uuid
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

if not __package__:  # run as a file: what it imports is found from the repository's root
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
    __package__ = "benchmarks"

from broker import Message, connect

from .places import PLACES
from .report import add_outputs, facts, keep
from .scaling_member import GROUP, IDEAL, Work, member

# A PNG of 28x28 pixels has about as many bytes.
_BODY = bytes(512)
_PARTITIONS = 64
_PUBLISH_AT_ONCE = 5_000
# Until so many seconds after the last worker had its first batch, members may still be given partitions.
_SETTLE_S = 1.0
_START_S = 90.0
# Batches that are taken, or started, while the workers start and stop, in seconds of work.
_SPARE_S = 12.0


@dataclass(frozen=True, slots=True)
class Step:
    """What so many workers did.

    Attributes:
        workers: processes.
        rate: images per second.
        ratio: to the rate of the first step, per worker of it: 8 workers that do 8 times as much have 8.
        ideal: share of what they would do if none ever waited for the queue.
        cpu_us: processor time of the workers, per image, microseconds.
        again: images done twice, because their partition moved while they were with the model.
    """

    workers: int
    rate: float
    ratio: float
    ideal: float
    cpu_us: float
    again: int


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark.

    Raises:
        SystemExit: messages were lost or done twice, or a worker failed.
    """
    options = _parser().parse_args(arguments)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["benchmarks.scaling_member", "broker.drivers.kafka", "broker.drivers.sqlite"]
    )
    steps: list[Step] = []
    load = os.getloadavg()[0]
    with ExitStack() as stack:
        place = PLACES[options.backend](stack)
        for workers in options.workers:
            place.make("ours", GROUP)  # on SQLite: a file of its own
            steps.append(_step(options, _url(options.backend, place.address), workers, steps, context))
            print(f"{steps[-1]}", file=sys.stderr, flush=True)
    report = {
        **facts(options.backend),
        "options": {"workers": options.workers, "seconds": options.seconds},
        "load": load,
        "steps": [asdict(each) for each in steps],
    }
    print(_markdown(report))
    keep(report, options, _markdown(report), f"scaling {options.backend}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--backend", choices=sorted(PLACES), default="sqlite")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32])
    parser.add_argument("--seconds", type=float, default=4.0, help="measured, of each step")
    add_outputs(parser)
    return parser


def _url(backend: str, address: str) -> str:
    return {"sqlite": f"sqlite:///{address}", "kafka": f"kafka://{address}", "pubsub": "pubsub://bench"}[
        backend
    ]


def _step(options: argparse.Namespace, url: str, workers: int, before: Sequence[Step], context: Any) -> Step:
    topic = f"scaling-{uuid.uuid4().hex[:12]}"
    asyncio.run(_fill(url, topic, round(workers * IDEAL * (options.seconds + _SPARE_S))))
    members = []
    for _ in range(workers):
        ours, theirs = context.Pipe()
        members.append((context.Process(target=member, args=(url, topic, theirs), daemon=True), ours))
    try:
        for process, _ in members:
            process.start()
        for process, pipe in members:
            _receive(process, pipe)
        start = time.monotonic() + _SETTLE_S
        time.sleep(_SETTLE_S + options.seconds)
        end = time.monotonic()
        for _, pipe in members:
            pipe.send("stop")
        ended: list[tuple[list[Work], int]] = [_receive(process, pipe) for process, pipe in members]
    finally:
        for process, _ in members:
            process.kill()
    acked, settled = sum(each for _, each in ended), asyncio.run(_settled(url, topic))
    if settled != acked:
        raise SystemExit(f"{workers} workers finished {acked} messages, but {settled} are settled")
    done = [work for work, _ in ended]
    again = sum(each.images for work in done for each in work) - acked
    images = sum(each.images_within(start, end) for work in done for each in work)
    rate = images / (end - start)
    one = before[0].rate / before[0].workers if before else rate / workers
    cpu_s = sum(_cpu_s([each for each in work if start <= each.ended <= end]) for work in done)
    return Step(workers, rate, rate / one, rate / workers / IDEAL, cpu_s / images * 1e6, again)


def _cpu_s(work: Sequence[Work]) -> float:
    return work[-1].cpu_s - work[0].cpu_s if work else 0.0


def _receive(process: Any, pipe: Connection) -> Any:
    deadline = time.monotonic() + _START_S
    while not pipe.poll(0.2):
        if not process.is_alive() or time.monotonic() > deadline:
            raise SystemExit(f"a worker gave no sign of life (exit code {process.exitcode})")
    return pipe.recv()


async def _fill(url: str, topic: str, count: int) -> None:
    async with connect(url) as broker:
        await broker.ensure(topic, GROUP, partitions=_PARTITIONS)
        for first in range(0, count, _PUBLISH_AT_ONCE):
            numbers = range(first, min(first + _PUBLISH_AT_ONCE, count))
            await broker.publish(topic, [Message(data=_BODY, key=str(each)) for each in numbers])


async def _settled(url: str, topic: str) -> int:
    async with connect(url) as broker:
        return (await broker.stats(topic, GROUP)).settled or 0


def _markdown(report: dict[str, Any]) -> str:
    machine = report["machine"]
    rows = [
        f"| {each['workers']} | {each['rate']:,.0f} | {each['ratio']:.1f} | {each['ideal']:.0%}"
        f" | {each['cpu_us']:,.0f} | {each['again']} |"
        for each in report["steps"]
    ]
    return "\n".join(
        [
            f"{report['date']}, {report['backend']}; {machine['cores']} cores ({machine['processor']}), load"
            f" {report['load']:.1f} before; Python {machine['python']}. A worker that never waits does"
            f" {IDEAL:.0f} images/s.",
            "",
            "| workers | images/s | times one worker | of the ideal | CPU, µs an image | done twice |",
            "|--:|--:|--:|--:|--:|--:|",
            *rows,
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
