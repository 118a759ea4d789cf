"""The engines that run a bundle: each turns uint8 pixels into the outputs of its network.

"onnx" is the default: exact, fast, no torch. "onnx-int8" is smaller and, on processors with 8-bit dot
products, faster. "openvino" and "openvino-int8" run the same two files; they take longer to start and
are the fastest on large batches. "torch" runs the trained weights themselves, as the reference.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from .bundle import ONNX, ONNX_INT8, WEIGHTS, Bundle
from .errors import MissingExtra, ModelError

if TYPE_CHECKING:
    from torch import nn

    BodyFactory = Callable[[int, int], nn.Module]

ENGINES = ("onnx", "onnx-int8", "openvino", "openvino-int8", "torch")
INT8_ENGINES = ("onnx-int8", "openvino-int8")
# Activations of one 28x28 image take about 100 KB: so many stay in a core's cache, and memory stays bounded.
_CHUNK, _CHUNK_PIXELS = 64, 64 * 64 * 64


class Outputs(NamedTuple):
    """What a network says about N images.

    Attributes:
        logits: (N, K) float32, of the classes.
        tag_logits: (N, T) float32; T is 0 without tags.
        outlier: (N,) float32, higher = stranger; NaN where the model has no such score.
    """

    logits: NDArray[np.float32]
    tag_logits: NDArray[np.float32]
    outlier: NDArray[np.float32]


class Engine(Protocol):
    """Runs one network. ``run`` may be called from several threads at once."""

    def run(self, images: NDArray[np.uint8]) -> Outputs:
        """The outputs for (N, channels, size, size) uint8, N >= 1."""
        ...


def open_engine(bundle: Bundle, name: str, threads: int, model: BodyFactory | None = None) -> Engine:
    """Start an engine on a verified bundle.

    Args:
        bundle: the model.
        name: one of :data:`ENGINES`.
        threads: threads of one call; workers use 1 and scale by processes.
        model: makes the body of a custom network; the torch engine cannot do without.

    Raises:
        ValueError: unknown engine or impossible thread count.
        ModelError: the network does not fit the manifest, or the bundle has none for this engine.
        MissingExtra: torch or OpenVINO is not installed.
    """
    if threads < 1:
        raise ValueError(f"threads must be at least 1, got {threads}")
    if name not in ENGINES:
        raise ValueError(f"unknown engine {name!r}, choose one of {', '.join(ENGINES)}")
    if why := bundle.manifest.unavailable.get(name):
        raise ModelError(
            f"{bundle.directory}: was exported without {name}: {why}; take another engine (onnx always works)"
        )
    if name == "torch":
        from .torch_engine import TorchEngine

        return TorchEngine(bundle, threads, model)
    file = file_of(name)
    return OnnxEngine(bundle, file, threads) if "onnx" in name else OpenVinoEngine(bundle, file, threads)


def file_of(engine: str) -> str:
    """The bundle's file that one of :data:`ENGINES` runs."""
    return WEIGHTS if engine == "torch" else ONNX_INT8 if engine in INT8_ENGINES else ONNX


class _GraphEngine:
    """What both engines for .onnx files share: checked inputs and outputs, and bounded batches."""

    def __init__(self, bundle: Bundle, file: str) -> None:
        manifest = bundle.manifest
        self._path = bundle.directory / file
        self._image = (
            manifest.preprocessing.channels,
            manifest.preprocessing.size,
            manifest.preprocessing.size,
        )
        self._widths = {"logits": len(manifest.labels), "tag_logits": len(manifest.tags)}
        self._chunk = max(1, min(_CHUNK, _CHUNK_PIXELS // manifest.preprocessing.size**2))

    def run(self, images: NDArray[np.uint8]) -> Outputs:
        if len(images) <= self._chunk:
            return self._outputs(images)
        parts = [self._outputs(images[at : at + self._chunk]) for at in range(0, len(images), self._chunk)]
        return Outputs(*(np.concatenate(each) for each in zip(*parts, strict=True)))

    def _outputs(self, images: NDArray[np.uint8]) -> Outputs:
        found = self._infer(images)
        none = np.empty((len(images), 0), np.float32)
        unknown = np.full(len(images), np.nan, np.float32)
        return Outputs(found["logits"], found.get("tag_logits", none), found.get("outlier", unknown))

    def _infer(self, images: NDArray[np.uint8]) -> Mapping[str, NDArray[np.float32]]:
        raise NotImplementedError

    def _check(self, pixels: str, image: tuple[Any, ...], widths: Mapping[str, Any]) -> None:
        """Hold the graph against the manifest.

        Args:
            pixels: type of the input, as the runtime names it.
            image: shape of one input image.
            widths: values an image of every output, None for one.
        """
        wanted = {name: width for name, width in self._widths.items() if width}
        found = {name: width for name, width in widths.items() if name != "outlier"}
        if pixels != "uint8" or image != self._image or found != wanted:
            raise ModelError(
                f"{self._path}: takes {pixels} {image} and gives {found}, but the manifest has uint8"
                f" {self._image} and {wanted} ({self._widths['logits']} labels, {self._widths['tag_logits']}"
                " tags); export the model again"
            )


class OnnxEngine(_GraphEngine):
    """ONNX Runtime on the CPU."""

    def __init__(self, bundle: Bundle, file: str, threads: int) -> None:
        import onnxruntime as ort  # type: ignore[import-untyped]

        super().__init__(bundle, file)
        options = ort.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        # Idle threads that spin steal the cores of other workers on the same machine.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3
        content = bundle.read(file)
        try:
            self._session = ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise ModelError(f"{self._path}: cannot be run ({error}); export the model again") from error
        source, targets = self._session.get_inputs()[0], self._session.get_outputs()
        self._input, self._names = source.name, [target.name for target in targets]
        widths = {target.name: target.shape[1] if len(target.shape) > 1 else None for target in targets}
        self._check(source.type.removeprefix("tensor(").rstrip(")"), tuple(source.shape[1:]), widths)

    def _infer(self, images: NDArray[np.uint8]) -> Mapping[str, NDArray[np.float32]]:
        return dict(zip(self._names, self._session.run(None, {self._input: images}), strict=True))


class OpenVinoEngine(_GraphEngine):
    """OpenVINO on the CPU; reads the same .onnx files."""

    def __init__(self, bundle: Bundle, file: str, threads: int) -> None:
        try:
            import openvino
        except ModuleNotFoundError as error:
            raise MissingExtra("the OpenVINO engine", "openvino", error.name) from error

        super().__init__(bundle, file)
        content = bundle.read(file)
        # Left alone it would compute in bf16 where the processor can, and answer differently there.
        options = {
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "f32",
        }
        try:
            core = openvino.Core()
            self._compiled = core.compile_model(core.read_model(content), "CPU", options)
        except RuntimeError as error:
            raise ModelError(f"{self._path}: cannot be run ({error}); export the model again") from error
        self._of_thread = threading.local()
        source, targets = self._compiled.input(0), self._compiled.outputs
        self._names = [target.any_name for target in targets]
        shapes = [target.partial_shape for target in targets]
        widths = {
            name: shape[1].get_length() if len(shape) > 1 else None
            for name, shape in zip(self._names, shapes, strict=True)
        }
        pixels = "uint8" if source.element_type == openvino.Type.u8 else str(source.element_type)
        self._check(pixels, tuple(side.get_length() for side in list(source.partial_shape)[1:]), widths)

    def _infer(self, images: NDArray[np.uint8]) -> Mapping[str, NDArray[np.float32]]:
        request = getattr(self._of_thread, "request", None)
        if request is None:
            request = self._of_thread.request = self._compiled.create_infer_request()
        found = request.infer([np.ascontiguousarray(images)])
        return {name: found[at] for at, name in enumerate(self._names)}
