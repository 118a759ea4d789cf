"""How long and in which portions to train: what follows from the size of the data set.

Everything a user leaves open is decided here by rules, once, at the start of a run. A time
budget is planned after every epoch from the seconds that the epochs before it took; these
stand in the checkpoint, so that a resumed run plans the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .augment import AugmentConfig
from .data import LABELS, Dataset
from .optim import defaults

# The shipped student took 60 epochs of 234 steps. Small sets stop paying long before that many steps: 1,437
# digits are at their best after 30 epochs. Tiny ones need many epochs for the steps that any network needs.
STEPS, LEAST_EPOCHS, MOST_EPOCHS = 14_000, 30, 100
LEAST_STEPS, MOST_EPOCHS_TINY = 2_000, 300
# A run may pass its budget by this share if one more epoch then fits.
_SLACK = 1.05


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """How to train. None means "by rule", see :func:`planned`; the rules made the shipped model.

    Attributes:
        epochs: passes over the training images.
        minutes: time for the epochs, which then follow from this machine's speed; not with ``epochs``.
        batch_size: images a step, over all processes.
        peak_learning_rate, weight_decay: of SGD with Nesterov momentum for our own nets, of AdamW for others.
        label_smoothing: of the category.
        average_decay: decay a step of the weight average that becomes the model.
        seed: source of all randomness.
        val_fraction: share of the training images held out for choices, unless ``train`` gets a ``val``.
        patience: stop after so many epochs without a better held-out score and keep the best; None: never.
        augment: see :class:`AugmentConfig`.
        device: a torch device name, or "auto" for the GPU if there is one.
        weights: where the body starts, see :func:`classifier.backbones.initial_weights`.
    """

    epochs: int | None = None
    minutes: float | None = None
    batch_size: int | None = None
    peak_learning_rate: float | None = None
    weight_decay: float | None = None
    label_smoothing: float = 0.1
    average_decay: float | None = None
    seed: int = 0
    val_fraction: float = 0.0
    patience: int | None = None
    augment: AugmentConfig | None = None
    device: str = "auto"
    weights: str = "auto"

    def __post_init__(self) -> None:
        for name, least in (("epochs", 1), ("batch_size", 2), ("patience", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"need {name} >= {least}, got {value}")
        if self.minutes is not None and (self.epochs is not None or not self.minutes > 0):
            raise ValueError(f"need minutes > 0 and no epochs beside them, got {self.minutes}, {self.epochs}")
        if not all(0 <= x < 1 for x in (self.label_smoothing, self.average_decay or 0.0, self.val_fraction)):
            raise ValueError("label_smoothing, average_decay and val_fraction must be in [0, 1)")

    def to_dict(self) -> dict[str, Any]:
        """JSON form for checkpoints and manifests."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Plan:
    """A :class:`TrainConfig` with every rule applied; ``epochs`` is the most with a time budget."""

    epochs: int
    steps: int
    batch_size: int
    peak_learning_rate: float
    weight_decay: float
    average_decay: float
    augment: AugmentConfig

    def applied(self, config: TrainConfig, epochs: int) -> TrainConfig:
        """What was really done, for manifests."""
        return replace(
            config,
            epochs=epochs,
            minutes=None,
            batch_size=self.batch_size,
            peak_learning_rate=self.peak_learning_rate,
            weight_decay=self.weight_decay,
            average_decay=self.average_decay,
            augment=self.augment,
        )


def planned(config: TrainConfig, training: Dataset, kind: str, world: int = 1) -> Plan:
    """Apply the rules.

    - batch: a power of two near a sixteenth of the set, 16 to 256, never more than the set;
    - epochs: as many as make 14,000 steps, but 30 to 100, and up to 300 to make 2,000 steps at all;
    - learning rate: see :func:`classifier.optim.defaults`;
    - weight average: over the last fourteenth of the run, at most 1000 steps;
    - augmentation: shifts by a fourteenth of the side and erasing with the colour of the images' borders;
      colour sets get a jitter of brightness and contrast by up to 30 %. Mirroring
      is on for Fashion-MNIST only: for digits or text it is wrong, and no look at the pixels can tell.

    Raises:
        ValueError: nothing to train on, or fewer images than processes.
    """
    count = len(training)
    if count < 2 * world:
        raise ValueError(f"{count} training images for {world} processes; at least 2 each are needed")
    size = config.batch_size or min(256, max(16, 2 ** round(np.log2(count / 16))))
    size = max(2, min(size, count) // world) * world
    steps = count // size
    usual = min(MOST_EPOCHS, max(LEAST_EPOCHS, -(-STEPS // steps)))
    epochs = config.epochs or max(usual, min(MOST_EPOCHS_TINY, -(-LEAST_STEPS // steps)))
    rate, decay = defaults(kind, size)
    return Plan(
        epochs,
        steps,
        size,
        rate if config.peak_learning_rate is None else config.peak_learning_rate,
        decay if config.weight_decay is None else config.weight_decay,
        min(0.999, max(0.0, 1 - 14 / (steps * epochs)))
        if config.average_decay is None
        else config.average_decay,
        config.augment or default_augment(training),
    )


def affordable_epochs(seconds: Sequence[float], guess_s: float, minutes: float, most: int) -> int:
    """Epochs in all that fit into a budget, those done counted: at least these and one, at most ``most``.

    Args:
        seconds: what each finished epoch took; the last three tell the pace.
        guess_s: the pace before the first.
        minutes: the budget.
        most: never plan more.
    """
    pace_s = float(np.median(seconds[-3:] or [guess_s]))
    more = int((_SLACK * 60 * minutes - sum(seconds)) / max(pace_s, 1e-9))
    return max(1, len(seconds), min(most, len(seconds) + more))


def pixel_statistics(training: Dataset) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel in 0..255 units, exact to the rounding at four decimals.

    Counted per value in chunks, so a set larger than memory is read once and nothing is lost to float sums.
    """
    counts = np.zeros((training.channels, 256), np.int64)
    for at in range(0, len(training), 1000):
        pixels = training.pixels(slice(at, at + 1000))
        for channel in range(training.channels):
            counts[channel] += np.bincount(pixels[:, channel].ravel(), minlength=256)
    values, total = np.arange(256.0), counts[0].sum()
    mean = counts @ values / total
    variance = counts @ values**2 / total - mean**2
    std = np.sqrt(np.maximum(variance, 1.0))  # a set of one colour still needs something to divide by
    return tuple(float(x) for x in mean.round(4)), tuple(float(x) for x in std.round(4))


def default_augment(training: Dataset) -> AugmentConfig:
    """The augmentation that suits the images, see :func:`planned`."""
    colour = 0.3 if training.channels == 3 else 0.0
    return AugmentConfig(
        flip=training.class_names == LABELS,
        shift_px=max(1, round(training.size / 14)),
        brightness=colour,
        contrast=colour,
        fill=_border_colour(training.pixels(slice(0, 1000))),
    )


def _border_colour(pixels: NDArray[np.uint8]) -> tuple[int, ...]:
    """The median of the outermost pixels per channel: black on Fashion-MNIST, white on studio photos."""
    edges = (pixels[:, :, 0], pixels[:, :, -1], pixels[:, :, :, 0], pixels[:, :, :, -1])  # (n, C, S) each
    return tuple(int(value) for value in np.median(np.concatenate(edges, axis=2), axis=(0, 2)))
