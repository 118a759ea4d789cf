"""What ``dlq show`` draws: known pictures as known text, and nothing that harms the terminal."""

from __future__ import annotations

import io
import struct
import zlib

import pytest
from PIL import Image
from rich.console import Console

from client.dlq_display import half_blocks, hex_lines, picture_of, shades
from client.schema import png_chunk

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def png(rows: list[list[tuple[int, ...]]], mode: str = "RGB") -> bytes:
    """A picture of these pixels, as a file."""
    image = Image.new(mode, (len(rows[0]), len(rows)))
    image.putdata([pixel for row in rows for pixel in row])
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


def drawn(data: bytes, colors: str | None, width: int = 80) -> str:
    """What a terminal gets."""
    picture = picture_of(data, width, 40)
    assert picture is not None
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, color_system=colors, width=80)  # type: ignore[arg-type]
    console.print(half_blocks(picture.image) if console.color_system else shades(picture.image), end="")
    return out.getvalue()


FOUR = [[RED, GREEN, BLUE, WHITE], [WHITE, RED, GREEN, BLUE], [BLUE] * 4, [RED, RED, GREEN, GREEN]]


def test_four_by_four_pixels_are_four_by_two_characters() -> None:
    """The upper pixel is the colour of the sign, the lower one of its ground."""
    names = {RED: "255;0;0", GREEN: "0;255;0", BLUE: "0;0;255", WHITE: "255;255;255"}
    rows = []
    for top, bottom in ((FOUR[0], FOUR[1]), (FOUR[2], FOUR[3])):
        signs = [
            f"\x1b[38;2;{names[above]};48;2;{names[below]}m▀\x1b[0m"
            for above, below in zip(top, bottom, strict=True)
        ]
        rows.append("".join(signs) + "\n")
    assert drawn(png(FOUR), "truecolor") == "".join(rows)


def test_fewer_colours_are_the_nearest_ones() -> None:
    """A terminal of 256 colours gets numbers, and no true colours."""
    # Not the pixels of the other tests: rich remembers how it wrote a colour, whatever the terminal.
    text = drawn(png([[(250, 0, 0)], [(250, 250, 250)]]), "256")
    assert text == "\x1b[38;5;196;48;5;231m▀\x1b[0m\n"


def test_without_colours_brightness_is_drawn() -> None:
    """From dark to light, with no escape sequence."""
    black, gray = (0, 0, 0), (128, 128, 128)
    assert drawn(png([[black, gray, WHITE]] * 2), None) == " +@\n"


def test_the_last_row_of_an_odd_picture_has_no_ground() -> None:
    """Below it is the terminal."""
    assert drawn(png([[RED]]), "truecolor") == "\x1b[38;2;255;0;0m▀\x1b[0m\n"


def test_a_large_picture_is_made_to_fit_and_a_transparent_one_has_a_ground() -> None:
    """No line is longer than the terminal."""
    wide = picture_of(png([[RED] * 300] * 100), 80, 40)
    assert wide is not None
    assert (wide.size, wide.image.size) == ((300, 100), (80, 27))
    clear = picture_of(png([[(255, 0, 0, 0)]], "RGBA"), 80, 40)
    assert clear is not None
    assert clear.image.getpixel((0, 0)) == (128, 128, 128)


def test_a_damaged_picture_is_drawn_as_far_as_it_decodes() -> None:
    """Most dead letters are damaged pictures: what is left of them says what they were."""
    noise = [[(x * y % 251, x % 7 * 36, y) for x in range(64)] for y in range(64)]
    whole = png(noise)
    cut = picture_of(whole[: len(whole) // 2], 80, 80)
    assert cut is not None
    assert not cut.whole
    assert cut.image.getpixel((5, 0)) == noise[0][5]
    complete = picture_of(whole, 80, 80)
    assert complete is not None
    assert complete.whole


def bomb(side: int) -> bytes:
    """A small file that says it is large."""
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    body = png_chunk(b"IDAT", zlib.compress(b"\0" * 1000))
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + body + png_chunk(b"IEND", b"")


@pytest.mark.parametrize(
    "data",
    [b"", b"not an image", b"GIF89a" + b"\0" * 100, b"\x89PNG\r\n\x1a\n", bomb(20_000), bomb(2**31 - 1)],
    ids=["empty", "text", "gif", "signature", "bomb", "huge"],
)
def test_what_is_no_picture_is_not_drawn(data: bytes) -> None:
    """Nor is one of a format that no worker takes, or one that would fill the memory."""
    assert picture_of(data, 80, 40) is None


def test_the_head_of_a_body_is_shown_as_bytes() -> None:
    """Offset, hexadecimal, and text without what a terminal obeys."""
    lines = list(hex_lines(bytes(range(27, 43)) + b"AB"))
    assert lines[0].split("  ")[-1].strip().endswith("""..... !"#$%&'()*""")
    assert "1b 1c" in lines[0]
    assert "\x1b" not in "".join(lines)
    assert lines[-1].endswith("18 bytes")
    assert list(hex_lines(bytes(1000)))[-1].endswith("744 more bytes; --out FILE writes all")
    assert [each.strip() for each in hex_lines(b"")] == ["body  0 bytes"]
