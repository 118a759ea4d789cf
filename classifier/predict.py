"""Classify images: bytes in, one result per image out. Needs no torch."""

from __future__ import annotations

import base64
import json
import math
import os
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .bundle import GOLDEN, Bundle, Manifest
from .engines import INT8_ENGINES, Outputs, open_engine
from .errors import ModelError
from .images import Decoded, InvalidImage, decode
from .light import light
from .metrics import group_index, group_probabilities, sigmoid, softmax
from .reference import BLANK_CONTRAST
from .uncertainty import answer_sets

if TYPE_CHECKING:
    from .engines import BodyFactory

# The coverage of ``Prediction.answer_set``; the other levels stand in the manifest.
ANSWER_LEVEL = "0.95"
# The outlier score takes square roots of numbers near 0, which magnify rounding by about so much.
OUTLIER_SLACK = 10.0


@dataclass(frozen=True, slots=True)
class Prediction:
    """The answer for one image.

    Label and confidence are the best guess also where the model abstains.

    Attributes:
        label, label_index: the most probable class.
        confidence, runner_up_confidence: calibrated probabilities.
        runner_up: the second most probable class.
        group_label: the coarse group with the largest sum of its classes' probabilities.
        probabilities: of all classes, in the manifest's order.
        tags: names of the tags found, in the manifest's order.
        tag_probabilities: of all tags, in the manifest's order.
        outlier: how strange the image is to the model, higher is stranger; None if it cannot say.
        answer_set: the classes that hold the true one in 95 of 100 images, best first; empty if the model
            was exported without a held-out part.
        abstained: whether the model declines to answer.
        why: "" or why it abstains: "outlier" (no known kind of image) or "unsure".
        brightness: mean of the pixels that the network got, gray levels of 0 to 255.
        contrast: their standard deviation.
    """

    label: str
    label_index: int
    confidence: float
    runner_up: str
    runner_up_confidence: float
    group_label: str
    probabilities: tuple[float, ...]
    tags: tuple[str, ...] = ()
    tag_probabilities: tuple[float, ...] = ()
    outlier: float | None = None
    answer_set: tuple[str, ...] = ()
    abstained: bool = False
    why: str = ""
    brightness: float = math.nan
    contrast: float = math.nan

    @property
    def blank(self) -> bool:
        """Whether nothing is to be seen: all pixels are nearly the same."""
        return self.contrast < BLANK_CONTRAST


class Classifier:
    """A loaded model. Safe to share between threads; make one per process.

    Attributes:
        manifest: what the model is, see :class:`classifier.bundle.Manifest`.
        engine: the engine's name.
        bundle: where it came from, verified.
    """

    def __init__(
        self, bundle: Bundle, engine: str = "onnx", threads: int = 1, model: BodyFactory | None = None
    ) -> None:
        self.manifest: Manifest = bundle.manifest
        self.engine = engine
        self.bundle = bundle
        self._engine = open_engine(bundle, engine, threads, model)
        self._group_of = group_index(self.manifest.labels, self.manifest.groups)
        self._thresholds = np.array([tag.threshold for tag in self.manifest.tags], np.float32)

    @classmethod
    def load(
        cls,
        directory: str | os.PathLike[str] | None = None,
        engine: str = "onnx",
        threads: int = 1,
        model: BodyFactory | None = None,
    ) -> Classifier:
        """Open a bundle, verify it and start an engine.

        Args:
            directory: the bundle; "student" or "base" for the shipped ones, None for the student.
            engine: one of :data:`classifier.ENGINES`.
            threads: threads of one call; run one process per core instead of raising it.
            model: the factory that the model was trained with, if that was your own; for engine "torch".

        Raises:
            ModelError: the bundle is missing, damaged or inconsistent, or has no network for this engine.
            MissingExtra: the engine's library is not installed.
            ValueError: unknown engine.
        """
        return cls(Bundle.load(directory), engine, threads, model)

    def predict(self, images: Sequence[bytes]) -> list[Prediction | InvalidImage]:
        """One result per image, in order.

        A bad image gets an :class:`InvalidImage`; its neighbours are unaffected.
        """
        decoded = self.decode(images)
        good = iter(self.answers(decoded.tensor))
        return [next(good) if error is None else error for error in decoded.errors]

    def decode(self, images: Sequence[bytes]) -> Decoded:
        """The first half of :meth:`predict`, so that a worker can overlap it with the second."""
        return decode(images, self.manifest.preprocessing)

    def answers(self, images: NDArray[np.uint8]) -> list[Prediction]:
        """The second half of :meth:`predict`: one answer for each of (N, channels, size, size) uint8 images.

        Raises:
            ValueError: wrong shape or type.
        """
        return self.name(self.outputs(images), images)

    def predict_tensor(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Calibrated probabilities (N, K) for (N, channels, size, size) uint8 pixels.

        Raises:
            ValueError: wrong shape or type.
        """
        return self._probabilities(self.outputs(images))

    def logits(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """The network's raw class outputs (N, K); raises as :meth:`outputs`."""
        return self.outputs(images).logits

    def outputs(self, images: NDArray[np.uint8]) -> Outputs:
        """All raw outputs of the network, for calibration and for comparing engines.

        Raises:
            ValueError: wrong shape or type.
        """
        spec, manifest = self.manifest.preprocessing, self.manifest
        wanted = (spec.channels, spec.size, spec.size)
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != wanted:
            shape = ", ".join(map(str, wanted))
            raise ValueError(f"expected (N, {shape}) uint8, got {images.shape} {images.dtype}")
        if not len(images):
            none = np.empty((0, len(manifest.labels)), np.float32)
            return Outputs(none, none[:, :0].reshape(0, len(manifest.tags)), none[:, 0])
        return self._engine.run(images)

    def name(self, outputs: Outputs, images: NDArray[np.uint8]) -> list[Prediction]:
        """What :meth:`outputs` of these images mean; of equal probabilities the first label wins."""
        labels, groups = self.manifest.labels, list(self.manifest.groups)
        probabilities, of_tags = self._probabilities(outputs), sigmoid(outputs.tag_logits)
        order = np.argsort(-probabilities, axis=1, kind="stable").tolist()
        coarse = group_probabilities(probabilities, self._group_of, len(groups)).argmax(1).tolist()
        rows, scores = probabilities.tolist(), outputs.outlier.tolist()
        tags, sets = self._tags(of_tags), self._sets(probabilities, order)
        reasons = self._reasons(outputs, probabilities)
        means, spreads = light(images)
        return [
            Prediction(
                labels[ranked[0]],
                ranked[0],
                row[ranked[0]],
                labels[ranked[1]],
                row[ranked[1]],
                groups[group],
                tuple(row),
                found,
                tuple(chances),
                score if score == score else None,  # noqa: PLR0124 - NaN: the model has no score
                answer_set,
                bool(why),
                why,
                *shown,
            )
            for ranked, row, group, found, chances, score, answer_set, why, *shown in zip(
                order,
                rows,
                coarse,
                tags,
                of_tags.tolist(),
                scores,
                sets,
                reasons,
                means.tolist(),
                spreads.tolist(),
                strict=True,
            )
        ]

    def _probabilities(self, outputs: Outputs) -> NDArray[np.float32]:
        return softmax(outputs.logits, self.manifest.temperature)

    def _tags(self, probabilities: NDArray[np.float32]) -> list[tuple[str, ...]]:
        if not len(self._thresholds):
            return [()] * len(probabilities)
        names = [tag.name for tag in self.manifest.tags]
        return [
            tuple(name for name, there in zip(names, row, strict=True) if there)
            for row in (probabilities >= self._thresholds).tolist()
        ]

    def _sets(self, probabilities: NDArray[np.float32], order: list[list[int]]) -> list[tuple[str, ...]]:
        quantiles = self.manifest.conformal.get(ANSWER_LEVEL)
        if quantiles is None:
            return [()] * len(probabilities)
        inside = answer_sets(probabilities, quantiles).tolist()
        labels = self.manifest.labels
        return [
            tuple(labels[place] for place in ranked if row[place])
            for row, ranked in zip(inside, order, strict=True)
        ]

    def _reasons(self, outputs: Outputs, probabilities: NDArray[np.float32]) -> list[str]:
        abstention = self.manifest.abstention
        if abstention is None:
            return [""] * len(probabilities)
        return abstention.reasons(outputs.outlier, probabilities.max(1))

    def self_test(self) -> None:
        """Check this machine against the bundle's golden images: same pixels, same answers.

        Raises:
            ModelError: decoding or the engine gives something else here than where the model was exported.
        """
        kind = "int8" if self.engine in INT8_ENGINES else "fp32"
        for vector in json.loads(self.bundle.read(GOLDEN))["vectors"]:
            name = f"golden image {vector['name']}"
            decoded = self.decode([base64.b64decode(vector["image"])])
            if decoded.errors[0] is not None:
                raise ModelError(f"{name} is refused here: {decoded.errors[0]}")
            pixels = zlib.decompress(base64.b64decode(vector["pixels"]))
            expected = np.frombuffer(pixels, np.uint8).reshape(decoded.tensor.shape)
            gap = np.abs(decoded.tensor.astype(np.int16) - expected.astype(np.int16)).max()
            if gap > vector["pixel_tolerance"]:
                raise ModelError(f"{name} decodes differently here: pixels differ by {gap}")
            self._compare(name, self.outputs(expected), vector["answers"][kind])

    def _compare(self, name: str, outputs: Outputs, golden: dict[str, Any]) -> None:
        """Raises ModelError if these outputs of one image are not the golden ones."""
        for what, values in golden_answer(outputs, self._probabilities(outputs)).items():
            expected = np.array(golden[what])
            gap = float(np.abs(np.array(values) - expected).max(initial=0.0))
            allowed = golden["tolerance"] * max(1.0, float(np.abs(expected).max(initial=0.0)))
            if not gap <= allowed * (OUTLIER_SLACK if what == "outlier_score" else 1.0):
                raise ModelError(
                    f"{name}: {what.replace('_', ' ')} differ by {gap:.4f} here with engine {self.engine};"
                    " take another engine, or export the model again on a machine like this one"
                )


def golden_answer(outputs: Outputs, probabilities: NDArray[np.float32]) -> dict[str, list[float]]:
    """What a golden vector holds of the outputs of one image."""
    outlier = outputs.outlier[~np.isnan(outputs.outlier)]
    parts = {
        "probabilities": probabilities[0],
        "tag_probabilities": sigmoid(outputs.tag_logits)[0],
        "outlier_score": outlier,
    }
    return {name: [round(float(value), 6) for value in values] for name, values in parts.items()}
