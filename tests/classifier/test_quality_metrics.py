"""The metrics agree with slow, independent computations."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from classifier import Metrics, measure
from classifier.metrics import (
    expected_calibration_error,
    fit_temperature,
    group_index,
    wilson,
)

NAMES = ("a", "b", "c")
GROUPS = {"ab": ("a", "b"), "c": ("c",)}


def judged(labels: list[int], rows: list[list[float]]) -> Metrics:
    """Metrics of three classes in two groups."""
    return measure(np.array(labels, np.int64), np.array(rows, np.float32), NAMES, GROUPS)


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=60))
def test_counts_and_shares_agree_with_a_plain_count(pairs: list[tuple[int, int]]) -> None:
    """Accuracy, recall, precision, F1, confusion and group accuracy, recounted with loops."""
    rows = [[0.8 if k == guess else 0.1 for k in range(3)] for _, guess in pairs]
    found = judged([true for true, _ in pairs], rows)
    assert found.accuracy == sum(t == g for t, g in pairs) / len(pairs)
    assert found.group_accuracy == sum((t == 2) == (g == 2) for t, g in pairs) / len(pairs)
    f1s, recalls = [], []
    for k in range(3):
        hit = sum(t == g == k for t, g in pairs)
        support, said = sum(t == k for t, _ in pairs), sum(g == k for _, g in pairs)
        row = found.classes[k]
        assert row.support == support
        assert row.recall == (hit / support if support else 0)
        assert row.precision == (hit / said if said else 0)
        for other in range(3):
            assert found.confusion[k][other] == sum(t == k and g == other for t, g in pairs)
        if support:
            recalls.append(hit / support)
            f1s.append(2 * hit / (support + said))
    assert math.isclose(found.balanced_accuracy, sum(recalls) / len(recalls))
    assert math.isclose(found.macro_f1, sum(f1s) / len(f1s))


def test_nll_is_the_mean_surprise() -> None:
    """Two images with 0.5 and 0.25 on the truth."""
    found = judged([0, 2], [[0.5, 0.3, 0.2], [0.5, 0.25, 0.25]])
    assert math.isclose(found.nll, (math.log(2) + math.log(4)) / 2, rel_tol=1e-6)


def test_a_sure_mistake_has_a_finite_nll() -> None:
    """A probability of zero on the truth is bad, not infinite."""
    assert math.isfinite(judged([0], [[0.0, 1.0, 0.0]]).nll)


def test_wilson_matches_published_values() -> None:
    """95 of 100: 88.8 to 97.8 percent (Brown, Cai and DasGupta's formula by hand)."""
    low, high = wilson(95, 100)
    assert round(low, 3) == 0.888
    assert round(high, 3) == 0.978


@given(trials=st.integers(1, 500), share=st.floats(0, 1))
def test_wilson_holds_the_estimate(trials: int, share: float) -> None:
    """The interval contains the share it is about and stays in 0..1."""
    successes = round(share * trials)
    low, high = wilson(successes, trials)
    assert 0 <= low <= successes / trials + 1e-12
    assert successes / trials - 1e-12 <= high <= 1


def test_calibration_error_is_zero_when_confidence_is_honest() -> None:
    """75 percent sure and right three times in four."""
    confidence = np.full(400, 0.75, np.float32)
    correct = np.tile([True, True, True, False], 100)
    assert expected_calibration_error(confidence, correct, bins=1) < 1e-6


def test_calibration_error_is_the_gap_of_the_overconfident() -> None:
    """Always sure, right half of the time: a gap of one half."""
    correct = np.tile([True, False], 150)
    assert abs(expected_calibration_error(np.ones(300, np.float32), correct) - 0.5) < 1e-6


@pytest.mark.parametrize("true_temperature", [0.5, 1.0, 2.5])
def test_the_fitted_temperature_recovers_the_true_one(true_temperature: float) -> None:
    """Labels drawn from softmax(z / T) give T back, within sampling error."""
    rng = np.random.default_rng(3)
    logits = rng.normal(0, 2, (20_000, 4)).astype(np.float32)
    noise = rng.gumbel(size=logits.shape)
    labels = (logits / true_temperature + noise).argmax(1)
    assert abs(fit_temperature(logits, labels) / true_temperature - 1) < 0.05


@pytest.mark.parametrize(
    "groups", [{"ab": ("a", "b")}, {"ab": ("a", "b"), "c": ("c", "a")}, {"abc": ("a", "b", "x")}]
)
def test_groups_must_partition_the_classes(groups: dict) -> None:
    """A class in no group or in two would make group accuracy meaningless."""
    with pytest.raises(ValueError, match="exactly once"):
        group_index(NAMES, groups)


def test_the_dictionary_form_is_json() -> None:
    """Reports go into manifests and onto stdout as they are."""
    found = judged([0, 1], [[0.8, 0.1, 0.1], [0.1, 0.1, 0.8]])
    assert json.loads(json.dumps(found.to_dict()))["accuracy"] == 0.5
    assert "classes" not in found.summary()
    assert found.summary()["accuracy"] == 0.5


def test_nothing_to_judge_is_refused() -> None:
    """An empty evaluation is a mistake, not a perfect score."""
    with pytest.raises(ValueError, match="cannot judge"):
        measure(np.empty(0, np.int64), np.empty((0, 3), np.float32), NAMES, GROUPS)
