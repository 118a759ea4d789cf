"""Golden vectors: images of every accepted kind with the pixels and probabilities they must give.

They travel in the bundle, so any machine can prove (``Classifier.self_test``) that it
preprocesses and predicts as the machine that trained the model did.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .data import Dataset
from .predict import Classifier

# PNG is exact. JPEG decoders may round by one or two gray levels from build to build.
_PNG_TOLERANCE, _JPEG_TOLERANCE = 0, 3
# int8 kernels accumulate differently on processors with and without 8-bit dot products.
_PROBABILITY_TOLERANCE = {"onnx": 2e-3, "torch": 2e-3, "onnx-int8": 0.1}


def golden_vectors(classifier: Classifier, dataset: Dataset) -> bytes:
    """The JSON file for a bundle: one vector per image kind, from images of ``dataset``."""
    vectors = []
    for name, data in _encoded(dataset.images):
        decoded = classifier.decode([data])
        assert decoded.errors == (None,), (name, decoded.errors)
        pixels = decoded.tensor.tobytes()
        vectors.append(
            {
                "name": name,
                "image": base64.b64encode(data).decode(),
                "pixels": base64.b64encode(pixels).decode(),
                "pixels_sha256": hashlib.sha256(pixels).hexdigest(),
                "pixel_tolerance": _JPEG_TOLERANCE if "jpeg" in name else _PNG_TOLERANCE,
                "probabilities": [round(p, 6) for p in classifier.predict_tensor(decoded.tensor)[0].tolist()],
                "probability_tolerance": _PROBABILITY_TOLERANCE,
            }
        )
    return (json.dumps({"vectors": vectors}, indent=1) + "\n").encode()


def _encoded(images: NDArray[np.uint8]) -> Iterator[tuple[str, bytes]]:
    """(name, file content) for every kind; spread over the data set so that classes differ."""
    picked = iter(Image.fromarray(images[at]) for at in np.linspace(0, len(images) - 1, 8).astype(int))
    yield "gray-png", _save(next(picked), "PNG")
    yield "gray-png-large", _save(next(picked).resize((112, 84), Image.Resampling.BICUBIC), "PNG")
    yield "rgb-png", _save(next(picked).convert("RGB"), "PNG")
    yield "palette-png", _save(next(picked).convert("P"), "PNG")
    shape = next(picked)
    transparent = Image.merge("LA", (shape, shape.point(lambda value: 255 if value else 0)))
    yield "transparent-png", _save(transparent, "PNG")
    yield "bilevel-png", _save(next(picked).convert("1"), "PNG")
    yield "gray-jpeg", _save(next(picked), "JPEG")
    turned = Image.Exif()
    turned[0x0112] = 6
    photo = next(picked).convert("RGB").resize((400, 300), Image.Resampling.BICUBIC)
    yield "rgb-jpeg-turned", _save(photo, "JPEG", exif=turned.tobytes())


def _save(image: Image.Image, kind: str, **options: object) -> bytes:
    target = io.BytesIO()
    image.save(target, kind, **options)
    return target.getvalue()
