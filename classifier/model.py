"""The network: a small convolutional net of the "speed" family, and its configuration.

    uint8 (N, 1, 28, 28) -> normalise -> 2x2 stem -> 3 groups -> global max pool -> linear -> logits (N, K)

Each group is [conv 3x3, max pool 2, norm, ReLU, conv 3x3, norm, ReLU]. The first
convolution starts as identity (Dirac) so that a new net passes its input on.
Normalisation is part of the network: the pixel statistics travel with the
weights, and no caller can apply others.

Source of the layout: airbench (Jordan 2024, arXiv:2404.00498), with ReLU in place of
GELU because ReLU fuses and quantises in every engine.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Everything needed to rebuild the network.

    Attributes:
        widths: channels of the three groups.
        stem: channels of the 2x2 stem.
        classes: number of logits.
        size: side of the square input in pixels, at least 17, or pooling has nothing left.
        mean, std: pixel statistics in 0..255 units, of Fashion-MNIST's 60,000 training images.
    """

    widths: tuple[int, int, int] = (24, 48, 72)
    stem: int = 8
    classes: int = 10
    size: int = 28
    mean: float = 72.9404
    std: float = 90.0212

    def __post_init__(self) -> None:
        if len(self.widths) != 3 or min(*self.widths, self.stem) < 1:
            raise ValueError(
                f"widths must be three positive numbers and stem one, got {self.widths}, {self.stem}"
            )
        if self.classes < 2 or self.size < 17 or self.std <= 0:
            raise ValueError(f"need classes >= 2, size >= 17, std > 0, got {self}")

    def to_dict(self) -> dict[str, Any]:
        """JSON form, the inverse of :meth:`from_dict`."""
        return {**asdict(self), "widths": list(self.widths)}

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> ModelConfig:
        """Rebuild from JSON.

        Raises:
            ValueError: unknown or impossible fields.
        """
        try:
            return cls(**{**fields, "widths": cast("tuple[int, int, int]", tuple(fields["widths"]))})
        except (TypeError, KeyError) as error:
            raise ValueError(f"not a model configuration: {error}") from error


PRESETS: dict[str, ModelConfig] = {
    "student": ModelConfig(),
    "base": ModelConfig(widths=(32, 128, 256), stem=32),
}


class Network(nn.Module):
    """The trainable network."""

    mean: Tensor
    std: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("mean", torch.tensor(config.mean))
        self.register_buffer("std", torch.tensor(config.std))
        self.stem = nn.Conv2d(1, config.stem, 2)
        inputs = (config.stem, *config.widths[:2])
        self.groups = nn.Sequential(*(_group(i, o) for i, o in zip(inputs, config.widths, strict=True)))
        self.head = nn.Linear(config.widths[-1], config.classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits for a batch.

        Args:
            images: (N, 1, size, size) uint8.

        Returns:
            (N, classes) float32.
        """
        x = (images.float() - self.mean) / self.std  # (N, 1, S, S)
        x = torch.relu(self.stem(x))  # (N, stem, S-1, S-1)
        x = self.groups(x)  # (N, widths[2], (S-1)//8, (S-1)//8)
        return cast("Tensor", self.head(x.amax(dim=(2, 3))))  # (N, classes)


def _group(inputs: int, outputs: int) -> nn.Sequential:
    first = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
    with torch.no_grad():
        nn.init.dirac_(first.weight[: min(inputs, outputs)])
    return nn.Sequential(
        first,
        nn.MaxPool2d(2),
        _norm(outputs),
        nn.ReLU(),
        nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
        _norm(outputs),
        nn.ReLU(),
    )


def _norm(channels: int) -> nn.BatchNorm2d:
    """Batch norm with its scale fixed at one.

    The scale is redundant before another norm, and a positive one commutes with
    the max pool, so :func:`fold` can move every norm into its convolution.
    """
    norm = nn.BatchNorm2d(channels)
    norm.weight.requires_grad_(False)
    return norm


def parameter_count(network: nn.Module) -> int:
    """Number of trained values."""
    return sum(p.numel() for p in network.parameters() if p.requires_grad)


@torch.no_grad()
def fold(network: Network) -> Network:
    """A copy in which every batch norm is part of the convolution before it.

    Same function up to rounding, for inference only. A norm after the max pool
    may move before it because its scale is positive.
    """
    import copy

    folded = copy.deepcopy(network).eval()
    for group in folded.groups:
        assert isinstance(group, nn.Sequential)
        for conv_at, norm_at in ((0, 2), (4, 5)):
            conv, norm = group[conv_at], group[norm_at]
            assert isinstance(conv, nn.Conv2d)
            assert isinstance(norm, nn.BatchNorm2d)
            assert norm.running_var is not None
            assert norm.running_mean is not None
            scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
            assert bool((scale > 0).all())
            conv.weight.mul_(scale[:, None, None, None])
            conv.bias = nn.Parameter(norm.bias - norm.running_mean * scale)
            group[norm_at] = nn.Identity()
        # ReLU commutes with the max pool too, and directly behind a convolution every engine fuses it.
        group[1], group[3] = group[3], group[1]
    return folded
