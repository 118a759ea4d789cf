"""Polarity: whether an object is lighter or darker than what is around it.

Garment data sets such as Fashion-MNIST are light on dark, photos in a shop's catalogue dark on light.
A network that saw one kind only fails on the other, so the preprocessing can turn pictures over.
"""

from __future__ import annotations

from typing import cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

POLARITIES = ("keep", "invert", "auto")
_LIGHT, _CLEARLY = 128, 8  # gray levels


def light_framed(picture: Image.Image) -> bool:
    """Whether a picture is dark on light.

    The rule: at least half of the outermost ring of pixels is light (128 or more) and clearly lighter
    (by more than 8) than the mean of the middle half. Half of the ring, because an object may leave the
    picture on one side; the mean of the middle, because a garment has white parts too.

    Args:
        picture: mode L, or RGB, whose luma counts.

    Source: own rule. No image of Fashion-MNIST is taken for dark on light, 99.96 % of their inverses are
    (docs/results.md).
    """
    gray = picture if picture.mode == "L" else picture.convert("L")
    (width, height), rows = gray.size, gray.tobytes()
    ring = sorted(rows[:width] + rows[-width:] + rows[::width] + rows[width - 1 :: width])
    frame = ring[len(ring) // 2]
    if frame < _LIGHT:
        return False
    half = (width // 4, height // 4, width - width // 4, height - height // 4)
    middle = cast("int", gray.resize((1, 1), Image.Resampling.BOX, half).getpixel((0, 0)))
    return frame > middle + _CLEARLY


def with_polarity(picture: Image.Image, polarity: str) -> Image.Image:
    """The picture as ``polarity`` wants it: one of :data:`POLARITIES`."""
    turned = polarity == "invert" or (polarity == "auto" and light_framed(picture))
    return ImageOps.invert(picture) if turned else picture


def normalise_polarity(images: NDArray[np.uint8], polarity: str) -> NDArray[np.uint8]:
    """The same for pixels that were never files, such as IDX arrays.

    Args:
        images: (N, C, H, W) uint8, C 1 or 3; left unchanged.
        polarity: "keep" returns ``images`` itself.

    Returns:
        (N, C, H, W) uint8.
    """
    if polarity == "keep":
        return images
    turned = np.full(len(images), polarity == "invert")
    if polarity == "auto":
        for index, image in enumerate(images):
            pixels = image[0] if len(image) == 1 else image.transpose(1, 2, 0)
            turned[index] = light_framed(Image.fromarray(np.ascontiguousarray(pixels)))
    return np.where(turned[:, None, None, None], 255 - images, images)
