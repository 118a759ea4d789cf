"""Answer sets cover what they promise; abstention follows its thresholds; temperatures are honest."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from classifier import Classifier, Dataset
from classifier.metrics import fit_temperature, softmax
from classifier.uncertainty import Abstention, answer_sets, fit_abstention, fit_conformal


def drawn(rows: int, rng: np.random.Generator) -> tuple[NDArray[Any], NDArray[Any]]:
    """Probabilities of four classes, wrong in a known way, and labels: class 3 is the hard one."""
    labels = rng.integers(0, 4, rows)
    logits = rng.normal(size=(rows, 4)) + np.array([4, 3, 2, 0.5])[labels, None] * np.eye(4)[labels]
    return softmax(logits.astype(np.float32)), labels


def covered(sets: NDArray[Any], labels: NDArray[Any]) -> NDArray[Any]:
    """Whether each true label is among the answers."""
    return sets[np.arange(len(labels)), labels]


def test_every_class_is_covered_as_promised() -> None:
    """Over many draws of the held-out images, each class at least at its level, and not far above it."""
    rng = np.random.default_rng(0)
    level, shares = 0.9, []
    for _ in range(60):
        quantiles = fit_conformal(*drawn(1000, rng), levels=(level,))["0.9"]
        probabilities, labels = drawn(2000, rng)
        inside = 1 - probabilities <= np.array(quantiles)
        hit = covered(inside, labels)
        shares.append([hit[labels == k].mean() for k in range(4)])
        assert (covered(answer_sets(probabilities, quantiles), labels) >= hit).all()
    means = np.mean(shares, axis=0)
    assert (means > level - 0.005).all()
    assert (means < level + 0.012).all()


def test_garments_are_covered_half_by_half(classifier: Classifier, validation: Dataset) -> None:
    """On the shipped validation images, with the shipped model, every level, every random half."""
    count = 3000
    probabilities = classifier.predict_tensor(validation.pixels()[:count])
    labels, rng, found = validation.labels[:count], np.random.default_rng(0), []
    for _ in range(20):
        fit, judge = np.array_split(rng.permutation(count), 2)
        quantiles = fit_conformal(probabilities[fit], labels[fit])
        assert list(quantiles) == ["0.9", "0.95", "0.99"]
        sets = [answer_sets(probabilities[judge], each) for each in quantiles.values()]
        found.append([covered(each, labels[judge]).mean() for each in sets])
        assert sets[0].sum() <= sets[1].sum() <= sets[2].sum()
    assert (np.mean(found, axis=0) > np.array([0.9, 0.95, 0.99]) - 0.003).all()


@given(st.lists(st.floats(0, 1, width=32), min_size=20, max_size=80), st.sampled_from((0.5, 0.8, 0.9)))
def test_the_quantile_is_the_smallest_that_covers_with_one_image_to_spare(
    truth: list[float], level: float
) -> None:
    """Counted by hand: at least (n + 1) level of the images lie at or below it, fewer below."""
    share = np.array(truth, np.float32)
    probabilities = np.stack([share, 1 - share], axis=1)
    labels = np.zeros(len(share), np.int64)
    found = fit_conformal(probabilities, labels, (level,))[f"{level:g}"][0]
    scores = 1 - share.astype(np.float64)
    needed = (len(scores) + 1) * level - 1e-9
    assert (scores <= found).sum() >= needed
    assert (scores < found).sum() < needed


def test_rare_classes_share_a_quantile_and_too_few_belong_to_every_answer() -> None:
    """At 0.9 a class needs 40 images for itself; 9 in all are the least that can promise anything."""
    rng = np.random.default_rng(1)
    labels = np.repeat([0, 1, 2], [60, 20, 20])
    probabilities = softmax(
        rng.normal(size=(100, 3)).astype(np.float32) + 2 * np.eye(3, dtype=np.float32)[labels]
    )
    own, shared, also_shared = fit_conformal(probabilities, labels, (0.9,))["0.9"]
    assert shared == also_shared != own
    truth = 1 - probabilities[np.arange(100), labels].astype(np.float64)
    assert shared == np.sort(truth[60:])[math.ceil(41 * 0.9) - 1]
    few = fit_conformal(probabilities[:8], labels[:8], (0.9,))["0.9"]
    assert few == [1.0, 1.0, 1.0]
    assert answer_sets(probabilities, few).all()


def test_no_answer_is_empty() -> None:
    """A model better than the promise would leave images without any label: the best guess stays."""
    probabilities = np.array([[0.6, 0.3, 0.1], [0.2, 0.3, 0.5]], np.float32)
    sets = answer_sets(probabilities, [0.0, 0.0, 0.0])
    np.testing.assert_array_equal(sets, [[True, False, False], [False, False, True]])


def test_quantiles_survive_the_manifest(classifier: Classifier, validation: Dataset) -> None:
    """Written and read as JSON they leave out the same labels."""
    probabilities = classifier.predict_tensor(validation.pixels()[:500])
    fitted = fit_conformal(probabilities, validation.labels[:500])
    for level, quantiles in json.loads(json.dumps(fitted)).items():
        np.testing.assert_array_equal(
            answer_sets(probabilities, quantiles), answer_sets(probabilities, fitted[level])
        )


def test_what_conformal_sets_cannot_be_fitted_on_is_refused() -> None:
    """Each message names the shapes or the level."""
    probabilities = np.full((4, 2), 0.5, np.float32)
    with pytest.raises(ValueError, match="3 labels"):
        fit_conformal(probabilities, np.zeros(3, np.int64))
    with pytest.raises(ValueError, match="do not fit"):
        fit_conformal(probabilities, np.full(4, -1))
    with pytest.raises(ValueError, match=r"\[1.0\]"):
        fit_conformal(probabilities, np.zeros(4, np.int64), (1.0,))


def test_an_outlier_goes_before_an_unsure_answer() -> None:
    """Above the line, not on it; a model without a score never calls an image an outlier."""
    rule = Abstention(outlier_threshold=2.0, confidence_threshold=0.5, accepted=0.99)
    outlier = np.array([2.0, 2.1, 2.1, 0.0, np.nan], np.float32)
    confidence = np.array([0.9, 0.9, 0.2, 0.2, 0.9], np.float32)
    assert rule.reasons(outlier, confidence) == ["", "outlier", "outlier", "unsure", ""]
    assert Abstention().reasons(outlier, confidence) == [""] * 5


@given(
    st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=300),
    st.sampled_from((0.5, 0.9, 0.95, 0.99, 1.0)),
)
def test_the_threshold_accepts_at_least_the_share_it_was_asked_for(scores: list[float], share: float) -> None:
    """And it is one of the scores, so that rounding cannot move an image across."""
    values = np.array(scores, np.float32)
    rule = fit_abstention(values, share)
    assert (values <= rule.outlier_threshold).mean() >= share
    assert rule.outlier_threshold in values
    assert rule.accepted == share


def test_unseen_images_are_accepted_as_asked() -> None:
    """The correction for finite samples: on average over draws not below the share."""
    rng = np.random.default_rng(0)
    shares = []
    for _ in range(400):
        rule = fit_abstention(rng.normal(size=100).astype(np.float32), 0.95)
        shares.append((rng.normal(size=200) <= rule.outlier_threshold).mean())
    assert 0.948 < np.mean(shares) < 0.958


def test_thresholds_go_through_json() -> None:
    """Infinity is no JSON: it is written as null."""
    for rule in (Abstention(), Abstention(1.5, 0.3, 0.95)):
        assert Abstention.from_dict(json.loads(json.dumps(rule.to_dict(), allow_nan=False))) == rule
    assert Abstention().to_dict()["outlier_threshold"] is None


@pytest.mark.parametrize(
    ("threshold", "confidence", "accepted"),
    [(math.nan, 0.0, 1.0), (1.0, 1.5, 1.0), (1.0, -0.1, 1.0), (1.0, 0.0, 0.0), (1.0, 0.0, 1.1)],
)
def test_impossible_thresholds_are_refused(threshold: float, confidence: float, accepted: float) -> None:
    """A NaN would accept everything, in silence."""
    with pytest.raises(ValueError, match="impossible thresholds"):
        Abstention(threshold, confidence, accepted)


def test_thresholds_need_scores() -> None:
    """No images, a model without a score, an impossible share."""
    with pytest.raises(ValueError, match="got 0"):
        fit_abstention(np.empty(0, np.float32))
    with pytest.raises(ValueError, match="1 are finite"):
        fit_abstention(np.array([1.0, np.nan], np.float32))
    with pytest.raises(ValueError, match=r"got 1\.5"):
        fit_abstention(np.ones(3, np.float32), 1.5)


@given(rows=st.integers(1, 30), scale=st.floats(0.01, 50))
def test_a_few_right_answers_do_not_make_a_model_certain(rows: int, scale: float) -> None:
    """All named rightly, whatever the size of the logits: the temperature stays within bounds."""
    logits = (scale * np.eye(4)[np.arange(rows) % 4]).astype(np.float32)
    found = fit_temperature(logits, np.arange(rows) % 4)
    assert 0.2 <= found <= 1.0001
    if rows <= 4 and scale < 5:
        assert found > 0.35


def test_the_temperature_rises_with_the_share_of_wrong_answers() -> None:
    """The more of the same sure answers are wrong, the less sure they may be."""
    labels = np.zeros(200, np.int64)
    logits = np.tile(np.array([5.0, 0.0, 0.0], np.float32), (200, 1))
    found = []
    for wrong in (0, 2, 20, 80):
        labels[:wrong] = 1
        found.append(fit_temperature(logits, labels))
    assert found == sorted(found)
    assert found[0] < 1 < found[-1]
    assert fit_temperature(logits[:0], labels[:0]) == pytest.approx(1.0, abs=1e-6)
