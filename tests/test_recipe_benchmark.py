"""The race between the tutorial's recipe and ours counts only what was reached."""

from __future__ import annotations

import numpy as np
import pytest

from classifier.data import LABELS, Dataset, dataset

pytest.importorskip("torch")

from benchmarks.recipe import RECIPES, race, summary


@pytest.fixture(scope="module")
def bars() -> Dataset:
    """640 images: class k is a bright bar at its own height, over noise."""
    rng = np.random.default_rng(7)
    labels = np.arange(640, dtype=np.int64) % 10
    images = rng.integers(0, 60, (640, 28, 28), dtype=np.uint8)
    for index, label in enumerate(labels):
        images[index, 2 + 2 * label : 5 + 2 * label, 4:24] = 230
    return dataset(images, labels, LABELS)


def test_both_learn_what_is_easy_and_their_time_is_known(bars: Dataset) -> None:
    """Each run ends with a time and both accuracies at the target."""
    times = race(bars, bars, seed=0, target=0.25)
    assert [each.recipe for each in times] == [recipe.name for recipe in RECIPES]
    for each in times:
        assert each.wall_s is not None
        assert each.train_accuracy is not None
        assert each.test_accuracy == each.train_accuracy >= 0.25
    reduction = summary(times)["cpu_s"]["reduction"]
    assert reduction == pytest.approx(1 - times[1].cpu_s / times[0].cpu_s)


def test_who_never_gets_there_has_no_time(bars: Dataset) -> None:
    """Labels that mean nothing on other images: the test images stay unknown, and no share is claimed."""
    shuffled = dataset(bars.images, np.roll(bars.labels, 5), LABELS)
    times = race(bars.take(np.arange(128)), shuffled, seed=0, target=0.9)
    assert [each.wall_s for each in times] == [None, None]
    assert summary(times)["wall_s"]["reduction"] is None
