"""One picture of many results: every image with what was said and what is true, mistakes marked."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

_COLUMNS = 10
_PICTURE = 84
_MARGIN = 8
_TEXT_LINE = 15
_CELL = (_PICTURE + 2 * _MARGIN, _PICTURE + 2 * _TEXT_LINE + 2 * _MARGIN)
_HEADER = 46
_INK, _PAPER, _RIGHT, _WRONG = (30, 34, 40), (250, 250, 248), (32, 120, 70), (190, 30, 45)


@dataclass(frozen=True, slots=True)
class Tile:
    """One image of the sheet.

    Attributes:
        image: an encoded image.
        predicted: what the worker said.
        truth: what is true.
        confidence: of ``predicted``, 0 to 1.
    """

    image: bytes
    predicted: str
    truth: str
    confidence: float


def can_write(path: Path) -> bool:
    """Say whether the name ends as a format that can be written; its directory is made."""
    if Image.registered_extensions().get(path.suffix.lower()) not in Image.SAVE or path.is_dir():
        return False
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(path.parent, os.W_OK)


def draw_contact_sheet(tiles: Sequence[Tile], title: str, path: Path) -> None:
    """Write a PNG with ten tiles a row; a mistake has a red frame and names the truth.

    Args:
        tiles: in the order in which they are drawn.
        title: one line at the top.
        path: overwritten; its directory is made.
    """
    rows = max(1, -(-len(tiles) // _COLUMNS))
    sheet = Image.new("RGB", (_COLUMNS * _CELL[0], _HEADER + rows * _CELL[1]), _PAPER)
    pen = ImageDraw.Draw(sheet)
    pen.text((_MARGIN, 14), title, fill=_INK, font=ImageFont.load_default(17))
    for place, tile in enumerate(tiles):
        row, column = divmod(place, _COLUMNS)
        _draw_tile(sheet, pen, tile, (column * _CELL[0] + _MARGIN, _HEADER + row * _CELL[1] + _MARGIN))
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)


def _draw_tile(sheet: Image.Image, pen: ImageDraw.ImageDraw, tile: Tile, corner: tuple[int, int]) -> None:
    x, y = corner
    with Image.open(io.BytesIO(tile.image)) as picture:
        sheet.paste(picture.convert("RGB").resize((_PICTURE, _PICTURE), Image.Resampling.NEAREST), corner)
    right = tile.predicted == tile.truth
    color = _RIGHT if right else _WRONG
    if not right:
        pen.rectangle((x - 3, y - 3, x + _PICTURE + 2, y + _PICTURE + 2), outline=_WRONG, width=3)
    small = ImageFont.load_default(11)
    pen.text((x, y + _PICTURE + 3), f"{tile.predicted} {tile.confidence:.0%}", fill=color, font=small)
    if not right:
        pen.text((x, y + _PICTURE + 3 + _TEXT_LINE), f"is {tile.truth}", fill=_INK, font=small)
