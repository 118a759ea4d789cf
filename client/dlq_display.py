"""How dead letters are shown: as a table, one by one, and their bodies as pictures or bytes."""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageFile
from rich.box import SIMPLE_HEAD
from rich.color import Color
from rich.console import Console
from rich.style import Style
from rich.table import Table
from rich.text import Text

from .display import plain, wide_stdout
from .dlq_letter import Letter

_HALF_BLOCK = "\N{UPPER HALF BLOCK}"
# Without colours, from dark to light.
_SHADES = " .:-=+*#%@"
_PAPER = (128, 128, 128)
# What the workers take, and no more pixels: a picture that is a bomb must not go off at the operator's.
_FORMATS = ("PNG", "JPEG")
_MAX_PIXELS = 16_777_216
_HEX_BYTES = 256
_HEX_COLUMNS = 16
_SHOWN_CHARACTERS = 1_000
# Columns of the table, by what fits a screen: a text from outside must not push the others out.
_CELL_CHARACTERS = {
    "message id": 80,
    "reason": 24,
    "tried": 20,
    "failed at (UTC)": 19,
    "subject": 100,
    "error": 300,
}
# Rows below and above a picture.
_MARGIN_ROWS = 2


class LetterObjects:
    """Dead letters as one JSON list, printed as they come, an object a line."""

    def __init__(self) -> None:
        self._opening = "["

    def add(self, letter: Letter) -> None:
        """Print one more."""
        print(f"{self._opening}\n{json.dumps(letter.to_dict())}", end="")
        self._opening = ","

    def end(self) -> None:
        """Close the list."""
        print("[]" if self._opening == "[" else "\n]")


class LetterTable:
    """Dead letters as a table; a long list is counted, and shown in part.

    Args:
        most: rows that are shown.
        limit: no more letters than these are looked for; None looks for all.
    """

    def __init__(self, most: int, limit: int | None = None) -> None:
        self._most = most
        self._limit = limit
        self._reasons: Counter[str] = Counter()
        self._table = Table(box=SIMPLE_HEAD)
        for name in _CELL_CHARACTERS:
            self._table.add_column(name, no_wrap=name not in ("subject", "error"))

    def add(self, letter: Letter) -> None:
        """Take one more."""
        self._reasons[_cut(letter.reason, _CELL_CHARACTERS["reason"])] += 1
        if self._table.row_count == self._most:
            return
        tried = f"{letter.attempts}" + (f" +{letter.replays} replays" if letter.replays else "")
        when = letter.failed_at[:19].replace("T", " ")
        words = (letter.message_id, letter.reason, tried, when, letter.subject or "", letter.error)
        cells = [_cut(each, most) for each, most in zip(words, _CELL_CHARACTERS.values(), strict=True)]
        self._table.add_row(*map(Text, cells))

    def end(self) -> None:
        """Print what was taken."""
        count = self._reasons.total()
        if not count:
            print("no dead letters")
            return
        console = wide_stdout()
        console.print(self._table)
        kinds = ", ".join(f"{number:,} {reason}" for reason, number in self._reasons.most_common(5))
        hidden = count - self._table.row_count
        more = f"; {hidden:,} more are not shown: --limit or --json" if hidden else ""
        if count == self._limit:
            more = "; there may be more: --limit ended the search"
        print(f"{count:,} dead letter(s): {kinds}{more}")


def print_letter(letter: Letter, out: Path | None, draw: bool | None) -> None:
    """Print one letter.

    Args:
        letter: with its body.
        out: where the body was written, if it was.
        draw: the picture; None if this is a terminal.
    """
    for name, value in letter.to_dict().items():
        text = plain(str(value)) if value is not None else "-"
        rest = len(text) - _SHOWN_CHARACTERS
        print(f"{name:>14}  {text[:_SHOWN_CHARACTERS]}{f'… ({rest:,} more characters)' if rest > 0 else ''}")
    if out is not None:
        print(f"{'body':>14}  {out}")
    console = Console(force_terminal=True if draw else None)
    picture = None
    if draw or (draw is None and console.is_terminal):
        picture = picture_of(letter.data, console.width, 2 * (console.height - _MARGIN_ROWS))
    if picture is not None:
        note = "" if picture.whole else ", damaged: drawn as far as it decodes"
        print(f"{'picture':>14}  {picture.size[0]:,} x {picture.size[1]:,} pixels{note}")
        console.print((half_blocks if console.color_system else shades)(picture.image), end="")
    elif out is None:
        for line in hex_lines(letter.data):
            print(line)


@dataclass(frozen=True, slots=True)
class Picture:
    """An image to be drawn.

    Attributes:
        size: of the original: width and height, pixels.
        whole: it is not damaged.
        image: RGB, made to fit.
    """

    size: tuple[int, int]
    whole: bool
    image: Image.Image


def picture_of(data: bytes, width: int, height: int) -> Picture | None:
    """Return the image in a body, made to fit; None if it holds none that can be drawn.

    Args:
        data: a PNG or JPEG file, perhaps a damaged one.
        width: at most, pixels.
        height: at most, pixels.
    """
    for whole in (True, False):
        try:
            # Pillow has no other way to be lenient; nothing else decodes in this process.
            ImageFile.LOAD_TRUNCATED_IMAGES = not whole
            with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
                size = image.size
                if size[0] * size[1] > _MAX_PIXELS:
                    return None
                picture = image.convert("RGBA")
                picture.thumbnail((max(1, width), max(1, height)), Image.Resampling.BOX)
                paper = Image.new("RGBA", picture.size, _PAPER)
                return Picture(size, whole, Image.alpha_composite(paper, picture).convert("RGB"))
        except Exception:  # noqa: S112 - whatever a damaged file makes Pillow raise
            continue
        finally:
            ImageFile.LOAD_TRUNCATED_IMAGES = False
    return None


def half_blocks(image: Image.Image) -> Text:
    """Return an RGB image as text, two pixels to a character: one above the other."""
    drawn = Text()
    for y in range(0, image.height, 2):
        for x in range(image.width):
            below = _color(image, x, y + 1) if y + 1 < image.height else None
            drawn.append(_HALF_BLOCK, Style(color=_color(image, x, y), bgcolor=below))
        drawn.append("\n")
    return drawn


def shades(image: Image.Image) -> Text:
    """Return an image as text for a terminal without colours."""
    gray = image.convert("L").resize((image.width, -(-image.height // 2)), Image.Resampling.BOX)
    signs = "".join(_SHADES[level * len(_SHADES) // 256] for level in gray.tobytes())
    return Text(
        "".join(f"{signs[start : start + gray.width]}\n" for start in range(0, len(signs), gray.width))
    )


def hex_lines(data: bytes) -> Iterator[str]:
    """Yield the head of a body, 16 bytes a line: offset, hexadecimal, text."""
    for start in range(0, min(len(data), _HEX_BYTES), _HEX_COLUMNS):
        row = data[start : start + _HEX_COLUMNS]
        text = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in row)
        yield f"{start:>14x}  {row.hex(' '):<{3 * _HEX_COLUMNS}} {text}"
    more = len(data) - _HEX_BYTES
    yield f"{'body':>14}  " + (
        f"{more:,} more bytes; --out FILE writes all" if more > 0 else f"{len(data):,} bytes"
    )


def _color(image: Image.Image, x: int, y: int) -> Color:
    red, green, blue = image.getpixel((x, y))  # type: ignore[misc]
    return Color.from_rgb(red, green, blue)


def _cut(text: str, most: int) -> str:
    return plain(text if len(text) <= most else f"{text[: most - 1]}…")
