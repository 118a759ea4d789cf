"""Training: one loop from images to a network, resumable to the bit.

    result = train(dataset, TrainConfig(epochs=60), "student")

The loop is :func:`train`; what it changes is a :class:`classifier.run.Run`, how long it goes on
is :mod:`classifier.plan`, the order of images and the loss :mod:`classifier.batches`.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from .batches import chunk, loss_of
from .data import Dataset, stratified_split
from .model import Factory, ModelConfig, Network, Outputs
from .optim import learning_rate, set_rate
from .plan import TrainConfig
from .progress import EpochReport, Reporter, silent
from .run import Run

__all__ = ["TrainConfig", "TrainResult", "run_network", "train"]


@dataclass(frozen=True, slots=True)
class TrainResult:
    """A trained network (the weight average, in eval mode, on the CPU) and how it came about.

    ``config`` has every rule applied, ``history`` one entry an epoch, ``val`` the held-out images.
    """

    network: Network
    config: TrainConfig
    history: list[dict[str, float]]
    train_sha256: str
    val: Dataset | None
    wall_s: float


def train(
    dataset: Dataset,
    config: TrainConfig | None = None,
    model: ModelConfig | Factory | str | None = None,
    checkpoint: Path | None = None,
    resume: bool = False,
    report: Reporter = silent,
    val: Dataset | None = None,
) -> TrainResult:
    """Train a network.

    Args:
        dataset: images with labels, tags or both; rows may lack either.
        config: see :class:`TrainConfig`.
        model: a preset's or backbone's name, a configuration (what depends on the data is filled in), or
            a factory (channels, size) -> module for a body of your own, see :data:`classifier.model.Factory`;
            default "student".
        checkpoint: file written before the first and after every epoch, or None.
        resume: continue from ``checkpoint``; it must come from the same data and settings. On the CPU, with
            as many threads and processes, the weights then equal an uninterrupted run's to the bit.
        report: called after every step and epoch; see :mod:`classifier.progress`.
        val: held-out images that choose nothing but the best epoch; None: ``config.val_fraction`` of the set.

    Returns:
        The weight average after the last epoch, or after the best one with ``config.patience``.

    Raises:
        ValueError: the settings do not fit the data or this machine.
        ModelError: the checkpoint is damaged or belongs to another run; the network cannot be built.
        KeyboardInterrupt: passed on; ``checkpoint`` then holds the last whole epoch.
    """
    config = config or TrainConfig()
    training, val = (dataset, val) if val is not None else _hold_out(dataset, config)
    run = Run(training, val, config, model or "student")
    run.begin(checkpoint, resume, report)
    while not run.finished:
        started, loss_sum, (begins, share) = time.monotonic(), torch.zeros((), device=run.device), run.span()
        run.network.train()
        for step, batch in enumerate(run.order.batches(training, len(run.history), run.device)):
            position = begins + share * step / run.plan.steps
            set_rate(run.optimiser, learning_rate(position, run.plan.peak_learning_rate))
            loss = loss_of(run.network(batch.images), batch, config.label_smoothing, run.tag_weight)
            run.optimiser.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            run.ranks.average(run.network)
            run.optimiser.step()
            run.follow(step)
            loss_sum += loss.detach()
            report.step(len(run.history) * run.plan.steps + step + 1, run.epochs * run.plan.steps)
        entry = run.close_epoch(float(loss_sum) / run.plan.steps, started)
        run.save(checkpoint)
        report.epoch(EpochReport.of(entry, run.epochs))
    wall_s = sum(entry["seconds"] for entry in run.history)
    done = run.plan.applied(config, len(run.history))
    return TrainResult(run.trained(), done, run.history, training.sha256, val, wall_s)


def run_network(network: Network, images: NDArray[np.uint8]) -> Outputs:
    """The network's answers, on the CPU, for (N, C, S, S) or gray (N, S, S) uint8, in bounded batches."""
    network.eval()
    device, size = network.mean.device, chunk(network.config.channels * network.config.size**2)
    parts = []
    with torch.inference_mode():
        for at in range(0, len(images), size):
            pixels = images[at : at + size] if images.ndim == 4 else images[at : at + size, None]
            parts.append(network(torch.from_numpy(np.array(pixels)).to(device)))
    return Outputs(*(torch.cat(values).cpu() for values in zip(*parts, strict=True)))


def _hold_out(dataset: Dataset, config: TrainConfig) -> tuple[Dataset, Dataset | None]:
    """(training images, held-out images or None)."""
    kept, held_out = stratified_split(dataset.labels, config.val_fraction, config.seed)
    return (dataset.take(kept), dataset.take(held_out)) if len(held_out) else (dataset, None)
