"""Polarity: dark garments on light ground become what a model trained light on dark knows."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image, ImageDraw

from classifier import Classifier, Dataset, Preprocessing
from classifier.images import decode
from classifier.polarity import light_framed, normalise_polarity

Encode = Callable[..., bytes]
KEEP, INVERT, AUTO = (Preprocessing(polarity=polarity) for polarity in ("keep", "invert", "auto"))


def garment(ground: int, cloth: int, box: tuple[int, ...] = (8, 4, 20, 24), mode: str = "L") -> Image.Image:
    """A 28 x 28 picture of a plain garment."""
    image = Image.new("L", (28, 28), ground)
    ImageDraw.Draw(image).rectangle(box, fill=cloth)
    return image.convert(mode)


def test_no_garment_of_fashion_mnist_is_turned_over(validation: Dataset) -> None:
    """None of the 10,000 is taken for dark on light, so a model with "auto" answers as one with "keep"."""
    pixels = validation.pixels()
    assert np.array_equal(normalise_polarity(pixels, "auto"), pixels)


def test_inverted_garments_are_recognised(validation: Dataset) -> None:
    """All but a few of the 10,000 inverses are given back as they were."""
    pixels = validation.pixels()
    restored = (normalise_polarity(255 - pixels, "auto") == pixels).all((1, 2, 3))
    assert restored.mean() >= 0.999


def test_inverted_photos_are_classified_as_well_as_the_originals(
    classifier: Classifier, validation: Dataset, encode: Encode
) -> None:
    """Enlarged, in colour, as JPEG, on white: what a shop sends."""
    large = [Image.fromarray(image).convert("RGB").resize((150, 200)) for image in validation.images[:300]]
    truth = validation.labels[:300]

    def accuracy(pictures: list[Image.Image], spec: Preprocessing) -> float:
        tensor = decode([encode(picture, "JPEG", quality=80) for picture in pictures], spec).tensor
        return float((classifier.predict_tensor(tensor).argmax(1) == truth).mean())

    light = [Image.eval(picture, lambda value: 255 - value) for picture in large]
    normal = accuracy(large, KEEP)
    assert accuracy(large, AUTO) == normal
    assert accuracy(light, AUTO) >= normal - 0.02
    assert accuracy(light, KEEP) < 0.5


@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize(
    ("ground", "cloth", "turned"),
    [
        (255, 0, True),
        (255, 235, True),  # a white shirt on white: little, but clearly darker
        (255, 255, False),  # nothing to be seen
        (140, 20, True),
        (120, 20, False),  # a gray ground could be either: left alone
        (0, 255, False),
        (200, 255, False),
        (0, 0, False),
    ],
)
def test_the_rule_by_examples(ground: int, cloth: int, turned: bool, mode: str) -> None:
    """Light and clearly lighter than the middle: both are needed."""
    assert light_framed(garment(ground, cloth, mode=mode)) is turned


def test_an_object_may_leave_the_picture() -> None:
    """Trousers cut off at the bottom, a coat that touches both sides: half of the ring is enough."""
    assert light_framed(garment(255, 30, (8, 0, 20, 27)))
    assert light_framed(garment(255, 30, (0, 4, 27, 16)))
    assert not light_framed(garment(0, 230, (0, 0, 27, 20)))


@pytest.mark.parametrize(("width", "height"), [(1, 1), (1, 9), (2, 2), (3, 50)])
def test_tiny_pictures_have_a_polarity_too(width: int, height: int) -> None:
    """No size breaks the rule; a flat picture is left alone."""
    assert not light_framed(Image.new("L", (width, height), 255))


def test_invert_turns_everything(encode: Encode) -> None:
    """For a catalogue that is known to be dark on light."""
    dark = encode(garment(0, 200))
    assert np.array_equal(decode([dark], INVERT).tensor, 255 - decode([dark], KEEP).tensor)


@pytest.mark.parametrize("polarity", ["keep", "invert", "auto"])
@pytest.mark.parametrize("channels", [1, 3])
def test_arrays_and_files_are_treated_alike(polarity: str, channels: int, encode: Encode) -> None:
    """Pixels that never were files, as in IDX arrays, become what their PNG copies become."""
    rng = np.random.default_rng(3)
    pictures = [
        garment(*rng.integers(0, 256, 2).tolist(), mode="L" if channels == 1 else "RGB") for _ in range(40)
    ]
    files = [encode(picture) for picture in pictures]
    plain = decode(files, Preprocessing(channels=channels)).tensor
    before = plain.copy()
    expected = decode(files, Preprocessing(channels=channels, polarity=polarity)).tensor
    assert np.array_equal(normalise_polarity(plain, polarity), expected)
    assert np.array_equal(plain, before)


def test_a_padded_picture_is_judged_before_it_is_padded(encode: Encode) -> None:
    """The padding is background, not the photo's frame."""
    wide = garment(255, 20, (8, 4, 20, 24)).resize((56, 14))
    spec = Preprocessing(fit="pad", polarity="auto")
    (pixels,) = decode([encode(wide)], spec).tensor
    assert pixels[0, :7].max() == 0
    assert pixels[0, 14, 0] == 0
    assert pixels[0, 14, 14] > 150
