"""The trained weights in torch: the reference that the other engines are compared with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .bundle import WEIGHTS, Bundle
from .errors import MissingExtra, ModelError

if TYPE_CHECKING:
    from .engines import BodyFactory, Outputs
    from .model import Network
    from .outliers import OutlierScore

# Where the outlier score's arrays stand among the weights.
OUTLIER = "outlier."


class TorchEngine:
    """Runs the weights in torch, on the CPU."""

    def __init__(self, bundle: Bundle, threads: int, model: BodyFactory | None = None) -> None:
        self._network, self._score = load_weights(bundle, model)
        self._threads = threads

    def run(self, images: NDArray[np.uint8]) -> Outputs:
        import torch

        # The thread count is global in torch; training in the same process gets its own back.
        before = torch.get_num_threads()
        torch.set_num_threads(self._threads)
        try:
            return network_outputs(self._network, self._score, images)[0]
        finally:
            torch.set_num_threads(before)


def network_outputs(
    network: Network, score: OutlierScore | None, images: NDArray[np.uint8]
) -> tuple[Outputs, NDArray[np.float32]]:
    """Run a network on the CPU, in batches of bounded memory.

    Args:
        network: in eval mode.
        score: what judges its evidence; None: the score is NaN.
        images: (N, channels, size, size) uint8, N >= 1.

    Returns:
        The outputs, and the evidence (N, E).
    """
    import torch

    from .engines import Outputs
    from .training import run_network

    with torch.inference_mode():
        logits, tag_logits, evidence = run_network(network, images)
        outlier = torch.full((len(logits),), torch.nan) if score is None else score(evidence, logits)
    return Outputs(logits.numpy(), tag_logits.numpy(), outlier.numpy()), evidence.numpy()


def load_network(bundle: Bundle, model: BodyFactory | None = None) -> Network:
    """The trained network of a bundle, in eval mode, for further training; errors as :func:`load_weights`."""
    return load_weights(bundle, model)[0]


def load_weights(bundle: Bundle, model: BodyFactory | None) -> tuple[Network, OutlierScore | None]:
    """The trained network, in eval mode, and its outlier score if it has one.

    Args:
        bundle: verified.
        model: makes the body of a custom network from (channels, size).

    Raises:
        ModelError: names, shapes or types do not fit the architecture, a value is not finite, or the
            network is custom and ``model`` is None.
        MissingExtra: torch is not installed.
    """
    try:
        import torch
        from safetensors import SafetensorError
        from safetensors.torch import load
    except ModuleNotFoundError as error:
        raise MissingExtra("the torch engine", "train", error.name) from error
    from .outliers import OutlierScore

    path = bundle.directory / WEIGHTS
    network = _empty(bundle, model)
    try:
        tensors = load(bundle.read(WEIGHTS))
    except SafetensorError as error:
        raise ModelError(f"{path}: cannot be read ({error}); export the model again") from error
    if not all(bool(torch.isfinite(tensor).all()) for tensor in tensors.values()):
        raise ModelError(f"{path}: holds values that are not finite; train the model again")
    arrays = {
        name.removeprefix(OUTLIER): tensors.pop(name) for name in list(tensors) if name.startswith(OUTLIER)
    }
    if problems := _differences(network.state_dict(), tensors):
        raise ModelError(
            f"{path}: does not fit the manifest's architecture ({problems[0]}); export the model again"
        )
    network.load_state_dict(tensors)
    try:
        return network.eval(), OutlierScore(arrays) if arrays else None
    except (KeyError, RuntimeError) as error:
        raise ModelError(
            f"{path}: the outlier score is incomplete ({error}); export the model again"
        ) from error


def _empty(bundle: Bundle, model: BodyFactory | None) -> Network:
    """The network of the manifest's architecture, untrained."""
    from .model import ModelConfig, Network

    try:
        config = ModelConfig.from_dict(bundle.manifest.architecture)
        if config.kind != "custom":
            return Network(config)
    except ValueError as error:
        raise ModelError(
            f"{bundle.directory}: no such architecture ({error}); export the model again"
        ) from error
    if model is None:
        raise ModelError(
            f"{bundle.directory}: its network is a module of your own, of which only the weights are stored;"
            f' say how it is made: load("{bundle.directory}", engine="torch", model=factory),'
            " or take engine onnx, which needs nothing"
        )
    return Network(config, model(config.channels, config.size))


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
