"""What drift looks like: the shipped model on validation images that were harmed, each in one known way.

``python -m benchmarks.drift --markdown docs/monitoring.md`` prints JSON on stdout and the table on stderr,
and puts the table between the page's markers.

The reference is counted on the first images, as an export does; every scene is made of images after those.
The cost is what a worker pays for all of it, in the process of the engine and in its own, beside what
decoding and predicting the same images takes in the same run.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

if not __package__:  # run as a file: what it imports is found from the repository's root
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
    __package__ = "benchmarks"

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from classifier import Classifier, validation_set
from classifier.light import light
from classifier.reference import reference_of
from classifier.report.speed import machine
from worker.drift import Quality
from worker.engine import Answer

from .report import add_outputs, keep

Pixels = NDArray[np.uint8]
_REFERENCE = 2000
_BATCH = 128
_ROUNDS = 15


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--images", type=int, default=2000, help="of each scene")
    add_outputs(parser)
    options = parser.parse_args(arguments)
    model, data = Classifier.load(), validation_set()
    report = {
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "machine": machine(),
        "model": f"{model.manifest.name} {model.manifest.version}",
        "reference": _REFERENCE,
        "images": options.images,
        "scenes": measure(model, data.images[:, None], data.labels, options.images),
        "cost": cost(model, data.images[:_BATCH, None]),
    }
    print(json.dumps(report), flush=True)
    table = markdown(report)
    print(table, file=sys.stderr)
    keep(report, options, table, "drift")
    return 0


def measure(model: Classifier, images: Pixels, labels: NDArray[np.int64], count: int) -> list[dict[str, Any]]:
    """The indices of every scene."""
    known = reference_of(model.answers(images[:_REFERENCE].copy()), model.manifest.labels, "held out")
    found = []
    for name, scene in scenes(images[_REFERENCE:], labels[_REFERENCE:], count).items():
        quality = Quality()
        quality.use(known)
        quality.count(_answers(model, scene))
        drift = quality.drift()
        found.append({"scene": name, "images": len(scene), "psi": drift.psi, **drift.window.ratios()})
    return found


def scenes(images: Pixels, labels: NDArray[np.int64], count: int) -> dict[str, Pixels]:
    """Images as they are, and harmed."""
    plain, chance = images[:count], np.random.default_rng(0)
    blank = plain.copy()
    blank[::10] = 0
    bags = np.concatenate([images[labels == 8][: count // 2], plain[: count // 2]])
    shifted = [np.roll(plain, (y, x), (2, 3)) for y in (-1, 0, 1) for x in (-1, 0, 1)]
    noise = chance.normal(0, 40, plain.shape)
    return {
        "other images of the same set": plain,
        "no shirts and no coats": images[~np.isin(labels, [4, 6])][:count],
        "half of them bags": bags,
        "every tenth one blank": blank,
        "half as bright": plain // 2,
        "negatives": 255 - plain,
        "blurred, mean of 3 x 3 pixels": np.mean(shifted, axis=0).astype(np.uint8),
        "noise, standard deviation 40": np.clip(plain + noise, 0, 255).astype(np.uint8),
    }


def cost(model: Classifier, images: Pixels) -> dict[str, float]:
    """Microseconds an image, the best of some rounds: watching, and decoding and predicting."""
    answers, quality = _answers(model, images), Quality()
    files = [_png(each[0]) for each in images]
    wide, narrow = [list(each) for each in answers], [list(each.columns) for each in answers]
    carried = _best(lambda: json.loads(json.dumps(wide))) - _best(lambda: json.loads(json.dumps(narrow)))
    watching = _best(lambda: light(images)) + _best(lambda: quality.count(answers)) + carried
    return {"watching": watching, "decode_and_predict": _best(lambda: model.predict(files))}


def _best(work: Callable[[], object]) -> float:
    times = []
    for _ in range(_ROUNDS):
        begin = time.perf_counter()
        work()
        times.append(time.perf_counter() - begin)
    return min(times) / _BATCH * 1e6


def _answers(model: Classifier, images: Pixels) -> list[Answer]:
    return [
        Answer(
            "abstained" if each.abstained else "ok",
            each.label,
            each.label_index,
            each.confidence,
            each.runner_up,
            each.runner_up_confidence,
            each.group_label,
            "[]",
            each.why,
            round(each.brightness, 1),
            each.blank,
        )
        for each in model.answers(np.ascontiguousarray(images))
    ]


def _png(pixels: NDArray[np.uint8]) -> bytes:
    target = BytesIO()
    Image.fromarray(pixels).save(target, "PNG")
    return target.getvalue()


def markdown(report: dict[str, Any]) -> str:
    """The table, and in what it was measured."""
    lines = [
        "| scene | PSI classes | PSI confidence | PSI brightness | sure of half or less | blank |",
        "|---|" + "---:|" * 5,
    ]
    for each in report["scenes"]:
        indices = [each["psi"].get(name) for name in ("classes", "confidence", "brightness")]
        cells = [f"**{psi:.2f}**" if psi > 0.2 else f"{psi:.2f}" for psi in indices]
        shares = [f"{each[name]:.1%}" for name in ("low_confidence", "blank")]
        lines.append("| " + " | ".join([each["scene"], *cells, *shares]) + " |")
    took, where = report["cost"], report["machine"]
    share = took["watching"] / took["decode_and_predict"]
    lines += [
        "",
        f"Model {report['model']}, {report['reference']:,} images in the reference, {report['images']:,} in"
        f" a scene. Watching takes {took['watching']:.1f} µs an image, decoding and predicting it"
        f" {took['decode_and_predict']:.0f} µs ({share:.1%}).",
        f"{report['date']}, {where['cores']} cores {where['processor']}, Python {where['python']}, numpy"
        f" {where['packages']['numpy']}, onnxruntime {where['packages']['onnxruntime']};"
        " `python -m benchmarks.drift`.",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
