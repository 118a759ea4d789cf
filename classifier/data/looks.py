"""A look at a sample of the images: sizes, modes, colour, background; and what follows from it."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..errors import DataError
from ..images import Preprocessing, decode
from ..polarity import light_framed
from .options import DataOptions
from .pictures import Pictures, spread

SAMPLE = 500
_MIN_SIZE, _MAX_SIZE, _STEP = 28, 64, 4  # pixels
_LOOK = Preprocessing(size=32, channels=3)
# JPEG's rounding moves the channels of a gray picture apart by a level or two, never by this much.
_COLOUR_LEVELS, _COLOUR_PIXELS, _COLOUR_IMAGES = 16, 0.01, 0.01


@dataclass(frozen=True, slots=True)
class Looks:
    """What a sample showed.

    Attributes:
        images: how many could be decoded.
        sides: (n, 2) width and height in pixels.
        modes: images by file kind and Pillow's mode.
        coloured: share of images with visible colour.
        light_framed: share of images that are dark on light (:func:`classifier.polarity.light_framed`).
    """

    images: int
    sides: NDArray[np.int64]
    modes: dict[str, int]
    coloured: float
    light_framed: float

    def to_dict(self) -> dict[str, Any]:
        """JSON form for the facts."""
        longer = np.sort(self.sides.max(axis=1)) if self.images else np.zeros(1, np.int64)
        return {
            "sample": self.images,
            "longer_side_px": {
                "min": int(longer[0]),
                "median": int(longer[len(longer) // 2]),
                "max": int(longer[-1]),
            },
            "sizes": len({tuple(side) for side in self.sides.tolist()}),
            "modes": self.modes,
            "coloured": round(self.coloured, 4),
            "light_framed": round(self.light_framed, 4),
        }


def look(pictures: Pictures, rows: Sequence[int]) -> Looks:
    """Look at up to :data:`SAMPLE` of ``rows``."""
    wanted = set(rows)
    sample = [row for row in pictures.sample(SAMPLE) if row in wanted]
    sample = sample or [rows[at] for at in spread(len(rows), SAMPLE)]
    sides, modes = [], Counter[str]()
    coloured = light = 0
    for data in pictures.read(sample):
        if isinstance(data, DataError) or not len(pixels := decode([data], _LOOK).tensor):
            continue
        # Decoded without complaint a moment ago, so its header is sound.
        with Image.open(io.BytesIO(data), formats=("PNG", "JPEG")) as image:
            sides.append(image.size)
            modes[f"{image.format} {image.mode}"] += 1
        far = pixels[0].max(axis=0).astype(int) - pixels[0].min(axis=0) > _COLOUR_LEVELS
        coloured += bool(far.mean() >= _COLOUR_PIXELS)
        light += light_framed(Image.fromarray(np.ascontiguousarray(pixels[0].transpose(1, 2, 0))))
    count = len(sides)
    shape = np.array(sides, np.int64).reshape(-1, 2)
    return Looks(count, shape, dict(modes.most_common()), coloured / max(count, 1), light / max(count, 1))


def choose(looks: Looks, options: DataOptions) -> Preprocessing:
    """The preprocessing that suits the sample, where ``options`` leave it open.

    - size: the median of the longer side, rounded to a multiple of 4, from 28 to 64 pixels.
    - channels: 3 as soon as 1 % of the images have visible colour.
    - polarity: "keep", because a network trained on a set learns that set's own polarity; turning
      pictures over is for models that meet pictures of another kind than they were trained on.
    - resample: "lanczos"; of pictures made smaller it keeps the most detail (docs/results.md).
    """
    median = int(np.median(looks.sides.max(axis=1))) if looks.images else _MIN_SIZE
    size = min(max(_STEP * round(median / _STEP), _MIN_SIZE), _MAX_SIZE)
    return replace(
        Preprocessing(),
        size=options.size or size,
        channels=options.channels or (3 if looks.coloured >= _COLOUR_IMAGES else 1),
        polarity=options.polarity or "keep",
        resample="lanczos",
    )
