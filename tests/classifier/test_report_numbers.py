"""The report's numbers agree with scikit-learn, torchmetrics, and slow computations by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import sklearn.metrics as reference
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from classifier.metrics import (
    expected_calibration_error,
    group_index,
    group_probabilities,
    measure,
    reliability,
    sigmoid,
    softmax,
)
from classifier.report.mistakes import (
    brightness_contrast,
    confident_mistakes,
    suspected_labels,
    thirds,
    top_confusions,
)
from classifier.report.ranking import average_precision, false_positive_rate, risk_coverage, roc_auc
from classifier.report.resampling import (
    basic_interval,
    bootstrap,
    calibration_error,
    macro_f1,
    mcnemar,
    mean_precision,
    percentile_interval,
)
from classifier.report.sections import conformal, probes, versus
from classifier.report.tags import measure_tags

NAMES = ("a", "b", "c", "d")
GROUPS = {"ab": ("a", "b"), "cd": ("c", "d")}
settings.register_profile("report", max_examples=25, deadline=None)
few = settings.get_profile("report")
# Few distinct values, so that ties are the rule.
SCORES = st.integers(0, 8).map(lambda value: value / 8)


@st.composite
def answers(draw: Callable[..., Any]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """1 to 40 images of four classes, of which some may be missing, with tied probabilities."""
    count = draw(st.integers(1, 40))
    labels = draw(arrays(np.int64, count, elements=st.integers(0, 3)))
    raw = draw(arrays(np.float64, (count, 4), elements=st.integers(1, 6).map(float)))
    return labels, (raw / raw.sum(1, keepdims=True)).astype(np.float32)


@st.composite
def ranked(draw: Callable[..., Any]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Scores with ties, and which rows are positive; both kinds occur."""
    count = draw(st.integers(2, 60))
    scores = draw(arrays(np.float64, count, elements=SCORES))
    truth = draw(arrays(np.bool_, count))
    truth[draw(st.integers(0, count - 2))], truth[-1] = True, False
    return scores, truth


@few
@given(answers())
def test_the_headline_numbers_are_scikit_learns(drawn: tuple[NDArray[np.int64], Any]) -> None:
    """Accuracy, top-2, balanced accuracy, macro-F1, NLL, Brier, confusion, per-class recall."""
    labels, probabilities = drawn
    found = measure(labels, probabilities, NAMES, GROUPS)
    said, present = probabilities.argmax(1), np.unique(labels)
    assert math.isclose(found.accuracy, reference.accuracy_score(labels, said))
    assert np.isclose(found.nll, reference.log_loss(labels, probabilities, labels=range(4)), rtol=1e-5)
    brier = reference.brier_score_loss(labels, probabilities, labels=range(4), scale_by_half=False)
    assert np.isclose(found.brier, brier, rtol=1e-5)
    f1 = reference.f1_score(labels, said, labels=present, average="macro", zero_division=0)
    assert math.isclose(found.macro_f1, f1)
    recalls = reference.recall_score(labels, said, labels=range(4), average=None, zero_division=0)
    assert [c.recall for c in found.classes] == recalls.tolist()
    assert math.isclose(found.balanced_accuracy, recalls[present].mean())
    assert np.array_equal(found.confusion, reference.confusion_matrix(labels, said, labels=range(4)))
    ranks = (probabilities > probabilities[np.arange(len(labels)), labels][:, None]).sum(1)
    assert found.top2_accuracy <= (ranks < 2).mean() + 1e-12  # equal where there are no ties
    assert found.top2_accuracy >= found.accuracy


def test_top_two_and_calibration_are_those_of_torchmetrics(torch: Any) -> None:
    """Top-2 of random answers; ECE of one confidence in each fifth, where equal mass is equal width."""
    from torchmetrics.functional import classification as theirs

    rng = np.random.default_rng(0)
    labels, probabilities = rng.integers(0, 4, 500), rng.dirichlet(np.ones(4), 500).astype(np.float32)
    top2 = theirs.multiclass_accuracy(
        torch.from_numpy(probabilities), torch.from_numpy(labels), num_classes=4, top_k=2, average="micro"
    )
    assert np.isclose(measure(labels, probabilities, NAMES, GROUPS).top2_accuracy, top2.item())
    confidence = np.repeat(np.array([0.15, 0.33, 0.47, 0.71, 0.93], np.float32), 40)
    correct = rng.random(200) < confidence
    ece = theirs.binary_calibration_error(
        torch.from_numpy(confidence), torch.from_numpy(correct.astype(int)), n_bins=5
    )
    assert np.isclose(expected_calibration_error(confidence, correct, bins=5), ece.item(), atol=1e-6)


@few
@given(answers(), st.randoms(use_true_random=False))
def test_reliability_keeps_every_image_and_ignores_their_order(drawn: Any, random: Any) -> None:
    """Equal masses, the mean accuracy is the accuracy, and shuffled ties change nothing."""
    labels, probabilities = drawn
    confidence, correct = probabilities.max(1), probabilities.argmax(1) == labels
    bins = reliability(confidence, correct, 5)
    sizes = [bin.images for bin in bins]
    assert sum(sizes) == len(labels)
    assert max(sizes) - min(sizes) <= 1
    assert np.isclose(sum(b.images * b.accuracy for b in bins) / len(labels), correct.mean())
    order = list(range(len(labels)))
    random.shuffle(order)
    again = reliability(confidence[order], correct[order], 5)
    assert np.allclose([b.accuracy for b in again], [b.accuracy for b in bins])


@few
@given(ranked())
def test_rankings_are_scikit_learns(drawn: tuple[NDArray[np.float64], NDArray[np.bool_]]) -> None:
    """Average precision and ROC-AUC with ties, and the false positive rate read off scikit-learn's curve."""
    scores, truth = drawn
    assert np.isclose(average_precision(scores, truth), reference.average_precision_score(truth, scores))
    assert np.isclose(roc_auc(scores, truth), reference.roc_auc_score(truth, scores))
    rates, recalls, _ = reference.roc_curve(truth, scores, drop_intermediate=False)
    assert np.isclose(false_positive_rate(scores, truth), rates[recalls >= 0.95 - 1e-12].min())


def test_rankings_without_one_of_the_kinds_are_undefined() -> None:
    """None, not a number that looks like a result."""
    scores = np.array([0.2, 0.9])
    assert average_precision(scores, np.zeros(2, bool)) is None
    for truth in (np.zeros(2, bool), np.ones(2, bool)):
        assert roc_auc(scores, truth) is None
        assert false_positive_rate(scores, truth) is None


@few
@given(ranked())
def test_risk_coverage_is_the_mean_over_orders_of_ties(drawn: Any) -> None:
    """The full risk is the error rate; with distinct scores every step is a plain running mean."""
    scores, correct = drawn
    curve = risk_coverage(scores, correct)
    assert np.isclose(curve.risk[-1], 1 - correct.mean())
    assert curve.aurc_ideal <= curve.aurc + 1e-12
    distinct = scores + np.arange(len(scores)) * 1e-6
    order = np.argsort(-distinct)
    running = np.cumsum(~correct[order]) / np.arange(1, len(order) + 1)
    assert np.allclose(risk_coverage(distinct, correct).risk, running)
    assert curve.at(1.0)[0] == 1 - curve.risk[-1]


def test_risk_coverage_of_a_perfect_judge_is_the_ideal() -> None:
    """All mistakes below all right answers."""
    correct = np.array([True] * 7 + [False] * 3)
    curve = risk_coverage(np.linspace(1, 0, 10), correct)
    assert np.isclose(curve.aurc, curve.aurc_ideal)
    assert curve.at(0.7) == (1.0, pytest.approx(1 - 6 / 9))


@few
@given(only_first=st.integers(0, 30), only_second=st.integers(0, 30))
def test_mcnemar_is_the_exact_binomial_test(only_first: int, only_second: int) -> None:
    """Against scipy's two-sided binomial test, which scikit-learn brings along."""
    from scipy.stats import binomtest

    first = np.array([True] * only_first + [False] * only_second + [True, False])
    second = np.array([False] * only_first + [True] * only_second + [True, False])
    found = mcnemar(first, second)
    assert (found.both, found.neither) == (1, 1)
    total = only_first + only_second
    expected = binomtest(only_first, total).pvalue if total else 1.0
    assert math.isclose(found.p, expected, rel_tol=1e-9)


def test_mcnemar_survives_thousands_of_disagreements() -> None:
    """Whole numbers have no overflow; 5,600 against 4,400 of 10,000 is no accident."""
    first = np.arange(10_000) < 5_600
    assert 0 < mcnemar(first, ~first).p < 1e-30


def test_the_difference_of_two_models_comes_with_its_interval() -> None:
    """30 against 10 disagreements among 1000: 2 points +- 1.96 * sqrt((40/1000 - .02^2) / 1000)."""
    first, second = np.ones(1000, bool), np.ones(1000, bool)
    first[:10], second[10:40] = False, False
    found = versus(first, second)
    assert np.isclose(found["difference"], 0.02)
    assert np.isclose(found["difference_high"] - found["difference"], 0.01234, atol=1e-4)


@few
@given(answers())
def test_resampled_statistics_are_the_statistics_of_resamples(drawn: Any) -> None:
    """The vectorised forms equal the plain ones on each resample, and strata keep their size."""
    labels, probabilities = drawn
    said, confidence = probabilities.argmax(1), probabilities.max(1)
    distinct = confidence + np.arange(len(labels), dtype=np.float32) * 1e-5
    rng = np.random.default_rng(1)
    draws = rng.integers(0, len(labels), (4, len(labels)))
    errors = calibration_error(distinct, said == labels, 5)(draws)
    for row, error in zip(draws, errors, strict=True):
        ordered = row[np.argsort(distinct[row], kind="stable")]
        gaps = (distinct - (said == labels))[ordered].astype(np.float64)
        plain = sum(abs(part.sum()) for part in np.array_split(gaps, min(5, len(row)))) / len(row)
        assert np.isclose(error, plain, atol=1e-6)
    drawn_f1 = bootstrap(macro_f1(labels, said, 4), labels, rounds=8)
    assert len(drawn_f1) == 8
    assert ((drawn_f1 >= 0) & (drawn_f1 <= 1)).all()
    identity = macro_f1(labels, said, 4)(np.arange(len(labels))[None])
    assert np.isclose(identity[0], measure(labels, probabilities, NAMES, GROUPS).macro_f1)


@few
@given(ranked())
def test_resampled_average_precision_is_that_of_the_resample(drawn: Any) -> None:
    """Against the plain function, ties included."""
    scores, truth = drawn
    positives, negatives = np.flatnonzero(truth), np.flatnonzero(~truth)
    draws = np.concatenate([positives[::-1], np.resize(negatives[:1], len(negatives))])[None]
    expected = average_precision(scores[draws[0]], truth[draws[0]])
    assert np.isclose(mean_precision(scores, truth)(draws)[0], expected)


def test_a_resample_keeps_every_class_and_repeats_with_its_seed() -> None:
    """Class sizes are those of the data; the same seed gives the same interval."""
    labels = np.array([0] * 5 + [1] * 50 + [3] * 500)

    def sizes(draws: NDArray[np.int64]) -> NDArray[np.float64]:
        assert all(np.bincount(labels[row], minlength=4).tolist() == [5, 50, 0, 500] for row in draws)
        return draws.mean(1)

    assert np.array_equal(bootstrap(sizes, labels, 50, seed=3), bootstrap(sizes, labels, 50, seed=3))
    assert not np.array_equal(bootstrap(sizes, labels, 50, seed=3), bootstrap(sizes, labels, 50, seed=4))


def test_the_bootstrap_interval_of_accuracy_is_the_normal_one() -> None:
    """Macro-F1 of a balanced, symmetric two-class problem moves like its accuracy: 90 % give or take 1.3."""
    labels = np.repeat([0, 1], 1000)
    said = labels.copy()
    said[:100], said[1000:1100] = 1, 0
    low, high = percentile_interval(bootstrap(macro_f1(labels, said, 2), labels))
    assert np.isclose(low, 0.9 - 1.96 * math.sqrt(0.09 / 2000), atol=2e-3)
    assert np.isclose(high, 0.9 + 1.96 * math.sqrt(0.09 / 2000), atol=2e-3)


def test_the_mirrored_interval_undoes_the_upward_push_of_resampling() -> None:
    """An honest model's ECE is noise alone: resamples lie above it, the mirrored interval reaches to 0."""
    rng = np.random.default_rng(5)
    confidence = rng.uniform(0.5, 1, 4000).astype(np.float32)
    correct = rng.random(4000) < confidence
    estimate = expected_calibration_error(confidence, correct)
    values = bootstrap(calibration_error(confidence, correct), np.zeros(4000, np.int64), 200)
    assert percentile_interval(values)[0] > 0.4 * estimate
    low, high = basic_interval(values, estimate)
    assert low == 0
    assert 0 < high < percentile_interval(values)[1]


TAGS = st.integers(-1, 1)


@settings(max_examples=15, deadline=None)
@given(
    tags=arrays(np.int8, (30, 2), elements=TAGS),
    scores=arrays(np.float32, (30, 2), elements=st.integers(0, 8).map(lambda value: value / 8)),
)
def test_tag_numbers_are_scikit_learns_on_the_known_rows(tags: Any, scores: Any) -> None:
    """Unknown answers take no part anywhere; a tag that never occurs has no average precision."""
    found = measure_tags(tags, scores, ("x", "y"), (0.5, 0.25))
    for at, tag in enumerate(found.tags):
        known = tags[:, at] >= 0
        truth, said = tags[known, at] == 1, scores[known, at] >= tag.threshold
        assert (tag.known, tag.positives) == (known.sum(), truth.sum())
        if not len(truth):
            assert (tag.average_precision, tag.roc_auc, tag.recall) == (None, None, 0.0)
            continue
        kind = {"zero_division": 0.0}
        assert math.isclose(tag.precision, reference.precision_score(truth, said, **kind))
        assert math.isclose(tag.recall, reference.recall_score(truth, said, **kind))
        assert math.isclose(tag.f1, reference.f1_score(truth, said, **kind))
        assert math.isclose(tag.f1_always_yes, reference.f1_score(truth, np.ones_like(truth), **kind))
        if truth.any():
            expected = reference.average_precision_score(truth, scores[known, at])
            assert np.isclose(tag.average_precision, expected)
        if truth.any() and not truth.all():
            assert np.isclose(tag.roc_auc, reference.roc_auc_score(truth, scores[known, at]))
    full = (tags >= 0).all(1)
    if full.any():
        right = (scores[full] >= np.float32([0.5, 0.25])) == (tags[full] == 1)
        assert found.exact_match == right.all(1).mean()
    else:
        assert found.exact_match is None


def test_tags_that_do_not_fit_are_refused() -> None:
    """Two tags, one name."""
    with pytest.raises(ValueError, match="cannot judge"):
        measure_tags(np.zeros((3, 2), np.int8), np.zeros((3, 2), np.float32), ("x",), (0.5,))


def test_groups_sum_the_probabilities_of_their_classes() -> None:
    """No class of the winning group need be the likeliest: 0.3 + 0.3 beats 0.4."""
    probabilities = np.array([[0.3, 0.3, 0.4, 0.0]], np.float32)
    coarse = group_probabilities(probabilities, group_index(NAMES, GROUPS), 2)
    assert np.allclose(coarse, [[0.6, 0.4]])
    found = measure(np.array([0]), probabilities, NAMES, GROUPS)
    assert (found.accuracy, found.group_accuracy) == (0.0, 1.0)


@few
@given(arrays(np.float32, (3, 4), elements=st.floats(-200, 200, width=32)), st.floats(0.2, 5))
def test_softmax_and_sigmoid_never_overflow(logits: Any, temperature: float) -> None:
    """Rows sum to 1 and keep their order, however large the logits."""
    probabilities = softmax(logits, temperature)
    assert np.allclose(probabilities.sum(1), 1, atol=1e-5)
    assert (probabilities[np.arange(3), logits.argmax(1)] == probabilities.max(1)).all()
    assert ((sigmoid(logits) >= 0) & (sigmoid(logits) <= 1)).all()
    assert np.allclose(sigmoid(logits) + sigmoid(-logits), 1, atol=1e-6)


def test_planted_label_errors_are_suspected_and_hard_images_are_not() -> None:
    """Ten flipped labels of sure images are found; an image between two classes is left alone."""
    rng = np.random.default_rng(2)
    true = rng.integers(0, 3, 300)
    probabilities = np.full((300, 3), 0.05, np.float32)
    probabilities[np.arange(300), true] = 0.9
    labels = true.copy()
    labels[:10] = (true[:10] + 1) % 3
    probabilities[10] = 0.04
    probabilities[10, labels[10]], probabilities[10, (labels[10] + 1) % 3] = 0.47, 0.49
    rows, seems = suspected_labels(probabilities, labels)
    assert sorted(rows.tolist()) == list(range(10))
    assert (seems == true[rows]).all()


@few
@given(answers())
def test_mistakes_are_listed_surest_first(drawn: Any) -> None:
    """Every wrong row once; nothing is suspected that carries the label it seems to have."""
    labels, probabilities = drawn
    rows = confident_mistakes(probabilities, labels)
    assert sorted(rows.tolist()) == np.flatnonzero(probabilities.argmax(1) != labels).tolist()
    assert (np.diff(probabilities.max(1)[rows]) <= 0).all()
    doubtful, seems = suspected_labels(probabilities, labels)
    assert (labels[doubtful] != seems).all()


def test_confused_pairs_are_ordered_and_leave_out_the_right_ones() -> None:
    """Counts with their share of the true class."""
    pairs = top_confusions([[8, 2, 0], [5, 5, 0], [0, 0, 9]], "abc")
    assert [(p.true, p.predicted, p.images, p.share) for p in pairs] == [
        ("b", "a", 5, 0.5),
        ("a", "b", 2, 0.2),
    ]


def test_slices_are_thirds_and_equal_values_stay_together() -> None:
    """Thirds by value with their accuracy; a constant property is one slice."""
    value, correct = np.arange(9.0), np.array([True] * 6 + [False] * 3)
    found = thirds("x", value, correct)
    assert [(s.images, s.accuracy) for s in found] == [(3, 1.0), (3, 1.0), (3, 0.0)]
    assert (found[0].low, found[2].high) == (0.0, 8.0)
    assert [s.images for s in thirds("x", np.ones(9), correct)] == [9]


def test_brightness_and_contrast_are_read_in_blocks_of_any_shape() -> None:
    """Gray and colour, block by block, as all at once."""
    images = np.random.default_rng(0).integers(0, 256, (7, 3, 5, 5), dtype=np.uint8)
    brightness, contrast = brightness_contrast(images, block=3)
    assert np.allclose(brightness, images.reshape(7, -1).mean(1))
    assert np.allclose(contrast, images.reshape(7, -1).std(1))


def test_answer_sets_are_judged_by_what_they_hold() -> None:
    """Sets of all classes above 1 - 0.7: half of the images get two names, one of them misses the truth."""
    probabilities = np.array(
        [[0.5, 0.45, 0.05], [0.9, 0.05, 0.05], [0.45, 0.5, 0.05], [0.9, 0.05, 0.05]], np.float32
    )
    (found,) = conformal({"0.9": [0.7, 0.7, 0.7]}, probabilities, np.array([1, 0, 2, 0]), "abc")
    assert (found["level"], found["coverage"], found["mean_size"], found["single"]) == (0.9, 0.75, 1.5, 0.5)
    assert (found["worst_class"], found["worst_class_coverage"]) == ("c", 0.0)
    assert found["common_pairs"] == [{"labels": ["a", "b"], "images": 2}]


def test_probes_are_judged_by_who_passes() -> None:
    """All of one family are stranger than any garment; the other looks like them."""
    known = np.linspace(0, 1, 100, dtype=np.float32)
    far, near = probes(known, {"far": known + 5, "near": known.copy()}, threshold=1.5)
    assert (far["auroc"], far["accepted_at_95"], far["rejected"]) == (1.0, 0.0, 1.0)
    assert (near["auroc"], near["rejected"]) == (0.5, 0.0)
    assert 0.94 <= near["accepted_at_95"] <= 0.96
