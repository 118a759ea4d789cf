"""Batched augmentations: pure functions on (B, 1, H, W) uint8 tensors.

They work on raw pixels, before the network normalises, so that training and
serving share one preprocessing. None changes its input.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Generator, Tensor


@dataclass(frozen=True, slots=True)
class AugmentConfig:
    """What :func:`augment` does; ``AugmentConfig(False, 0, 0.0)`` does nothing.

    Attributes:
        flip: mirror every image in every second epoch (alternating flip, arXiv:2404.00498).
        shift_px: largest shift along each axis in pixels.
        erase_probability: share of images that lose a rectangle (arXiv:1708.04896).
    """

    flip: bool = True
    shift_px: int = 2
    erase_probability: float = 0.25

    def __post_init__(self) -> None:
        if self.shift_px < 0 or not 0.0 <= self.erase_probability <= 1.0:
            raise ValueError(f"need shift_px >= 0 and erase_probability in [0, 1], got {self}")


def augment(images: Tensor, flipped: Tensor, config: AugmentConfig, generator: Generator) -> Tensor:
    """Apply flip, shift and erase in this order.

    Args:
        images: (B, 1, H, W) uint8.
        flipped: (B,) bool, the images to mirror if ``config.flip``.
        config: what to do.
        generator: randomness, on the device of ``images``.

    Returns:
        (B, 1, H, W) uint8, a new tensor unless nothing is to be done.
    """
    if config.flip:
        images = flip(images, flipped)
    if config.shift_px:
        images = shift(images, config.shift_px, generator)
    if config.erase_probability:
        images = erase(images, config.erase_probability, generator)
    return images


def flip(images: Tensor, flipped: Tensor) -> Tensor:
    """Mirror the chosen images left to right; ``flipped`` is (B,) bool."""
    return torch.where(flipped[:, None, None, None], images.flip(3), images)


def shift(images: Tensor, limit_px: int, generator: Generator) -> Tensor:
    """Move every image by its own whole number of pixels; the uncovered border is black (0).

    Args:
        images: (B, 1, H, W) uint8.
        limit_px: shifts are uniform on -limit_px..limit_px along each axis.
        generator: randomness.

    Returns:
        (B, 1, H, W) uint8.
    """
    count, _, height, width = images.shape
    padded = torch.nn.functional.pad(images, (limit_px,) * 4)
    start = torch.randint(0, 2 * limit_px + 1, (2, count, 1), generator=generator, device=images.device)
    rows = start[0] + torch.arange(height, device=images.device)  # (B, H)
    columns = start[1] + torch.arange(width, device=images.device)  # (B, W)
    batch = torch.arange(count, device=images.device)[:, None, None]
    return padded[batch, 0, rows[:, :, None], columns[:, None, :]].unsqueeze(1)


def erase(images: Tensor, probability: float, generator: Generator) -> Tensor:
    """Black out one rectangle in a random share of the images.

    Area is uniform on 2 %..25 % of the image and the aspect ratio log-uniform on 0.3..3.3
    (arXiv:1708.04896 uses up to 40 %, too much for a small net); the rectangle is clipped at the border.

    Args:
        images: (B, 1, H, W) uint8.
        probability: chance of each image to be touched.
        generator: randomness.

    Returns:
        (B, 1, H, W) uint8.
    """
    count, _, height, width = images.shape
    draw = torch.rand((5, count, 1), generator=generator, device=images.device)
    area = (0.02 + 0.23 * draw[0]) * height * width
    aspect = torch.exp((draw[1] * 2 - 1) * 1.19)  # ln 3.3 = 1.19
    half_height, half_width = (area * aspect).sqrt() / 2, (area / aspect).sqrt() / 2
    rows = torch.arange(height, device=images.device) + 0.5
    columns = torch.arange(width, device=images.device) + 0.5
    inside_rows = (rows - draw[2] * height).abs() < half_height  # (B, H)
    inside_columns = (columns - draw[3] * width).abs() < half_width  # (B, W)
    chosen = draw[4] < probability  # (B, 1)
    hole = inside_rows[:, :, None] & inside_columns[:, None, :] & chosen[:, :, None]
    return images.masked_fill(hole[:, None], 0)
