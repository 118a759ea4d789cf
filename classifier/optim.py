"""Optimiser, parameter groups and the learning rate as small functions."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

# SGD for our own nets (airbench), AdamW for torchvision's and custom ones (arXiv:2110.00476 and 2201.03545).
_SGD, _ADAMW = (0.2, 5e-4), (1e-3, 0.05)


def defaults(kind: str, batch_size: int) -> tuple[float, float]:
    """(peak learning rate, weight decay) for a kind of body; the rate grows with the root of the batch."""
    rate, decay = _SGD if kind == "speed" else _ADAMW
    return rate * (batch_size / 256) ** 0.5, decay


def optimiser(network: nn.Module, kind: str, rate: float, weight_decay: float) -> torch.optim.Optimizer:
    """SGD with Nesterov momentum for a speed body, AdamW for any other."""
    groups = parameter_groups(network, weight_decay)
    if kind == "speed":
        return torch.optim.SGD(groups, lr=rate, momentum=0.9, nesterov=True)
    return torch.optim.AdamW(groups, lr=rate)


def parameter_groups(network: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two groups: matrices and filters decay, biases and norms do not."""
    trained = [p for p in network.parameters() if p.requires_grad]
    return [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]


def learning_rate(position: float, peak: float, warmup: float = 0.2) -> float:
    """Triangle: linear from peak/10 up to ``peak``, then linear down to zero at the end.

    Args:
        position: how much of the run is done, 0 to 1.
        peak: largest rate.
        warmup: share of the run that climbs.
    """
    if position < warmup:
        return peak * (0.1 + 0.9 * position / warmup)
    return peak * (1.0 - position) / (1.0 - warmup)


def set_rate(optimiser: torch.optim.Optimizer, rate: float) -> None:
    """Give every group the rate."""
    for group in optimiser.param_groups:
        group["lr"] = rate
