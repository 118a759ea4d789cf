"""Predicting: one result per image, in order, whatever is among them."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from classifier import Classifier, Dataset, InvalidImage, Prediction
from classifier.data import GROUPS, LABELS
from classifier.engines import Outputs


def labels_of(results: list[Prediction | InvalidImage]) -> list[str]:
    """Labels, or the reason in brackets."""
    return [f"[{r.reason}]" if isinstance(r, InvalidImage) else r.label for r in results]


def test_results_keep_order_and_length_with_bad_images_among_them(
    classifier: Classifier, pngs: list[bytes]
) -> None:
    """Neighbours of a bad image get the answers they would have got alone."""
    alone = labels_of(classifier.predict(pngs[:6]))
    mixed = [b"", pngs[0], b"junk", pngs[1], pngs[2], pngs[3][:50], pngs[3], pngs[4], pngs[5], b"GIF89a..."]
    assert labels_of(classifier.predict(mixed)) == [
        "[empty]",
        alone[0],
        "[not-an-image]",
        *alone[1:3],
        "[truncated]",
        *alone[3:],
        "[unsupported-format]",
    ]


def test_no_images_give_no_results(classifier: Classifier) -> None:
    """An empty batch is not an error."""
    assert classifier.predict([]) == []


def test_only_bad_images_give_only_reasons(classifier: Classifier) -> None:
    """The network is not asked about nothing."""
    assert labels_of(classifier.predict([b"", b"x"])) == ["[empty]", "[not-an-image]"]


def test_a_prediction_is_consistent_in_itself(classifier: Classifier, pngs: list[bytes]) -> None:
    """Label, index, confidence, runner-up, group and probabilities tell the same story."""
    for result in classifier.predict(pngs):
        assert isinstance(result, Prediction)
        ranked = sorted(result.probabilities, reverse=True)
        assert abs(sum(result.probabilities) - 1) < 1e-5
        assert (result.confidence, result.runner_up_confidence) == (ranked[0], ranked[1])
        assert LABELS[result.label_index] == result.label
        assert result.probabilities[LABELS.index(result.runner_up)] == result.runner_up_confidence
        chances = dict(zip(LABELS, result.probabilities, strict=True))
        of_groups = {name: sum(chances[each] for each in members) for name, members in GROUPS.items()}
        assert result.group_label == max(of_groups, key=of_groups.__getitem__)
        assert result.runner_up != result.label


@given(st.lists(st.integers(0, 199), min_size=1, max_size=30))
@settings(max_examples=25, deadline=None)
def test_an_answer_does_not_depend_on_its_batch(
    classifier: Classifier, pngs: list[bytes], picks: list[int]
) -> None:
    """Any selection in any order gives every image its own answer, to rounding."""
    single = [classifier.predict([pngs[i]])[0] for i in picks[:3]]
    batch = classifier.predict([pngs[i] for i in picks])
    assert len(batch) == len(picks)
    for one, other in zip(single, batch, strict=False):
        assert isinstance(one, Prediction)
        assert isinstance(other, Prediction)
        assert one.label == other.label
        assert abs(one.confidence - other.confidence) < 1e-4


def test_long_batches_equal_short_ones(classifier: Classifier, validation: Dataset) -> None:
    """Cutting a batch into cache-sized pieces changes nothing."""
    images = validation.images[:300, None].copy()
    whole = classifier.predict_tensor(images)
    parts = np.concatenate([classifier.predict_tensor(images[at : at + 7]) for at in range(0, 300, 7)])
    assert np.abs(whole - parts).max() < 1e-5


def test_decode_and_answers_are_predict_in_two_halves(classifier: Classifier, pngs: list[bytes]) -> None:
    """A worker that overlaps the halves gets the same answers."""
    decoded = classifier.decode(pngs[:20])
    halves = classifier.answers(decoded.tensor)
    assert halves == classifier.predict(pngs[:20])


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((2, 28, 28), np.uint8),
        np.zeros((2, 1, 28, 28), np.float32),
        np.zeros((2, 3, 28, 28), np.uint8),
        np.zeros((2, 1, 32, 32), np.uint8),
    ],
)
def test_a_wrong_tensor_is_refused(classifier: Classifier, images: np.ndarray) -> None:
    """Shape and type are checked, never guessed."""
    with pytest.raises(ValueError, match=r"expected \(N, 1, 28, 28\) uint8"):
        classifier.predict_tensor(images)


def test_threads_may_share_a_classifier(classifier: Classifier, pngs: list[bytes]) -> None:
    """Four threads at once get the answers of one."""
    expected, found = classifier.predict(pngs), []
    threads = [threading.Thread(target=lambda: found.append(classifier.predict(pngs))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [labels_of(results) for results in found] == [labels_of(expected)] * 4


def test_of_equal_probabilities_the_first_label_wins(classifier: Classifier) -> None:
    """Ties are broken by rule, so every engine breaks them alike."""
    equal = Outputs(np.zeros((1, 10), np.float32), np.empty((1, 0), np.float32), np.zeros(1, np.float32))
    (result,) = classifier.name(equal, np.zeros((1, 1, 28, 28), np.uint8))
    assert (result.label_index, result.runner_up) == (0, LABELS[1])


def test_the_manifest_says_who_answered(classifier: Classifier) -> None:
    """Name, version, hash and engine go into every result row."""
    assert classifier.manifest.name == "student"
    assert classifier.manifest.version
    assert len(classifier.manifest.hash) == 64
    assert classifier.engine == "onnx"
