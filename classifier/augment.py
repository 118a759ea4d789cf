"""Batched augmentations: pure functions on (B, C, H, W) uint8 tensors.

They work on raw pixels, before the network normalises, so that training and
serving share one preprocessing. None changes its input.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

_CHUNK = 16  # images whose pixels as floats stay in a core's cache


@dataclass(frozen=True, slots=True)
class AugmentConfig:
    """What :func:`augment` does; ``AugmentConfig(False, 0, 0.0)`` does nothing.

    Attributes:
        flip: mirror every image in every second epoch (alternating flip, arXiv:2404.00498).
        shift_px: largest shift along each axis in pixels.
        erase_probability: share of images that lose a rectangle (arXiv:1708.04896).
        brightness, contrast: largest relative change, 0.1 for 90 % to 110 %.
        fill: the colour, one value a channel, of what a shift uncovers or an erasure leaves.
    """

    flip: bool = True
    shift_px: int = 2
    erase_probability: float = 0.25
    brightness: float = 0.0
    contrast: float = 0.0
    fill: tuple[int, ...] = (0,)

    def __post_init__(self) -> None:
        if self.shift_px < 0 or not 0.0 <= self.erase_probability <= 1.0:
            raise ValueError(f"need shift_px >= 0 and erase_probability in [0, 1], got {self}")
        if not (0.0 <= self.brightness < 1.0 and 0.0 <= self.contrast < 1.0):
            raise ValueError(f"need brightness and contrast in [0, 1), got {self}")


def augment(images: Tensor, flipped: Tensor, config: AugmentConfig, generator: Generator) -> Tensor:
    """Apply flip, shift, colours and erase in this order.

    Args:
        images: (B, C, H, W) uint8.
        flipped: (B,) bool, the images to mirror if ``config.flip``.
        config: what to do.
        generator: randomness, on the device of ``images``.

    Returns:
        (B, C, H, W) uint8, a new tensor unless nothing is to be done.
    """
    if config.flip:
        images = flip(images, flipped)
    if config.shift_px:
        images = shift(images, config.shift_px, generator, config.fill)
    if config.brightness or config.contrast:
        images = jitter(images, config.brightness, config.contrast, generator)
    if config.erase_probability:
        images = erase(images, config.erase_probability, generator, config.fill)
    return images


def flip(images: Tensor, flipped: Tensor) -> Tensor:
    """Mirror the chosen images left to right; ``flipped`` is (B,) bool."""
    mirrored = images.clone()
    mirrored[flipped] = images[flipped].flip(3)
    return mirrored


def shift(images: Tensor, limit_px: int, generator: Generator, fill: tuple[int, ...] = (0,)) -> Tensor:
    """Move every image by its own whole number of pixels.

    Args:
        images: (B, C, H, W) uint8.
        limit_px: shifts are uniform on -limit_px..limit_px along each axis.
        generator: randomness.
        fill: colour of the uncovered border, one value or one a channel.

    Returns:
        (B, C, H, W) uint8.
    """
    count, channels, height, width = images.shape
    shape = (count, channels, height + 2 * limit_px, width + 2 * limit_px)
    padded = _colour(fill, images).expand(shape).clone()
    padded[:, :, limit_px : limit_px + height, limit_px : limit_px + width] = images
    start = torch.randint(0, 2 * limit_px + 1, (2, count, 1), generator=generator, device=images.device)
    # Views stacked in one copy are many times faster on a CPU than indexing pixel by pixel.
    corners = zip(padded, *start[:, :, 0].tolist(), strict=True)
    return torch.stack([image[:, top : top + height, left : left + width] for image, top, left in corners])


def jitter(images: Tensor, brightness: float, contrast: float, generator: Generator) -> Tensor:
    """Scale every image's pixels, and their distance to the image's own mean, by random factors near one.

    Args:
        images: (B, C, H, W) uint8.
        brightness, contrast: the factors are uniform on 1 - x..1 + x.
        generator: randomness.

    Returns:
        (B, C, H, W) uint8, rounded and cut at 0 and 255.
    """
    draw = torch.rand((2, len(images), 1, 1, 1), generator=generator, device=images.device) * 2 - 1
    scale, stretch = 1 + brightness * draw[0], 1 + contrast * draw[1]
    mean = images.sum(dim=(1, 2, 3), keepdim=True, dtype=torch.int64) / images[0].numel()
    # scale, then (value - mean) * stretch + mean, as one line; the half makes the cut to uint8 a rounding.
    slope, offset = scale * stretch, mean * scale * (1 - stretch) + 0.5
    changed = [
        (pixels * factor).add_(term).clamp_(0, 255).to(torch.uint8)
        for pixels, factor, term in zip(
            *(torch.split(x, _CHUNK) for x in (images, slope, offset)), strict=True
        )
    ]
    return torch.cat(changed)


def erase(images: Tensor, probability: float, generator: Generator, fill: tuple[int, ...] = (0,)) -> Tensor:
    """Paint over one rectangle in a random share of the images.

    Area is uniform on 2 %..25 % of the image and the aspect ratio log-uniform on 0.3..3.3
    (arXiv:1708.04896 uses up to 40 %, too much for a small net); the rectangle is clipped at the border.

    Args:
        images: (B, C, H, W) uint8.
        probability: chance of each image to be touched.
        generator: randomness.
        fill: the paint, one value or one a channel.

    Returns:
        (B, C, H, W) uint8.
    """
    count, _, height, width = images.shape
    draw = torch.rand((5, count, 1), generator=generator, device=images.device)
    area = (0.02 + 0.23 * draw[0]) * height * width
    aspect = torch.exp((draw[1] * 2 - 1) * 1.19)  # ln 3.3 = 1.19
    half_height, half_width = (area * aspect).sqrt() / 2, (area / aspect).sqrt() / 2
    middle, half = torch.stack([draw[2] * height, draw[3] * width]), torch.stack([half_height, half_width])
    # A pixel is lost when its centre lies inside.
    first = ((middle - half - 0.5).floor() + 1).clamp(min=0)[..., 0].int().tolist()
    last = (middle + half - 0.5).ceil().clamp(min=0)[..., 0].int().tolist()
    erased, paint = images.clone(), _colour(fill, images)[0]
    for at in (draw[4, :, 0] < probability).nonzero()[:, 0].tolist():
        erased[at, :, first[0][at] : last[0][at], first[1][at] : last[1][at]] = paint
    return erased


def _colour(fill: tuple[int, ...], images: Tensor) -> Tensor:
    """(1, C or 1, 1, 1) of the type and on the device of ``images``."""
    return torch.tensor(fill, dtype=images.dtype, device=images.device)[None, :, None, None]
