"""What is decided by rule: batches, epochs, augmentation, statistics, and time budgets."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from classifier import LABELS, Dataset, dataset


@pytest.fixture(autouse=True)
def _needs_torch(torch: Any) -> None:
    """The rules live beside what needs torch."""


def images_of(count: int, colour: bool = False, size: int = 28) -> Dataset:
    """``count`` black images of two classes, A and B."""
    shape = (count, 3, size, size) if colour else (count, size, size)
    return dataset(np.zeros(shape, np.uint8), np.arange(count, dtype=np.int64) % 2, ("A", "B"))


@pytest.mark.parametrize(
    ("count", "batch", "epochs"),
    [(2, 2, 300), (10, 10, 300), (100, 16, 300), (1437, 64, 100), (20_000, 256, 100), (60_000, 256, 60)],
)
def test_batch_and_epochs_follow_the_number_of_images(count: int, batch: int, epochs: int) -> None:
    """A few images make small batches and many epochs; Fashion-MNIST gets what made the shipped model."""
    from classifier import TrainConfig
    from classifier.plan import planned

    plan = planned(TrainConfig(), images_of(count, size=9), "speed")
    assert (plan.batch_size, plan.epochs, plan.steps) == (batch, epochs, count // batch)


def test_the_shipped_recipe_is_what_the_rules_give() -> None:
    """So that a plain ``couturier train`` repeats it."""
    from classifier import AugmentConfig, TrainConfig
    from classifier.plan import planned

    black = dataset(np.zeros((60_000, 28, 28), np.uint8), np.arange(60_000) % 10, LABELS)
    plan = planned(TrainConfig(), black, "speed")
    assert (plan.peak_learning_rate, plan.weight_decay, plan.average_decay) == (0.2, 5e-4, 0.999)
    assert plan.augment == AugmentConfig(flip=True, shift_px=2, erase_probability=0.25)


def test_what_a_user_says_comes_before_every_rule() -> None:
    """Each setting alone."""
    from classifier import AugmentConfig, TrainConfig
    from classifier.plan import planned

    augment = AugmentConfig(False, 0, 0.0)
    said = TrainConfig(7, None, 4, 0.5, 0.1, average_decay=0.0, augment=augment)
    plan = planned(said, images_of(100), "resnet18")
    assert plan.applied(said, 7) == said
    assert plan.steps == 25


def test_augmentation_suits_the_images() -> None:
    """Shifts grow with the side, colours jitter, holes have the borders' colour, digits are not mirrored."""
    from classifier.plan import default_augment

    photos = images_of(20, colour=True, size=56)
    photos.images[:, 0, :, 0] = photos.images[:, 0, 0] = 255
    photos.images[:, 0, :, -1] = photos.images[:, 0, -1] = 255
    found = default_augment(photos)
    assert (found.flip, found.shift_px, found.fill) == (False, 4, (255, 0, 0))
    assert found.brightness == found.contrast > 0
    assert default_augment(images_of(20)).brightness == 0


@given(seed=st.integers(0, 1000), count=st.integers(1, 2500), colour=st.booleans())
@settings(max_examples=15, deadline=None)
def test_pixel_statistics_are_those_of_all_pixels(seed: int, count: int, colour: bool) -> None:
    """Counting in chunks equals numpy in double precision."""
    from classifier.plan import pixel_statistics

    rng = np.random.default_rng(seed)
    shape = (count, 3, 8, 8) if colour else (count, 8, 8)
    images = rng.integers(0, int(rng.integers(2, 257)), shape, dtype=np.uint8)
    data = dataset(images, np.zeros(count, np.int64), ("A", "B"))
    mean, std = pixel_statistics(data)
    pixels = data.pixels().astype(np.float64)
    assert mean == pytest.approx(pixels.mean(axis=(0, 2, 3)), abs=6e-5)
    assert std == pytest.approx(np.maximum(pixels.std(axis=(0, 2, 3)), 1.0), abs=6e-5)


def test_a_budget_is_kept_when_the_machine_slows_down() -> None:
    """Ten minutes at 6 s an epoch; from the 30th on an epoch takes 18 s: fewer are run, and time holds."""
    from classifier.plan import affordable_epochs

    seconds: list[float] = []
    assert affordable_epochs([], 6.0, 10.0, 300) == 105
    while len(seconds) < affordable_epochs(seconds, 6.0, 10.0, 300):
        seconds.append(6.0 if len(seconds) < 30 else 18.0)
    assert 540 <= sum(seconds) <= 660
    assert len(seconds) < 60


@given(pace=st.lists(st.floats(0.01, 100), min_size=1, max_size=300), minutes=st.floats(0.01, 60))
@settings(max_examples=100, deadline=None)
def test_a_budget_is_passed_by_one_epoch_at_most(pace: list[float], minutes: float) -> None:
    """Whatever each epoch takes: at least one is run, and none is begun once the time is over."""
    from classifier.plan import affordable_epochs

    seconds: list[float] = []
    while len(seconds) < affordable_epochs(seconds, pace[0], minutes, len(pace)):
        assert not seconds or sum(seconds) < 1.05 * 60 * minutes
        seconds.append(pace[len(seconds)])
    assert seconds


def test_a_run_on_a_budget_resumes_with_the_same_plan(stripes: Dataset, tmp_path: Path) -> None:
    """The pace measured before the first epoch stands in the checkpoint; the schedule still ends at one."""
    from classifier import ModelConfig, TrainConfig
    from classifier.progress import silent
    from classifier.run import Run

    config = TrainConfig(minutes=2.0, val_fraction=0.1)
    checkpoint, model = tmp_path / "checkpoint.safetensors", ModelConfig(widths=(4, 6, 8), stem=3)
    first = Run(stripes, None, config, model)
    first.begin(checkpoint, False, silent)
    assert first.guess_s > 0
    first.history = [{"epoch": 1, "epochs": 200, "loss": 1.0, "seconds": 3.0}]
    first.save(checkpoint)
    again = Run(stripes, None, config, model)
    again.begin(checkpoint, True, silent)
    assert again.guess_s == first.guess_s
    assert again.epochs == first.epochs == 42
    begins, share = again.span()
    assert begins == 1 / 200
    assert begins + 41 * share == pytest.approx(1.0)


def test_patience_stops_the_run_and_keeps_the_best_epoch(stripes: Dataset, tmp_path: Path) -> None:
    """Labels that are hard to learn: the first best score stays, and so do the weights that made it."""
    from classifier import ModelConfig, TrainConfig, train

    noise = replace(stripes, labels=(stripes.labels * 7 + np.arange(640) // 10) % 10)
    config = TrainConfig(epochs=200, batch_size=64, patience=2, val_fraction=0.2, average_decay=0.5)
    checkpoint = tmp_path / "checkpoint.safetensors"
    model = ModelConfig(widths=(4, 6, 8), stem=3)
    result = train(noise, config, model, checkpoint)
    scores = [entry["val_accuracy"] for entry in result.history]
    assert len(scores) < 200
    assert scores.index(max(scores)) == len(scores) - 3
    again = train(noise, config, model, checkpoint, resume=True)
    assert again.history == result.history
    assert all((a == b).all() for a, b in zip(*_weights(again, result), strict=True))
    assert _accuracy(result) == pytest.approx(max(scores))


def _weights(*results: Any) -> list[list[Any]]:
    return [list(result.network.state_dict().values()) for result in results]


def _accuracy(result: Any) -> float:
    from classifier.torch_engine import network_outputs

    outputs, _ = network_outputs(result.network, None, result.val.pixels())
    return float((outputs.logits.argmax(axis=1) == result.val.labels).mean())
