"""Classify images: bytes in, one result per image out. Needs no torch."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .bundle import GOLDEN, Bundle, Manifest
from .engines import open_engine
from .errors import ModelError
from .images import Decoded, InvalidImage, decode
from .metrics import group_index


@dataclass(frozen=True, slots=True)
class Prediction:
    """The answer for one image.

    ``confidence`` and ``runner_up_confidence`` are calibrated probabilities; ``group_label`` is the
    coarse group of ``label``; ``probabilities`` follow the manifest's label order.
    """

    label: str
    label_index: int
    confidence: float
    runner_up: str
    runner_up_confidence: float
    group_label: str
    probabilities: tuple[float, ...]


class Classifier:
    """A loaded model. Safe to share between threads; make one per process.

    Attributes:
        manifest: what the model is, see :class:`classifier.bundle.Manifest`.
        engine: the engine's name.
    """

    def __init__(self, bundle: Bundle, engine: str = "onnx", threads: int = 1) -> None:
        self.manifest: Manifest = bundle.manifest
        self.engine = engine
        self._bundle = bundle
        self._engine = open_engine(bundle, engine, threads)
        names = list(self.manifest.groups)
        self._groups = [names[index] for index in group_index(self.manifest.labels, self.manifest.groups)]

    @classmethod
    def load(
        cls, directory: str | os.PathLike[str] | None = None, engine: str = "onnx", threads: int = 1
    ) -> Classifier:
        """Open a bundle, verify it and start an engine.

        Args:
            directory: the bundle; None for the model shipped with this package.
            engine: "onnx", "onnx-int8" or "torch".
            threads: threads of one call; run one process per core instead of raising it.

        Raises:
            ModelError: the bundle is missing, damaged or inconsistent.
            MissingExtra: engine "torch" without torch.
            ValueError: unknown engine.
        """
        return cls(Bundle.load(directory), engine, threads)

    def predict(self, images: Sequence[bytes]) -> list[Prediction | InvalidImage]:
        """One result per image, in order.

        A bad image gets an :class:`InvalidImage`; its neighbours are unaffected.
        """
        decoded = self.decode(images)
        good = iter(self.predictions(self.predict_tensor(decoded.tensor)))
        return [next(good) if error is None else error for error in decoded.errors]

    def decode(self, images: Sequence[bytes]) -> Decoded:
        """The first half of :meth:`predict`, so that a worker can overlap it with the second."""
        return decode(images, self.manifest.preprocessing)

    def predict_tensor(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Calibrated probabilities (N, K) for (N, 1, size, size) uint8 pixels.

        Raises:
            ValueError: wrong shape or type.
        """
        scaled = self.logits(images) / np.float32(self.manifest.temperature)
        weights = np.exp(scaled - scaled.max(1, keepdims=True))
        return np.asarray(weights / weights.sum(1, keepdims=True), np.float32)

    def logits(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """The network's raw outputs (N, K), for calibration and for comparing engines.

        Raises:
            ValueError: wrong shape or type.
        """
        size = self.manifest.preprocessing.size
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != (1, size, size):
            raise ValueError(f"expected (N, 1, {size}, {size}) uint8, got {images.shape} {images.dtype}")
        if not len(images):
            return np.empty((0, len(self.manifest.labels)), np.float32)
        return self._engine.logits(images)

    def predictions(self, probabilities: NDArray[np.float32]) -> list[Prediction]:
        """Name the rows of :meth:`predict_tensor`; of equal probabilities the first label wins."""
        labels, groups = self.manifest.labels, self._groups
        order = np.argsort(-probabilities, axis=1, kind="stable")[:, :2]
        results = []
        for (best, second), row in zip(order.tolist(), probabilities.tolist(), strict=True):
            results.append(
                Prediction(
                    labels[best], best, row[best], labels[second], row[second], groups[best], tuple(row)
                )
            )
        return results

    def self_test(self) -> None:
        """Check this machine against the bundle's golden images: same pixels, same probabilities.

        Raises:
            ModelError: decoding or the engine gives something else here than where the model was exported.
        """
        for vector in json.loads(self._bundle.read(GOLDEN))["vectors"]:
            decoded = self.decode([base64.b64decode(vector["image"])])
            if decoded.errors[0] is not None:
                raise ModelError(f"golden image {vector['name']} is refused here: {decoded.errors[0]}")
            expected = np.frombuffer(base64.b64decode(vector["pixels"]), np.uint8).reshape(
                decoded.tensor.shape
            )
            gap = np.abs(decoded.tensor.astype(np.int16) - expected.astype(np.int16)).max()
            if gap > vector["pixel_tolerance"]:
                raise ModelError(
                    f"golden image {vector['name']} decodes differently here: pixels differ by {gap}"
                )
            found = self.predict_tensor(expected)[0]
            difference = float(np.abs(found - np.array(vector["probabilities"])).max())
            if difference > vector["probability_tolerance"][self.engine]:
                raise ModelError(
                    f"golden image {vector['name']}: probabilities differ by {difference:.4f} here"
                )
