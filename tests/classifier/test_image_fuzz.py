"""Hostile bytes: whatever comes in, a value comes out."""

from __future__ import annotations

import io
import random
import warnings
from collections.abc import Callable

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from classifier import Dataset, InvalidImage, Preprocessing, declared_pixels
from classifier.images import preprocess

LIMITS = {"max_pixels": 1_000_000, "max_side_px": 2000}
SPEC = Preprocessing(**LIMITS)
COLOUR = Preprocessing(channels=3, fit="pad", polarity="auto", **LIMITS)
REASONS = {"empty", "too-large", "not-an-image", "unsupported-format", "truncated", "corrupt"}


def mutate(data: bytes, rng: random.Random) -> bytes:
    """One random damage: flip, cut, insert, repeat, or overwrite."""
    content, kind = bytearray(data), rng.randrange(5)
    at = rng.randrange(len(content))
    if kind == 0:
        for _ in range(rng.randint(1, 8)):
            content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    elif kind == 1:
        del content[at : at + rng.randint(1, 200)]
    elif kind == 2:
        content[at:at] = rng.randbytes(rng.randint(1, 50))
    elif kind == 3:
        content[at:at] = content[at : at + rng.randint(1, 200)]
    else:
        content[at : at + 4] = b"\xff\xff\xff\xff"
    return bytes(content)


def test_a_thousand_mutants_give_a_value_each(validation: Dataset, encode: Callable[..., bytes]) -> None:
    """Ten seeds, 100 mutants each: pixels or a known reason, never an exception or a warning."""
    image = Image.fromarray(validation.images[3])
    photo = image.convert("RGB").resize((200, 150))
    exif = Image.Exif()
    exif[0x0112] = 6
    seeds = [
        encode(image),
        encode(image.convert("RGBA")),
        encode(image.convert("P")),
        encode(image.convert("1")),
        encode(Image.fromarray(np.asarray(image).astype(np.uint16) << 8)),
        encode(photo),
        encode(image, "JPEG"),
        encode(photo, "JPEG", exif=exif.tobytes()),
        encode(photo, "JPEG", progressive=True),
        encode(photo.convert("CMYK"), "JPEG"),
    ]
    rng, refused = random.Random(20), 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for seed in seeds:
            for _ in range(100):
                mutant = mutate(seed, rng) or b""
                spec = rng.choice((SPEC, COLOUR))
                result = preprocess(mutant, spec)
                if isinstance(result, InvalidImage):
                    refused += 1
                    assert result.reason in REASONS
                    assert len(result.detail) < 300
                else:
                    assert len(result) == 784 * spec.channels
                assert declared_pixels(mutant) >= 0
    assert refused > 500


@given(
    head=st.sampled_from([b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"\xff\xd8\xff\xe1", b""]), tail=st.binary()
)
@settings(max_examples=300)
def test_random_bytes_behind_a_signature_are_refused(head: bytes, tail: bytes) -> None:
    """A right signature alone opens no door."""
    result = preprocess(head + tail, SPEC)
    assert isinstance(result, InvalidImage)
    assert result.reason in REASONS


@given(st.integers(0, 2**16), st.integers(0, 2**16))
def test_the_declared_size_is_what_the_header_says(width: int, height: int) -> None:
    """The bound a worker relies on is read, not guessed."""
    target = io.BytesIO()
    Image.new("L", (3, 5)).save(target, "PNG")
    data = bytearray(target.getvalue())
    data[16:24] = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    assert declared_pixels(bytes(data)) == width * height
