"""PNG files made chunk by chunk: what no encoder writes."""

from __future__ import annotations

import struct
import zlib

from classifier.headers import PNG_SIGNATURE


def chunk(name: bytes, body: bytes) -> bytes:
    """One PNG chunk with a right checksum."""
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png_header(width: int, height: int, depth: int = 8, colour: int = 0, interlace: int = 0) -> bytes:
    """Signature and IHDR of a PNG."""
    fields = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlace)
    return PNG_SIGNATURE + chunk(b"IHDR", fields)


def png(width: int, height: int, rows: bytes, *extra: bytes, **fields: int) -> bytes:
    """A whole file: ``rows`` with their filter bytes, ``extra`` chunks before the pixels."""
    body = chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return png_header(width, height, **fields) + b"".join(extra) + body
