"""From a trained network to a verified bundle.

The export is refused unless torch and both ONNX engines agree on images none of
them was calibrated on. Measured numbers in the manifest come from the
validation split if the run held one out; a final run (``val_fraction`` 0) has none,
so its card is measured, once, on the data set given as ``card``.
"""

from __future__ import annotations

import contextlib
import platform
import subprocess
import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import save

from .bundle import FORMAT_VERSION, GOLDEN, MANIFEST, ONNX, ONNX_INT8, WEIGHTS, Bundle, file_entry, seal
from .checkpoint import write_atomic
from .data import GROUPS, Dataset
from .errors import ExportRefused
from .evaluation import evaluate
from .golden import golden_vectors
from .images import Preprocessing
from .metrics import fit_temperature
from .model import Network, parameter_count
from .onnx_files import int8_bytes, onnx_bytes
from .predict import Classifier
from .training import TrainResult, predict_logits


@dataclass(frozen=True, slots=True)
class ExportConfig:
    """How to export.

    Attributes:
        name, version: of the model, shown in every result row.
        groups: coarse group -> class names; None: Fashion-MNIST's, else each class alone.
        temperature: used when the run has no validation split to fit it on. The default was fitted on the
            validation split of a 20-epoch run with the default settings; below 1 because label smoothing
            makes a network less sure than it may be.
        calibration_images: training images that set the int8 ranges.
        max_logit_difference: largest |torch - onnx| in logits; float rounding gives about 1e-5.
        max_int8_disagreement: largest share of images on which int8 names another class.
        max_int8_drop: largest loss of accuracy by int8, in shares (0.003 = 0.3 points).
        seed: which training images calibrate and which gate.
    """

    name: str = "fashion-cnn"
    version: str = "1.0.0"
    groups: dict[str, tuple[str, ...]] | None = None
    temperature: float = 0.68
    calibration_images: int = 1024
    max_logit_difference: float = 1e-3
    max_int8_disagreement: float = 0.01
    max_int8_drop: float = 0.003
    seed: int = 0


def export(
    result: TrainResult,
    training: Dataset,
    out: Path,
    config: ExportConfig | None = None,
    card: Dataset | None = None,
) -> Bundle:
    """Write the bundle of a trained network and verify it.

    Args:
        result: what :func:`classifier.training.train` returned.
        training: the data set it was trained on; calibrates int8.
        out: the bundle's directory, made if missing; a bundle already there is replaced.
        config: see :class:`ExportConfig`.
        card: measures the final model if the run held nothing out; ignored otherwise.

    Raises:
        ExportRefused: the engines disagree; nothing was written.
        MissingExtra: onnx or onnxscript is not installed.
    """
    config = config or ExportConfig()
    calibrate, gate = _calibration_and_gate(result, training, config)
    files = {WEIGHTS: save({k: v.contiguous() for k, v in result.network.state_dict().items()})}
    files[ONNX] = onnx_bytes(result.network)
    files[ONNX_INT8] = int8_bytes(files[ONNX], calibrate.images)
    document = _document(result, training, config)
    with tempfile.TemporaryDirectory() as scratch:
        draft = Path(scratch)
        _write(draft, files | {GOLDEN: b"{}"}, document)
        classifiers = {engine: Classifier.load(draft, engine) for engine in ("torch", "onnx", "onnx-int8")}
        document["agreement"] = _agree(classifiers, result.network, gate, config)
        if result.val is not None:
            document |= _measured(classifiers, result.val, "validation split of the training set")
        elif card is not None:
            document |= _measured(classifiers, card, "card")
        files[GOLDEN] = golden_vectors(classifiers["onnx"], training)
    _write(out, files, document)
    Classifier.load(out).self_test()
    return Bundle.load(out)


def _measured(classifiers: dict[str, Classifier], judged: Dataset, split: str) -> dict[str, Any]:
    """The manifest's metrics, and on what they were measured."""
    reports = {engine: evaluate(classifier, judged) for engine, classifier in classifiers.items()}
    about = {"split": split, "images": len(judged), "sha256": judged.sha256}
    return {
        "metrics": {engine: report.summary() for engine, report in reports.items()},
        "metrics_on": {**about, "confusion": reports["onnx"].to_dict()["confusion"]},
    }


def _temperature(result: TrainResult, config: ExportConfig) -> float:
    """Fitted on the held-out images if there are any, else as configured."""
    if result.val is None:
        return config.temperature
    logits = predict_logits(result.network, result.val.images).numpy()
    return round(fit_temperature(logits, result.val.labels), 4)


def _calibration_and_gate(
    result: TrainResult, training: Dataset, config: ExportConfig
) -> tuple[Dataset, Dataset]:
    """Disjoint images: some set int8 ranges, others (the validation split if there is one) compare."""
    order = np.random.default_rng(config.seed).permutation(len(training)).astype(np.int64)
    count = min(config.calibration_images, len(order) // 2)
    calibrate = training.take(order[:count])
    return calibrate, result.val or training.take(order[count : count + 5000])


def _agree(
    classifiers: dict[str, Classifier], network: Network, gate: Dataset, config: ExportConfig
) -> dict[str, float]:
    """How far the engines are apart on the gate images.

    Raises:
        ExportRefused: further than ``config`` allows.
    """
    images = np.ascontiguousarray(gate.images[:, None])
    trained = predict_logits(network, gate.images).numpy()
    logits = {name: classifier.logits(images) for name, classifier in classifiers.items()}
    named = {name: values.argmax(1) for name, values in logits.items()}
    accuracy = {name: float((labels == gate.labels).mean()) for name, labels in named.items()}
    found = {
        "gate_images": len(gate),
        "torch_max_logit_difference": float(np.abs(logits["torch"] - trained).max()),
        "onnx_max_logit_difference": float(np.abs(logits["onnx"] - trained).max()),
        "int8_disagreement": float((named["onnx-int8"] != named["onnx"]).mean()),
        "int8_drop": accuracy["onnx"] - accuracy["onnx-int8"],
    }
    limits = {
        "torch_max_logit_difference": config.max_logit_difference,
        "onnx_max_logit_difference": config.max_logit_difference,
        "int8_disagreement": config.max_int8_disagreement,
        "int8_drop": config.max_int8_drop,
    }
    over = [
        f"{key} is {found[key]:.5f}, at most {limit}"
        for key, limit in limits.items()
        if not found[key] <= limit
    ]
    if over:
        raise ExportRefused(
            f"the engines disagree on {len(gate)} images: {'; '.join(over)}. Nothing was written."
            " Train longer, or raise calibration_images"
        )
    return found


def _document(result: TrainResult, training: Dataset, config: ExportConfig) -> dict[str, Any]:
    groups = config.groups
    if groups is None:
        known = {name for names in GROUPS.values() for name in names} == set(training.class_names)
        groups = GROUPS if known else {name: (name,) for name in training.class_names}
    return {
        "format_version": FORMAT_VERSION,
        "name": config.name,
        "version": config.version,
        "labels": list(training.class_names),
        "groups": {name: list(members) for name, members in groups.items()},
        "preprocessing": Preprocessing(size=result.network.config.size).to_dict(),
        "temperature": _temperature(result, config),
        "architecture": result.network.config.to_dict(),
        "parameter_count": parameter_count(result.network),
        "metrics": {},
        "data": {"training_sha256": result.train_sha256, "images": len(training) - len(result.val or ())},
        "provenance": {
            "train": result.config.to_dict(),
            "history": result.history,
            "wall_s": round(result.wall_s, 1),
            "exported_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "packages": _versions("numpy", "onnx", "onnxruntime", "onnxscript", "pillow", "torch"),
            "python": platform.python_version(),
            "machine": platform.machine(),
            "git": _git_state(),
        },
    }


def _write(directory: Path, files: dict[str, bytes], document: dict[str, Any]) -> None:
    """The manifest goes last: until then a half-written bundle is refused by its hashes."""
    document["files"] = {name: file_entry(content) for name, content in files.items()}
    for name, content in files.items():
        write_atomic(directory / name, content)
    write_atomic(directory / MANIFEST, seal(document))


def _versions(*names: str) -> dict[str, str]:
    found = {}
    for name in names:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def _git_state() -> str | None:
    """The commit this code stands on, with "-dirty" if it was changed; None outside a checkout."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        done = subprocess.run(  # noqa: S603 - fixed command
            command, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10.0, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
