"""Exporting: a bundle that agrees with itself, or none."""

from __future__ import annotations

import io
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from classifier import Bundle, Classifier, Dataset, ExportRefused
from classifier.agreement import Limits
from classifier.bundle import CARD, FILES, MANIFEST, ONNX_INT8
from classifier.data import dataset

LAX = Limits(int8_disagreement=0.2, int8_drop=0.1)


@pytest.fixture(scope="module")
def run(torch: Any, stripes: Dataset) -> Any:
    """A tiny trained network with a held-out share."""
    from classifier import ModelConfig, TrainConfig, train

    config = TrainConfig(
        epochs=20, batch_size=64, val_fraction=0.2, average_decay=0.9, peak_learning_rate=0.1
    )
    return train(stripes, config, ModelConfig(widths=(16, 16, 24), stem=8))


@pytest.fixture(scope="module")
def exported(run: Any, stripes: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Its bundle; 128 images are too few for the shipped model's int8 limits."""
    from classifier import ExportConfig, export

    config = ExportConfig(version="0.1", calibration_images=128, limits=LAX, facts={"source": "drawn"})
    return export(run, stripes, tmp_path_factory.mktemp("export") / "stripes", config)


def test_a_bundle_holds_every_file_and_nothing_else(exported: Bundle) -> None:
    """No scratch files, no side files with weights."""
    assert sorted(path.name for path in exported.directory.iterdir()) == sorted([*FILES, MANIFEST])


def test_no_file_tells_where_it_was_made(exported: Bundle) -> None:
    """Neither paths of the exporting machine nor source lines travel with a model."""
    import classifier

    home = str(Path(classifier.__file__).parent).encode()
    for path in exported.directory.iterdir():
        content = path.read_bytes()
        assert home not in content, path.name
        assert b"stack_trace" not in content, path.name


def test_all_engines_agree_on_the_held_out_images(exported: Bundle, run: Any) -> None:
    """Torch, ONNX Runtime and OpenVINO give the same outputs, int8 nearly the same accuracy."""
    pixels = run.val.pixels()
    found = {}
    for engine in ("torch", "onnx", "onnx-int8", "openvino", "openvino-int8"):
        classifier = Classifier.load(exported.directory, engine)
        found[engine] = classifier.outputs(pixels)
        classifier.self_test()
    for engine in ("onnx", "openvino"):
        np.testing.assert_allclose(found[engine].logits, found["torch"].logits, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(found[engine].outlier, found["torch"].outlier, rtol=1e-2, atol=1e-2)
    assert np.isfinite(found["onnx"].outlier).all()
    accuracy = {name: (each.logits.argmax(1) == run.val.labels).mean() for name, each in found.items()}
    assert accuracy["onnx"] == pytest.approx(exported.manifest.metrics["onnx"]["accuracy"])
    assert abs(accuracy["onnx"] - accuracy["onnx-int8"]) <= 0.1
    assert abs(accuracy["onnx-int8"] - accuracy["openvino-int8"]) <= 0.05
    gaps = exported.manifest.raw["agreement"]["differences"]
    assert gaps.keys() == {"torch", "onnx", "openvino"}
    assert max(each["logits"] for each in gaps.values()) < 1e-4


def test_the_manifest_records_where_the_model_comes_from(exported: Bundle, run: Any) -> None:
    """Seed, settings, history, data hash and facts, versions and date; the name is the directory's."""
    raw = exported.manifest.raw
    assert raw["provenance"]["train"]["seed"] == 0
    assert len(raw["provenance"]["history"]) == 20
    assert raw["data"] == {"source": "drawn", "training_sha256": run.train_sha256, "images": 520}
    assert raw["calibrated_on"] == {"images": 120, "sha256": run.val.sha256}
    assert {"torch", "onnxruntime", "numpy"} <= raw["provenance"]["packages"].keys()
    assert raw["metrics_on"]["split"].startswith("held out")
    assert (exported.manifest.name, exported.manifest.version) == ("stripes", "0.1")


def test_the_card_says_data_recipe_figures_and_limits(exported: Bundle, run: Any) -> None:
    """What a stranger needs to know before using a model, with the manifest's numbers."""
    card = (exported.directory / CARD).read_text()
    assert card.startswith("# stripes 0.1\n")
    for part in ("## Data", "## Recipe", "## Figures", "## Intended use", "## Limits"):
        assert part in card
    assert run.train_sha256 in card
    assert "seed 0" in card
    assert f"| onnx | {exported.manifest.metrics['onnx']['accuracy']:.2%} |" in card


def test_temperature_and_thresholds_are_fitted_on_the_held_out_share(exported: Bundle, run: Any) -> None:
    """No temperature near it costs that share less, its prior included; 99 % of it pass for ordinary."""
    from classifier.metrics import fit_temperature
    from classifier.training import run_network

    logits = run_network(run.network, run.val.images).logits.numpy()
    assert exported.manifest.temperature == pytest.approx(fit_temperature(logits, run.val.labels), abs=1e-4)
    classifier = Classifier.load(exported.directory)
    answers = classifier.answers(run.val.pixels())
    assert sum(each.abstained for each in answers) <= 0.02 * len(answers)
    held = [
        run.val.class_names[label] in each.answer_set
        for label, each in zip(run.val.labels, answers, strict=True)
    ]
    assert np.mean(held) >= 0.95
    strange = np.zeros((1, 1, 28, 28), np.uint8)
    strange[:, :, ::2, ::2] = 255
    (answer,) = classifier.answers(strange)
    assert (answer.abstained, answer.why) == (True, "outlier")


def test_a_training_set_that_is_another_is_refused(run: Any, stripes: Dataset, tmp_path: Path) -> None:
    """Ranges and outliers would be learnt from images the network never saw."""
    from classifier import export

    other = dataset(255 - stripes.images, stripes.labels, stripes.class_names)
    with pytest.raises(ValueError, match=f"trained on images with sha256 {run.train_sha256}"):
        export(run, other, tmp_path / "bundle")


def test_engines_that_are_not_the_network_are_refused_and_nothing_is_written(
    run: Any, stripes: Dataset, tmp_path: Path
) -> None:
    """The gate names the engine and output, and leaves no bundle behind."""
    from classifier import ExportConfig, export

    config = ExportConfig(calibration_images=64, limits=Limits(difference=1e-12, int8_disagreement=1))
    with pytest.raises(ExportRefused, match=r"onnx: logits differ by .*Nothing was written"):
        export(run, stripes, tmp_path / "bundle", config)
    assert not (tmp_path / "bundle").exists()


def test_without_good_int8_a_bundle_is_written_that_says_so(
    run: Any, stripes: Dataset, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """With a warning; a strict export is refused. An int8 file that was there before is gone."""
    from classifier import ExportConfig, ModelError, export

    out = tmp_path / "bundle"
    out.mkdir()
    (out / ONNX_INT8).write_bytes(b"of an earlier export")
    never = Limits(int8_disagreement=-1.0)
    with caplog.at_level(logging.WARNING, "classifier"):
        bundle = export(run, stripes, out, ExportConfig(calibration_images=64, limits=never))
    assert "without int8 (onnx-int8: another class for" in caplog.text
    assert bundle.manifest.unavailable.keys() == {"onnx-int8", "openvino-int8"}
    assert bundle.manifest.metrics.keys() == {"onnx"}
    assert not (out / ONNX_INT8).exists()
    assert "Not available on onnx-int8" in (out / CARD).read_text()
    Classifier.load(out).self_test()
    with pytest.raises(ModelError, match=r"exported without onnx-int8: int8 is not good enough"):
        Classifier.load(out, "onnx-int8")

    strict = Limits(int8_disagreement=-1.0, strict=True)
    with pytest.raises(ExportRefused, match=r"another class.*Nothing was written"):
        export(run, stripes, tmp_path / "strict", ExportConfig(calibration_images=64, limits=strict))
    assert not (tmp_path / "strict").exists()


def test_a_finished_run_is_exported_from_its_checkpoint(torch: Any, stripes: Dataset, tmp_path: Path) -> None:
    """The file alone gives what ``train`` returned; the wrong data are refused."""
    from classifier import ModelConfig, TrainConfig, train
    from classifier.restoring import trained

    config = TrainConfig(epochs=1, batch_size=64, val_fraction=0.2)
    checkpoint = tmp_path / "checkpoint.safetensors"
    result = train(stripes, config, ModelConfig(widths=(8, 8, 8), stem=4), checkpoint)
    again = trained(checkpoint, stripes)
    assert again.train_sha256 == result.train_sha256
    assert again.val is not None
    assert again.val.sha256 == result.val.sha256
    assert again.history == result.history
    for name, tensor in result.network.state_dict().items():
        assert torch.equal(tensor, again.network.state_dict()[name]), name
    with pytest.raises(ValueError, match="was trained on images with sha256"):
        trained(checkpoint, stripes.take(np.arange(600)))


# -- every kind of network ----------------------------------------------------


@pytest.fixture(scope="module")
def patches() -> Dataset:
    """240 colour images of 32 px: the class is the colour, tags say what lies upon it; some unknown."""
    rng = np.random.default_rng(3)
    labels = np.arange(240, dtype=np.int64) % 3
    tags = rng.integers(0, 2, (240, 2)).astype(np.int8)
    images = rng.integers(0, 40, (240, 3, 32, 32), dtype=np.uint8)
    images[np.arange(240), labels] += 120
    images[tags[:, 0] == 1, :, ::4] = 250
    images[tags[:, 1] == 1, :, 10:22, 10:22] = 255
    labels[::11], tags[::7, 0] = -1, -1
    return dataset(images, labels, ("red", "green", "blue"), tags, ("striped", "dotted"))


@pytest.fixture(scope="module")
def tagged(torch: Any, patches: Dataset, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Bundle]:
    """A colour network with tags, and its bundle."""
    from classifier import ExportConfig, ModelConfig, TrainConfig, export, train

    config = TrainConfig(epochs=30, batch_size=32, val_fraction=0.25, average_decay=0.9)
    run = train(patches, config, ModelConfig(widths=(16, 16, 16), stem=8))
    out = tmp_path_factory.mktemp("tagged") / "patches"
    return run, export(run, patches, out, ExportConfig(calibration_images=64, limits=LAX))


def png(pixels: np.ndarray) -> bytes:
    from PIL import Image

    target = io.BytesIO()
    Image.fromarray(pixels.transpose(1, 2, 0)).save(target, "PNG")
    return target.getvalue()


def test_colour_and_tags_come_through_every_engine(tagged: tuple[Any, Bundle], patches: Dataset) -> None:
    """The classes and tags of colour PNG files, found by each engine as by torch."""
    run, bundle = tagged
    assert [tag.name for tag in bundle.manifest.tags] == ["striped", "dotted"]
    images = [png(image) for image in run.val.images]
    reference = Classifier.load(bundle.directory, "torch").outputs(run.val.pixels())
    for engine in ("onnx", "openvino", "onnx-int8", "openvino-int8"):
        classifier = Classifier.load(bundle.directory, engine)
        classifier.self_test()
        answers = classifier.predict(images)
        known = run.val.labels >= 0
        right = [
            patches.class_names[label] == each.label
            for label, each in zip(run.val.labels, answers, strict=True)
        ]
        assert np.mean(np.array(right)[known]) > 0.9, engine
        for at, name in enumerate(patches.tag_names):
            truth = run.val.tags[:, at]
            said = np.array([name in each.tags for each in answers])
            share = (said == (truth == 1))[truth >= 0].mean()
            assert share > (0.8 if "int8" in engine else 0.9), (engine, name)
        if "int8" not in engine:
            outputs = classifier.outputs(run.val.pixels())
            np.testing.assert_allclose(outputs.tag_logits, reference.tag_logits, rtol=1e-3, atol=1e-3)


def test_tag_thresholds_and_figures_stand_in_the_manifest(tagged: tuple[Any, Bundle]) -> None:
    """The threshold is the one of the highest F1 on the held-out images; the card shows what it gives."""
    run, bundle = tagged
    outputs = Classifier.load(bundle.directory).outputs(run.val.pixels())
    for at, tag in enumerate(bundle.manifest.tags):
        known = run.val.tags[:, at] >= 0
        truth, scores = run.val.tags[known, at] == 1, 1 / (1 + np.exp(-outputs.tag_logits[known, at]))

        def f1(threshold: float, truth: Any = truth, scores: Any = scores) -> float:
            said = scores >= threshold
            return float(2 * (said & truth).sum() / (said.sum() + truth.sum()))

        assert f1(tag.threshold) >= max(map(f1, scores)) - 1e-9
        assert bundle.manifest.raw["tag_metrics"][at]["f1"] == pytest.approx(f1(tag.threshold))
    assert "| striped |" in (bundle.directory / CARD).read_text()


def test_a_torchvision_body_is_exported_too(torch: Any, patches: Dataset, tmp_path: Path) -> None:
    """An untrained one will do: all engines give what torch gives."""
    from classifier import ExportConfig, export
    from classifier.model import ModelConfig, Network
    from classifier.training import TrainConfig, TrainResult

    torch.manual_seed(0)
    shape = ModelConfig(kind="resnet18").fitted(3, 2, 32, (60.0, 60.0, 60.0), (50.0, 50.0, 50.0))
    few = patches.take(np.arange(32))
    result = TrainResult(Network(shape).eval(), TrainConfig(), [], few.sha256, None, 0.0)
    lax = Limits(int8_disagreement=1.0, int8_drop=1.0)
    config = ExportConfig(calibration_images=16, limits=lax)
    bundle = export(result, few, tmp_path / "photos", config)
    pixels = few.pixels()[:8]
    reference = Classifier.load(bundle.directory, "torch").outputs(pixels)
    for engine in ("onnx", "openvino"):
        found = Classifier.load(bundle.directory, engine).outputs(pixels)
        np.testing.assert_allclose(found.logits, reference.logits, rtol=1e-3, atol=1e-3)
    assert bundle.manifest.architecture["kind"] == "resnet18"


def test_a_module_of_your_own_is_served_by_onnx_and_needs_its_factory_in_torch(
    torch: Any, patches: Dataset, tmp_path: Path
) -> None:
    """The bundle holds its weights, not its code; the error says how to give it."""
    from classifier import ExportConfig, ModelError, TrainConfig, export, train

    def body(channels: int, size: int) -> Any:
        return torch.nn.Sequential(torch.nn.Conv2d(channels, 6, 5, 4), torch.nn.ReLU(), torch.nn.Flatten())

    result = train(patches, TrainConfig(epochs=1, batch_size=32, val_fraction=0.25), body)
    lax = Limits(int8_disagreement=1.0, int8_drop=1.0)
    bundle = export(result, patches, tmp_path / "own", ExportConfig(calibration_images=64, limits=lax))
    pixels = result.val.pixels()
    found = Classifier.load(bundle.directory).outputs(pixels)
    with pytest.raises(ModelError, match=r'engine="torch", model=factory'):
        Classifier.load(bundle.directory, "torch")
    again = Classifier.load(bundle.directory, "torch", model=body).outputs(pixels)
    np.testing.assert_allclose(found.logits, again.logits, rtol=1e-3, atol=1e-3)
    assert json.loads((bundle.directory / MANIFEST).read_text())["architecture"]["kind"] == "custom"


def test_a_layer_that_onnx_does_not_know_is_named(torch: Any) -> None:
    """One line instead of the exporter's pages."""
    from classifier import ModelError
    from classifier.model import ModelConfig, Network
    from classifier.onnx_files import onnx_bytes

    pooled = torch.nn.Sequential(torch.nn.AdaptiveMaxPool2d(3), torch.nn.Flatten())
    with pytest.raises(ModelError, match=r"cannot be written as ONNX .*adaptive_max_pool2d.*factory$"):
        onnx_bytes(Network(ModelConfig(kind="custom"), pooled))
