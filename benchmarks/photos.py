"""What the preprocessing does for a Fashion-MNIST model that meets photos: polarity and resampling.

    python -m benchmarks.photos

Prints one JSON object: how many of the validation images polarity "auto" turns over by mistake and how
many inverted ones it recognises, as pixels and as enlarged colour JPEGs; the model's accuracy on all of them
with "keep" and with "auto"; and on the JPEGs with every way of resampling.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from classifier import Classifier, validation_set
from classifier.images import decode
from classifier.polarity import normalise_polarity


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.photos", description=__doc__)
    parser.add_argument(
        "--model", help="bundle of a 28 px gray Fashion-MNIST model; default: the shipped one"
    )
    parser.add_argument("--images", type=int, default=10_000, help="how many are tried as they are")
    parser.add_argument(
        "--photos", type=int, default=2000, help="how many are tried as enlarged colour JPEGs"
    )
    options = parser.parse_args(arguments)
    classifier, garments = Classifier.load(options.model), validation_set()
    pixels, truth = garments.pixels(slice(options.images)), garments.labels

    def accuracy(images: NDArray[np.uint8]) -> float:
        return float((classifier.predict_tensor(images).argmax(1) == truth[: len(images)]).mean())

    report: dict[str, Any] = {
        "model": classifier.manifest.name,
        "images": len(pixels),
        "photos": options.photos,
    }
    for name, shown in (("light on dark", pixels), ("dark on light", 255 - pixels)):
        turned = normalise_polarity(shown, "auto")
        report[name] = {
            "turned_over": int((turned != shown).any((1, 2, 3)).sum()),
            "accuracy_keep": accuracy(shown),
            "accuracy_auto": accuracy(turned),
        }
        files = [_photo(image[0]) for image in shown[: options.photos]]
        keep, auto = (_decoded(classifier, files, polarity) for polarity in ("keep", "auto"))
        report[f"{name}, photos"] = {
            "turned_over": int((keep != auto).any((1, 2, 3)).sum()),
            "accuracy_keep": accuracy(keep),
            "accuracy_auto": accuracy(auto),
            "accuracy_auto_by_resample": {
                each: accuracy(_decoded(classifier, files, "auto", each))
                for each in ("bilinear", "bicubic", "lanczos")
            },
        }
    print(json.dumps(report, indent=1))
    return 0


def _decoded(
    classifier: Classifier, files: list[bytes], polarity: str, resample: str = "bilinear"
) -> NDArray[np.uint8]:
    spec = replace(classifier.manifest.preprocessing, polarity=polarity, resample=resample)
    return decode(files, spec).tensor


def _photo(garment: NDArray[np.uint8]) -> bytes:
    """A garment as a shop might send it: 300 x 400 pixels, colour, JPEG at Pillow's default quality."""
    target = io.BytesIO()
    picture = Image.fromarray(garment).resize((300, 400), Image.Resampling.BICUBIC)
    picture.convert("RGB").save(target, "JPEG")
    return target.getvalue()


if __name__ == "__main__":
    sys.exit(main())
