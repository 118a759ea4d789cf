"""How long until a network knows Fashion-MNIST: a tutorial's CNN and our fast recipe, timed side by side.

    uv run --all-extras python -m benchmarks.recipe --seeds 3 --json recipe.json

Both learn from the same 60,000 images on the same number of threads and are stopped when they name 91 % of
10,000 training images and of the 10,000 test images. They take turns, a quarter of an epoch each, so that
both meet the same neighbours on a shared machine. Only steps count: judging stops the clock.

*Tutorial*: two convolutions with pooling and two dense layers, Adam at its default rate, batch 64, pixels in
0..1, no augmentation, as in https://keras.io/examples/vision/mnist_convnet/ and
https://www.tensorflow.org/tutorials/images/cnn; the dense layer of 128 and the batch of 64 are those of
https://github.com/pytorch/examples/blob/main/mnist/main.py.

*Ours*: the layout of the shipped models with a coarser stem, and what makes short runs short in airbench
(arXiv:2404.00498): batch norm, convolutions that begin as identity, large steps under a triangular rate,
label smoothing, no augmentation; the last steps' rate falls to zero.

The published retail CNN study that we measure ourselves against reports a training time 94.12 % shorter than
its own baseline's. Its machine, baseline and data are not ours; only the shares can be set side by side.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from classifier import Dataset, training_set, validation_set
from classifier.optim import learning_rate, set_rate
from classifier.report.speed import machine

from .report import add_outputs, keep

PUBLISHED_REDUCTION = 0.9412
JUDGED = 10_000  # of the training images, and of the test images
PATCHED = 1_000  # images whose patches make the stem
STEM = 8  # pairs of its filters


@dataclass(frozen=True, slots=True)
class Recipe:
    """How one contestant learns.

    Attributes:
        name: in the report.
        build: makes the untrained network from some normalised images; (B, 1, 28, 28) to logits (B, 10).
        batch: images a step.
        epochs: the longest run; ours ends there because its rate is then zero.
        peak: learning rate; of Adam constant, of SGD the top of the triangle.
        adam: Adam, or SGD with Nesterov momentum 0.9.
        mean, std: what pixels are normalised with, in 0..255.
    """

    name: str
    build: Callable[[Tensor], nn.Module]
    batch: int
    epochs: float
    peak: float
    adam: bool
    mean: float
    std: float


@dataclass(frozen=True, slots=True)
class Time:
    """What a contestant needed; seconds are None where it never got there.

    ``images`` is how many it had seen, repeats included; the accuracies are those of the last judgement,
    that on test images None while too few training images were known.
    """

    recipe: str
    seed: int
    wall_s: float | None
    cpu_s: float | None
    images: int
    train_accuracy: float | None
    test_accuracy: float | None


class GlobalMax(nn.Module):
    """(B, C, H, W) -> (B, C)."""

    def forward(self, x: Tensor) -> Tensor:
        return x.amax(dim=(2, 3))


def tutorial() -> nn.Module:
    """Two convolutions, two dense layers: 225,034 weights."""
    return nn.Sequential(
        *(nn.Conv2d(1, 32, 3), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(32, 64, 3), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(1600, 128), nn.ReLU(), nn.Linear(128, 10)),
    )


def fast(images: Tensor) -> nn.Module:
    """A 4x4 stem of stride 2, then convolutions at 13, 6 and 3 pixels: 61,146 weights.

    The stem is not trained: its filters are the eigenvectors of the images' patches, scaled to equal
    variance, each with its negative (airbench, arXiv:2404.00498, section 3.2).

    Args:
        images: (N, 1, 28, 28) float, normalised.
    """
    stem = nn.Conv2d(1, 2 * STEM, 4, stride=2)
    patches = nn.functional.unfold(images, 4).transpose(1, 2).reshape(-1, 16)  # (N * 625, 16)
    variances, vectors = torch.linalg.eigh(patches.T @ patches / len(patches))  # ascending
    filters = (vectors / (variances + 5e-3).sqrt()).T.flip(0)[:STEM].reshape(STEM, 1, 4, 4)
    with torch.no_grad():
        stem.weight.copy_(torch.cat((filters, -filters)))
        assert stem.bias is not None
        stem.bias.zero_()
    layers: list[nn.Module] = [stem.requires_grad_(False), nn.ReLU()]
    layers += [_identity_like(2 * STEM, 32), nn.MaxPool2d(2), _norm(32), nn.ReLU()]
    layers += [_identity_like(32, 64), nn.MaxPool2d(2), _norm(64), nn.ReLU()]
    layers += [_identity_like(64, 64), _norm(64), nn.ReLU()]
    return nn.Sequential(*layers, GlobalMax(), nn.Linear(64, 10))


def _identity_like(inputs: int, outputs: int) -> nn.Conv2d:
    convolution = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
    with torch.no_grad():
        nn.init.dirac_(convolution.weight[: min(inputs, outputs)])
    return convolution


def _norm(channels: int) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(channels, momentum=0.4)  # few steps: the statistics must follow quickly
    norm.weight.requires_grad_(False)
    return norm


class Contestant:
    """One recipe on its way.

    Args:
        recipe: how it learns.
        training, test: what it learns from and is judged on.
        seed: of the weights and of the order of images.
    """

    def __init__(self, recipe: Recipe, training: Dataset, test: Dataset, seed: int) -> None:
        torch.manual_seed(seed)
        self.recipe, self.seed = recipe, seed
        started = time.perf_counter(), time.process_time()
        self._images, self._labels = _tensors(training)
        self._judged = [tuple(part[:JUDGED] for part in _tensors(each)) for each in (training, test)]
        self._network = recipe.build(self._pixels(self._images[:PATCHED]))
        self._network.to(memory_format=torch.channels_last)
        self._optimiser = _optimiser(recipe, self._network)
        self._loss = nn.CrossEntropyLoss(label_smoothing=0.0 if recipe.adam else 0.1)
        self._generator = torch.Generator().manual_seed(seed)
        self._order = torch.empty(0, dtype=torch.int64)
        self.total = max(1, int(recipe.epochs * len(training) / recipe.batch))
        self.step = 0
        self.accuracies: list[float] = []
        self.reached: tuple[float, float] | None = None
        self._spent = time.perf_counter() - started[0], time.process_time() - started[1]

    @property
    def finished(self) -> bool:
        """Nothing more to do: there, or at the end of its run."""
        return self.reached is not None or self.step >= self.total

    def advance(self, images: int, target: float) -> None:
        """Learn from about so many images, then be judged with the clock stopped."""
        started = time.perf_counter(), time.process_time()
        for _ in range(min(math.ceil(images / self.recipe.batch), self.total - self.step)):
            self._learn()
        wall, cpu = self._spent
        self._spent = wall + time.perf_counter() - started[0], cpu + time.process_time() - started[1]
        # Judging costs as much as learning, so the test images wait until the training images are known.
        self.accuracies = []
        for judged in self._judged:
            self.accuracies.append(self._accuracy(*judged))
            if self.accuracies[-1] < target:
                return
        self.reached = self._spent

    def time(self) -> Time:
        """What came out."""
        wall_s, cpu_s = self.reached or (None, None)
        images = self.step * self.recipe.batch
        train_accuracy, test_accuracy = (*self.accuracies, None, None)[:2]
        return Time(self.recipe.name, self.seed, wall_s, cpu_s, images, train_accuracy, test_accuracy)

    def _learn(self) -> None:
        recipe = self.recipe
        if len(self._order) < recipe.batch:
            self._order = torch.randperm(len(self._labels), generator=self._generator)
        batch, self._order = self._order[: recipe.batch], self._order[recipe.batch :]
        if not recipe.adam:
            set_rate(self._optimiser, learning_rate(self.step / self.total, recipe.peak))
        loss = self._loss(self._network(self._pixels(self._images[batch])), self._labels[batch])
        self._optimiser.zero_grad()
        loss.backward()
        self._optimiser.step()
        self.step += 1

    def _pixels(self, images: Tensor) -> Tensor:
        """(B, 28, 28) uint8 -> normalised (B, 1, 28, 28)."""
        scaled = (images[:, None].float() - self.recipe.mean) / self.recipe.std
        return scaled.contiguous(memory_format=torch.channels_last)

    def _accuracy(self, images: Tensor, labels: Tensor) -> float:
        self._network.eval()
        with torch.inference_mode():
            parts = [self._network(self._pixels(part)).argmax(1) for part in images.split(500)]
        self._network.train()
        return float((torch.cat(parts) == labels).float().mean())


def _tensors(data: Dataset) -> tuple[Tensor, Tensor]:
    """Copies, because what a data set was read from may be read-only."""
    return torch.from_numpy(data.images.copy()), torch.from_numpy(data.labels.copy())


def _optimiser(recipe: Recipe, network: nn.Module) -> torch.optim.Optimizer:
    trained = [p for p in network.parameters() if p.requires_grad]
    if recipe.adam:
        return torch.optim.Adam(trained, lr=recipe.peak)
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": 5e-4},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.SGD(groups, lr=recipe.peak, momentum=0.9, nesterov=True)


RECIPES = (
    Recipe("tutorial", lambda _: tutorial(), 64, 20.0, 1e-3, True, 0.0, 255.0),
    Recipe("fast", fast, 128, 2.5, 0.15, False, 72.94, 90.02),
)


def race(training: Dataset, test: Dataset, seed: int, target: float) -> list[Time]:
    """Let both learn, a quarter of an epoch in turn, until each is there or at its end."""
    runners = [Contestant(recipe, training, test, seed) for recipe in RECIPES]
    while not all(runner.finished for runner in runners):
        for runner in runners:
            if not runner.finished:
                runner.advance(len(training) // 4, target)
                shown = " and ".join(f"{accuracy:.2%}" for accuracy in runner.accuracies)
                images = runner.step * runner.recipe.batch
                print(f"seed {seed}, {runner.recipe.name}: {images:,} images, {shown}", file=sys.stderr)
    return [runner.time() for runner in runners]


def warm_up(training: Dataset) -> None:
    """One step and one judgement of each recipe: the first use of a layer sets up its code."""
    few = training.take(np.arange(JUDGED // 10))
    for recipe in RECIPES:
        Contestant(recipe, few, few, 0).advance(recipe.batch, 2.0)


def summary(times: Sequence[Time]) -> dict[str, Any]:
    """Medians over the seeds, and the share of time that ours saves; None where a seed never got there."""
    found: dict[str, Any] = {"published_reduction": PUBLISHED_REDUCTION}
    for clock in ("wall_s", "cpu_s"):
        medians = {}
        for recipe in RECIPES:
            seconds = [getattr(each, clock) for each in times if each.recipe == recipe.name]
            medians[recipe.name] = None if None in seconds else statistics.median(seconds)
        slow, quick = (medians[recipe.name] for recipe in RECIPES)
        found[clock] = {**medians, "reduction": 1 - quick / slow if slow and quick else None}
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the race; 1 if a contestant never got there."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--target", type=float, default=0.91, help="accuracy on both, 0..1")
    parser.add_argument("--data", type=Path, help="directory with Fashion-MNIST; default: where it is found")
    add_outputs(parser, page=False)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    training, test = training_set(options.data), validation_set(options.data)
    warm_up(training)
    times = [each for seed in range(options.seeds) for each in race(training, test, seed, options.target)]
    report = {
        "target": options.target,
        "threads": options.threads,
        "machine": {**machine(), "load": os.getloadavg()[0]},
        "runs": [asdict(each) for each in times],
        "summary": summary(times),
    }
    print(json.dumps(report, indent=1))
    keep(report, options)
    return int(any(each.wall_s is None for each in times))


if __name__ == "__main__":
    sys.exit(main())
