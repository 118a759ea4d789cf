"""The network: pixel normalisation, a body, and a head for the category and one for the tags.

    uint8 (N, C, S, S) -> normalise -> body -> features (N, F) -> linear -> logits (N, K), tag logits (N, T)

Our own body is of the "speed" family: 2x2 stem -> 3 groups of [conv 3x3, max pool 2, norm,
ReLU, conv 3x3, norm, ReLU] -> global max pool. The first convolution of a group starts as
identity (Dirac) so that a new net passes its input on. Source of the layout: airbench (Jordan
2024, arXiv:2404.00498), with ReLU in place of GELU because ReLU fuses and quantises in every engine.

Normalisation is part of the network: the pixel statistics travel with the
weights, and no caller can apply others.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .errors import ModelError

# (channels, size) -> a module that takes normalised float (N, channels, size, size) and gives features
# (N, F), or (features, evidence (N, E)) where the outlier score shall look at more than the features.
Factory = Callable[[int, int], nn.Module]
LARGE_PX = 48  # from this side on a stem of stride 2 keeps the cost of a step in bounds


class Outputs(NamedTuple):
    """What a network says about N images; all float32."""

    logits: Tensor  # (N, K)
    tag_logits: Tensor  # (N, T)
    evidence: Tensor  # (N, E), what the outlier score looks at


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Everything needed to rebuild the network; :meth:`fitted` fills in what depends on the data.

    Attributes:
        kind: "speed" for our own body, a name of :data:`classifier.backbones.BACKBONES`, or
            "custom" for a factory's.
        widths: channels of the three groups of a speed body.
        stem, stem_stride: channels and stride of its 2x2 stem.
        classes, tags: number of category and tag logits.
        size: side of the square input in pixels; speed bodies need 9 and more for each stem stride.
        channels: 1 for gray, 3 for RGB.
        mean, std: pixel statistics per channel in 0..255 units; the defaults are those of
            Fashion-MNIST's 60,000 training images.
    """

    kind: str = "speed"
    widths: tuple[int, int, int] = (24, 48, 60)
    stem: int = 8
    stem_stride: int = 1
    classes: int = 10
    tags: int = 0
    size: int = 28
    channels: int = 1
    mean: tuple[float, ...] = (72.9404,)
    std: tuple[float, ...] = (90.0212,)

    def __post_init__(self) -> None:
        if len(self.widths) != 3 or min(*self.widths, self.stem, self.stem_stride) < 1:
            raise ValueError(
                f"widths must be three positive numbers, stem and stem_stride positive, got {self.widths},"
                f" {self.stem}, {self.stem_stride}"
            )
        if self.classes < 2 or self.tags < 0 or self.channels not in (1, 3):
            raise ValueError(f"need classes >= 2, tags >= 0, channels 1 or 3, got {self}")
        if self.size < (9 * self.stem_stride if self.kind == "speed" else 8):
            raise ValueError(f"images of {self.size} px are too small for this network, got {self}")
        if not len(self.mean) == len(self.std) == self.channels or min(self.std) <= 0:
            raise ValueError(f"mean and std need one value a channel, std above 0, got {self}")

    def fitted(
        self, classes: int, tags: int, size: int, mean: tuple[float, ...], std: tuple[float, ...]
    ) -> ModelConfig:
        """The same architecture for other data; images of 48 px and more get a stem of stride 2.

        In colour such a stem has at least 16 channels: it sees 2 x 2 x 3 values, and 8 would lose some.
        """
        stride = max(self.stem_stride, 2 if size >= LARGE_PX else 1)
        return replace(
            self,
            stem=max(self.stem, 16) if stride > 1 and len(mean) == 3 else self.stem,
            stem_stride=stride,
            classes=classes,
            tags=tags,
            size=size,
            channels=len(mean),
            mean=mean,
            std=std,
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON form, the inverse of :meth:`from_dict`."""
        lists = {name: list(getattr(self, name)) for name in ("widths", "mean", "std")}
        return {**asdict(self), **lists}

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> ModelConfig:
        """Rebuild from JSON; a single mean and std, as the first format had it, is for gray.

        Raises:
            ValueError: unknown or impossible fields.
        """
        try:
            pixels: dict[str, Any] = {n: _values(fields[n]) for n in ("mean", "std") if n in fields}
            known: dict[str, Any] = {**fields, **pixels, "widths": tuple(fields["widths"])}
            return cls(**known)
        except (TypeError, KeyError) as error:
            raise ValueError(f"not a model configuration: {fields} ({error})") from error


PRESETS: dict[str, ModelConfig] = {
    "student": ModelConfig(),
    "base": ModelConfig(widths=(32, 128, 256)),
}


class Network(nn.Module):
    """The trainable network.

    Raises (on construction):
        ModelError: ``config.kind`` is "custom" and no body is given, or names no body we know.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, config: ModelConfig, body: nn.Module | None = None) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("mean", torch.tensor(config.mean)[:, None, None])  # (C, 1, 1)
        self.register_buffer("std", torch.tensor(config.std)[:, None, None])
        self.body = _body(config) if body is None else body
        features = _feature_count(self.body, config)
        self.head = nn.Linear(features, config.classes)
        self.tag_head = nn.Linear(features, config.tags) if config.tags else None

    def forward(self, images: Tensor) -> Outputs:
        """Answer for a batch.

        Args:
            images: (N, C, size, size) uint8.

        Returns:
            Logits (N, K), tag logits (N, T) and evidence (N, E), float32.
        """
        found = self.body((images.float() - self.mean) / self.std)
        features, evidence = found if isinstance(found, tuple) else (found, found)
        tags = features[:, :0] if self.tag_head is None else self.tag_head(features)
        return Outputs(self.head(features), tags, evidence)


class SpeedBody(nn.Module):
    """Our own body; its evidence, in eval mode, is every group's channel means beside the features."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.stem = nn.Conv2d(config.channels, config.stem, 2, config.stem_stride)
        inputs = (config.stem, *config.widths[:2])
        self.groups = nn.Sequential(*(_group(i, o) for i, o in zip(inputs, config.widths, strict=True)))

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """(N, C, S, S) float -> features (N, widths[2]), with evidence (N, sum(widths) + widths[2])."""
        x = torch.relu(self.stem(x))
        means = []
        for group in self.groups:
            x = group(x)
            if not self.training:
                means.append(x.mean(dim=(2, 3)))
        features = x.amax(dim=(2, 3))
        return (features, torch.cat([*means, features], dim=1)) if means else features


def _body(config: ModelConfig) -> nn.Module:
    if config.kind == "speed":
        return SpeedBody(config)
    if config.kind == "custom":
        raise ModelError(
            "this network has a body of its own; build it with your factory: Network(config, factory(C, S))"
        )
    from .backbones import torchvision_body

    return torchvision_body(config.kind)


@torch.no_grad()
def _feature_count(body: nn.Module, config: ModelConfig) -> int:
    """F, by a dry run.

    Raises:
        ModelError: the body does not turn images into one vector each.
    """
    body.eval()
    found = body(torch.zeros(2, config.channels, config.size, config.size))
    body.train()
    features = found[0] if isinstance(found, tuple) else found
    if not isinstance(features, Tensor) or features.ndim != 2 or len(features) != 2:
        shape = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
        raise ModelError(
            f"the body made {shape} of 2 images of {config.channels}x{config.size}x{config.size};"
            " it must give features (2, F)"
        )
    return features.shape[1]


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
    """A copy in which every batch norm of a speed body is part of the convolution before it.

    Same function up to rounding, for inference only. A norm after the max pool may move
    before it because its scale is positive. Other bodies are copied as they are.
    """
    folded = copy.deepcopy(network).eval()
    if not isinstance(folded.body, SpeedBody):
        return folded
    for group in folded.body.groups:
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


def current_names(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights under today's names: the first format had no ``body.`` and one mean for one channel."""
    renamed = {f"body.{n}" if n.startswith(("stem.", "groups.")) else n: t for n, t in tensors.items()}
    return {n: t.reshape(1, 1, 1) if n in ("mean", "std") and not t.ndim else t for n, t in renamed.items()}


def _values(found: Any) -> tuple[float, ...]:
    return tuple(float(value) for value in found) if isinstance(found, list | tuple) else (float(found),)


__all__ = [
    "PRESETS",
    "Factory",
    "ModelConfig",
    "Network",
    "Outputs",
    "SpeedBody",
    "current_names",
    "fold",
    "parameter_count",
]
