"""The engines that run a bundle: each turns uint8 pixels into logits.

"onnx" is the default: exact, fast, no torch. "onnx-int8" is smaller and, on processors with
8-bit dot products, faster. "torch" runs the trained weights themselves, as the reference.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from .bundle import ONNX, ONNX_INT8, WEIGHTS, Bundle
from .errors import MissingExtra, ModelError

if TYPE_CHECKING:
    from .model import Network

ENGINES = ("onnx", "onnx-int8", "torch")
# Activations of one image take about 100 KB: this many stay in a core's cache, and memory stays bounded.
_CHUNK = 64


class Engine(Protocol):
    """Runs one network. ``logits`` may be called from several threads at once."""

    def logits(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """(N, 1, size, size) uint8 -> (N, K) float32."""
        ...


def open_engine(bundle: Bundle, name: str, threads: int) -> Engine:
    """Start an engine on a verified bundle.

    Args:
        bundle: the model.
        name: one of :data:`ENGINES`.
        threads: threads of one call; workers use 1 and scale by processes.

    Raises:
        ValueError: unknown engine or impossible thread count.
        ModelError: the network does not fit the manifest.
        MissingExtra: the torch engine without torch.
    """
    if threads < 1:
        raise ValueError(f"threads must be at least 1, got {threads}")
    if name in ("onnx", "onnx-int8"):
        return OnnxEngine(bundle, ONNX if name == "onnx" else ONNX_INT8, threads)
    if name == "torch":
        return TorchEngine(bundle, threads)
    raise ValueError(f"unknown engine {name!r}, choose one of {', '.join(ENGINES)}")


class OnnxEngine:
    """ONNX Runtime on the CPU."""

    def __init__(self, bundle: Bundle, file: str, threads: int) -> None:
        import onnxruntime as ort  # type: ignore[import-untyped]

        options = ort.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        # Idle threads that spin steal the cores of other workers on the same machine.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3
        content = bundle.read(file)
        path = bundle.directory / file
        try:
            self._session = ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise ModelError(f"{path}: cannot be run ({error}); export the model again") from error
        source, target = self._session.get_inputs()[0], self._session.get_outputs()[0]
        size, classes = bundle.manifest.preprocessing.size, len(bundle.manifest.labels)
        if (
            source.type != "tensor(uint8)"
            or source.shape[1:] != [1, size, size]
            or target.shape[1:] != [classes]
        ):
            raise ModelError(
                f"{path}: takes {source.type} {source.shape} and gives {target.shape}, but the manifest has"
                f" 1x{size}x{size} uint8 and {classes} labels; export the model again"
            )
        self._input = source.name

    def logits(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        if len(images) <= _CHUNK:
            return self._run(images)
        return np.concatenate([self._run(images[at : at + _CHUNK]) for at in range(0, len(images), _CHUNK)])

    def _run(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        return cast("NDArray[np.float32]", self._session.run(None, {self._input: images})[0])


class TorchEngine:
    """The trained weights in torch: the reference the other engines are compared with."""

    def __init__(self, bundle: Bundle, threads: int) -> None:
        self._network = load_network(bundle)
        self._threads = threads

    def logits(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        import torch

        from .training import predict_logits

        # The thread count is global in torch; training in the same process gets its own back.
        before = torch.get_num_threads()
        torch.set_num_threads(self._threads)
        try:
            return cast("NDArray[np.float32]", predict_logits(self._network, images[:, 0]).numpy())
        finally:
            torch.set_num_threads(before)


def load_network(bundle: Bundle) -> Network:
    """The trained network of a bundle, in eval mode: for the torch engine and for further training.

    Raises:
        ModelError: names, shapes or types do not fit the architecture, or a value is not finite.
        MissingExtra: torch is not installed.
    """
    try:
        import torch
        from safetensors import SafetensorError
        from safetensors.torch import load
    except ModuleNotFoundError as error:
        raise MissingExtra("the torch engine", "train", error.name) from error
    from .model import ModelConfig, Network

    path = bundle.directory / WEIGHTS
    try:
        network = Network(ModelConfig.from_dict(bundle.manifest.architecture))
        tensors = load(bundle.read(WEIGHTS))
    except (ValueError, SafetensorError) as error:
        raise ModelError(f"{path}: cannot be read ({error}); export the model again") from error
    expected = network.state_dict()
    if problems := _differences(expected, tensors):
        raise ModelError(
            f"{path}: does not fit the manifest's architecture ({problems[0]}); export the model again"
        )
    if not all(bool(torch.isfinite(tensor).all()) for tensor in tensors.values()):
        raise ModelError(f"{path}: holds values that are not finite; train the model again")
    network.load_state_dict(tensors)
    return network.eval()


def _differences(expected: dict[str, Any], found: dict[str, Any]) -> list[str]:
    problems = [f"{name} is missing" for name in expected.keys() - found.keys()]
    problems += [f"{name} is unknown" for name in found.keys() - expected.keys()]
    for name in expected.keys() & found.keys():
        want, have = expected[name], found[name]
        if want.shape != have.shape or want.dtype != have.dtype:
            problems.append(
                f"{name} is {tuple(have.shape)} {have.dtype}, not {tuple(want.shape)} {want.dtype}"
            )
    return sorted(problems)
