"""How fast image files become the network's input, beside plain Pillow on the same files.

    python -m benchmarks.decode

Both sides do the whole way from bytes to (C, S, S) pixels in memory, one image at a time, in one thread;
plain Pillow is open, convert, resize and ``numpy.asarray``, without our checks of the container. Time is the
processor time of this process, so a busy machine disturbs little, and the sides take turns in every round.
The pictures are garments, enlarged, tinted and grained like photos.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from statistics import median
from typing import Any

import numpy as np
from PIL import Image

from classifier import Preprocessing, validation_set
from classifier.images import decode

_ONE_PASS = 64  # images of one call, as in a worker


@dataclass(frozen=True, slots=True)
class Case:
    """One kind of file and what it becomes; ``images`` files are made."""

    name: str
    kind: str
    mode: str
    width: int
    height: int
    spec: Preprocessing
    images: int


CASES = (
    Case("PNG gray 28x28 -> gray 28", "PNG", "L", 28, 28, Preprocessing(), 512),
    Case("PNG gray 28x28 -> gray 28, auto", "PNG", "L", 28, 28, Preprocessing(polarity="auto"), 512),
    Case("JPEG gray 28x28 -> gray 28", "JPEG", "L", 28, 28, Preprocessing(), 512),
    Case("PNG RGB 96x96 -> RGB 96", "PNG", "RGB", 96, 96, Preprocessing(size=96, channels=3), 128),
    Case("JPEG RGB 96x96 -> RGB 96", "JPEG", "RGB", 96, 96, Preprocessing(size=96, channels=3), 128),
    Case("JPEG 1024x768 -> gray 28", "JPEG", "RGB", 1024, 768, Preprocessing(), 8),
    Case("JPEG 1024x768 -> RGB 96", "JPEG", "RGB", 1024, 768, Preprocessing(size=96, channels=3), 8),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print a table on stderr and one JSON object on stdout."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.decode", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="each case's figures are the median of so many")
    parser.add_argument("--seconds", type=float, default=0.5, help="how long one side measures in a round")
    options = parser.parse_args(arguments)
    results = [measured(case, options.rounds, options.seconds) for case in CASES]
    for row in results:
        line = f"{row['case']:<34}{row['images_per_s']:>9,.0f} images/s  {row['us']:>8.1f} us"
        print(f"{line}  {row['ratio']:.2f} x plain Pillow", file=sys.stderr)
    print(json.dumps({**_facts(), "rounds": options.rounds, "results": results}))
    return 0


def measured(case: Case, rounds: int, seconds: float) -> dict[str, Any]:
    """Images per second of one core, ours and plain Pillow's, and their ratio: medians of ``rounds``."""
    made = list(files(case))
    batches = [made[at : at + _ONE_PASS] for at in range(0, len(made), _ONE_PASS)]

    def ours(batch: list[bytes]) -> None:
        decoded = decode(batch, case.spec)
        assert len(decoded.tensor) == len(batch), decoded.errors

    def plain(batch: list[bytes]) -> None:
        for data in batch:
            plain_pillow(data, case.spec)

    pairs = [(_rate(ours, batches, seconds), _rate(plain, batches, seconds)) for _ in range(rounds)]
    rate = median(mine for mine, _ in pairs)
    return {
        "case": case.name,
        "bytes": round(sum(map(len, made)) / len(made)),
        "images_per_s": rate,
        "us": 1e6 / rate,
        "pillow_images_per_s": median(theirs for _, theirs in pairs),
        "ratio": median(mine / theirs for mine, theirs in pairs),
        "preprocessing": asdict(case.spec),
    }


def _rate(work: Callable[[list[bytes]], None], batches: list[list[bytes]], seconds: float) -> float:
    """Images per second of processor time."""
    work(batches[0])
    started, done = time.process_time(), 0
    while True:
        for batch in batches:
            work(batch)
            done += len(batch)
            if (elapsed := time.process_time() - started) >= seconds:
                return done / elapsed


def plain_pillow(data: bytes, spec: Preprocessing) -> np.ndarray:
    """(C, S, S) uint8 the way a script does it."""
    with Image.open(io.BytesIO(data)) as image:
        picture = image.convert("L" if spec.channels == 1 else "RGB")
    if picture.size != (spec.size, spec.size):
        picture = picture.resize((spec.size, spec.size), Image.Resampling.BILINEAR)
    return np.ascontiguousarray(np.asarray(picture).reshape(spec.size, spec.size, -1).transpose(2, 0, 1))


def files(case: Case) -> Iterator[bytes]:
    """The encoded images of a case, the same on every machine."""
    rng = np.random.default_rng(0)
    for garment in validation_set().images[: case.images]:
        picture = Image.fromarray(garment).resize((case.width, case.height), Image.Resampling.BICUBIC)
        if case.mode == "RGB":
            tint = rng.uniform(0.3, 1.0, 3)
            grain = rng.normal(0.0, 6.0, (case.height, case.width, 1))
            colours = np.asarray(picture, np.float32)[:, :, None] * tint + grain
            picture = Image.fromarray(colours.clip(0, 255).astype(np.uint8))
        target = io.BytesIO()
        picture.save(target, case.kind)
        yield target.getvalue()


def _facts() -> dict[str, Any]:
    """When and on what, without names of hosts or paths."""
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "machine": {
            "cores": os.cpu_count(),
            "system": platform.system(),
            "python": platform.python_version(),
        },
        "versions": {name: version(name) for name in ("pillow", "numpy")},
    }


if __name__ == "__main__":
    sys.exit(main())
