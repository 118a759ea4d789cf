"""Exporting: a bundle that agrees with itself, or none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from classifier import Bundle, Classifier, Dataset, ExportRefused, evaluate
from classifier.bundle import FILES, MANIFEST


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

    config = ExportConfig(
        name="stripes", version="0.1", calibration_images=128, max_int8_disagreement=0.2, max_int8_drop=0.1
    )
    return export(run, stripes, tmp_path_factory.mktemp("export") / "bundle", config)


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
    """Torch, fp32 and int8 give (nearly) the same accuracy, and the manifest says which."""
    found = {
        engine: evaluate(Classifier.load(exported.directory, engine), run.val).accuracy
        for engine in ("torch", "onnx", "onnx-int8")
    }
    assert found["torch"] == found["onnx"] == exported.manifest.metrics["onnx"]["accuracy"]
    assert abs(found["onnx"] - found["onnx-int8"]) <= 0.1
    assert exported.manifest.raw["agreement"]["onnx_max_logit_difference"] < 1e-3


def test_the_manifest_records_where_the_model_comes_from(exported: Bundle, run: Any) -> None:
    """Seed, settings, history, data hash, versions and date."""
    raw = exported.manifest.raw
    assert raw["provenance"]["train"]["seed"] == 0
    assert len(raw["provenance"]["history"]) == 20
    assert raw["data"] == {"training_sha256": run.train_sha256, "images": 520}
    assert {"torch", "onnxruntime", "numpy"} <= raw["provenance"]["packages"].keys()
    assert raw["metrics_on"]["split"].startswith("validation split")
    assert (exported.manifest.name, exported.manifest.version) == ("stripes", "0.1")


def test_the_temperature_is_fitted_on_the_held_out_share(exported: Bundle, run: Any) -> None:
    """No other temperature near it gives that share a lower NLL."""
    import numpy as np

    from classifier.training import predict_logits

    logits = predict_logits(run.network, run.val.images).numpy().astype(np.float64)

    def nll(temperature: float) -> float:
        scaled = logits / temperature
        log_sum = np.log(np.exp(scaled - scaled.max(1, keepdims=True)).sum(1)) + scaled.max(1)
        return float((log_sum - scaled[np.arange(len(scaled)), run.val.labels]).mean())

    best = exported.manifest.temperature
    assert nll(best) <= min(nll(best * 1.05), nll(best / 1.05))


@pytest.mark.parametrize(
    ("limits", "named"),
    [
        ({"max_logit_difference": 0.0}, "onnx_max_logit_difference"),
        ({"max_int8_disagreement": -1.0}, "int8_disag"),
    ],
)
def test_disagreeing_engines_are_refused_and_nothing_is_written(
    run: Any, stripes: Dataset, tmp_path: Path, limits: dict, named: str
) -> None:
    """The gate names the limit that was broken and leaves no bundle behind."""
    from classifier import ExportConfig, export

    with pytest.raises(ExportRefused, match=f"{named}.*Nothing was written"):
        export(run, stripes, tmp_path / "bundle", ExportConfig(calibration_images=64, **limits))
    assert not (tmp_path / "bundle").exists()
