"""IDX, the format of MNIST and its kin: unsigned bytes behind a small big-endian header.

Source of the format: http://yann.lecun.com/exdb/mnist/ (magic number, then one size per dimension).
"""

from __future__ import annotations

import gzip
import hashlib
import struct
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError

IDX_IMAGES, IDX_LABELS = 2051, 2049  # magic numbers: unsigned byte, 3 and 1 dimensions


def read_idx(path: Path, sha256: str | None = None) -> NDArray[np.uint8]:
    """Read one IDX file, gzipped or plain.

    Args:
        path: the file; gzip is recognised by its first bytes, not by its name.
        sha256: expected hash of the decompressed bytes, or None for no check.

    Raises:
        DataError: unreadable, truncated, wrong magic number, size or hash.
    """
    again = f"; fetch it again, or point --data at another copy of {path.name}"
    try:
        raw = path.read_bytes()
        content = gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read or decompressed ({error}){again}") from error
    if len(content) < 8:
        raise DataError(f"{path}: not an IDX file, only {len(content)} bytes{again}")
    (magic,) = struct.unpack(">I", content[:4])
    if magic not in (IDX_IMAGES, IDX_LABELS):
        raise DataError(
            f"{path}: not an IDX file, magic number {magic}, expected {IDX_IMAGES} or {IDX_LABELS}{again}"
        )
    dimensions = magic & 0xFF
    header_bytes = 4 + 4 * dimensions
    shape = struct.unpack(f">{dimensions}I", content[4:header_bytes].ljust(4 * dimensions, b"\0"))
    expected_bytes = header_bytes + int(np.prod(shape, dtype=np.int64))
    if len(content) != expected_bytes:
        raise DataError(
            f"{path}: header says {shape}, {expected_bytes} bytes, but there are {len(content)}{again}"
        )
    found = hashlib.sha256(content).hexdigest()
    if sha256 is not None and found != sha256:
        raise DataError(
            f"{path}: not the content of the Fashion-MNIST release: sha256 {found}, expected {sha256}{again}"
        )
    return np.frombuffer(content, np.uint8, offset=header_bytes).reshape(shape)
