"""What a model's answers look like on images of the kind it was made for: the reference of drift.

A bundle carries counts, made at export from images that the network was not trained on: which classes it
answers, how sure it is, how bright the images are. Whoever serves the model counts the same of what comes in
and compares the two; labels are not needed for that. Standard library only, because a worker's own process
has no numpy.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .predict import Prediction

# Upper bounds; the last bin is what is above all of them. Confidences crowd near 1.
CONFIDENCE_BOUNDS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)
# Gray levels.
BRIGHTNESS_BOUNDS = tuple(float(bound) for bound in range(16, 256, 16))
# Below this standard deviation, in gray levels of 0 to 255, nothing is to be seen: a lens cap, a white page,
# with the noise of a camera. The flattest of Fashion-MNIST's 10,000 test images has 18.
BLANK_CONTRAST = 4.0


@dataclass(frozen=True, slots=True)
class Bins:
    """How many values fell up to each bound; one count more is of what is above all of them."""

    bounds: tuple[float, ...]
    counts: tuple[int, ...]

    def __post_init__(self) -> None:
        rising = all(low < high for low, high in zip(self.bounds, self.bounds[1:], strict=False))
        if len(self.counts) != len(self.bounds) + 1 or not rising or min(self.counts) < 0:
            raise ValueError(f"bins need rising bounds and one count more than those, none negative: {self}")

    @classmethod
    def of(cls, bounds: tuple[float, ...], values: Sequence[float]) -> Bins:
        """Count values; one that is a bound counts for it."""
        places = Counter(bisect_left(bounds, value) for value in values)
        return cls(bounds, tuple(places[place] for place in range(len(bounds) + 1)))

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Bins:
        """The inverse of ``dataclasses.asdict``; raises as :meth:`Reference.from_dict`."""
        return cls(tuple(map(float, fields["bounds"])), tuple(map(int, fields["counts"])))


@dataclass(frozen=True, slots=True)
class Reference:
    """Counts over images like those that the model was made for.

    Attributes:
        images: how many.
        of: which: "held out" or, where nothing was held out, "training" (a network is surer of these).
        classes: answers by label; none is left out, so a class with 0 is one never answered.
        confidence: of the answers, calibrated.
        brightness: mean pixel of each image, gray levels of 0 to 255.
        blank: images with a contrast below :data:`BLANK_CONTRAST`.
        abstained: images on which the model declines to answer.
    """

    images: int
    of: str
    classes: dict[str, int]
    confidence: Bins
    brightness: Bins
    blank: int
    abstained: int

    def __post_init__(self) -> None:
        parts = {
            "classes": sum(self.classes.values()),
            "confidence": sum(self.confidence.counts),
            "brightness": sum(self.brightness.counts),
        }
        if any(total != self.images for total in parts.values()) or self.images < 1:
            raise ValueError(f"the reference counts {self.images} images, its parts {parts}")
        if min(self.classes.values()) < 0 or not 0 <= self.blank <= self.images >= self.abstained >= 0:
            raise ValueError(f"impossible counts in the reference: {self}")

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Reference:
        """Read the manifest's form, which is that of ``dataclasses.asdict``.

        Raises:
            KeyError, TypeError, ValueError, AttributeError: it is none.
        """
        return cls(
            int(fields["images"]),
            str(fields["of"]),
            {str(name): int(count) for name, count in fields["classes"].items()},
            Bins.from_dict(fields["confidence"]),
            Bins.from_dict(fields["brightness"]),
            int(fields["blank"]),
            int(fields["abstained"]),
        )


def reference_of(answers: Sequence[Prediction], labels: Sequence[str], of: str) -> Reference:
    """Count answers.

    Args:
        answers: at least one, each with its light (``Classifier.answers`` gives it).
        labels: all classes.
        of: which images these are; see :class:`Reference`.
    """
    found = Counter(each.label for each in answers)
    return Reference(
        len(answers),
        of,
        {name: found[name] for name in labels},
        Bins.of(CONFIDENCE_BOUNDS, [each.confidence for each in answers]),
        Bins.of(BRIGHTNESS_BOUNDS, [each.brightness for each in answers]),
        sum(each.blank for each in answers),
        sum(each.abstained for each in answers),
    )
