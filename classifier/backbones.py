"""Bodies for photographs: torchvision's networks without their last layer.

torchvision is imported on use and behind one guard: its compiled part must match the installed
torch, and where it does not, importing it fails in several ways. Our own networks do not need it.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .errors import ModelError

# Where each network keeps the layers that make classes of features; the path is cut there.
BACKBONES: dict[str, str] = {
    "resnet18": "fc",
    "resnet34": "fc",
    "mobilenet_v3_small": "classifier",
    "efficientnet_b0": "classifier",
    "convnext_tiny": "classifier.2",
}


class TorchvisionBody(nn.Module):
    """A torchvision network that ends at its features; gray images are given to all three channels."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        """(N, 1 or 3, S, S) float -> (N, F)."""
        return torch.flatten(self.net(x.expand(-1, 3, -1, -1)), 1)


def torchvision_body(name: str) -> TorchvisionBody:
    """The network ``name`` with random weights.

    Raises:
        ModelError: unknown name, or torchvision is missing or does not match torch.
    """
    if name not in BACKBONES:
        raise ModelError(f"unknown network {name!r}, choose one of speed, custom, {', '.join(BACKBONES)}")
    net = _models(name).get_model(name, weights=None)
    net.set_submodule(BACKBONES[name], nn.Identity())
    return TorchvisionBody(net)


def initial_weights(body: nn.Module, kind: str, weights: str) -> str:
    """Load starting values into ``body`` and say, in one line, which.

    Args:
        body: the network's body, changed in place.
        kind: ``ModelConfig.kind``.
        weights: "none"; "auto" for torchvision's own from the local torch cache if they are there (nothing
            is downloaded); or a ``.safetensors`` or ``.pth`` file, read without unpickling anything
            but tensors. Values whose names or shapes do not fit are left out.

    Raises:
        ModelError: the file cannot be read or nothing in it fits.
    """
    path = None if weights in ("auto", "none") else Path(weights)
    if weights == "auto" and kind in BACKBONES:
        cached = _cached(kind)
        if not cached.is_file():
            return f"{kind} starts from random weights: torchvision's own are not in {cached.parent}"
        path = cached
    if path is None:
        return ""
    found, own = _read(path), body.state_dict()
    fitting = {
        name: tensor
        for name, tensor in _body_names(found).items()
        if name in own and own[name].shape == tensor.shape
    }
    if not fitting:
        raise ModelError(f"{path}: none of its {len(found)} tensors fits {kind}; name another with --weights")
    body.load_state_dict({**own, **fitting})
    return f"{kind} starts from {path}: {len(fitting)} of {len(own)} tensors"


def _cached(name: str) -> Path:
    """Where torchvision keeps its weights for ``name`` after a download."""
    url = str(_models(name).get_model_weights(name).DEFAULT.url)
    return Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]


def _read(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        found = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, EOFError, SafetensorError, RuntimeError, pickle.UnpicklingError) as error:
        raise ModelError(f"{path}: cannot be read as weights ({error}); name another file") from error
    return {str(name): tensor for name, tensor in dict(found).items() if isinstance(tensor, Tensor)}


def _body_names(found: dict[str, Tensor]) -> dict[str, Tensor]:
    """Bundles name a body's tensors ``body.NAME``, torchvision NAME, which here is ``net.NAME``."""
    ours = {name.removeprefix("body."): tensor for name, tensor in found.items() if name.startswith("body.")}
    return ours or {f"net.{name}": tensor for name, tensor in found.items()}


def _models(name: str) -> Any:
    try:
        import torchvision.models  # type: ignore[import-untyped]
    except Exception as error:  # a pair that does not match fails with errors of many kinds
        raise ModelError(
            f"--model {name} needs a torchvision that matches torch {torch.__version__} ({error});"
            " install both from one index, or take --model student or base"
        ) from error
    return torchvision.models
