"""Publish, and consume + ack: the client's own loop, ours and other libraries', side by side on one broker.

``python -m benchmarks.broker --backend kafka --json FILE --markdown docs/performance.md``. The broker is the
one of ``KAFKA_BOOTSTRAP_SERVERS`` or ``PUBSUB_EMULATOR_HOST``; without it, one is started as for the tests.

Every measurement is a process of its own on a topic of its own, which the same client fills and reads. Rounds
are interleaved, and a ratio is taken within its round, so that a busy machine is busy for all. What a broker
has stored and what is committed is counted by another client after each measurement.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

if not __package__:  # run as a file: what it imports is found from the repository's root
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
    __package__ = "benchmarks"

from .client import clients
from .measure import Job, Result
from .places import PLACES, KafkaPlace, PubsubPlace, SqlitePlace
from .report import Failure, Measurement, add_outputs, facts, keep, markdown, summary

_ROOT = Path(__file__).resolve().parent.parent
_LIMIT_S = 300.0
# Of all bodies of one measurement.
_MOST_BYTES = 200_000_000
_FEWEST = 20


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark; return 1 if a measurement of ours failed."""
    options = _parser().parse_args(arguments)
    with ExitStack() as stack:
        place = PLACES[options.backend](stack)
        found = list(_rounds(place, options))
    done = [each for each in found if isinstance(each, Measurement)]
    failed = [each for each in found if isinstance(each, Failure)]
    table = summary(done)
    report = {
        **facts(options.backend),
        "options": {name: value for name, value in vars(options).items() if name not in ("json", "markdown")},
        "summary": table,
        "not_run": [asdict(each) for each in failed],
        "measurements": [asdict(each) for each in done],
    }
    text = markdown(report)
    print(text)
    keep(report, options, text, options.backend)
    return int(any(each.client.startswith("ours") for each in failed))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--backend", choices=sorted(PLACES), default="kafka")
    parser.add_argument("--sizes", type=_numbers, default=[100, 1000, 100_000], help="bytes, comma separated")
    parser.add_argument(
        "--messages", type=int, help="of the fast clients, at most 200 MB; others get a share of it"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peers", type=lambda text: text.split(";"), help="names, separated by semicolons")
    add_outputs(parser)
    return parser


def _numbers(text: str) -> list[int]:
    return [int(each) for each in text.split(",")]


def _rounds(
    place: KafkaPlace | PubsubPlace | SqlitePlace, options: argparse.Namespace
) -> Iterator[Measurement | Failure]:
    """Measure every client in turn, round after round; one that failed is not asked again."""
    known = clients(options.backend)
    names = options.peers or list(known)
    most = options.messages or {"kafka": 200_000, "pubsub": 4_000, "sqlite": 20_000}[options.backend]
    broken: set[tuple[str, int]] = set()
    for size in options.sizes:
        for number in range(options.rounds):
            for name in names:
                if (name, size) in broken:
                    continue
                count = max(_FEWEST, int(min(most, _MOST_BYTES // size) * known[name][2]))
                for result in _publish_and_consume(place, name, size, count, number):
                    if isinstance(result, Failure):
                        broken.add((name, size))
                    yield result


def _publish_and_consume(
    place: KafkaPlace | PubsubPlace | SqlitePlace, client: str, size: int, count: int, number: int
) -> Iterator[Measurement | Failure]:
    group = f"bench-{uuid.uuid4().hex[:8]}"
    topic = place.make(client, group)
    try:
        for task in ("publish", "consume"):
            job = Job(place.backend, client, task, place.address, topic, group, size, count)
            try:
                result = _run(job)
                place.check(job)
            except RuntimeError as error:
                _say(f"{client}: {task} {size} B: not run: {error}")
                yield Failure(client, task, size, str(error))
                return
            rate = count / result.seconds
            _say(f"round {number + 1}: {client}: {task} {size} B: {rate:,.0f} messages/s")
            yield Measurement(client, task, size, number, count, **asdict(result))
    finally:
        place.remove(topic)


def _run(job: Job) -> Result:
    """Do a job in a process of its own.

    Raises:
        RuntimeError: it did not work; the text is the last line that the process wrote.
    """
    try:
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.client"],
            input=json.dumps(asdict(job)),
            cwd=_ROOT,
            capture_output=True,
            text=True,
            timeout=_LIMIT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"took more than {_LIMIT_S:g} s") from None
    if done.returncode != 0:
        raise RuntimeError((done.stderr.strip().splitlines() or ["no output"])[-1])
    return Result(**json.loads(done.stdout.splitlines()[-1]))


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
