"""Optimiser settings as pure functions: parameter groups and the learning rate of a step."""

from __future__ import annotations

from typing import Any

from torch import nn


def parameter_groups(network: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two groups: matrices and filters decay, biases do not."""
    trained = [p for p in network.parameters() if p.requires_grad]
    return [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]


def learning_rate(step: int, total_steps: int, peak: float, warmup: float = 0.2) -> float:
    """Triangle: linear from peak/10 up to ``peak``, then linear down to zero at ``total_steps``.

    Args:
        step: 0 <= step < total_steps.
        total_steps: length of the run.
        peak: largest rate.
        warmup: share of the run that climbs.
    """
    position = step / max(total_steps, 1)
    if position < warmup:
        return peak * (0.1 + 0.9 * position / warmup)
    return peak * (1.0 - position) / (1.0 - warmup)
