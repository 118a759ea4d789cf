"""The models in the package keep what their manifests and the README promise."""

from __future__ import annotations

import base64
import hashlib
import json
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from classifier import Classifier, Dataset, Metrics, ModelError, Prediction, evaluate
from classifier.bundle import CARD, GOLDEN, SHIPPED_MODELS, Bundle
from classifier.engines import ENGINES

# Least accuracy on the 10,000 validation images, and most trained values.
PROMISED = {"student": (0.94, 100_000), "base": (0.949, 1_100_000)}
# The large one takes a millisecond an image: it is measured on the first so many.
JUDGED = {"student": 10_000, "base": 2_000}
TORCH_FREE = ("onnx", "onnx-int8")


@pytest.fixture(scope="module", params=list(SHIPPED_MODELS))
def bundle(request: pytest.FixtureRequest) -> Bundle:
    """Every shipped model."""
    return Bundle.load(request.param)


@pytest.fixture(scope="module")
def reports(bundle: Bundle, validation: Dataset) -> dict[str, Metrics]:
    """Both engines of a worker on the validation images."""
    limit = JUDGED[bundle.directory.name]
    return {engine: evaluate(Classifier(bundle, engine), validation, limit) for engine in TORCH_FREE}


def test_fp32_reaches_the_promised_accuracy(bundle: Bundle, reports: dict[str, Metrics]) -> None:
    """On all images if the test takes them all, else within what so few can say."""
    name = bundle.directory.name
    slack = 0.0 if JUDGED[name] == 10_000 else 0.015
    assert reports["onnx"].accuracy >= PROMISED[name][0] - slack
    assert bundle.manifest.metrics["onnx"]["accuracy"] >= PROMISED[name][0]


def test_int8_stays_within_three_tenths_of_a_point(reports: dict[str, Metrics]) -> None:
    """Quantisation may cost at most 0.3 points."""
    assert reports["onnx"].accuracy - reports["onnx-int8"].accuracy <= 0.003


def test_probabilities_are_calibrated(reports: dict[str, Metrics]) -> None:
    """Confidence and accuracy differ by less than three points on average."""
    assert reports["onnx"].ece < 0.03


@pytest.mark.parametrize("engine", TORCH_FREE)
def test_the_card_says_what_was_measured(bundle: Bundle, reports: dict[str, Metrics], engine: str) -> None:
    """The manifest's numbers are these images' numbers, within one image of kernel rounding for int8."""
    card = bundle.manifest.metrics[engine]
    assert card["images"] == 10_000
    assert f"| {engine} | {card['accuracy']:.2%} |" in bundle.read(CARD).decode()
    if JUDGED[bundle.directory.name] == 10_000:
        assert abs(card["accuracy"] - reports[engine].accuracy) <= (1e-4 if engine == "onnx" else 1e-3)


def test_a_shipped_model_is_as_small_as_promised(bundle: Bundle) -> None:
    """Trained values, and files to match: fp32 twice, int8 once, and little else."""
    most = PROMISED[bundle.directory.name][1]
    assert bundle.manifest.parameter_count <= most
    assert sum(entry["bytes"] for entry in bundle.manifest.files.values()) < 11 * most + 1_500_000


def test_the_parameter_count_is_that_of_the_weights(bundle: Bundle, torch: Any) -> None:
    """Counted from the network, not from the manifest."""
    from classifier.model import parameter_count
    from classifier.torch_engine import load_network

    assert parameter_count(load_network(bundle)) == bundle.manifest.parameter_count


def test_offline_predict_equals_evaluate(
    bundle: Bundle, validation: Dataset, encode: Callable[..., bytes], reports: dict[str, Metrics]
) -> None:
    """PNG files through ``predict`` give the confusion matrix of arrays through ``evaluate``."""
    images = validation.images[: JUDGED[bundle.directory.name]]
    results = Classifier(bundle).predict([encode(image, compress_level=1) for image in images])
    table = np.zeros((10, 10), int)
    for label, result in zip(validation.labels, results, strict=False):
        assert isinstance(result, Prediction)
        table[label, result.label_index] += 1
    assert table.tolist() == [list(row) for row in reports["onnx"].confusion]


@pytest.mark.parametrize("engine", [each for each in ENGINES if each != "torch"])
def test_golden_images_give_golden_answers(bundle: Bundle, engine: str) -> None:
    """This machine decodes and predicts as the one that exported the model."""
    Classifier(bundle, engine).self_test()


def test_golden_images_give_golden_answers_in_torch(bundle: Bundle, torch: Any) -> None:
    """The trained weights themselves agree with what the ONNX file answered."""
    Classifier(bundle, "torch").self_test()


def test_golden_vectors_cover_every_kind_and_fit_their_hashes(bundle: Bundle) -> None:
    """Gray, colour, palette, transparent, bilevel, resized, JPEG, turned; pixels stored with their hash."""
    vectors = json.loads(bundle.read(GOLDEN))["vectors"]
    assert len({vector["name"] for vector in vectors}) >= 8
    for vector in vectors:
        pixels = zlib.decompress(base64.b64decode(vector["pixels"]))
        assert hashlib.sha256(pixels).hexdigest() == vector["pixels_sha256"]
        for precision in ("fp32", "int8"):
            assert sum(vector["answers"][precision]["probabilities"]) == pytest.approx(1, abs=1e-4)


def test_a_machine_that_decodes_differently_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """The self test fails when the preprocessing is not the model's own."""
    from classifier.images import Preprocessing, decode

    other = Classifier.load()
    monkeypatch.setattr(
        other, "decode", lambda images: decode(images, Preprocessing(background=9, resample="bicubic"))
    )
    with pytest.raises(ModelError, match="decodes differently"):
        other.self_test()


def test_a_machine_that_computes_differently_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """The self test fails when the network's outputs are not those of the export."""
    other = Classifier.load()
    right = other.outputs
    monkeypatch.setattr(
        other, "outputs", lambda images: right(images)._replace(logits=right(images).logits * 1.1)
    )
    with pytest.raises(ModelError, match=r"probabilities differ by .* with engine onnx"):
        other.self_test()


def test_shipped_models_saw_training_images_and_no_validation_image(
    bundle: Bundle, validation: Dataset
) -> None:
    """Provenance: the 60,000 were trained on or held out, and the card was measured on the 10,000."""
    raw = bundle.manifest.raw
    held_out = raw["calibrated_on"]["images"] if raw["calibrated_on"] else 0
    assert raw["data"]["images"] + held_out == 60_000
    assert raw["metrics_on"]["sha256"] == validation.sha256
