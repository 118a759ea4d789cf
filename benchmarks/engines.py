"""The inference engines side by side: every engine of every shipped model, on one core, in one run.

``python -m benchmarks.engines --markdown docs/results.md`` prints JSON on stdout and the table on stderr,
and puts the table between the page's markers.

A round times each engine once, one after the other, so that a machine that slows down slows all of them;
ratios to ONNX fp32 are taken within a round, and every figure is the median of the rounds. Images per
second are per second of processor time of one thread, so that neighbours on the machine do not count; the
latency of a single image is what passes on the clock. Decoding is not part of it.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

if not __package__:  # run as a file: what it imports is found from the repository's root
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
    __package__ = "benchmarks"

import numpy as np
from numpy.typing import NDArray

from classifier import Bundle, Classifier, Dataset, evaluate, validation_set
from classifier.bundle import SHIPPED_MODELS
from classifier.engines import ENGINES, file_of
from classifier.errors import MissingExtra, ModelError
from classifier.report.speed import latency, machine

from .report import add_outputs, keep

_BATCH = 64
_REFERENCE = "onnx"


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark."""
    options = _parser().parse_args(arguments)
    data = validation_set()
    data = data.take(np.arange(min(options.images, len(data)), dtype=np.int64))
    rows: list[dict[str, Any]] = []
    for model in options.models or list(SHIPPED_MODELS):
        rows += _measure(Bundle.load(model), data, options.rounds, options.seconds)
    report = {
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "machine": machine(),
        "batch": _BATCH,
        "rounds": options.rounds,
        "images": len(data),
        "engines": rows,
    }
    print(json.dumps(report), flush=True)
    table = markdown(report)
    print(table, file=sys.stderr)
    keep(report, options, table, "engines")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("models", nargs="*", help="bundles; default: all that are shipped")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=0.5, help="of each timing")
    parser.add_argument("--images", type=int, default=10_000, help="on which the accuracy is measured")
    add_outputs(parser)
    return parser


def _measure(bundle: Bundle, data: Dataset, rounds: int, seconds: float) -> list[dict[str, Any]]:
    """One row for each engine: accuracy and file size, then medians over the rounds."""
    manifest = bundle.manifest
    running, rows = {}, {}
    for engine in ENGINES:
        about = {"model": manifest.name, "parameters": manifest.parameter_count, "engine": engine}
        try:
            running[engine] = Classifier(bundle, engine)
        except (MissingExtra, ModelError) as error:
            rows[engine] = {**about, "skipped": str(error)}
            continue
        metrics = evaluate(running[engine], data)
        interval = [metrics.accuracy_low, metrics.accuracy_high]
        size = manifest.files[file_of(engine)]["bytes"]
        rows[engine] = {**about, "bytes": size, "accuracy": metrics.accuracy, "interval": interval}
        print(f"{manifest.name} on {engine}: {metrics.accuracy:.2%}", file=sys.stderr, flush=True)
    pixels = data.pixels(slice(0, _BATCH))
    found: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for _ in range(rounds):
        for engine, classifier in running.items():
            found[engine].append(
                (_rate(classifier, pixels, seconds), latency(classifier, data, 1, seconds).p50_ms)
            )
    for engine, timings in found.items():
        reference = found[_REFERENCE]
        rows[engine] |= {
            "images_per_core_s": median(rate for rate, _ in timings),
            "ratio": median(mine / theirs for (mine, _), (theirs, _) in zip(timings, reference, strict=True)),
            "latency_ms": median(ms for _, ms in timings),
            "latency_ratio": median(
                mine / theirs for (_, mine), (_, theirs) in zip(timings, reference, strict=True)
            ),
        }
    return list(rows.values())


def _rate(classifier: Classifier, pixels: NDArray[np.uint8], seconds: float) -> float:
    """Images per second of processor time."""
    classifier.outputs(pixels)
    started, done = time.process_time(), 0
    while (took := time.process_time() - started) < seconds or not done:
        classifier.outputs(pixels)
        done += len(pixels)
    return done / took


def markdown(report: dict[str, Any]) -> str:
    """The table, and below it where and how it was measured."""
    lines = [
        "| model | engine | images/s per core | to ONNX fp32 | one image, ms | file, bytes | accuracy |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    skipped = []
    for row in report["engines"]:
        if "skipped" in row:
            skipped.append(f"{row['model']} on {row['engine']} was not run: {row['skipped']}.")
            continue
        lines.append(
            f"| {row['model']}, {row['parameters']:,} | {row['engine']} | {row['images_per_core_s']:,.0f} |"
            f" {row['ratio']:.2f} | {row['latency_ms']:.2f} | {row['bytes']:,} | {row['accuracy']:.2%} |"
        )
    where, packages = report["machine"], report["machine"]["packages"]
    versions = ", ".join(f"{name} {number}" for name, number in packages.items())
    about = (
        f"{report['date']}, {where['processor']} ({_joined(where['flags'])}), {where['cores']} cores, one"
        f" thread, batches of {report['batch']}, median of {report['rounds']} rounds, accuracy on"
        f" {report['images']:,} images; Python {where['python']}, {versions}."
    )
    return "\n".join([*lines, "", *skipped, about, ""])


def _joined(names: Sequence[str]) -> str:
    return ", ".join(names) or "no flags known"


if __name__ == "__main__":
    sys.exit(main())
