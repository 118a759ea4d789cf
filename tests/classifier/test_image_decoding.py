"""Decoding: the rule for every mode, and every refusal from the header."""

from __future__ import annotations

import io
import struct
import time
import tracemalloc
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from classifier import Dataset, InvalidImage, Preprocessing, declared_pixels
from classifier.images import decode, preprocess
from tests.png_files import chunk, png_header

SPEC = Preprocessing()
Encode = Callable[..., bytes]


def pixels(data: bytes, spec: Preprocessing = SPEC) -> np.ndarray:
    """The decoded image, (size, size) uint8; fails on a refusal."""
    result = preprocess(data, spec)
    assert isinstance(result, bytes), result
    return np.frombuffer(result, np.uint8).reshape(spec.size, spec.size)


def refusal(data: bytes, spec: Preprocessing = SPEC) -> str:
    """The reason an image was refused for; fails if it was accepted."""
    result = preprocess(data, spec)
    assert isinstance(result, InvalidImage)
    assert result.detail
    return result.reason


@pytest.fixture
def gray(validation: Dataset) -> np.ndarray:
    """An ankle boot."""
    return validation.images[0]


def test_png_pixels_equal_the_training_arrays(validation: Dataset, encode: Encode) -> None:
    """What a worker decodes is bit for bit what training saw: one preprocessing."""
    data = [encode(image) for image in validation.images[:1000]]
    assert np.array_equal(decode(data, SPEC).tensor[:, 0], validation.images[:1000])


@pytest.mark.parametrize("options", [{}, {"optimize": True}, {"compress_level": 0}, {"compress_level": 9}])
def test_the_fast_path_equals_pillows_own_parser(gray: np.ndarray, encode: Encode, options: dict) -> None:
    """Plain gray PNGs skip Pillow's container parser and must not differ for it."""
    data = encode(gray, **options)
    with Image.open(io.BytesIO(data)) as image:
        assert np.array_equal(pixels(data), np.asarray(image.convert("L")))


def test_colour_becomes_luma(gray: np.ndarray, encode: Encode) -> None:
    """RGB is weighted as ITU-R 601 says."""
    red = Image.new("RGB", (28, 28), (255, 0, 0))
    assert set(pixels(encode(red)).ravel().tolist()) == {76}
    assert np.array_equal(pixels(encode(Image.fromarray(gray).convert("RGB"))), gray)


def test_a_palette_is_looked_up(encode: Encode) -> None:
    """Mode P stores indices, not brightness."""
    image = Image.new("P", (28, 28), 1)
    image.putpalette([0, 0, 0, 255, 255, 255] + [0] * 750)
    assert set(pixels(encode(image)).ravel().tolist()) == {255}


def test_bilevel_is_black_and_white(encode: Encode) -> None:
    """Mode 1 has two values, 0 and 255."""
    assert set(pixels(encode(Image.new("1", (28, 28), 1))).ravel().tolist()) == {255}


@pytest.mark.parametrize(("mode", "colour"), [("LA", (200, 0)), ("RGBA", (200, 200, 200, 0))])
def test_transparent_pixels_show_the_background(encode: Encode, mode: str, colour: tuple) -> None:
    """What is fully transparent has no colour of its own."""
    data = encode(Image.new(mode, (28, 28), colour))
    assert set(pixels(data).ravel().tolist()) == {0}
    assert set(pixels(data, Preprocessing(background=255)).ravel().tolist()) == {255}


@pytest.mark.parametrize(("mode", "colour"), [("LA", (200, 128)), ("RGBA", (200, 200, 200, 128))])
def test_half_transparent_pixels_are_blended(encode: Encode, mode: str, colour: tuple) -> None:
    """200 at half opacity over black is about 100."""
    (value,) = set(pixels(encode(Image.new(mode, (28, 28), colour))).ravel().tolist())
    assert abs(value - 100) <= 1


def test_a_transparent_colour_counts_as_transparency(encode: Encode) -> None:
    """A tRNS chunk makes one gray level of a gray PNG transparent."""
    data = encode(Image.new("L", (28, 28), 90), transparency=90)
    assert set(pixels(data).ravel().tolist()) == {0}


def test_sixteen_bit_gray_keeps_its_high_byte(encode: Encode) -> None:
    """16-bit values are scaled, not clipped."""
    image = Image.fromarray(np.full((28, 28), 0x80FF, np.uint16))
    assert set(pixels(encode(image)).ravel().tolist()) == {0x80}


def test_cmyk_jpegs_are_accepted(encode: Encode) -> None:
    """Print files become luma like any colour image."""
    black = pixels(encode(Image.new("CMYK", (28, 28), (0, 0, 0, 255)), "JPEG"))
    white = pixels(encode(Image.new("CMYK", (28, 28), (0, 0, 0, 0)), "JPEG"))
    assert black.max() < 10
    assert white.min() > 245


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_honoured(gray: np.ndarray, encode: Encode, orientation: int) -> None:
    """A photo stored sideways with its EXIF tag gives the upright pixels."""
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    upright = Image.fromarray(gray)
    stored = upright if orientation == 1 else upright.transpose(undo[orientation])
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert np.array_equal(pixels(encode(stored, exif=exif.tobytes())), gray)
    jpeg = pixels(encode(stored, "JPEG", exif=exif.tobytes(), quality=95))
    assert np.abs(jpeg.astype(int) - gray).mean() < 6


def test_broken_exif_is_ignored(gray: np.ndarray, encode: Encode) -> None:
    """Unreadable metadata says nothing about the pixels."""
    data = encode(gray, "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")
    assert pixels(data).shape == (28, 28)


@given(width=st.integers(1, 90), height=st.integers(1, 90), kind=st.sampled_from(["PNG", "JPEG"]))
@settings(max_examples=40, deadline=None)
def test_any_size_is_resized(width: int, height: int, kind: str) -> None:
    """1x1 and 90x1 alike become 28x28, and a flat image stays flat."""
    target = io.BytesIO()
    Image.new("L", (width, height), 120).save(target, kind)
    assert np.abs(pixels(target.getvalue()).astype(int) - 120).max() <= 2
    assert declared_pixels(target.getvalue()) == width * height


def test_a_big_photo_is_scaled_close_to_the_exact_result(gray: np.ndarray, encode: Encode) -> None:
    """Decoding a JPEG at reduced scale changes pixels by a rounding, not by content."""
    photo = Image.fromarray(gray).resize((1024, 768), Image.Resampling.BICUBIC)
    exact = np.asarray(photo.resize((28, 28), Image.Resampling.BILINEAR), int)
    assert np.abs(pixels(encode(photo, "JPEG", quality=95)) - exact).mean() < 4


def test_the_first_frame_of_an_animated_png_counts(gray: np.ndarray, encode: Encode) -> None:
    """Animation chunks are dropped before decoding."""
    other = Image.fromarray(255 - gray)
    data = encode(Image.fromarray(gray), save_all=True, append_images=[other])
    assert b"acTL" in data
    assert np.array_equal(pixels(data), gray)


def test_bytes_after_the_end_are_ignored(gray: np.ndarray, encode: Encode) -> None:
    """A file that is also something else (a zip behind a PNG) is read as its image alone."""
    assert np.array_equal(pixels(encode(gray) + b"PK\3\4" + bytes(100)), gray)


def test_compressed_text_is_dropped_unread(gray: np.ndarray, encode: Encode) -> None:
    """Text chunks that would unfold to 64 MB cost nothing."""
    bomb = chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(1_000_000), 9))
    plain = encode(gray)
    data = plain[:33] + bomb * 64 + plain[33:]
    tracemalloc.start()
    assert np.array_equal(pixels(data), gray)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 2_000_000


@pytest.mark.parametrize(
    ("kind", "options"),
    [("GIF", {}), ("BMP", {}), ("TIFF", {}), ("WEBP", {}), ("EPS", {}), ("ICO", {}), ("PPM", {})],
)
def test_formats_off_the_list_are_refused(gray: np.ndarray, encode: Encode, kind: str, options: Any) -> None:
    """Only PNG and JPEG parsers ever run, whatever else Pillow could read."""
    assert refusal(encode(gray, kind, **options)) in ("unsupported-format", "not-an-image")


@pytest.mark.parametrize(
    "data", [b"hello", b"PK\3\4" + bytes(40), b"<!doctype html>", b"\0" * 2000, b"\x89PNG"]
)
def test_other_bytes_are_not_an_image(data: bytes) -> None:
    """Text, archives and noise are told apart from damaged images."""
    assert refusal(data) == "not-an-image"
    assert declared_pixels(data) == 0


def test_no_bytes_are_empty() -> None:
    """An empty message has its own reason."""
    assert refusal(b"") == "empty"


def test_every_cut_of_a_file_is_refused(gray: np.ndarray, encode: Encode) -> None:
    """An upload that stopped anywhere is never half an image."""
    for data in (encode(gray), encode(gray, "JPEG")):
        for end in range(1, len(data) - 1):
            assert isinstance(preprocess(data[:end], SPEC), InvalidImage)


def test_every_flipped_byte_of_a_png_is_noticed(gray: np.ndarray, encode: Encode) -> None:
    """Checksums are verified, so no PNG is classified with wrong pixels."""
    data = encode(gray)
    for at in range(len(data)):
        damaged = bytearray(data)
        damaged[at] ^= 0x10
        assert isinstance(preprocess(bytes(damaged), SPEC), InvalidImage), at


def test_a_bomb_is_refused_from_its_header() -> None:
    """A PNG of 20,000 x 20,000 black pixels is refused in milliseconds without its memory."""
    row_bytes = 20_001
    packed = zlib.compress(bytes(row_bytes * 200), 9) * 10
    data = png_header(20_000, 20_000) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")
    started = time.perf_counter()
    tracemalloc.start()
    assert refusal(data) == "too-large"
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 1_000_000
    assert time.perf_counter() - started < 0.5
    assert declared_pixels(data) == 400_000_000


@pytest.mark.parametrize(("width", "height"), [(1, 65_500), (4097, 1), (4097, 4097)])
def test_sides_and_area_have_limits(width: int, height: int) -> None:
    """Long thin images are bombs too."""
    assert refusal(png_header(width, height) + chunk(b"IEND", b"")) == "too-large"


def test_the_largest_allowed_image_is_accepted(encode: Encode) -> None:
    """4096 x 4096 is inside the limit."""
    assert pixels(encode(Image.new("L", (4096, 4096), 50))).max() == 50


def test_a_zero_size_header_is_corrupt() -> None:
    """Zero pixels are a damaged header, not an image."""
    assert refusal(png_header(0, 28) + chunk(b"IEND", b"")) == "corrupt"


def test_a_second_frame_header_cannot_smuggle_a_bomb(gray: np.ndarray, encode: Encode) -> None:
    """A JPEG that declares 28x28 first and 60,000x60,000 later is refused before decoding."""
    data = encode(gray, "JPEG")
    at = data.index(b"\xff\xc0")
    length = struct.unpack_from(">H", data, at + 2)[0]
    frame = bytearray(data[at : at + 2 + length])
    frame[5:9] = struct.pack(">HH", 60_000, 60_000)
    smuggled = data[: at + 2 + length] + bytes(frame) + data[at + 2 + length :]
    assert refusal(smuggled) in ("too-large", "corrupt")


def test_a_second_png_header_is_refused(gray: np.ndarray, encode: Encode) -> None:
    """A decoder that believes the last header must not meet one that was never checked."""
    data = encode(gray)
    assert refusal(data[:33] + png_header(4000, 4000)[8:] + data[33:]) == "corrupt"


def test_a_jpeg_with_endless_scans_is_refused(encode: Encode) -> None:
    """Each scan passes over every pixel, so their number is bounded by the size."""
    data = encode(Image.new("L", (2000, 2000)), "JPEG", progressive=True)
    at = data.rindex(b"\xff\xda")
    assert refusal(data[:at] + data[at:-2] * 100 + b"\xff\xd9") == "too-large"


def test_too_many_bytes_are_refused_unparsed(gray: np.ndarray, encode: Encode) -> None:
    """The byte cap comes before any parser."""
    assert refusal(encode(gray) + bytes(1000), Preprocessing(max_bytes=1000)) == "too-large"


def test_a_colour_profile_changes_nothing(gray: np.ndarray, encode: Encode) -> None:
    """ICC profiles are not applied: the rules are the same on every machine."""
    assert np.array_equal(pixels(encode(gray, icc_profile=bytes(500))), gray)


def test_metadata_text_changes_nothing(gray: np.ndarray, encode: Encode) -> None:
    """A commented PNG has the same pixels."""
    info = PngImagePlugin.PngInfo()
    info.add_text("Comment", "a boot")
    assert np.array_equal(pixels(encode(gray, pnginfo=info)), gray)


def test_errors_keep_their_place_in_a_batch(gray: np.ndarray, encode: Encode) -> None:
    """Bad images leave the tensor, and ``errors`` says which they were."""
    decoded = decode([b"", encode(gray), b"junk", encode(gray)], SPEC)
    assert decoded.tensor.shape == (2, 1, 28, 28)
    assert [error and error.reason for error in decoded.errors] == ["empty", None, "not-an-image", None]


@pytest.mark.parametrize("fields", [{"size": 0}, {"resample": "nearest"}, {"background": 256}])
def test_impossible_preprocessing_is_refused(fields: dict) -> None:
    """A manifest cannot ask for rules that do not exist."""
    with pytest.raises(ValueError, match="impossible preprocessing"):
        Preprocessing(**fields)
