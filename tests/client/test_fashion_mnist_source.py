"""The mock source: the seed decides everything, and bad images are really bad."""

from __future__ import annotations

import io
from collections import Counter
from itertools import islice

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from classifier import InvalidImage, Preprocessing, validation_set
from classifier.images import preprocess
from client.sources.damage import DAMAGES
from client.sources.fashion_mnist import FashionMnist


def test_one_seed_gives_the_same_images_again() -> None:
    """Order, bytes, labels and damage; ids are new every time."""
    first, second = (list(FashionMnist(300, seed=7, bad_ratio=0.3)) for _ in range(2))
    assert [each.request.image for each in first] == [each.request.image for each in second]
    assert [(each.label, each.kind) for each in first] == [(each.label, each.kind) for each in second]
    assert not {each.request.id for each in first} & {each.request.id for each in second}
    other = list(FashionMnist(300, seed=8, bad_ratio=0.3))
    assert [each.request.subject for each in other] != [each.request.subject for each in first]


def test_no_image_comes_twice_and_all_ten_thousand_come() -> None:
    """A whole pass is the validation set, each image once, pixel for pixel with its own label."""
    data = validation_set()
    sent = list(FashionMnist(10_000))
    numbers = [int((each.request.subject or "").rpartition("/")[2]) for each in sent]
    assert sorted(numbers) == list(range(10_000))
    assert [each.label for each in sent] == [data.class_names[data.labels[number]] for number in numbers]
    for each, number in list(zip(sent, numbers, strict=True))[::200]:
        assert preprocess(each.request.image, Preprocessing()) == data.images[number].tobytes()


@settings(max_examples=30, deadline=None)
@given(count=st.integers(1, 400), ratio=st.floats(0, 1), seed=st.integers(0, 99))
def test_exactly_the_planned_number_is_bad(count: int, ratio: float, seed: int) -> None:
    """Not on average: exactly, whatever the seed."""
    kinds = Counter(each.kind for each in FashionMnist(count, seed, ratio))
    assert kinds["bad"] == round(count * ratio)
    assert kinds.total() == count


def test_every_bad_image_is_refused_and_every_kind_occurs() -> None:
    """None of them decodes by luck, and no truth is claimed for them."""
    sent = list(FashionMnist(1_200, seed=3, bad_ratio=1.0))
    answers = [preprocess(each.request.image, Preprocessing()) for each in sent]
    assert all(isinstance(each, InvalidImage) for each in answers)
    assert {each.reason for each in answers if isinstance(each, InvalidImage)} >= {
        "truncated",
        "not-an-image",
        "empty",
        "corrupt",
        "unsupported-format",
    }
    assert len(DAMAGES) == 6
    assert {each.label for each in sent} == {None}


def test_a_decoder_that_checks_no_sums_refuses_them_too() -> None:
    """Pillow skips the checksums of the pixel data; a flipped bit must do more than change a pixel."""
    for each in FashionMnist(3_000, seed=4, bad_ratio=1.0):
        image = each.request.image
        if image.startswith(b"\x89PNG"):
            with pytest.raises((OSError, SyntaxError, ValueError)):
                Image.open(io.BytesIO(image)).load()


def test_messages_carry_no_truth() -> None:
    """Neither the label nor the damage shows in anything but the bytes."""
    for each in FashionMnist(50, bad_ratio=0.5):
        message = each.request.to_message()
        assert message.attributes == {}
        assert message.content_type == "image/png"
        assert message.subject is not None
        assert message.subject.startswith("fashion-mnist/validation/")


def test_a_loop_starts_over_in_another_order() -> None:
    """Endless, with new ids."""
    sent = list(islice(FashionMnist(100, loop=True), 250))
    rounds = [[each.request.subject for each in sent[start : start + 100]] for start in (0, 100)]
    assert rounds[0] != rounds[1]
    assert len({each.request.id for each in sent}) == 250


@pytest.mark.parametrize(
    ("count", "ratio"), [(0, 0.0), (10_001, 0.0), (5, -0.1), (5, 1.1), (5, float("nan"))]
)
def test_what_cannot_be_had_is_refused(count: int, ratio: float) -> None:
    """Before anything is sent."""
    with pytest.raises(ValueError, match="must be"):
        FashionMnist(count, bad_ratio=ratio)
