"""The table of the preprocessing, row by row, for gray and for colour models; fit and golden images."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from classifier import Classifier, Dataset, InvalidImage, Preprocessing
from classifier.data import dataset
from classifier.golden import encoded, golden_vectors
from classifier.images import decode, preprocess
from tests.png_files import chunk, png

GRAY = Preprocessing(size=8)
COLOUR = Preprocessing(size=8, channels=3)
ORANGE, LUMA = (255, 128, 0), 151  # ITU-R 601: 0.299 R + 0.587 G + 0.114 B
Encode = Callable[..., bytes]


def pixels(data: bytes, spec: Preprocessing) -> np.ndarray:
    """The decoded image, (channels, size, size) uint8; fails on a refusal."""
    result = preprocess(data, spec)
    assert isinstance(result, bytes), result
    return np.frombuffer(result, np.uint8).reshape(spec.shape)


def flat(mode: str, colour: Any) -> Image.Image:
    """An 8 x 8 picture of one colour."""
    return Image.new(mode, (8, 8), colour)


def palette() -> Image.Image:
    image = flat("P", 1)
    image.putpalette([0, 0, 0, *ORANGE] + [0] * 750)
    return image


ROWS: dict[str, tuple[Any, str, dict[str, Any], tuple[int, ...], int]] = {
    # name: picture, kind, options of saving -> colour model, gray model
    "bilevel": (flat("1", 1), "PNG", {}, (255, 255, 255), 255),
    "gray": (flat("L", 90), "PNG", {}, (90, 90, 90), 90),
    "colour": (flat("RGB", ORANGE), "PNG", {}, ORANGE, LUMA),
    "palette": (palette(), "PNG", {}, ORANGE, LUMA),
    "gray, clear": (flat("LA", (90, 0)), "PNG", {}, (0, 0, 0), 0),
    "gray, opaque": (flat("LA", (90, 255)), "PNG", {}, (90, 90, 90), 90),
    "colour, clear": (flat("RGBA", (*ORANGE, 0)), "PNG", {}, (0, 0, 0), 0),
    "colour, opaque": (flat("RGBA", (*ORANGE, 255)), "PNG", {}, ORANGE, LUMA),
    "colour, half clear": (flat("RGBA", (*ORANGE, 128)), "PNG", {}, (128, 64, 0), 76),
    "clear gray level": (flat("L", 90), "PNG", {"transparency": 90}, (0, 0, 0), 0),
    "clear colour": (flat("RGB", ORANGE), "PNG", {"transparency": ORANGE}, (0, 0, 0), 0),
    "other clear colour": (flat("RGB", ORANGE), "PNG", {"transparency": (1, 2, 3)}, ORANGE, LUMA),
    "clear palette entry": (palette(), "PNG", {"transparency": 1}, (0, 0, 0), 0),
    "16-bit gray": (Image.fromarray(np.full((8, 8), 0x80FF, np.uint16)), "PNG", {}, (128, 128, 128), 128),
    "gray photo": (flat("L", 90), "JPEG", {}, (90, 90, 90), 90),
    "colour photo": (flat("RGB", ORANGE), "JPEG", {"quality": 100}, ORANGE, LUMA),
    "cmyk photo": (flat("CMYK", (0, 127, 255, 0)), "JPEG", {"quality": 100}, ORANGE, LUMA),
}


@pytest.mark.parametrize("name", ROWS)
def test_a_row_of_the_table(name: str, encode: Encode) -> None:
    """Every way to store an image has one colour for a colour model and one gray for a gray one."""
    picture, kind, options, colour, gray = ROWS[name]
    data, slack = encode(picture, kind, **options), 2 if kind == "JPEG" else 1
    for spec, expected in ((COLOUR, colour), (GRAY, (gray,))):
        found = pixels(data, spec).astype(int)
        assert np.abs(found - np.array(expected)[:, None, None]).max() <= slack, (
            spec.channels,
            found[:, 0, 0],
        )


def test_sixteen_bit_colour_keeps_its_high_bytes() -> None:
    """What a scanner writes is read like its 8-bit copy."""
    row = b"\0" + bytes(byte for value in ORANGE for byte in (value, 0x77)) * 8
    data = png(8, 8, row * 8, depth=16, colour=2)
    assert pixels(data, COLOUR)[:, 0, 0].tolist() == list(ORANGE)
    assert pixels(data, GRAY)[0, 0, 0] == LUMA


def test_a_clear_level_of_sixteen_bit_gray_shows_the_background() -> None:
    """Transparency is honoured at every depth."""
    row = b"\0" + b"\x12\x34" * 4 + b"\x80\xff" * 4
    data = png(8, 8, row * 8, chunk(b"tRNS", b"\x12\x34"), depth=16)
    found = pixels(data, Preprocessing(size=8, background=200))[0]
    assert (found[:, :4] == 200).all()
    assert (found[:, 4:] == 0x80).all()


def test_transparent_colours_that_pillow_does_not_know_are_ignored() -> None:
    """Four-bit gray and 16-bit colour keep their pixels: rare, and opaque is the safer reading."""
    four = png(8, 8, (b"\0" + b"\x55" * 4) * 8, chunk(b"tRNS", b"\0\5"), depth=4)
    deep = png(8, 8, (b"\0" + b"\x12\x34" * 24) * 8, chunk(b"tRNS", b"\x12\x34" * 3), depth=16, colour=2)
    assert set(pixels(four, GRAY).ravel().tolist()) == {0x55}
    assert set(pixels(deep, GRAY).ravel().tolist()) == {0x12}


@pytest.mark.parametrize("channels", [1, 3])
def test_the_background_is_what_the_network_sees(channels: int, encode: Encode) -> None:
    """Behind transparency and around a padded picture, inverted or not, lies the same value."""
    clear = Image.new("LA", (8, 4), (90, 0))
    for polarity in ("keep", "invert", "auto"):
        spec = Preprocessing(size=8, channels=channels, background=40, fit="pad", polarity=polarity)
        assert (pixels(encode(clear), spec) == 40).all(), polarity


@given(width=st.integers(1, 40), height=st.integers(1, 40), kind=st.sampled_from(["L", "RGB", "LA", "RGBA"]))
@settings(max_examples=60, deadline=None)
def test_plain_pngs_decode_as_pillow_does(width: int, height: int, kind: str) -> None:
    """The short way past Pillow's container parser gives its pixels, in every mode that takes it."""
    rng = np.random.default_rng(width * 41 + height)
    picture = Image.fromarray(rng.integers(0, 256, (height, width, 4), np.uint8), "RGBA").convert(kind)
    target = io.BytesIO()
    picture.save(target, "PNG")
    spec = Preprocessing(size=16, channels=3)
    with Image.open(target) as opened:
        flat_colours = Image.new("RGBA", opened.size, (0, 0, 0, 255))
        flat_colours.paste(opened.convert("RGB"), mask=opened.getchannel("A") if "A" in kind else None)
        expected = np.asarray(flat_colours.convert("RGB").resize((16, 16), Image.Resampling.BILINEAR))
    assert np.array_equal(pixels(target.getvalue(), spec).transpose(1, 2, 0), expected)


def test_interlaced_pngs_take_the_long_way() -> None:
    """Adam7 rows are not plain rows; Pillow cannot write them, so the seven passes are made by hand."""
    passes = (
        (0, 0, 8, 8),
        (4, 0, 8, 8),
        (0, 4, 4, 8),
        (2, 0, 4, 4),
        (0, 2, 2, 4),
        (1, 0, 2, 2),
        (0, 1, 1, 2),
    )
    image = np.arange(64, dtype=np.uint8).reshape(8, 8)
    rows = [
        b"\0" + image[y, x::dx].tobytes()
        for x, top, dx, dy in (*passes, (0, 1, 1, 2))
        for y in range(top, 8, dy)
    ]
    assert np.array_equal(pixels(png(8, 8, b"".join(rows), interlace=1), GRAY)[0], image)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("width", "height"), [(64, 16), (16, 64), (8, 8), (3, 1), (400, 1)])
def test_padding_keeps_the_aspect_ratio(width: int, height: int, channels: int, encode: Encode) -> None:
    """The longer side fills the square, the picture lies in the middle, the rest is background."""
    spec = Preprocessing(size=16, channels=channels, background=7, fit="pad")
    found = pixels(encode(Image.new("L", (width, height), 200)), spec)
    inner = (max(1, round(16 * height / max(width, height))), max(1, round(16 * width / max(width, height))))
    top, left = (16 - inner[0]) // 2, (16 - inner[1]) // 2
    expected = np.full((16, 16), 7)
    expected[top : top + inner[0], left : left + inner[1]] = 200
    assert (found == expected).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_turned_photo_is_padded_upright(orientation: int, encode: Encode) -> None:
    """Orientation comes before padding: the file and its upright copy give the same pixels."""
    rng = np.random.default_rng(1)
    stored = Image.fromarray(rng.integers(0, 256, (12, 9, 3), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = orientation
    spec = Preprocessing(size=7, channels=3, fit="pad")
    data = encode(stored, exif=exif.tobytes())
    with Image.open(io.BytesIO(data)) as opened:
        upright = ImageOps.exif_transpose(opened)
        assert np.abs(pixels(data, spec).astype(int) - pixels(encode(upright), spec)).max() <= 1


@pytest.mark.parametrize("fit", ["stretch", "pad"])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_big_photo_decodes_small_and_close(fit: str, channels: int, encode: Encode) -> None:
    """JPEG's reduced decoding, long thin pictures too, changes pixels by a rounding only."""
    y, x = np.mgrid[0:600, 0:1600]
    photo = Image.fromarray(np.stack([x % 256, y % 256, (x + y) // 9 % 256], 2).astype(np.uint8))
    photo = photo.resize((1600, 600), Image.Resampling.BOX)
    spec = Preprocessing(size=32, channels=channels, fit=fit)
    png, jpeg = pixels(encode(photo), spec), pixels(encode(photo, "JPEG", quality=95), spec)
    assert np.abs(png.astype(int) - jpeg).mean() < 4


def test_a_batch_has_the_models_shape(encode: Encode) -> None:
    """Colour comes channel by channel, errors keep their place, no images are an empty batch."""
    decoded = decode([encode(flat("RGB", ORANGE)), b"", encode(flat("L", 9))], COLOUR)
    assert decoded.tensor.shape == (2, 3, 8, 8)
    assert decoded.tensor[0, :, 0, 0].tolist() == list(ORANGE)
    assert [error is None for error in decoded.errors] == [True, False, True]
    assert decode([], COLOUR).tensor.shape == (0, 3, 8, 8)


@pytest.mark.parametrize("channels", [1, 3])
def test_every_way_of_resampling_is_pillows(channels: int, encode: Encode) -> None:
    """Named in the manifest, so that every machine shrinks alike; the ways differ."""
    picture = Image.fromarray(np.random.default_rng(2).integers(0, 256, (40, 40, 3), np.uint8))
    found = {}
    for name in ("bilinear", "bicubic", "lanczos"):
        filtered = Image.Resampling[name.upper()]
        mode = "L" if channels == 1 else "RGB"
        expected = np.asarray(picture.convert(mode).resize((8, 8), filtered)).reshape(8, 8, channels)
        found[name] = pixels(encode(picture), Preprocessing(size=8, channels=channels, resample=name))
        assert np.array_equal(found[name].transpose(1, 2, 0), expected)
    assert len({values.tobytes() for values in found.values()}) == 3


@pytest.mark.parametrize("fields", [{"channels": 2}, {"channels": 4}, {"polarity": "yes"}, {"fit": "crop"}])
def test_unknown_rules_are_refused(fields: dict) -> None:
    """The message holds what was asked for and every choice."""
    with pytest.raises(ValueError, match=r"impossible preprocessing .*stretch or pad"):
        Preprocessing(**fields)


def test_the_rules_survive_the_manifest() -> None:
    """A bundle made before there were colours still reads: what it does not say is the old rule."""
    spec = Preprocessing(size=96, channels=3, polarity="auto", fit="pad", background=255)
    assert Preprocessing(**json.loads(json.dumps(spec.to_dict()))) == spec
    old = Preprocessing(size=28, resample="bilinear", background=0)
    assert (old.channels, old.polarity, old.fit) == (1, "keep", "stretch")


@pytest.mark.parametrize(
    "spec", [GRAY, COLOUR, Preprocessing(size=31, channels=3, fit="pad", polarity="auto")]
)
@pytest.mark.parametrize("shape", [(3, 20, 20), (1, 3, 40, 40)])
def test_golden_images_are_made_from_any_data_set(
    classifier: Classifier, spec: Preprocessing, shape: tuple[int, ...]
) -> None:
    """Every kind of golden image, from gray or colour pixels, is accepted by every preprocessing."""
    images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    kinds = dict(encoded(images))
    assert len(kinds) == 10
    decoded = decode(list(kinds.values()), spec)
    assert not any(isinstance(error, InvalidImage) for error in decoded.errors), decoded.errors


def test_golden_vectors_hold_pixels_and_answers(classifier: Classifier, validation: Dataset) -> None:
    """One answer for each precision, with probabilities of classes and tags."""
    few = dataset(validation.images[:20], validation.labels[:20], validation.class_names)
    vectors = json.loads(golden_vectors(classifier, few, Classifier.load(engine="onnx-int8")))["vectors"]
    assert len({vector["name"] for vector in vectors}) == 10
    for vector in vectors:
        assert set(vector["answers"]) == {"fp32", "int8"}
        for answer in vector["answers"].values():
            assert abs(sum(answer["probabilities"]) - 1) < 1e-4
            assert len(answer["tag_probabilities"]) == len(classifier.manifest.tags)
