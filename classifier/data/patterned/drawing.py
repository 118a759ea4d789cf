"""One patterned garment: cut out, dye, print, fold, lay down. Numpy and Pillow.

silhouette (28, 28) -> cut-out in the picture's size -> cloth (H, W, 3) -> picture (H, W, 3) uint8
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from .prints import Plane, checks, dots, flowers, stripes
from .styles import PRINTS, Colour, Style

_LUMA = np.array((0.299, 0.587, 0.114), np.float32)  # ITU-R 601
_SOLID = 24  # gray level above which a pixel of Fashion-MNIST belongs to the garment


@dataclass(frozen=True, slots=True)
class Garment:
    """One picture (H, W, 3) uint8 with what is true of it; ``tags`` follow :data:`TAGS`, 1 yes, 0 no."""

    pixels: NDArray[np.uint8]
    color: str
    tags: tuple[int, int, int]


def usable(images: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Which silhouettes can carry a print: bright, plain, and not made of straps. (N, 28, 28) -> (N,)."""
    solid = images > _SOLID
    area = solid.sum((1, 2))
    inner = solid.copy()
    for axis in (1, 2):
        inner &= np.roll(solid, 1, axis) & np.roll(solid, -1, axis)
    inside = np.maximum(inner.sum((1, 2)), 1)
    values = images.astype(np.float32)
    edges = np.abs(4 * values - sum(np.roll(values, by, axis) for by in (1, -1) for axis in (1, 2)))
    brightness = (values * inner).sum((1, 2)) / inside
    roughness = (edges * inner).sum((1, 2)) / inside / np.maximum(brightness, 1)
    return np.asarray((area >= 110) & (inside >= 0.55 * area) & (brightness >= 90) & (roughness <= 0.32))


def draw(silhouette: NDArray[np.uint8], style: Style, rng: np.random.Generator) -> Garment:
    """Dye, print and photograph one garment.

    Args:
        silhouette: (28, 28) uint8, light on black.
        style: how garments look.
        rng: decides everything that is left open.
    """
    tags = list(PRINTS)[int(rng.choice(len(PRINTS), p=list(PRINTS.values())))]
    color = str(rng.choice(list(style.dyes)))
    cut = _cut(silhouette, style, rng)
    cloth = _cloth(cut, tags, color, style, rng)
    picture = _lay(cut, cloth, _ground(style.dyes[color], style, rng), rng)
    return Garment(picture, color, tags)


@dataclass(frozen=True, slots=True)
class _Cut:
    """A cut-out in the size of the picture: coverage, light and cloth coordinates, all (H, W).

    ``unit_px`` is the garment's size.
    """

    mask: Plane
    light: Plane
    across: Plane
    down: Plane
    unit_px: float


def _cut(silhouette: NDArray[np.uint8], style: Style, rng: np.random.Generator) -> _Cut:
    solid = silhouette > _SOLID
    rows, columns = np.flatnonzero(solid.any(1)), np.flatnonzero(solid.any(0))
    box = (columns[-1] - columns[0] + 1, rows[-1] - rows[0] + 1)
    long_px, aspect = int(rng.integers(*style.sides_px, endpoint=True)), float(rng.choice(style.aspects))
    width, height = (
        (long_px, round(long_px * aspect)) if box[0] > box[1] else (round(long_px * aspect), long_px)
    )
    scale = rng.uniform(*style.fill) * float(min(width / box[0], height / box[1]))
    turn = math.radians(rng.uniform(-style.turn_deg, style.turn_deg))
    cos, sin = math.cos(turn) / scale, math.sin(turn) / scale
    left = columns[0] + (box[0] - cos * width - sin * height) / 2
    top = rows[0] + (box[1] - cos * height + sin * width) / 2
    place = tuple(4 * each for each in (cos, sin, left, -sin, cos, top))

    def enlarge(plane: Plane) -> Plane:
        image = Image.fromarray(plane)
        # Four times larger with smooth curves first: then the cheap filter is enough for the turn.
        grown = image.resize((112, 112), Image.Resampling.BICUBIC)
        grown = grown.transform((width, height), Image.Transform.AFFINE, place, Image.Resampling.BILINEAR)
        return np.asarray(grown)

    gray = silhouette.astype(np.float32)
    level = float(gray[solid].mean())
    # Half-lit pixels of the source lie on the edge or between sleeve and body: partly covered.
    covered = _blur(np.clip(gray / (0.7 * level) - 0.15, 0, 1), 0.12)
    mask = np.clip((enlarge(covered) - 0.45) * max(0.8 * scale, 1.5) + 0.5, 0, 1)
    light = enlarge(_blur(np.where(solid, gray, level) / np.float32(level), 0.2))
    y, x = np.mgrid[:height, :width].astype(np.float32)
    across = (cos * x + sin * y) * scale
    down = (cos * y - sin * x) * scale
    return _Cut(mask, light, across, down, scale * float(np.sqrt(solid.sum())))


def _blur(plane: Plane, side: float) -> Plane:
    """Mix every pixel with its neighbours along both axes, each weighing ``side``; the border repeats."""
    for axis in (0, 1):
        before = np.take(plane, [0, *range(plane.shape[axis] - 1)], axis)
        after = np.take(plane, [*range(1, plane.shape[axis]), plane.shape[axis] - 1], axis)
        plane = plane * (1 - 2 * side) + (before + after) * side
    return plane


def _cloth(
    cut: _Cut, tags: tuple[int, int, int], color: str, style: Style, rng: np.random.Generator
) -> Plane:
    """The dyed, printed and folded cloth, (3, H, W) float32 in 0..255."""
    unit, fold = cut.unit_px, rng.uniform(*style.folds)
    wave = np.sin(
        cut.across * (rng.uniform(4, 9) / unit) + cut.down * (rng.uniform(-5, 5) / unit) + rng.uniform(0, 6)
    )
    turn = rng.uniform(-0.25, 0.25) + (math.pi / 4 if rng.random() < 0.2 else 0.0)
    cos, sin = math.cos(turn), math.sin(turn)
    bent = cut.across + wave * (0.02 * fold * unit)
    across = bent * cos + cut.down * sin + rng.uniform(0, 100)
    down = cut.down * cos - bent * sin + rng.uniform(0, 100)
    base = _dye(style.dyes[color], rng)
    cloth = np.broadcast_to(base[:, None, None], (3, *across.shape)).copy()
    first, second, third = _inks(base, style, rng)
    if tags[2]:
        period, duty = rng.uniform(*style.check_period) * unit, rng.uniform(*style.check_duty)
        _print(cloth, checks(across, down, period, duty, str(rng.choice(style.check_kinds))), first)
    elif rng.random() < style.striped:
        _print(cloth, stripes(across, rng.uniform(*style.check_period) * unit, 0.5), first)
    if tags[1]:
        spacing, depth = rng.uniform(*style.flower_spacing) * unit, rng.uniform(*style.petal_depth)
        parts = flowers(across, down, spacing, int(rng.choice(style.petals)), depth, rng)
        _print(cloth, parts.leaves, _dye(style.leaf, rng))
        _print(cloth, parts.petals, second)
        _print(cloth, parts.centres, _inks(second, style, rng)[0])
    if tags[0]:
        spacing = rng.uniform(*style.dot_spacing) * unit
        radius = rng.uniform(*style.dot_radius) * spacing
        _print(cloth, dots(across, down, spacing, radius, bool(rng.random() < 0.7)), third)
    shade = 1 + 0.10 * fold * wave + 0.9 * fold * (cut.light - 1)
    return np.asarray(cloth * np.clip(shade, 0.5, 1.3))


def _print(cloth: Plane, coverage: Plane, ink: Plane) -> None:
    cloth += coverage * (ink[:, None, None] - cloth)


def _dye(colour: Colour | Plane, rng: np.random.Generator) -> Plane:
    """No two dyes are equal: the colour, a little off."""
    return (np.array(colour) + rng.normal(0, 7, 3)).clip(5, 250).astype(np.float32)


def _inks(cloth: Plane, style: Style, rng: np.random.Generator) -> list[Plane]:
    """Three inks that are seen on ``cloth``, at least 60 gray levels lighter or darker.

    Each is unlike those before (a distance of 100 in RGB), or as unlike as the dyes allow: dots in
    the colour of the checks below them would not be seen.
    """
    dyes = np.array(list(style.dyes.values()), np.float32)
    seen = rng.permutation(dyes[np.abs(dyes @ _LUMA - cloth @ _LUMA) >= 60])
    chosen = [seen[0]]
    while len(chosen) < 3:
        apart = np.min([np.linalg.norm(seen - each, axis=1) for each in chosen], axis=0)
        chosen.append(seen[np.argmax(apart >= 100) if apart.max() >= 100 else apart.argmax()])
    return [_dye(each, rng) for each in chosen]


def _ground(dye: Colour, style: Style, rng: np.random.Generator) -> tuple[Plane, float]:
    """Colour and unevenness of a background on which a garment of this dye can be seen.

    White on white is: its shadow shows. Dark on dark is not.
    """
    grounds = np.array(style.backgrounds, np.float32)
    luma = grounds @ _LUMA
    seen = grounds[(luma > 150) | (np.abs(luma - np.array(dye) @ _LUMA) >= 50)]
    return _dye(rng.choice(seen), rng), rng.uniform(*style.texture)


def _lay(
    cut: _Cut, cloth: Plane, ground_of: tuple[Plane, float], rng: np.random.Generator
) -> NDArray[np.uint8]:
    """The garment on its background, with a shadow, as (H, W, 3) uint8."""
    height, width = cut.mask.shape
    colour, texture = ground_of
    coarse = Image.fromarray(rng.normal(0, 1, (7, 7)).astype(np.float32))
    uneven = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))
    grain = rng.random((height, width), dtype=np.float32) - 0.5
    ground = colour[:, None, None] + texture * (0.5 * uneven + grain)  # (3, H, W)
    solid = Image.fromarray((cut.mask * 255).astype(np.uint8))
    shadow = np.asarray(solid.filter(ImageFilter.BoxBlur(0.03 * width)), np.float32) / 255
    fall = max(1, round(0.02 * height))
    ground[:, fall:] *= 1 - 0.3 * shadow[:-fall]
    # The rim of a garment turns away from the light.
    rim = 0.80 + 0.20 * np.clip(2 * shadow - 0.6, 0, 1)
    picture = ground + cut.mask * (cloth * rim - ground)
    return np.ascontiguousarray(picture.clip(0, 255).astype(np.uint8).transpose(1, 2, 0))
