"""Reading PNG and JPEG headers without decoding: kind, size, and whether the container is whole.

Everything here is bounded by the length of the input and allocates next to nothing,
so it may run on bytes nobody has checked yet.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# Metadata, colour profiles and animation frames are dropped before a decoder sees them:
# compressed text chunks are a decompression bomb of their own.
_PNG_KEPT = frozenset((b"IHDR", b"PLTE", b"tRNS", b"eXIf", b"IDAT", b"IEND"))
# A 16 MiB file in libpng's default 8 KiB pieces has 2,048; far more than that is an attack on this loop.
_PNG_MAX_CHUNKS = 10_000
_JPEG_FRAMES = frozenset((*range(0xC0, 0xC4), *range(0xC5, 0xC8), *range(0xC9, 0xCC), *range(0xCD, 0xD0)))
_JPEG_BARE = frozenset((0x01, *range(0xD0, 0xD9)))  # markers without a length
_START_OF_SCAN, _END_OF_IMAGE = 0xDA, 0xD9
# Application segments and comments, except JFIF (0xE0) and Adobe's (0xEE), which says how colours are stored.
_JPEG_DROPPED = frozenset((*range(0xE1, 0xEE), 0xEF, 0xFE))
_ORIENTATION, _SHORT = 0x0112, 3  # EXIF tag and its type, 16-bit unsigned
_FOREIGN = (
    (b"GIF8", "GIF"),
    (b"BM", "BMP"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"%!PS", "EPS"),
    (b"\0\0\1\0", "ICO"),
    (b"8BPS", "PSD"),
    (b"\0\0\0\x0cjP  ", "JPEG 2000"),
)


class BadContainer(ValueError):  # noqa: N818 - a reason, turned into a value by its only caller
    """The container is damaged; ``reason`` is the token of :class:`classifier.images.InvalidImage`."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason, self.detail = reason, detail


@dataclass(frozen=True, slots=True)
class Header:
    """What an image says about itself: ``kind`` is "PNG" or "JPEG", the size is in pixels."""

    kind: str
    width: int
    height: int


@dataclass(frozen=True, slots=True)
class Png:
    """A PNG taken apart: its IHDR fields, its pixel stream, and the chunks worth decoding."""

    bit_depth: int
    colour_type: int
    interlace: int
    chunks: tuple[tuple[bytes, bytes], ...]
    intact: bool

    def stream(self) -> bytes:
        """The compressed pixels (all IDAT chunks joined)."""
        return b"".join(content for name, content in self.chunks if name == b"IDAT")

    def has(self, name: bytes) -> bool:
        """Whether a chunk of this name is present."""
        return any(found == name for found, _ in self.chunks)

    def orientation(self) -> int:
        """EXIF orientation, 1 to 8."""
        return exif_orientation(next((content for name, content in self.chunks if name == b"eXIf"), b""))

    def rebuild(self) -> bytes:
        """The same image without metadata and animation."""
        parts = [PNG_SIGNATURE]
        for name, content in self.chunks:
            if name == b"eXIf":
                continue
            parts += (
                struct.pack(">I", len(content)),
                name,
                content,
                struct.pack(">I", zlib.crc32(name + content)),
            )
        return b"".join(parts)


@dataclass(frozen=True, slots=True)
class Jpeg:
    """A JPEG without its metadata: size in pixels, the EXIF block (TIFF, may be empty), what to decode."""

    width: int
    height: int
    exif: bytes
    content: bytes


def read_header(data: bytes) -> Header:
    """Kind and size from the first bytes.

    Raises:
        BadContainer: neither PNG nor JPEG, or the header is cut or impossible.
    """
    if data.startswith(PNG_SIGNATURE):
        if len(data) < 33 or data[8:16] != b"\0\0\0\x0dIHDR":
            raise BadContainer("truncated", "PNG header is incomplete")
        width, height = struct.unpack_from(">II", data, 16)
        header = Header("PNG", width, height)
    elif data.startswith(b"\xff\xd8\xff"):
        header = Header("JPEG", *_jpeg_size(data))
    else:
        name = foreign_format(data)
        if name is not None:
            raise BadContainer("unsupported-format", f"{name} is not accepted, send PNG or JPEG")
        raise BadContainer("not-an-image", "neither PNG nor JPEG")
    if header.width == 0 or header.height == 0:
        raise BadContainer("corrupt", f"header says {header.width}x{header.height} pixels")
    return header


def declared_pixels(data: bytes) -> int:
    """Width times height as the header claims, 0 when there is no readable PNG or JPEG header.

    Reads the header only (microseconds), so a caller can bound the pixels it is about to decode.
    """
    try:
        header = read_header(data)
    except BadContainer:
        return 0
    return header.width * header.height


def foreign_format(data: bytes) -> str | None:
    """The name of a known image format that is refused, or None."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WebP"
    if data[4:12] in (b"ftypavif", b"ftypheic"):
        return "AVIF/HEIC"
    return next((name for magic, name in _FOREIGN if data.startswith(magic)), None)


def read_png(data: bytes) -> Png:
    """Take a PNG apart and check every chunk's length and checksum.

    Args:
        data: bytes that start with the PNG signature and a whole IHDR chunk.

    Raises:
        BadContainer: cut short, a checksum is wrong, or absurdly many chunks.
    """
    bit_depth, colour_type, _, _, interlace = struct.unpack_from(">5B", data, 24)
    chunks: list[tuple[bytes, bytes]] = []
    at, end, intact = 8, len(data), True
    for _ in range(_PNG_MAX_CHUNKS):
        if at + 12 > end:
            raise BadContainer("truncated", "PNG ends before its IEND chunk")
        (length,) = struct.unpack_from(">I", data, at)
        name, after = data[at + 4 : at + 8], at + 12 + length
        if after > end:
            raise BadContainer("truncated", f"PNG chunk {name!r} is cut short")
        body = data[at + 4 : after - 4]
        if zlib.crc32(body) != int.from_bytes(data[after - 4 : after], "big"):
            raise BadContainer("corrupt", f"PNG chunk {name!r} has a wrong checksum")
        if name == b"IHDR" and chunks:
            raise BadContainer("corrupt", "PNG has two headers")
        if name in _PNG_KEPT:
            chunks.append((name, body[4:]))
        if name == b"eXIf" or name not in _PNG_KEPT:
            intact = False
        if name == b"IEND":
            return Png(bit_depth, colour_type, interlace, tuple(chunks), intact and after == end)
        at = after
    raise BadContainer("corrupt", f"PNG has more than {_PNG_MAX_CHUNKS} chunks")


def read_jpeg(data: bytes) -> Jpeg:
    """Walk a JPEG's segments up to its first scan, by their lengths.

    Args:
        data: bytes that start with a JPEG's first three.

    Raises:
        BadContainer: cut short, out of step, or without exactly one frame header.
    """
    size: tuple[int, int] | None = None
    exif, kept, intact = b"", [data[:2]], True
    for at, marker, after in _jpeg_segments(data):
        if marker == _START_OF_SCAN:
            if size is None:
                raise BadContainer("corrupt", "JPEG has no frame header")
            return Jpeg(*size, exif, data if intact else b"".join(kept) + data[at:])
        if marker in _JPEG_FRAMES:
            if size is not None:
                raise BadContainer("corrupt", "JPEG has two frame headers")
            if after - at < 9:
                raise BadContainer("corrupt", "JPEG frame header is too short")
            height, width = struct.unpack_from(">HH", data, at + 5)
            size = width, height
        if marker in _JPEG_DROPPED:
            intact = False
            if not exif and data[at + 4 : at + 10] == b"Exif\0\0":
                exif = data[at + 10 : after]
        else:
            kept.append(data[at:after])
    raise BadContainer("truncated", "JPEG ends before its pixels")


def _jpeg_size(data: bytes) -> tuple[int, int]:
    for at, marker, after in _jpeg_segments(data):
        if marker in _JPEG_FRAMES and after - at >= 9:
            height, width = struct.unpack_from(">HH", data, at + 5)
            return width, height
        if marker == _START_OF_SCAN:
            raise BadContainer("corrupt", "JPEG has no frame header")
    raise BadContainer("truncated", "JPEG ends before its frame header")


def _jpeg_segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """(start, marker, end) of every segment; the first scan's ``end`` is that of its header."""
    at, end = 2, len(data)
    while at + 4 <= end:
        marker = data[at + 1]
        if data[at] != 0xFF or marker == 0x00:
            raise BadContainer("corrupt", "JPEG segments are out of step")
        if marker == 0xFF:  # padding before a marker
            at += 1
            continue
        if marker in _JPEG_BARE:
            at += 2
            continue
        if marker == _END_OF_IMAGE:
            raise BadContainer("corrupt", "JPEG has no pixels")
        (length,) = struct.unpack_from(">H", data, at + 2)
        if length < 2:
            raise BadContainer("corrupt", "JPEG segment length is impossible")
        after = at + 2 + length
        if after > end:
            raise BadContainer("truncated", "JPEG segment is cut short")
        yield at, marker, after
        at = after


def exif_orientation(exif: bytes) -> int:
    """The orientation (1..8) in a TIFF block as EXIF stores it; 1, upright, if there is none to be read."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(exif[:4])
    if order is None or len(exif) < 8:
        return 1
    (at,) = struct.unpack_from(f"{order}I", exif, 4)
    if at + 2 > len(exif):
        return 1
    (entries,) = struct.unpack_from(f"{order}H", exif, at)
    for entry in range(at + 2, min(at + 2 + 12 * entries, len(exif) - 11), 12):
        tag, kind, count, value = struct.unpack_from(f"{order}HHIH", exif, entry)
        if tag == _ORIENTATION and kind == _SHORT and count == 1:
            return int(value) if 1 <= value <= 8 else 1
    return 1
