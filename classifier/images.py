"""From image bytes to the network's input: the one preprocessing of training, command line and worker.

    bytes -> header checks -> decode (PNG, JPEG) -> colours -> resize -> upright -> polarity -> pad
          -> uint8 (channels, size, size)

Rules (tested one by one):

| stored as | in a gray model (``channels`` 1) | in a colour model (``channels`` 3) |
|---|---|---|
| 1, L | gray as stored | the same value three times |
| RGB, P | luma, ITU-R 601 (Pillow's ``convert("L")``) | RGB as stored |
| CMYK | RGB, then luma | RGB without colour management |
| LA, RGBA, P or L or RGB with a transparent colour | luma blended over ``background`` | RGB blended over it |
| 16-bit gray or RGB | the high bytes | the high bytes |

| rule | what it does |
|---|---|
| transparent colour (tRNS) | of palettes, gray with 1, 8 or 16 bits, RGB with 8; of others ignored |
| EXIF orientation | honoured; every other metadata, colour profiles too, is ignored |
| ``fit`` "stretch" | both sides become ``size``; "pad" keeps the aspect ratio and fills with ``background`` |
| ``polarity`` "auto" | a light frame around something darker is inverted: :func:`.polarity.light_framed` |
| animated PNG | the first frame counts |

``background`` is what the network sees: a picture that is inverted is blended over its opposite, and
padded after the inversion. A bad image is a value, :class:`InvalidImage`, never an exception.
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
from .polarity import POLARITIES, with_polarity

__all__ = ["Decoded", "InvalidImage", "Preprocessing", "decode", "preprocess"]

_RESAMPLE = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
FITS = ("stretch", "pad")
# PNG colour types whose 8-bit rows are a Pillow mode as they stand.
_PLAIN_MODES = {0: "L", 2: "RGB", 4: "LA", 6: "RGBA"}
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
        channels: 1 for gray, 3 for red, green and blue.
        resample: "bilinear", "bicubic" or "lanczos", from soft to sharp; all antialiased.
        background: gray value behind transparent pixels and around padded images; Fashion-MNIST's is black.
        polarity: "keep", "invert" (dark on light photos for a model trained light on dark), or "auto".
        fit: "stretch" to the square, or "pad" to it.
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
    channels: int = 1
    polarity: str = "keep"
    fit: str = "stretch"

    def __post_init__(self) -> None:
        known = self.resample in _RESAMPLE and self.polarity in POLARITIES and self.fit in FITS
        if not known or self.size < 1 or self.channels not in (1, 3) or not 0 <= self.background <= 255:
            raise ValueError(
                f"impossible preprocessing {self}: size from 1, channels 1 or 3, background 0..255, resample"
                f" {' or '.join(_RESAMPLE)}, polarity {', '.join(POLARITIES)}, fit {' or '.join(FITS)}"
            )

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, size, size), the shape of one decoded image."""
        return self.channels, self.size, self.size

    def to_dict(self) -> dict[str, Any]:
        """JSON form for the manifest."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Decoded:
    """A decoded batch.

    Attributes:
        tensor: (M, channels, size, size) uint8, the M good images in order.
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
    return Decoded(flat.reshape(len(pixels), *spec.shape), tuple(errors))


def preprocess(data: bytes, spec: Preprocessing) -> bytes | InvalidImage:
    """The pixels of one image, (channels, size, size) uint8 in C order, or why there are none.

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
        return _finish(image, orientation, (header.width, header.height), spec)
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
    size = header.width, header.height
    if header.kind == "PNG":
        png = read_png(data)
        if mode := _plain_mode(png):
            # Straight to Pillow's pixel decoder: same code, without the 30 us of its container parser.
            return Image.frombytes(mode, size, png.stream(), "zip", mode, 0), png.orientation()
        return PngImageFile(io.BytesIO(data if png.intact else png.rebuild())), png.orientation()
    jpeg = read_jpeg(data)
    _check_scans(data, header, spec)
    image = JpegImageFile(io.BytesIO(jpeg.content))
    # Lets libjpeg decode big photos at 1/2, 1/4 or 1/8 scale, never below twice the output.
    width, height = _fitted(size, spec)
    image.draft("L" if spec.channels == 1 else None, (2 * width, 2 * height))
    return image, exif_orientation(jpeg.exif)


def _check_scans(data: bytes, header: Header, spec: Preprocessing) -> None:
    if b"\xff\xd9" not in data:
        raise BadContainer("truncated", "JPEG has no end marker")
    # Every scan of a progressive file passes over all pixels: few bytes can buy hours of work.
    scans = data.count(b"\xff\xda")
    if scans > 1000 or scans * header.width * header.height > 16 * spec.max_pixels:
        raise BadContainer("too-large", f"JPEG with {scans} scans of {header.width}x{header.height} pixels")


def _plain_mode(png: Png) -> str | None:
    """Pillow's mode if the pixel stream is 8-bit rows and nothing in the file changes their meaning."""
    plain = png.bit_depth == 8 and png.interlace == 0 and not png.has(b"tRNS")
    return _PLAIN_MODES.get(png.colour_type) if plain else None


def _fitted(size: tuple[int, int], spec: Preprocessing) -> tuple[int, int]:
    """Width and height of the resized image, before padding."""
    if spec.fit == "stretch":
        return spec.size, spec.size
    scale = spec.size / max(size)
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def _finish(image: Image.Image, orientation: int, size: tuple[int, int], spec: Preprocessing) -> bytes:
    """Colours, size, direction and polarity as the rules want them, channel by channel."""
    picture = _coloured(image, spec)
    if picture.size != (fitted := _fitted(size, spec)):
        picture = picture.resize(fitted, _RESAMPLE[spec.resample])
    if orientation in _UPRIGHT:
        picture = picture.transpose(_UPRIGHT[orientation])
    picture = with_polarity(picture, spec.polarity)
    if picture.size != (spec.size, spec.size):
        canvas = Image.new(picture.mode, (spec.size, spec.size), (spec.background,) * spec.channels)
        canvas.paste(picture, ((spec.size - picture.width) // 2, (spec.size - picture.height) // 2))
        picture = canvas
    return picture.tobytes() if spec.channels == 1 else _planes(picture).tobytes()


def _planes(picture: Image.Image) -> NDArray[np.uint8]:
    """(C, H, W) of a picture in mode L or RGB."""
    pixels = np.asarray(picture)
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def _coloured(image: Image.Image, spec: Preprocessing) -> Image.Image:
    """Mode L or RGB by the rules in the module's table."""
    image.load()
    mode = "L" if spec.channels == 1 else "RGB"
    behind = 255 - spec.background if spec.polarity == "invert" else spec.background
    clear = image.info.get("transparency")
    if image.mode == mode and clear is None:
        return image
    if image.mode.startswith("I"):
        deep = np.asarray(image).astype(np.int64).clip(0, 65535)
        high = np.where(deep == clear, behind, deep >> 8).astype(np.uint8)
        return Image.fromarray(high).convert(mode)
    if clear is not None:
        image = image.convert("RGBA")
    if image.mode in ("LA", "La", "RGBA", "RGBa", "PA"):
        image = image.convert("RGBA")
        canvas = Image.new(mode, image.size, (behind,) * spec.channels)
        canvas.paste(image.convert(mode), mask=image.getchannel("A"))
        return canvas
    if image.mode == "CMYK":
        image = image.convert("RGB")
    return image.convert(mode)
