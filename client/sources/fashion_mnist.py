"""The Fashion-MNIST validation images as requests, with their truth, some damaged on purpose."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from ..schema import ClassifyRequest, encode_png
from .base import Submission
from .damage import DAMAGES, damage

if TYPE_CHECKING:
    from classifier.data import Dataset

SIZE = 10_000
_SUBJECT = "fashion-mnist/validation/{:05d}"


@dataclass(frozen=True, slots=True)
class FashionMnist:
    """Validation images in an order that the seed decides.

    Attributes:
        count: requests of one round, damaged ones included.
        seed: decides which images, in which order, and which are damaged how.
        bad_ratio: exactly ``round(count * bad_ratio)`` requests of a round are damaged.
        loop: start another round, in another order, without end.

    Raises:
        ValueError: a field is out of its range.
    """

    count: int = 2_000
    seed: int = 0
    bad_ratio: float = 0.0
    loop: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.count <= SIZE:
            raise ValueError(
                f"images must be 1 to {SIZE:,} (there are no more validation images), not {self.count:,};"
                " --loop repeats them"
            )
        if not 0.0 <= self.bad_ratio <= 1.0:
            raise ValueError(f"bad-ratio must be within 0 and 1, not {self.bad_ratio}")

    @property
    def bad_count(self) -> int:
        """Damaged requests of one round."""
        return round(self.count * self.bad_ratio)

    def __iter__(self) -> Iterator[Submission]:
        """Yield the requests.

        Raises:
            classifier.errors.DataError: the images are not where the package keeps them.
        """
        number = 0
        while True:
            yield from self._round(number)
            number += 1
            if not self.loop:
                return

    def _round(self, number: int) -> Iterator[Submission]:
        order = random.Random(f"{self.seed}/{number}")  # noqa: S311 - a repeatable order, not a secret
        chosen = order.sample(range(SIZE), self.count)
        spoiled = set(order.sample(range(self.count), self.bad_count))
        kinds = 0
        for place, index in enumerate(chosen):
            subject = _SUBJECT.format(index)
            if place in spoiled:
                name = DAMAGES[kinds % len(DAMAGES)]
                kinds += 1
                image = damage(_picture(index), name, order)
                yield Submission(ClassifyRequest(image=image, subject=subject), kind="bad")
            else:
                yield Submission(ClassifyRequest(image=_picture(index), subject=subject), _label(index))


@cache
def _picture(index: int) -> bytes:
    """One image as a PNG file; about 400 bytes and 20 us, once."""
    return encode_png(_validation_set().images[index])


def _label(index: int) -> str:
    data = _validation_set()
    return data.class_names[int(data.labels[index])]


@cache
def _validation_set() -> Dataset:
    from classifier.data import validation_set

    return validation_set()
