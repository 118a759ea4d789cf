"""From image bytes to the network's input: the one preprocessing of training, command line and worker.

    bytes -> header checks -> decode (PNG, JPEG) -> gray -> resize -> upright -> uint8 (1, size, size)

Rules by mode (tested one by one):

| stored as | becomes |
|---|---|
| 1, L | gray as stored |
| RGB, P, CMYK | luma, ITU-R 601 (Pillow's ``convert("L")``) |
| LA, RGBA, P or L or RGB with a transparent colour | luma, then blended over ``background`` |
| 16-bit gray | the high byte |

Any size is stretched to the square input; EXIF orientation is honoured, every other
metadata ignored. Of an animated PNG the first frame counts. A bad image is a value,
:class:`InvalidImage`, never an exception.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile

from .headers import (
    BadContainer,
    Header,
    Png,
    exif_orientation,
    read_header,
    read_jpeg,
    read_png,
)

__all__ = ["Decoded", "InvalidImage", "Preprocessing", "decode", "preprocess"]

_RESAMPLE = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True, slots=True)
class InvalidImage:
    """Why an image was refused.

    Attributes:
        reason: one of "empty", "too-large", "not-an-image", "unsupported-format", "truncated", "corrupt".
        detail: one line for people; holds no image content.
    """

    reason: str
    detail: str


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """How bytes become the network's input; stored in the bundle's manifest.

    Attributes:
        size: side of the square output in pixels.
        resample: "bilinear" or "bicubic", both antialiased.
        background: gray value behind transparent pixels; Fashion-MNIST's own is black.
        max_bytes: largest accepted file.
        max_side_px, max_pixels: largest accepted image, checked in the header before decoding.
            Pillow's own limit of 89 million pixels only warns, so ours is far below it.
    """

    size: int = 28
    resample: str = "bilinear"
    background: int = 0
    max_bytes: int = 16 * 1024 * 1024
    max_side_px: int = 4096
    max_pixels: int = 16_777_216

    def __post_init__(self) -> None:
        if self.size < 1 or self.resample not in _RESAMPLE or not 0 <= self.background <= 255:
            raise ValueError(f"impossible preprocessing {self}")

    def to_dict(self) -> dict[str, Any]:
        """JSON form for the manifest."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Decoded:
    """A decoded batch.

    Attributes:
        tensor: (M, 1, size, size) uint8, the M good images in order.
        errors: per input None if it is in ``tensor``, else why it is not.
    """

    tensor: NDArray[np.uint8]
    errors: tuple[InvalidImage | None, ...]


def decode(images: Sequence[bytes], spec: Preprocessing) -> Decoded:
    """Preprocess a batch; bad images are left out of the tensor and explained in ``errors``."""
    pixels: list[bytes] = []
    errors: list[InvalidImage | None] = []
    for data in images:
        result = preprocess(data, spec)
        if isinstance(result, InvalidImage):
            errors.append(result)
        else:
            pixels.append(result)
            errors.append(None)
    flat = np.frombuffer(b"".join(pixels), np.uint8)
    return Decoded(flat.reshape(len(pixels), 1, spec.size, spec.size), tuple(errors))


def preprocess(data: bytes, spec: Preprocessing) -> bytes | InvalidImage:
    """The ``size * size`` gray pixels of one image, row by row, or why there are none.

    Args:
        data: a PNG or JPEG file. Whatever else it may be, nothing is raised for its content.
        spec: the rules.
    """
    if not data:
        return InvalidImage("empty", "no bytes")
    if len(data) > spec.max_bytes:
        return InvalidImage("too-large", f"{len(data)} bytes, at most {spec.max_bytes} are accepted")
    try:
        header = read_header(data)
        _check_size(header.width, header.height, spec)
        image, orientation = _open(data, header, spec)
        return _finish(image, orientation, spec)
    except BadContainer as error:
        return InvalidImage(error.reason, error.detail)
    # A decoder fed hostile bytes may raise anything, and all of it means that the image is bad.
    except Exception as error:
        reason = "truncated" if "truncated" in str(error).lower() else "corrupt"
        return InvalidImage(reason, f"{type(error).__name__}: {str(error)[:200]}")


def _check_size(width: int, height: int, spec: Preprocessing) -> None:
    if width > spec.max_side_px or height > spec.max_side_px or width * height > spec.max_pixels:
        limits = f"at most {spec.max_side_px} a side and {spec.max_pixels} in all are accepted"
        raise BadContainer("too-large", f"{width}x{height} pixels, {limits}")


def _open(data: bytes, header: Header, spec: Preprocessing) -> tuple[Image.Image, int]:
    """The image, opened but not yet decoded, and its EXIF orientation.

    Metadata is stripped first: Pillow's parsers of text, colour profiles and EXIF never see it.

    Raises:
        BadContainer: damaged, or more work than the size allows.
    """
    if header.kind == "PNG":
        png = read_png(data)
        if _is_plain_gray(png):
            # Straight to Pillow's pixel decoder: same code, without the 30 us of its container parser.
            plain = Image.frombytes("L", (header.width, header.height), png.stream(), "zip", "L", 0)
            return plain, png.orientation()
        return PngImageFile(io.BytesIO(data if png.intact else png.rebuild())), png.orientation()
    jpeg = read_jpeg(data)
    _check_scans(data, header, spec)
    image = JpegImageFile(io.BytesIO(jpeg.content))
    # Lets libjpeg decode big photos at 1/2, 1/4 or 1/8 scale, never below twice the output.
    image.draft("L", (2 * spec.size, 2 * spec.size))
    return image, exif_orientation(jpeg.exif)


def _check_scans(data: bytes, header: Header, spec: Preprocessing) -> None:
    if b"\xff\xd9" not in data:
        raise BadContainer("truncated", "JPEG has no end marker")
    # Every scan of a progressive file passes over all pixels: few bytes can buy hours of work.
    scans = data.count(b"\xff\xda")
    if scans > 1000 or scans * header.width * header.height > 16 * spec.max_pixels:
        raise BadContainer("too-large", f"JPEG with {scans} scans of {header.width}x{header.height} pixels")


def _is_plain_gray(png: Png) -> bool:
    """Whether the pixel stream is 8-bit gray rows and nothing in the file changes their meaning."""
    return png.colour_type == 0 and png.bit_depth == 8 and png.interlace == 0 and not png.has(b"tRNS")


def _finish(image: Image.Image, orientation: int, spec: Preprocessing) -> bytes:
    """Gray, resized, upright: ``size * size`` bytes."""
    gray = _gray(image, spec.background)
    if gray.size != (spec.size, spec.size):
        gray = gray.resize((spec.size, spec.size), _RESAMPLE[spec.resample])
    if orientation in _UPRIGHT:
        gray = gray.transpose(_UPRIGHT[orientation])
    return gray.tobytes()


def _gray(image: Image.Image, background: int) -> Image.Image:
    """Mode L by the rules in the module's table."""
    image.load()
    if image.mode == "L" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I"):
        deep = np.asarray(image).astype(np.int64).clip(0, 65535)
        return Image.fromarray((deep >> 8).astype(np.uint8))
    if "transparency" in image.info:
        image = image.convert("RGBA")
    if image.mode in ("LA", "La", "RGBA", "RGBa", "PA"):
        image = image.convert("RGBA")
        canvas = Image.new("L", image.size, background)
        canvas.paste(image.convert("L"), mask=image.getchannel("A"))
        return canvas
    if image.mode == "CMYK":
        image = image.convert("RGB")
    return image.convert("L")
