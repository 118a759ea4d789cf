"""Damaged images, made on purpose: none of them can be decoded, whatever the decoder forgives."""

from __future__ import annotations

import io
import random
import struct
import zipfile
import zlib
from collections.abc import Callable

_IDAT_START = 41  # signature 8, IHDR 25, length and name of IDAT 8
_TEXT = b"<html><body>503 Service Unavailable</body></html>\n"


def damage(png: bytes, kind: str, chance: random.Random) -> bytes:
    """Return what is left of an image.

    Args:
        png: a file made by ``client.schema.encode_png``.
        kind: one of ``DAMAGES``.
        chance: decides where; the same state gives the same bytes.
    """
    return _MAKERS[kind](png, chance)


def _truncated(png: bytes, chance: random.Random) -> bytes:
    """Cut inside the pixel data, as a broken upload does."""
    end = len(png) - 16
    return png[: chance.randrange(_IDAT_START + 1, _IDAT_START + (end - _IDAT_START) // 2)]


def _text(_png: bytes, chance: random.Random) -> bytes:
    """An error page in place of the image."""
    return _TEXT + str(chance.randrange(10**9)).encode()


def _empty(_png: bytes, _chance: random.Random) -> bytes:
    return b""


def _flipped(png: bytes, chance: random.Random) -> bytes:
    """Flip one bit of the pixel data such that part of the pixels cannot be inflated.

    Most flips only change pixels; a decoder that checks no sums shows the wrong picture and says nothing.
    """
    end = len(png) - 16
    for _ in range(200):
        flipped = bytearray(png)
        flipped[chance.randrange(_IDAT_START + 2, end)] ^= 1 << chance.randrange(8)
        if not _inflates(bytes(flipped)):
            return bytes(flipped)
    flipped = bytearray(png)
    flipped[_IDAT_START] ^= 1  # another compression method, which no decoder knows
    return bytes(flipped)


def _inflates(png: bytes) -> bool:
    """Whether all pixels come out, right or wrong, before anything fails; checksums are not looked at."""
    width, height = struct.unpack_from(">II", png, 16)
    missing: int = height * (width + 1)
    raw = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        for byte in png[_IDAT_START + 2 : -16]:
            missing -= len(raw.decompress(bytes((byte,))))
    except zlib.error:
        return missing <= 0
    return True


def _gif(_png: bytes, chance: random.Random) -> bytes:
    """A whole GIF of one pixel: an image, of a kind that is not accepted."""
    colour = bytes(chance.randrange(256) for _ in range(3))
    table = colour + b"\0\0\0"
    frame = b"\x2c" + bytes(4) + b"\1\0\1\0\0" + b"\2\2\x44\1\0"
    return b"GIF89a\1\0\1\0\x80\0\0" + table + frame + b"\x3b"


def _zip(png: bytes, _chance: random.Random) -> bytes:
    """The image inside a zip."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        # A fixed date, so that one seed gives the same bytes at any time.
        archive.writestr(zipfile.ZipInfo("image.png", (1980, 1, 1, 0, 0, 0)), png)
    return packed.getvalue()


_MAKERS: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "truncated": _truncated,
    "text": _text,
    "empty": _empty,
    "flipped": _flipped,
    "gif": _gif,
    "zip": _zip,
}
DAMAGES = tuple(_MAKERS)
