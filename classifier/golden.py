"""Golden vectors: images of every accepted kind with the pixels and answers they must give.

They travel in the bundle, so any machine can prove (``Classifier.self_test``) that it
preprocesses and predicts as the machine that trained the model did.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import zlib
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from .data import Dataset
from .predict import Classifier, golden_answer

# PNG is exact. JPEG decoders may round by one or two gray levels from build to build.
_PNG_TOLERANCE, _JPEG_TOLERANCE = 0, 3
# int8 kernels accumulate differently on processors with and without 8-bit dot products.
_TOLERANCE = {"fp32": 2e-3, "int8": 0.1}
_KINDS = 10


def golden_vectors(classifier: Classifier, dataset: Dataset, int8: Classifier | None = None) -> bytes:
    """The JSON file for a bundle: one vector per image kind, from images of ``dataset``.

    Args:
        classifier: the bundle on an fp32 engine; decides the pixels, too.
        dataset: at least one image, (N, H, W) or (N, 3, H, W) uint8.
        int8: the bundle on an int8 engine, if it has one.
    """
    precisions = {"fp32": classifier} | ({} if int8 is None else {"int8": int8})
    vectors = []
    for name, data in encoded(dataset.images):
        decoded = classifier.decode([data])
        assert decoded.errors == (None,), (name, decoded.errors)
        pixels = decoded.tensor.tobytes()
        answers = {
            precision: {
                **golden_answer(model.outputs(decoded.tensor), model.predict_tensor(decoded.tensor)),
                "tolerance": _TOLERANCE[precision],
            }
            for precision, model in precisions.items()
        }
        vectors.append(
            {
                "name": name,
                "image": base64.b64encode(data).decode(),
                "pixels": base64.b64encode(zlib.compress(pixels, 9)).decode(),
                "pixels_sha256": hashlib.sha256(pixels).hexdigest(),
                "pixel_tolerance": _JPEG_TOLERANCE if "jpeg" in name else _PNG_TOLERANCE,
                "answers": answers,
            }
        )
    return (json.dumps({"vectors": vectors}, indent=1) + "\n").encode()


def encoded(images: NDArray[np.uint8]) -> Iterator[tuple[str, bytes]]:
    """(name, file content) for every kind; spread over the data set so that classes differ."""
    picked = map(_picture, (images[at] for at in np.linspace(0, len(images) - 1, _KINDS).astype(int)))
    yield "gray-png", _save(next(picked).convert("L"), "PNG")
    yield "wide-png", _save(next(picked).resize((112, 84), Image.Resampling.BICUBIC), "PNG")
    yield "rgb-png", _save(next(picked).convert("RGB"), "PNG")
    yield "palette-png", _save(next(picked).convert("P"), "PNG")
    cut_out = next(picked)
    cut_out.putalpha(cut_out.convert("L").point(lambda value: 255 if value else 0))
    yield "transparent-png", _save(cut_out, "PNG")
    yield "bilevel-png", _save(next(picked).convert("1"), "PNG")
    deep = np.asarray(next(picked).convert("L")).astype(np.uint16) << 8
    yield "sixteen-bit-png", _save(Image.fromarray(deep + 7), "PNG")
    yield "dark-on-light-png", _save(ImageOps.invert(next(picked)), "PNG")
    yield "gray-jpeg", _save(next(picked).convert("L"), "JPEG")
    turned = Image.Exif()
    turned[0x0112] = 6
    photo = next(picked).convert("RGB").resize((400, 300), Image.Resampling.BICUBIC)
    yield "rgb-jpeg-turned", _save(photo, "JPEG", exif=turned.tobytes())


def _picture(image: NDArray[np.uint8]) -> Image.Image:
    """(H, W) gray or (3, H, W) colour as a picture."""
    return Image.fromarray(image if image.ndim == 2 else np.ascontiguousarray(image.transpose(1, 2, 0)))


def _save(image: Image.Image, kind: str, **options: object) -> bytes:
    target = io.BytesIO()
    image.save(target, kind, **options)
    return target.getvalue()
