"""The order of an epoch's images, and the loss of a batch.

All randomness of an epoch comes from (seed, epoch), so a run that was stopped between
epochs and resumed sees exactly the shuffles, shifts and erasures of a run that was not.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the name everybody knows

from .augment import AugmentConfig, augment
from .data import Dataset
from .distributed import Ranks
from .model import Outputs


@dataclass(frozen=True, slots=True)
class Batch:
    """One process's share of a step: images (B, C, S, S) uint8, labels (B,), tags (B, T); -1 is not known."""

    images: Tensor
    labels: Tensor
    tags: Tensor


@dataclass(frozen=True, slots=True)
class Order:
    """What decides who comes when.

    Which images start mirrored depends on the seed alone and then alternates with the
    epoch, so every image is seen equally often both ways. The incomplete last batch is dropped;
    the shuffle gives the images in it their turn in other epochs.
    """

    seed: int
    batch_size: int
    augment: AugmentConfig
    ranks: Ranks

    def batches(self, data: Dataset, epoch: int, device: torch.device) -> Iterator[Batch]:
        """This process's augmented share of each of the epoch's batches."""
        count, seed = len(data), self.seed * 1_000_003 + epoch + 1
        mirrored = torch.randint(0, 2, (count,), generator=torch.Generator().manual_seed(self.seed))
        order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
        generator = torch.Generator(device).manual_seed(seed + self.ranks.rank * 7_368_787)
        for at in range(0, count - self.batch_size + 1, self.batch_size):
            rows = order[at + self.ranks.rank : at + self.batch_size : self.ranks.world]
            flipped = (mirrored[rows] + epoch) % 2 == 1
            batch = _batch(data, rows.numpy(), device)
            images = augment(batch.images, flipped.to(device), self.augment, generator)
            yield Batch(images, batch.labels, batch.tags)


def plain_batches(data: Dataset, device: torch.device, ranks: Ranks) -> Iterator[Batch]:
    """This process's share of all images in their order, in batches small enough for any memory."""
    mine = np.arange(ranks.rank, len(data), ranks.world)
    size = chunk(data.channels * data.size**2)
    for at in range(0, len(mine), size):
        yield _batch(data, mine[at : at + size], device)


def chunk(values: int) -> int:
    """Images of so many values that are run at once without gradients: 1000 of 28x28, fewer if larger."""
    return int(min(1000, max(16, 4_000_000 // values)))


def loss_of(outputs: Outputs, batch: Batch, smoothing: float, tag_weight: Tensor) -> Tensor:
    """Cross entropy over known labels plus binary cross entropy over known tags, each a mean.

    Args:
        outputs: the network's answer for the batch.
        batch: with at least one label or tag known, or the loss is zero.
        smoothing: label smoothing of the category.
        tag_weight: (T,) weight of a tag's yes; see :func:`tag_weights`.
    """
    summed = F.cross_entropy(
        outputs.logits, batch.labels, ignore_index=-1, label_smoothing=smoothing, reduction="sum"
    )
    loss = summed / (batch.labels >= 0).sum().clamp(min=1)
    if not len(tag_weight):
        return loss
    known = batch.tags >= 0
    each = F.binary_cross_entropy_with_logits(
        outputs.tag_logits, batch.tags.clamp(min=0).float(), pos_weight=tag_weight, reduction="none"
    )
    return loss + (each * known).sum() / known.sum().clamp(min=1)


def tag_weights(data: Dataset) -> Tensor:
    """(T,) no per yes among the known rows, 0.1 to 10: a rare tag's yes counts as much as its many no."""
    yes, no = (data.tags == 1).sum(axis=0), (data.tags == 0).sum(axis=0)
    return torch.from_numpy(np.clip(np.maximum(no, 1) / np.maximum(yes, 1), 0.1, 10.0).astype(np.float32))


def _batch(data: Dataset, rows: np.ndarray[tuple[int], np.dtype[np.int64]], device: torch.device) -> Batch:
    images = torch.from_numpy(data.pixels(rows)).to(device)
    labels, tags = torch.from_numpy(data.labels[rows]), torch.from_numpy(data.tags[rows])
    return Batch(images, labels.to(device), tags.to(device))
