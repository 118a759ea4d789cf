"""The model in the package keeps what its manifest and the README promise."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from classifier import LABELS, Classifier, Dataset, Metrics, ModelError, Prediction, evaluate
from classifier.bundle import GOLDEN, SHIPPED, Bundle

ENGINES = ("onnx", "onnx-int8")


@pytest.fixture(scope="module")
def reports(validation: Dataset) -> dict[str, Metrics]:
    """Both torch-free engines on all 10,000 validation images."""
    return {engine: evaluate(Classifier.load(engine=engine), validation) for engine in ENGINES}


def test_fp32_reaches_the_promised_accuracy(reports: dict[str, Metrics]) -> None:
    """At least 93.5 % of the 10,000."""
    assert reports["onnx"].accuracy >= 0.935


def test_int8_stays_within_three_tenths_of_a_point(reports: dict[str, Metrics]) -> None:
    """Quantisation may cost at most 0.3 points."""
    assert reports["onnx"].accuracy - reports["onnx-int8"].accuracy <= 0.003


def test_probabilities_are_calibrated(reports: dict[str, Metrics]) -> None:
    """Confidence and accuracy differ by less than three points on average."""
    assert reports["onnx"].ece < 0.03


@pytest.mark.parametrize("engine", ENGINES)
def test_the_card_says_what_was_measured(reports: dict[str, Metrics], engine: str) -> None:
    """The manifest's numbers are these images' numbers, within one image of kernel rounding for int8."""
    card = Bundle.load().manifest.metrics[engine]
    assert abs(card["accuracy"] - reports[engine].accuracy) <= (0 if engine == "onnx" else 1e-3)
    assert card["images"] == 10_000


def test_the_student_is_small() -> None:
    """At most 150,000 trained values, and files to match."""
    manifest = Bundle.load().manifest
    assert manifest.parameter_count <= 150_000
    assert sum(entry["bytes"] for entry in manifest.files.values()) < 2_000_000


def test_the_parameter_count_is_that_of_the_weights(torch: Any) -> None:
    """Counted from the network, not from the manifest."""
    from classifier.engines import load_network
    from classifier.model import parameter_count

    bundle = Bundle.load()
    assert parameter_count(load_network(bundle)) == bundle.manifest.parameter_count


def test_offline_predict_equals_evaluate(
    classifier: Classifier, validation: Dataset, encode: Callable[..., bytes], reports: dict[str, Metrics]
) -> None:
    """PNG files through ``predict`` give the confusion matrix of arrays through ``evaluate``."""
    results = classifier.predict([encode(image, compress_level=1) for image in validation.images])
    table = np.zeros((10, 10), int)
    for label, result in zip(validation.labels, results, strict=True):
        assert isinstance(result, Prediction)
        table[label, result.label_index] += 1
    assert table.tolist() == [list(row) for row in reports["onnx"].confusion]


@pytest.mark.parametrize("engine", ENGINES)
def test_golden_images_give_golden_answers(engine: str) -> None:
    """This machine decodes and predicts as the one that exported the model."""
    Classifier.load(engine=engine).self_test()


def test_golden_images_give_golden_answers_in_torch(torch: Any) -> None:
    """The trained weights themselves agree with what the ONNX file answered."""
    Classifier.load(engine="torch").self_test()


def test_golden_vectors_cover_every_kind_and_fit_their_hashes() -> None:
    """Gray, colour, palette, transparent, bilevel, resized, JPEG, turned; pixels stored with their hash."""
    vectors = json.loads((SHIPPED / GOLDEN).read_text())["vectors"]
    assert len({vector["name"] for vector in vectors}) == 8
    for vector in vectors:
        assert hashlib.sha256(base64.b64decode(vector["pixels"])).hexdigest() == vector["pixels_sha256"]
        assert len(vector["probabilities"]) == len(LABELS)


def test_a_machine_that_decodes_differently_is_told(
    classifier: Classifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The self test fails when the preprocessing is not the model's own."""
    from classifier.images import Preprocessing, decode

    other = Classifier.load()
    monkeypatch.setattr(
        other, "decode", lambda images: decode(images, Preprocessing(background=9, resample="bicubic"))
    )
    with pytest.raises(ModelError, match="decodes differently"):
        other.self_test()


def test_the_shipped_model_saw_every_training_image_and_no_validation_image() -> None:
    """Provenance: a final run on 60,000, its card measured on the 10,000."""
    raw = Bundle.load().manifest.raw
    assert raw["data"]["images"] == 60_000
    assert raw["provenance"]["train"]["val_fraction"] == 0
    assert raw["metrics_on"]["split"] == "card"
