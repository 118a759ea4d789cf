"""Images that are none of a model's classes: noise, digits, shapes, textures, scenes, photographs.

An outlier score is judged on them and never fitted to them. Everything is drawn here from a
seed; handwritten digits and photographs come with scikit-learn and are left out without it.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageFont

Pixels = NDArray[np.uint8]
Values = NDArray[np.float64]
_MAX_FAMILY_BYTES = 8 * 1024 * 1024
# Drawn this much larger and then reduced, so that edges are as soft as a photograph's.
_OVERSAMPLING = 4


def probe_sets(size: int = 28, channels: int = 1, count: int = 200, seed: int = 0) -> dict[str, Pixels]:
    """Probe images by family.

    Args:
        size: side in pixels, at least 8.
        channels: 1 gray, 3 RGB.
        count: images of a family, at most; fewer where they would take more than 8 MiB.
        seed: source of all randomness; the same seed draws the same images.

    Returns:
        Family -> (n, size, size) uint8 for gray, (n, 3, size, size) for RGB.

    Raises:
        ValueError: impossible size, channels or count.
    """
    if size < 8 or channels not in (1, 3) or count < 1:
        raise ValueError(f"need size >= 8, channels 1 or 3, count >= 1, got {size}, {channels} and {count}")
    count = min(count, max(8, _MAX_FAMILY_BYTES // (size * size * channels)))
    found: dict[str, Pixels] = {}
    for number, (family, draw) in enumerate(_NOISES.items()):
        rng = np.random.default_rng((seed, number))
        planes = _stack(rng, count * channels, size, draw)
        found[family] = planes if channels == 1 else planes.reshape(count, channels, size, size)
    for number, (family, draw) in enumerate(_DRAWINGS.items(), len(_NOISES)):
        rng = np.random.default_rng((seed, number))
        planes = _stack(rng, count, size, draw)
        found[family] = planes if channels == 1 else _coloured(planes, rng)
    return found | _from_scikit_learn(size, channels, count, seed)


def altered(images: Pixels) -> dict[str, Pixels]:
    """The model's own images, changed: negatives and quarter turns.

    Some of them still are what they were: a bag upside down is a bag.

    Args:
        images: (N, S, S) or (N, C, S, S).

    Returns:
        Kind of change -> images of the same shape.
    """
    turns = {"turned 90": 1, "turned 180": 2, "turned 270": 3}
    turned = {name: np.ascontiguousarray(np.rot90(images, k, (-2, -1))) for name, k in turns.items()}
    return {"inverted": 255 - images, **turned}


def _stack(
    rng: np.random.Generator, count: int, size: int, draw: Callable[[np.random.Generator, int], Values]
) -> Pixels:
    drawn = [np.clip(draw(rng, size), 0, 255).astype(np.uint8) for _ in range(count)]
    return np.ascontiguousarray(np.stack(drawn))


def _coloured(planes: Pixels, rng: np.random.Generator) -> Pixels:
    """(N, S, S) gray -> (N, 3, S, S): black and white become a dark and a light colour, or the reverse."""
    count = len(planes)
    dark, light = rng.uniform(0, 110, (count, 3, 1, 1)), rng.uniform(140, 255, (count, 3, 1, 1))
    share = np.abs(rng.integers(0, 2, (count, 1, 1, 1)) - planes[:, None] / 255)
    return np.asarray(dark + (light - dark) * share, np.uint8)


def _uniform(rng: np.random.Generator, size: int) -> Values:
    return rng.uniform(0, 256, (size, size))


def _gaussian(rng: np.random.Generator, size: int) -> Values:
    return rng.normal(rng.uniform(60, 190), rng.uniform(15, 80), (size, size))


def _salt_and_pepper(rng: np.random.Generator, size: int) -> Values:
    """Single white and black pixels on gray or on black."""
    share, ground, draw = rng.uniform(0.05, 0.45), rng.choice([0, 128]), rng.random((size, size))
    return np.where(draw < share, 255.0, np.where(draw > 1 - share, 0.0, ground))


def _blurred(rng: np.random.Generator, size: int) -> Values:
    """Clouds: noise blurred over 1/28 to 1/7 of the side, stretched to the full range."""
    noise = Image.fromarray(rng.integers(0, 256, (size, size), dtype=np.uint8))
    radius = rng.uniform(1, 4) * size / 28
    return _stretched(np.asarray(noise.filter(ImageFilter.GaussianBlur(radius)), np.float64))


def _stretched(values: Values) -> Values:
    low, high = values.min(), values.max()
    return np.asarray((values - low) * (255 / max(high - low, 1e-9)))


def _printed_digit(rng: np.random.Generator, size: int) -> Values:
    """A digit in PIL's own font, bright on black, of any boldness, a little turned."""
    font = ImageFont.load_default(size=rng.uniform(0.55, 1.05) * size)
    picture, (x, y) = Image.new("L", (size, size)), size * (0.5 + rng.uniform(-0.06, 0.06, 2))
    ImageDraw.Draw(picture).text(
        (x, y),
        str(rng.integers(10)),
        fill=int(rng.integers(160, 256)),
        font=font,
        anchor="mm",
        stroke_width=int(rng.integers(0, max(1, size // 14) + 1)),
    )
    return np.asarray(picture.rotate(rng.uniform(-20, 20), Image.Resampling.BILINEAR), np.float64)


def _shape(rng: np.random.Generator, size: int) -> Values:
    """A disc, ring, polygon or star, bright on black."""
    side = _OVERSAMPLING * size
    picture, tone = Image.new("L", (side, side)), int(rng.integers(100, 256))
    draw, radius, kind = ImageDraw.Draw(picture), rng.uniform(0.2, 0.48) * side, rng.integers(4)
    x, y = side * (0.5 + rng.uniform(-0.05, 0.05, 2))
    box = (x - radius, y - radius * rng.uniform(0.5, 1), x + radius, y + radius)
    if kind == 0:
        draw.ellipse(box, fill=tone)
    elif kind == 1:
        draw.ellipse(box, outline=tone, width=int(rng.uniform(0.05, 0.2) * side))
    elif kind == 2:
        draw.regular_polygon((x, y, radius), int(rng.integers(3, 8)), int(rng.integers(360)), fill=tone)
    else:
        angles = np.linspace(0, 2 * np.pi, 11)[:-1] + rng.uniform(0, 6)
        reach = np.where(np.arange(10) % 2, 0.45 * radius, radius)
        points = zip(
            (x + reach * np.cos(angles)).tolist(), (y + reach * np.sin(angles)).tolist(), strict=True
        )
        draw.polygon(list(points), fill=tone)
    return _reduced(picture, size)


def _reduced(picture: Image.Image, size: int) -> Values:
    return np.asarray(picture.resize((size, size), Image.Resampling.LANCZOS), np.float64)


def _wood(rng: np.random.Generator, size: int) -> Values:
    """Bent stripes of gray with a fine grain."""
    y, x = np.mgrid[:size, :size] / size
    knots = Image.fromarray(rng.random((4, 4)).astype(np.float32))
    bend = np.asarray(knots.resize((size, size), Image.Resampling.BICUBIC)) * rng.uniform(0.3, 3)
    waves = np.sin(2 * np.pi * (rng.uniform(2, 6) * x + bend + 0.2 * y))
    board = rng.uniform(80, 160) + rng.uniform(20, 60) * waves + rng.normal(0, 6, (size, size))
    return np.asarray(board if rng.random() < 0.5 else board.T)


def _brick(rng: np.random.Generator, size: int) -> Values:
    """A running bond with lighter joints; every brick has its own tone."""
    smallest = max(3, size // 9)
    height = int(rng.integers(smallest, max(smallest, size // 4) + 1))
    width, joint = 2 * height, max(1, height // 4)
    y, x = np.mgrid[:size, :size] + rng.integers(0, height, (2, 1, 1))
    row = y // height
    x = x + (row % 2) * height
    tones = rng.uniform(70, 150) + rng.uniform(-25, 25, (size, size))
    wall = tones[row % size, (x // width) % size]
    joints = (y % height < joint) | (x % width < joint)
    return np.asarray(np.where(joints, rng.uniform(150, 220), wall) + rng.normal(0, 5, (size, size)))


def _gradient(rng: np.random.Generator, size: int) -> Values:
    """One tone running into another, straight or round; at times hardly."""
    y, x = np.mgrid[:size, :size] / size
    angle = rng.uniform(0, 2 * np.pi)
    straight = x * np.cos(angle) + y * np.sin(angle)
    run = straight if rng.random() < 0.6 else np.hypot(x - rng.random(), y - rng.random())
    low, high = np.sort(rng.uniform(0, 255, 2))
    return np.asarray(low + (high - low) / 255 * _stretched(run))


def _scene(rng: np.random.Generator, size: int) -> Values:
    """Sky, ground, houses and a sun."""
    side = _OVERSAMPLING * size
    horizon = rng.uniform(0.4, 0.75) * side
    rows = np.arange(side)[:, None]
    tones = np.where(rows < horizon, rng.uniform(140, 220) + 30 * rows / side, rng.uniform(40, 120))
    picture = Image.fromarray(np.broadcast_to(tones, (side, side)).astype(np.uint8))
    draw = ImageDraw.Draw(picture)
    for _ in range(int(rng.integers(1, 5))):
        width, height = rng.uniform(0.1, 0.35) * side, rng.uniform(0.15, 0.45) * side
        left, tone, top = rng.uniform(0, side - width), int(rng.uniform(30, 220)), horizon - height
        draw.rectangle((left, top, left + width, horizon + 0.03 * side), fill=tone)
        roof = [(left, top), (left + width / 2, top - width / 2), (left + width, top)]
        draw.polygon(roof, fill=int(0.7 * tone))
    sun, x, y = rng.uniform(0.04, 0.1) * side, rng.uniform(0, side), rng.uniform(0, 0.3 * side)
    draw.ellipse((x - sun, y - sun, x + sun, y + sun), fill=255)
    return _reduced(picture, size)


_NOISES: dict[str, Callable[[np.random.Generator, int], Values]] = {
    "uniform noise": _uniform,
    "Gaussian noise": _gaussian,
    "salt and pepper": _salt_and_pepper,
    "blurred noise": _blurred,
}
_DRAWINGS: dict[str, Callable[[np.random.Generator, int], Values]] = {
    "printed digits": _printed_digit,
    "shapes": _shape,
    "wood": _wood,
    "brick": _brick,
    "gradients": _gradient,
    "scenes": _scene,
}


def _from_scikit_learn(size: int, channels: int, count: int, seed: int) -> dict[str, Pixels]:
    """Handwritten digits (UCI, 8x8, 0..16), large and with MNIST's margin; crops of two photographs."""
    try:
        from sklearn.datasets import load_digits, load_sample_images  # type: ignore[import-untyped]
    except ModuleNotFoundError:
        return {}
    rng = np.random.default_rng((seed, 100))
    digits = np.asarray(load_digits().images * (255 / 16), np.uint8)
    chosen = digits[rng.permutation(len(digits))[:count]]
    found = {}
    for family, inner in (("handwritten digits", size), ("handwritten digits, small", round(size * 20 / 28))):
        planes = np.zeros((len(chosen), size, size), np.uint8)
        at = (size - inner) // 2
        for plane, digit in zip(planes, chosen, strict=True):
            enlarged = Image.fromarray(digit).resize((inner, inner), Image.Resampling.BICUBIC)
            plane[at : at + inner, at : at + inner] = np.asarray(enlarged)
        found[family] = planes if channels == 1 else _coloured(planes, rng)
    mode = "L" if channels == 1 else "RGB"
    photographs = [Image.fromarray(image).convert(mode) for image in load_sample_images().images]
    crops = np.stack([_crop(photographs[n % len(photographs)], size, rng) for n in range(count)])
    found["photographs"] = crops if channels == 1 else np.ascontiguousarray(crops.transpose(0, 3, 1, 2))
    return found


def _crop(photograph: Image.Image, size: int, rng: np.random.Generator) -> Pixels:
    """A square of any place and scale, from ``size`` pixels up to the whole height."""
    largest = min(photograph.size)
    side = min(largest, math.exp(rng.uniform(math.log(min(size, largest)), math.log(largest))))
    left, top = rng.uniform(0, photograph.width - side), rng.uniform(0, photograph.height - side)
    box = (left, top, left + side, top + side)
    return np.asarray(photograph.resize((size, size), Image.Resampling.BILINEAR, box=box))
