"""From a trained network to a verified bundle.

The export is refused unless the fp32 engines give what the trained network gives, on images that int8 was
not calibrated on. int8 has limits of its own (:mod:`classifier.agreement`); where it misses them
the bundle is written without int8, and says why. What turns outputs into answers (temperature, thresholds,
answer sets) is fitted on the images that the run held out.
"""

from __future__ import annotations

import copy
import logging
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.torch import save

from .agreement import Limits, differences, fp32_names, int8_figures, int8_problems, too_far
from .bundle import CARD, GOLDEN, MANIFEST, ONNX, ONNX_INT8, WEIGHTS, Bundle, file_entry, seal
from .calibration import Calibration, fit_calibration
from .card import card_text
from .checkpoint import write_atomic
from .data import Dataset, stratified_split
from .engines import INT8_ENGINES, Outputs
from .errors import ExportRefused
from .evaluation import evaluate
from .golden import golden_vectors
from .images import Preprocessing
from .metrics import Metrics
from .onnx_files import int8_bytes, onnx_bytes
from .outliers import OutlierScore, fit_outliers
from .predict import Classifier
from .provenance import check_data, describe
from .reference import reference_of
from .torch_engine import OUTLIER, network_outputs
from .training import TrainResult

log = logging.getLogger(__name__)
_NO_FILE = b""
# Images that the engines are compared on: at most so many, and at most so many values.
_GATE_IMAGES, _GATE_LEAST, _GATE_VALUES = 5000, 500, 20_000_000
# The same of images that show what is ordinary.
_ORDINARY_LEAST, _ORDINARY_VALUES = 2000, 200_000_000
# Rows read at once: a set that lies in a file is never in memory as a whole.
_BLOCK = 1000


@dataclass(frozen=True, slots=True)
class ExportConfig:
    """How to export.

    Attributes:
        name: of the model, shown in every result row; None: the bundle's directory.
        version: shown beside it.
        groups: coarse group -> class names; None or {}: Fashion-MNIST's, else each class alone.
        preprocessing: how bytes became the pixels it was trained on; None: stretched to its size.
        facts: what is known about the data (``Prepared.facts``), for the manifest.
        calibration: used when the run held nothing out to fit one on.
        accepted, confidence_threshold: see :func:`classifier.calibration.fit_calibration`.
        outlier_images: training images that show the outlier score what is ordinary, fewer of large ones;
            0 for no score.
        calibration_images: training images that set the int8 ranges.
        limits: how far engines may be apart.
        seed: which training images do what.
        use, cautions: what the model is meant for and what it is not, for the card.
    """

    name: str | None = None
    version: str = "1.0.0"
    groups: Mapping[str, tuple[str, ...]] | None = None
    preprocessing: Preprocessing | None = None
    facts: Mapping[str, Any] | None = None
    calibration: Calibration = field(default_factory=Calibration)
    accepted: float = 0.99
    confidence_threshold: float = 0.0
    outlier_images: int = 20_000
    calibration_images: int = 1024
    limits: Limits = field(default_factory=Limits)
    seed: int = 0
    use: str = ""
    cautions: str = ""


def export(
    result: TrainResult,
    training: Dataset,
    out: str | Path,
    config: ExportConfig | None = None,
    card: Dataset | None = None,
) -> Bundle:
    """Write the bundle of a trained network and verify it.

    Args:
        result: what :func:`classifier.training.train` returned.
        training: the data set that ``train`` was given.
        out: the bundle's directory, made if missing; a bundle already there is replaced.
        config: see :class:`ExportConfig`.
        card: measures the model; None: the held-out images do.

    Raises:
        ExportRefused: the engines disagree; nothing was written.
        ValueError: ``training`` is not what the network was trained on.
        MissingExtra: onnx or onnxscript is not installed.
    """
    return _Export(result, training, config or ExportConfig()).write(Path(out), card)


class _Export:
    """One export, step by step."""

    def __init__(self, result: TrainResult, training: Dataset, config: ExportConfig) -> None:
        self.result, self.network, self.config = result, result.network, config
        if result.val is not None and training.sha256 != result.train_sha256:
            # Outliers must be judged by images that the score has not seen.
            kept, _ = stratified_split(training.labels, result.config.val_fraction, result.config.seed)
            training = training.take(kept)
        check_data(training, result.train_sha256)
        self.training = training
        self.order = np.random.default_rng(config.seed).permutation(len(training)).astype(np.int64)
        self.score = self._outlier_score()
        self.calibration = self._calibration()
        self.document: dict[str, Any] = {}
        self.files: dict[str, bytes] = {}

    def write(self, out: Path, card: Dataset | None) -> Bundle:
        """Build, compare, measure, write, check."""
        self.files = {WEIGHTS: self._weights(), ONNX: onnx_bytes(self.network, self.score)}
        calibrate = self.order[: min(self.config.calibration_images, len(self.order) // 2)]
        self.files[ONNX_INT8] = int8_bytes(self.files[ONNX], self.training.pixels(calibrate))
        self.document = describe(
            self.result, self.training, self.calibration, self.config, self.config.name or out.resolve().name
        )
        with tempfile.TemporaryDirectory() as scratch:
            classifiers = self._opened(Path(scratch))
            self._compare(classifiers)
            judged = self._measure(classifiers, card)
            text = card_text(self.document, judged, self.config.use, self.config.cautions)
            self.files[CARD] = text.encode()
            int8 = classifiers.get("onnx-int8")
            self.files[GOLDEN] = golden_vectors(classifiers["onnx"], self.training, int8)
        _write(out, self.files, self.document)
        for engine in ("onnx", "onnx-int8"):
            if engine not in self.document["unavailable"]:
                Classifier.load(out, engine).self_test()
        return Bundle.load(out)

    def _weights(self) -> bytes:
        tensors = {name: tensor.contiguous() for name, tensor in self.network.state_dict().items()}
        if self.score is not None:
            tensors |= {OUTLIER + name: value.contiguous() for name, value in self.score.state_dict().items()}
        return save(tensors)

    def _outlier_score(self) -> OutlierScore | None:
        labels = self.training.labels
        shape, augment = self.network.config, self.result.config.augment
        affordable = max(_ORDINARY_LEAST, _ORDINARY_VALUES // (shape.channels * shape.size**2))
        known = self.order[labels[self.order] >= 0][: min(self.config.outlier_images, affordable)]
        if len(known) < 2 * shape.classes:
            return None
        # Learnt both ways round, ordinary both ways round; the boots of Fashion-MNIST all face left.
        mirror = augment is not None and augment.flip
        outputs, evidence = self._outputs(None, self.training, known, mirror)
        return OutlierScore(fit_outliers(evidence, outputs.logits, labels[known])).eval()

    def _calibration(self) -> Calibration:
        val = self.result.val
        if val is None:
            return self.config.calibration
        outputs, _ = self._outputs(self.score, val, np.arange(len(val), dtype=np.int64))
        return fit_calibration(outputs, val, self.config.accepted, self.config.confidence_threshold)

    def _outputs(
        self, score: OutlierScore | None, data: Dataset, rows: NDArray[np.int64], mirror: bool = False
    ) -> tuple[Outputs, NDArray[np.float32]]:
        """What the trained network says about some rows, every second one mirrored if asked for."""
        found = []
        for at in range(0, len(rows), _BLOCK):
            images = np.array(data.pixels(rows[at : at + _BLOCK]))
            if mirror:
                images[::2] = images[::2, :, :, ::-1]
            found.append(network_outputs(self.network, score, images))
        joined = (np.concatenate(each) for each in zip(*(outputs for outputs, _ in found), strict=True))
        return Outputs(*joined), np.concatenate([evidence for _, evidence in found])

    def _opened(self, draft: Path) -> dict[str, Classifier]:
        """The draft bundle on every engine that is installed here."""
        _write(draft, self.files | {GOLDEN: _NO_FILE, CARD: _NO_FILE}, self.document)
        engines = ["torch", "onnx", "onnx-int8"]
        if find_spec("openvino") is not None:
            engines += ["openvino", "openvino-int8"]
        body = None
        if self.network.config.kind == "custom":
            body = lambda channels, size: copy.deepcopy(self.network.body)  # noqa: E731, ARG005
        bundle = Bundle.load(draft)
        return {
            engine: Classifier(bundle, engine, model=body if engine == "torch" else None)
            for engine in engines
        }

    def _compare(self, classifiers: dict[str, Classifier]) -> None:
        """Note how far the engines are apart, and what fp32 answers; take int8 out if it is too far.

        Raises:
            ExportRefused: an fp32 engine is not the network, or int8 fails and has to pass.
        """
        gate, limits = self._gate(), self.config.limits
        images = gate.pixels()
        reference, _ = network_outputs(self.network, self.score, images)
        outputs = {name: classifier.outputs(images) for name, classifier in classifiers.items()}
        gaps = {name: differences(outputs[name], reference) for name in fp32_names(outputs)}
        if over := too_far(gaps, limits):
            raise ExportRefused(
                f"the engines disagree on {len(gate)} images: {'; '.join(over)}. Nothing was written;"
                " this is a fault of the export, please report it with the architecture"
            )
        answers, held = classifiers["onnx"].name(outputs["onnx"], images), self.result.val is not None
        counted = reference_of(answers, gate.class_names, "held out" if held else "training")
        self.document["reference"] = asdict(counted)
        found = {"images": len(gate), "sha256": gate.sha256, "differences": gaps, "limits": asdict(limits)}
        thresholds = np.array([tag["threshold"] for tag in self.document["tags"]])
        tag_logits = np.log(thresholds / (1 - thresholds)).astype(np.float32)
        for name in [name for name in classifiers if name in INT8_ENGINES]:
            found[name] = figures = int8_figures(outputs[name], reference, gate, tag_logits)
            figures["accepted"] = self._accepted(outputs[name])
            if problems := int8_problems(figures, limits):
                self._without_int8(f"{name}: {'; '.join(problems)}", classifiers)
                break
        self.document["agreement"] = found

    def _accepted(self, outputs: Outputs) -> float | None:
        """The share of the gate images that int8 does not take for outliers."""
        abstention = self.calibration.abstention
        return None if abstention is None else float((outputs.outlier <= abstention.outlier_threshold).mean())

    def _without_int8(self, why: str, classifiers: dict[str, Classifier]) -> None:
        again = "train longer, or raise calibration_images"
        if self.config.limits.strict:
            raise ExportRefused(f"int8 is not good enough ({why}). Nothing was written; {again}")
        log.warning("the model is written without int8 (%s); for int8, %s", why, again)
        del self.files[ONNX_INT8]
        self.document["unavailable"] = dict.fromkeys(INT8_ENGINES, f"int8 is not good enough ({why})")
        for name in INT8_ENGINES:
            classifiers.pop(name, None)

    def _gate(self) -> Dataset:
        """The held-out images, else training images that int8 was not calibrated on."""
        shape = self.network.config
        count = max(_GATE_LEAST, _GATE_VALUES // (shape.channels * shape.size**2))
        count = min(_GATE_IMAGES, count)
        if self.result.val is not None:
            # A folder's images come class by class: every class has its share of them.
            val, there = self.result.val, len(self.result.val)
            return val.take(np.linspace(0, there, min(count, there), endpoint=False).astype(np.int64))
        first = min(self.config.calibration_images, len(self.order) // 2)
        return self.training.take(self.order[first : first + count])

    def _measure(self, classifiers: dict[str, Classifier], card: Dataset | None) -> Metrics | None:
        """Note the quality of both networks; return that of fp32."""
        judged = self.result.val if card is None else card
        if judged is None:
            return None
        split = "held out from the training set" if card is None else "test"
        self.document["metrics_on"] = {"split": split, "images": len(judged), "sha256": judged.sha256}
        self.document["tag_metrics"] = _tag_metrics(classifiers["onnx"], judged)
        if not (judged.labels >= 0).any():
            return None
        reports = {
            name: evaluate(classifiers[name], judged) for name in ("onnx", "onnx-int8") if name in classifiers
        }
        self.document["metrics"] = {name: report.summary() for name, report in reports.items()}
        self.document["metrics_on"]["confusion"] = reports["onnx"].to_dict()["confusion"]
        return reports["onnx"]


def _tag_metrics(classifier: Classifier, judged: Dataset) -> list[dict[str, Any]]:
    from .report.answers import ask, fitted
    from .report.tags import measure_tags

    tags = classifier.manifest.tags
    if not tags:
        return []
    data = fitted(judged, classifier.manifest)
    thresholds = [tag.threshold for tag in tags]
    found = measure_tags(data.tags, ask(classifier, data).tags, data.tag_names, thresholds)
    return [asdict(tag) for tag in found.tags]


def _write(directory: Path, files: dict[str, bytes], document: dict[str, Any]) -> None:
    """The manifest goes last: until then a half-written bundle is refused by its hashes."""
    document["files"] = {name: file_entry(content) for name, content in files.items()}
    for name, content in files.items():
        write_atomic(directory / name, content)
    if ONNX_INT8 not in files:
        (directory / ONNX_INT8).unlink(missing_ok=True)
    write_atomic(directory / MANIFEST, seal(document))
