"""How patterned garments may look: dyes, prints, backgrounds and pictures, as frozen ranges.

:data:`SHIFTED` shares no dye, no background and no measure of a print with :data:`TRAINED`:
a model trained on the one is judged on the other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from .prints import CHECKS

TAGS = ("polka dot", "floral", "checker")
# How often each set of prints is seen. Each tag stands on 26 or 27 % of the garments. Flowers with
# dots are met twice as often as flowers with checks, as in a shop.
PRINTS: Mapping[tuple[int, int, int], float] = MappingProxyType(
    {
        (0, 0, 0): 0.36,
        (1, 0, 0): 0.16,
        (0, 1, 0): 0.16,
        (0, 0, 1): 0.18,
        (1, 1, 0): 0.06,
        (1, 0, 1): 0.04,
        (0, 1, 1): 0.03,
        (1, 1, 1): 0.01,
    }
)
CATEGORIES: Mapping[str, float] = MappingProxyType(
    {"Upper": 0.34, "Bottom": 0.16, "OnePiece": 0.18, "Footwear": 0.18, "Bags": 0.14}
)
Colour = tuple[int, int, int]
Range = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Style:
    """Everything that decides how garments look. Lengths of prints are shares of the garment's size,
    the square root of its area.

    Attributes:
        name: for records.
        dyes: the colours by their names in ``color1``, as RGB.
        leaf: green of the leaves.
        backgrounds: what the garment lies on, as RGB.
        texture: strength of the background's unevenness, in gray levels.
        sides_px: length of the longer side.
        aspects: shorter by longer side.
        fill: share of the picture that the garment's box spans.
        turn_deg: largest rotation.
        quality: JPEG quality.
        dot_spacing, dot_radius: of polka dots; the radius is a share of the spacing.
        flower_spacing, petals, petal_depth: of flowers, see :func:`.prints.flowers`.
        check_period, check_duty, check_kinds: of checks, see :func:`.prints.checks`.
        striped: share of the garments without checks that have stripes, which carry no tag.
        folds: strength of the cloth's folds, which bend prints and shade them.
    """

    name: str
    dyes: Mapping[str, Colour]
    leaf: Colour
    backgrounds: tuple[Colour, ...]
    texture: Range
    sides_px: tuple[int, int]
    aspects: tuple[float, ...]
    fill: Range
    turn_deg: float
    quality: tuple[int, int]
    dot_spacing: Range
    dot_radius: Range
    flower_spacing: Range
    petals: tuple[int, ...]
    petal_depth: Range
    check_period: Range
    check_duty: Range
    check_kinds: tuple[str, ...] = CHECKS
    striped: float = 0.06
    folds: Range = (0.3, 1.0)


TRAINED = Style(
    name="trained",
    dyes=MappingProxyType(
        {
            "black": (30, 30, 34),
            "white": (240, 240, 238),
            "gray": (128, 130, 134),
            "red": (196, 34, 42),
            "pink": (236, 150, 178),
            "orange": (232, 128, 36),
            "yellow": (240, 206, 64),
            "green": (46, 128, 66),
            "blue": (64, 128, 208),
            "navy": (28, 40, 92),
            "purple": (118, 62, 150),
            "brown": (112, 72, 44),
            "beige": (214, 192, 160),
        }
    ),
    leaf=(66, 120, 60),
    backgrounds=(
        (250, 250, 250),
        (236, 234, 228),
        (224, 228, 234),
        (244, 238, 226),
        (52, 54, 60),
        (34, 38, 50),
    ),
    texture=(0.0, 10.0),
    sides_px=(80, 200),
    aspects=(1.0, 0.9, 0.8, 0.7),
    fill=(0.70, 0.94),
    turn_deg=8.0,
    quality=(55, 95),
    dot_spacing=(0.17, 0.26),
    dot_radius=(0.24, 0.34),
    flower_spacing=(0.28, 0.42),
    petals=(5, 6, 8),
    petal_depth=(0.40, 0.60),
    check_period=(0.20, 0.32),
    check_duty=(0.42, 0.55),
)
SHIFTED = Style(
    name="shifted",
    dyes=MappingProxyType(
        {
            "black": (48, 44, 44),
            "white": (250, 246, 236),
            "gray": (150, 148, 142),
            "red": (168, 28, 60),
            "pink": (222, 120, 160),
            "orange": (216, 104, 60),
            "yellow": (226, 188, 92),
            "green": (86, 146, 92),
            "blue": (92, 156, 214),
            "navy": (40, 54, 110),
            "purple": (142, 90, 168),
            "brown": (136, 90, 62),
            "beige": (226, 208, 184),
        }
    ),
    leaf=(96, 140, 70),
    backgrounds=((206, 200, 190), (188, 200, 206), (214, 206, 216), (84, 78, 74), (70, 84, 88)),
    texture=(6.0, 16.0),
    sides_px=(64, 180),
    aspects=(0.95, 0.85, 0.75),
    fill=(0.66, 0.86),
    turn_deg=12.0,
    quality=(45, 80),
    dot_spacing=(0.26, 0.30),
    dot_radius=(0.20, 0.24),
    flower_spacing=(0.42, 0.48),
    petals=(4, 7),
    petal_depth=(0.30, 0.40),
    check_period=(0.32, 0.38),
    check_duty=(0.55, 0.60),
)
STYLES = {style.name: style for style in (TRAINED, SHIFTED)}
