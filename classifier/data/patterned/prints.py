"""Textile prints as coverage maps: how much of each pixel the ink covers. Pure numpy.

Every function takes the cloth coordinates ``across`` and ``down``, (H, W) float32 in
pixels, which may be turned and warped, and returns coverage, (H, W) float32 in [0, 1]
with edges about one pixel soft. Lengths are in pixels.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Plane = NDArray[np.floating]  # float32 in fact; numpy does not tell the types of its results
CHECKS = ("gingham", "chessboard", "tartan", "windowpane")
_TABLE = 32  # flowers repeat after so many cells, far outside any garment


class Flowers(NamedTuple):
    """Coverage of the parts of a flower print, from the bottom to the top."""

    leaves: Plane
    petals: Plane
    centres: Plane


def dots(across: Plane, down: Plane, spacing: float, radius: float, staggered: bool) -> Plane:
    """Polka dots on a square grid, every second row moved by half a cell if ``staggered``."""
    row = np.floor(down / spacing)
    moved = across / spacing + (0.5 * (row % 2) if staggered else 0.0)
    x = (moved - np.floor(moved) - 0.5) * spacing
    y = down - (row + 0.5) * spacing
    return _inside(radius - np.hypot(x, y))


def stripes(across: Plane, period: float, duty: float) -> Plane:
    """Bands along ``down``; ``duty`` is the inked share of the period."""
    phase = across / period
    from_middle = np.abs(phase - np.floor(phase) - 0.5)
    return _inside((duty / 2 - from_middle) * period)


def checks(across: Plane, down: Plane, period: float, duty: float, kind: str) -> Plane:
    """One of :data:`CHECKS`: crossing bands whose overlaps are darker, squares, or a net of lines.

    Raises:
        ValueError: ``kind`` is none of them.
    """
    first, second = stripes(across, period, duty), stripes(down, period, duty)
    if kind == "gingham":
        return (first + second) / 2
    if kind == "chessboard":
        return first + second - 2 * first * second
    if kind == "tartan":
        lines = stripes(across + period / 2, period, 0.09), stripes(down + period / 2, period, 0.09)
        return np.maximum((first + second) / 2, np.maximum(*lines))
    if kind == "windowpane":
        return np.maximum(stripes(across, period, duty / 3), stripes(down, period, duty / 3))
    raise ValueError(f"the kinds of checks are {', '.join(CHECKS)}, not {kind!r}")


def flowers(
    across: Plane, down: Plane, spacing: float, petals: int, depth: float, rng: np.random.Generator
) -> Flowers:
    """One flower in most cells of a grid, each with its own place, turn and size.

    Args:
        across, down: cloth coordinates.
        spacing: side of a cell.
        petals: petals of a flower.
        depth: how deep the gaps between petals cut, as a share of the flower's radius.
        rng: draws the flowers.
    """
    table = rng.random((5, _TABLE, _TABLE), dtype=np.float32)
    column, row = np.floor(across / spacing), np.floor(down / spacing)
    cell = (column.astype(np.int32) % _TABLE) * _TABLE + row.astype(np.int32) % _TABLE
    move_x, move_y, turn, size, shown = (part.ravel()[cell] for part in table)
    x = across - (column + 0.5 + 0.2 * (move_x - 0.5)) * spacing
    y = down - (row + 0.5 + 0.2 * (move_y - 0.5)) * spacing
    radius = spacing * np.where(shown > 0.1, 0.30 + 0.10 * size, 0.0)
    distance, angle = np.hypot(x, y), np.arctan2(y, x) + turn * (2 * math.pi)
    outline = radius * (1 - depth * (0.5 - 0.5 * np.cos(petals * angle)))
    leaf = radius * (1.3 * np.cos(angle) ** 2 - 0.2)  # two, opposite each other
    return Flowers(_inside(leaf - distance), _inside(outline - distance), _inside(radius * 0.3 - distance))


def _inside(depth: Plane) -> Plane:
    """Coverage from the signed distance to the edge, positive inside."""
    return np.asarray(np.clip(depth + 0.5, 0.0, 1.0), np.float32)
