"""The gate between a network and its engines, and the thresholds fitted on held-out images: pure numbers."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from classifier.agreement import Limits, differences, int8_figures, int8_problems, too_far
from classifier.calibration import best_threshold, fit_calibration
from classifier.data import dataset
from classifier.engines import Outputs
from classifier.uncertainty import Abstention


def figures(images: int, changed: int = 0, lost: int = 0, won: int = 0, tags_changed: int = 0) -> dict:
    """As ``int8_figures`` makes them."""
    return {
        "images": images,
        "judged": images,
        "changed": changed,
        "disagreement": changed / images,
        "lost": lost,
        "won": won,
        "drop": (lost - won) / images,
        "tags_changed": tags_changed,
        "tag_disagreement": tags_changed / images,
    }


@pytest.mark.parametrize(("images", "most"), [(40, 2), (180, 4), (1000, 15), (5000, 62)])
def test_few_images_excuse_a_few_changed_answers(images: int, most: int) -> None:
    """As many as chance gives an int8 network at the limit of 1 %, one time in twenty."""
    below = sum(math.comb(images, k) * 0.01**k * 0.99 ** (images - k) for k in range(most))
    assert 1 - below >= 0.05  # most is allowed
    assert (
        1 - below - math.comb(images, most) * 0.01**most * 0.99 ** (images - most) < 0.05
    )  # one more is not
    for kind in ("changed", "tags_changed"):
        assert int8_problems(figures(images, **{kind: most}), Limits()) == []
        (problem,) = int8_problems(figures(images, **{kind: most + 1}), Limits())
        assert "another" in problem


def test_a_strict_gate_takes_the_figures_as_they_are() -> None:
    """One image above the limit is above the limit."""
    strict = Limits(strict=True)
    assert int8_problems(figures(5000, changed=50, lost=15), strict) == []
    assert len(int8_problems(figures(5000, changed=51, lost=16), strict)) == 2
    assert len(int8_problems(figures(180, changed=2), strict)) == 1


@pytest.mark.parametrize(
    ("images", "lost", "won", "passes"),
    [(180, 2, 0, True), (180, 3, 0, True), (180, 4, 0, False), (5000, 30, 25, True), (5000, 60, 20, False)],
)
def test_lost_accuracy_counts_when_chance_does_not_explain_it(
    images: int, lost: int, won: int, passes: bool
) -> None:
    """What int8 loses is held against what it wins, and both against their own scatter."""
    assert (int8_problems(figures(images, lost=lost, won=won), Limits()) == []) is passes


def outputs(logits: list[list[float]], tags: list[list[float]] | None = None) -> Outputs:
    rows = np.array(logits, np.float32)
    of_tags = np.array(tags, np.float32) if tags else np.empty((len(rows), 0), np.float32)
    return Outputs(rows, of_tags, np.zeros(len(rows), np.float32))


def test_int8_figures_count_changed_lost_and_won_images_and_tags() -> None:
    """Unknown labels count for changes, not for accuracy; tags are decided at their thresholds."""
    gate = dataset(
        np.zeros((4, 28, 28), np.uint8),
        np.array([0, 0, 1, -1], np.int64),
        ("a", "b"),
        np.zeros((4, 1), np.int8),
        ("dotted",),
    )
    fp32 = outputs([[1, 0], [1, 0], [1, 0], [1, 0]], [[0.9], [1.1], [-3], [3]])
    int8 = outputs([[1, 0], [0, 1], [0, 1], [0, 1]], [[1.1], [1.2], [-2], [0.5]])
    found = int8_figures(int8, fp32, gate, np.array([1.0], np.float32))
    assert (found["changed"], found["lost"], found["won"], found["judged"]) == (3, 1, 1, 3)
    assert (found["drop"], found["tags_changed"]) == (0.0, 2)


def test_every_output_is_compared_and_missing_ones_are_not() -> None:
    """NaN in place of a score is no difference; a number that is not finite is one."""
    none = np.full(2, np.nan, np.float32)
    reference = outputs([[100, 0], [0, 1]], [[1], [2]])._replace(outlier=none)
    gaps = differences(reference._replace(logits=reference.logits + 1), reference)
    assert gaps == {"logits": pytest.approx(0.01), "tag_logits": 0.0}
    assert too_far({"onnx": gaps}, Limits(difference=0.02)) == []
    assert too_far({"onnx": gaps}, Limits()) == ["onnx: logits differ by 0.01, at most 0.001"]
    broken = reference._replace(tag_logits=reference.tag_logits * np.nan)
    assert too_far({"torch": differences(broken, reference)}, Limits())


@given(st.lists(st.tuples(st.floats(-8, 8, width=32), st.sampled_from([-1, 0, 1])), min_size=1, max_size=40))
@settings(max_examples=60, deadline=None)
def test_no_threshold_gives_a_higher_f1(rows: list[tuple[float, int]]) -> None:
    """Of those that say no to some known image the fitted one is best; unknown answers do not count."""
    logits, tags = np.array([x for x, _ in rows], np.float32), np.array([y for _, y in rows], np.int8)
    known = tags >= 0
    truth, scores = tags[known] == 1, 1 / (1 + np.exp(-logits[known].astype(np.float64)))

    def f1(threshold: float) -> float:
        said = scores >= threshold
        return 2 * (said & truth).sum() / max(1, said.sum() + truth.sum())

    found = best_threshold(logits, tags)
    if truth.all() or not truth.any() or len(set(scores)) < 2:
        assert found == 0.5
        return
    assert f1(found) >= max(f1(each) for each in set(scores) - {scores.min()}) - 1e-9


def test_of_equally_good_thresholds_the_one_nearest_one_half_wins() -> None:
    """Between well separated answers there is room; an extreme threshold would be an accident."""
    logits = np.array([-4, -2, 2.2, 6], np.float32)
    assert best_threshold(logits, np.array([0, 0, 1, 1], np.int8)) == pytest.approx(1 / (1 + math.exp(-0.1)))


def test_without_labels_or_scores_nothing_is_fitted_on_them() -> None:
    """Tags alone: no temperature, no answer sets; without an outlier score no threshold for it."""
    held_out = dataset(
        np.zeros((3, 28, 28), np.uint8),
        np.full(3, -1, np.int64),
        ("a", "b"),
        np.array([[0], [1], [1]], np.int8),
        ("dotted",),
    )
    found = outputs([[1, 0]] * 3, [[-1], [1], [2]])._replace(outlier=np.full(3, np.nan, np.float32))
    fitted = fit_calibration(found, held_out, 0.99, 0.0)
    assert (fitted.temperature, fitted.abstention, fitted.conformal) == (1.0, None, {})
    assert fitted.tag_thresholds == (0.5,)
    asked = fit_calibration(found, held_out, 0.99, 0.7)
    assert asked.abstention == Abstention(confidence_threshold=0.7)
