"""The whole pipeline against its limit: worker processes on a full queue, over decode + predict alone.

``python -m benchmarks.pipeline --backend kafka --sink postgresql --markdown docs/performance.md``.

The broker is the one of ``KAFKA_BOOTSTRAP_SERVERS`` or ``PUBSUB_EMULATOR_HOST``, the database that of
``BENCH_POSTGRES_URL`` (an empty one: its table ``results`` is dropped); without them they are started as for
the tests, on the same cores as the workers.

A round fills a topic, measures the limit, lets command-line workers empty the topic into the sink, and
measures the limit again, because the speed of a shared machine drifts. The clock runs from the first message
in a worker's hands until the last row is stored. Every row is counted, and compared with offline prediction.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import tempfile
import time
import uuid
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from statistics import median
from typing import Any

if not __package__:  # run as a file: what it imports is found from the repository's root
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
    __package__ = "benchmarks"

from broker import connect
from classifier import Classifier, validation_set
from classifier.throughput import engine_rate
from client.results import Results, open_results
from client.schema import ClassifyRequest, encode_png
from worker.crew import Crew

from .places import PLACES, service
from .report import add_outputs, facts, keep

_GROUP = "classifiers"
_PUBLISH_AT_ONCE = 5_000
_LIMIT_S = 3.0
_POLL_S = 0.02
_STALLED_S = 120.0


@dataclass(frozen=True, slots=True)
class Round:
    """One measurement.

    Attributes:
        rate: of the pipeline, images per second.
        limit: of decode + predict alone in as many processes as there are workers, images per second.
        ratio: rate / limit.
        wrong: rows whose label is not that of offline prediction.
    """

    rate: float
    limit: float
    ratio: float
    wrong: int


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark; return 1 if a row was missing or wrong."""
    options = _parser().parse_args(arguments)
    pictures = [encode_png(each) for each in validation_set().images[: options.images]]
    labels = [getattr(each, "label", None) for each in Classifier.load().predict(pictures)]
    with ExitStack() as stack:
        place = PLACES[options.backend](stack)
        sink = _Sink(options.sink, stack)
        rounds = []
        for number in range(options.rounds):
            topic = place.make("ours", _GROUP)
            with _environment(options.backend, place.address, topic, sink):
                rounds.append(_round(options, topic, sink.url, pictures, labels))
            print(f"round {number + 1}: {asdict(rounds[-1])}", file=sys.stderr, flush=True)
    name = f"pipeline {options.backend} {options.sink}"
    report = {
        **facts(options.backend),
        "sink": options.sink,
        "options": {each: getattr(options, each) for each in ("images", "workers", "rounds")},
        "ratio": median(each.ratio for each in rounds),
        "rounds": [asdict(each) for each in rounds],
    }
    print(_markdown(report))
    keep(report, options, _markdown(report), name)
    return int(any(each.wrong for each in rounds))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--backend", choices=sorted(PLACES), default="sqlite")
    parser.add_argument("--sink", choices=["sqlite", "postgresql"], default="sqlite")
    parser.add_argument("--images", type=int, default=40_000, help="of each round; pictures repeat")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--rounds", type=int, default=3)
    add_outputs(parser)
    return parser


class _Sink:
    """A database that is emptied before each round.

    Args:
        kind: ``sqlite`` or ``postgresql``.
        stack: ends what is started here.
    """

    def __init__(self, kind: str, stack: ExitStack) -> None:
        self._directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="couturier-bench-")))
        self._kind = kind
        self._server = ""
        if kind == "postgresql":
            self._server = os.environ.get("BENCH_POSTGRES_URL") or service("PostgresService", "url", stack)
        self.url = ""

    def renew(self) -> None:
        """Name an empty place."""
        if self._kind == "sqlite":
            self.url = f"sqlite:///{self._directory}/{uuid.uuid4().hex}.db"
            return
        import psycopg

        self.url = self._server
        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute("DROP TABLE IF EXISTS results, results_schema")


class _environment:  # noqa: N801 - reads as what it is in a `with`
    """What the workers of one round are told; put back afterwards."""

    def __init__(self, backend: str, address: str, topic: str, sink: _Sink) -> None:
        sink.renew()
        self._values = {
            "BROKER_BACKEND": backend,
            "COUTURIER_TOPIC": topic,
            "COUTURIER_GROUP": _GROUP,
            "SINK_URL": sink.url,
            "LOG_LEVEL": "warning",
        }
        if backend == "kafka":
            self._values["KAFKA_BOOTSTRAP_SERVERS"] = address
        if backend == "pubsub":
            self._values |= {"PUBSUB_EMULATOR_HOST": address, "GOOGLE_CLOUD_PROJECT": "bench"}
        if backend == "sqlite":
            self._values["BROKER_URL"] = f"sqlite:///{address}"
        self._before: Mapping[str, str] = {}

    def __enter__(self) -> None:
        self._before = dict(os.environ)
        os.environ.update(self._values)

    def __exit__(self, *_: object) -> None:
        os.environ.clear()
        os.environ.update(self._before)


def _round(
    options: argparse.Namespace,
    topic: str,
    sink: str,
    pictures: Sequence[bytes],
    labels: Sequence[str | None],
) -> Round:
    expected = asyncio.run(_fill(topic, options.images, pictures, labels))
    before = engine_rate(pictures, options.workers, seconds=_LIMIT_S)
    with tempfile.TemporaryDirectory(prefix="couturier-bench-") as logs:
        crew = Crew(options.workers, None, Path(logs), _broker_url())
        try:
            seconds, labels_by_id = asyncio.run(_drain(crew, sink, len(expected)))
        finally:
            crew.kill()
    limit = (before + engine_rate(pictures, options.workers, seconds=_LIMIT_S)) / 2
    wrong = sum(labels_by_id.get(message_id) != label for message_id, label in expected.items())
    rate = len(expected) / seconds
    return Round(rate, limit, rate / limit, wrong)


def _broker_url() -> str:
    from broker.settings import broker_url

    return broker_url()


async def _fill(
    topic: str, count: int, pictures: Sequence[bytes], labels: Sequence[str | None]
) -> dict[str, str | None]:
    """Publish; return message id to the label that is right."""
    expected: dict[str, str | None] = {}
    async with connect() as broker:
        for first in range(0, count, _PUBLISH_AT_ONCE):
            places = [each % len(pictures) for each in range(first, min(first + _PUBLISH_AT_ONCE, count))]
            messages = [ClassifyRequest(image=pictures[place]).to_message() for place in places]
            await broker.publish(topic, messages)
            expected.update(
                (message.id, labels[place]) for message, place in zip(messages, places, strict=True)
            )
    return expected


async def _drain(crew: Crew, sink: str, count: int) -> tuple[float, dict[str, str | None]]:
    """Wait for every row; return seconds from the first message received to the last row, and the labels."""
    await crew.ready(lambda _: None)
    with open_results(sink) as results:
        end = await _full(crew, results, count)
        await crew.stop()
        rows = list(results.rows())
    start = min(datetime.fromisoformat(row.created_at).timestamp() - row.process_s for row in rows)
    if len(rows) != count:
        raise SystemExit(f"{len(rows)} rows for {count} messages")
    return end - start, {row.message_id: row.label for row in rows}


async def _full(crew: Crew, results: Results, count: int) -> float:
    """Return the time at which every row is there, Unix seconds."""
    seen, since = -1, time.monotonic()
    while True:
        rows = await asyncio.to_thread(results.count)
        if rows >= count:
            return time.time()
        if rows != seen:
            seen, since = rows, time.monotonic()
        elif time.monotonic() - since > _STALLED_S:
            raise SystemExit(f"nothing moves at {rows} of {count} rows")
        crew.check()
        # Counting costs the database something: seldom while there is far to go.
        await asyncio.sleep(max(_POLL_S, (count - rows) / count))


def _markdown(report: dict[str, Any]) -> str:
    machine, options = report["machine"], report["options"]
    rows = [
        f"| {number} | {each['rate']:,.0f} | {each['limit']:,.0f} | {each['ratio']:.2f} | {each['wrong']} |"
        for number, each in enumerate(report["rounds"], 1)
    ]
    return "\n".join(
        [
            f"{report['date']}, {report['backend']} to {report['sink']}, {options['workers']} workers,"
            f" {options['images']:,} images a round; {machine['cores']} cores ({machine['processor']}),"
            f" {machine['memory_gb']} GB, Python {machine['python']}. Median ratio"
            f" **{report['ratio']:.2f}**.",
            "",
            "| round | pipeline, images/s | decode + predict, images/s | ratio | wrong rows |",
            "|--:|--:|--:|--:|--:|",
            *rows,
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
