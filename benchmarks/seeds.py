"""A model trained with several seeds, and what the 10,000 test images say about each.

    uv run --all-extras python -m benchmarks.seeds --model student --seeds 5 --json student.json

Every seed is one ``couturier train`` into ``runs/MODEL-SEED``. Stopped at any time and started again, it
goes on where it was: finished seeds are only read, one in the middle resumes from its last epoch.
Each network is the one of its last epoch, so that the test images choose nothing.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from classifier import evaluate, load, validation_set

from .report import add_outputs, keep

_GROUP = "OnePiece"


def main(arguments: list[str] | None = None) -> int:
    """Train what is missing, measure all, print JSON; the exit status of a training that failed."""
    options, passed_on = _parser().parse_known_args(arguments)
    runs: list[dict[str, Any]] = []
    for seed in range(options.first, options.first + options.seeds):
        out = options.runs / f"{options.model}-{seed}"
        if status := _train(options.model, seed, out, passed_on):
            print(f"seed {seed} stopped (exit {status}); the same command goes on with it", file=sys.stderr)
            return status
        runs.append(_measure(out, seed, options.engine))
        print(json.dumps(runs[-1]), file=sys.stderr, flush=True)
    report = {
        "model": options.model,
        "engine": options.engine,
        "options": passed_on,
        "parameters": runs[0]["parameters"],
        **{name: _spread([run[name] for run in runs]) for name in ("accuracy", "groups", "one_piece_recall")},
        "seeds": runs,
        "machine": f"{platform.machine()}, Python {platform.python_version()}, torch {version('torch')}",
    }
    print(json.dumps(report, indent=1))
    keep(report, options)
    return 0


def _train(model: str, seed: int, out: Path, passed_on: Sequence[str]) -> int:
    """Run or resume one training; 0 at once if its bundle is there."""
    if (out / "manifest.json").exists():
        return 0
    command = [sys.executable, "-m", "classifier", "train", "--model", model, "--seed", str(seed)]
    command += ["--out", str(out), *passed_on]
    if (out / "training" / "checkpoint.safetensors").exists():
        command.append("--resume")
    # What it says belongs beside the progress: stdout is for the report alone.
    return subprocess.run(command, stdout=sys.stderr, check=False).returncode


def _measure(out: Path, seed: int, engine: str) -> dict[str, Any]:
    classifier = load(out, engine)
    metrics, provenance = evaluate(classifier, validation_set()), classifier.manifest.raw["provenance"]
    return {
        "seed": seed,
        "accuracy": metrics.accuracy,
        "groups": metrics.group_accuracy,
        "one_piece_recall": next(group.recall for group in metrics.groups if group.name == _GROUP),
        "parameters": classifier.manifest.parameter_count,
        "epochs": len(provenance["history"]),
        "wall_s": provenance["wall_s"],
        "hash": classifier.manifest.hash,
    }


def _spread(values: Sequence[float]) -> dict[str, float | None]:
    """Mean and sample standard deviation; None for the latter with one seed."""
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return {"mean": statistics.fmean(values), "std": deviation}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.seeds",
        description="Train a model with several seeds and measure each.",
        epilog="Other options go to `couturier train`, such as --epochs 60 or --device cuda.",
    )
    parser.add_argument("--model", default="student", help="as for couturier train [student]")
    parser.add_argument("--seeds", type=int, default=5, help="how many [5]")
    parser.add_argument("--first", type=int, default=0, help="the first seed [0]")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where the bundles go [runs]")
    parser.add_argument("--engine", default="onnx", help="what answers [onnx]")
    add_outputs(parser, page=False)
    return parser


if __name__ == "__main__":
    sys.exit(main())
