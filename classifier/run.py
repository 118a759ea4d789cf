"""The state of a training run: what a checkpoint holds, and what follows from it.

Everything that the loop in :mod:`classifier.training` changes stands here. After each epoch the
checkpoint has the weights, the weight average, the optimiser's memory and the history;
the plan for the rest of the run, a time budget's included, is computed from these alone.
"""

from __future__ import annotations

import copy
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from . import backbones, optim
from .batches import Batch, Order, loss_of, plain_batches, tag_weights
from .checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from .data import Dataset
from .distributed import device_named, ranks
from .errors import ModelError
from .model import PRESETS, Factory, ModelConfig, Network
from .plan import TrainConfig, affordable_epochs, pixel_statistics, planned
from .progress import Reporter

_PROBE_S, _PROBE_STEPS = 2.0, 20


class Run:
    """One training run, new or resumed."""

    def __init__(
        self, training: Dataset, val: Dataset | None, config: TrainConfig, model: ModelConfig | Factory | str
    ) -> None:
        self.training, self.val, self.config = training, val, config
        self.ranks, self.device = ranks(), device_named(config.device)
        shape, factory = _architecture(model)
        mean, std = pixel_statistics(training)
        classes, tags = len(training.class_names), len(training.tag_names)
        self.model = shape.fitted(classes, tags, training.size, mean, std)
        self.plan = planned(config, training, self.model.kind, self.ranks.world)
        self.order = Order(config.seed, self.plan.batch_size, self.plan.augment, self.ranks)
        torch.manual_seed(config.seed)
        body = None if factory is None else factory(self.model.channels, self.model.size)
        network = Network(self.model, body)
        self.starts_from = backbones.initial_weights(network.body, self.model.kind, config.weights)
        self.network = self._placed(network)
        self.average = self._placed(copy.deepcopy(network))
        self.optimiser = optim.optimiser(
            self.network, self.model.kind, self.plan.peak_learning_rate, self.plan.weight_decay
        )
        self.tag_weight = tag_weights(training).to(self.device)
        self.history: list[dict[str, float]] = []
        self.best: dict[str, Tensor] = {}
        self.guess_s = 0.0  # seconds an epoch will take, measured before the first if there is a time budget

    def begin(self, checkpoint: Path | None, resume: bool, report: Reporter) -> None:
        """Continue from the checkpoint, or start anew, measure the pace if needed, and write the first."""
        if checkpoint is not None and resume:
            self._restore(load_checkpoint(checkpoint))
        else:
            if self.config.minutes is not None:
                self.guess_s = self.ranks.agreed(self._probe(), self.device)
            self.save(checkpoint)
        for line in (self.starts_from, self._plan_line()):
            if line:
                report.note(line)

    @property
    def epochs(self) -> int:
        """Epochs in all, as planned now."""
        if self.config.minutes is None:
            return self.plan.epochs
        seconds = [entry["seconds"] for entry in self.history]
        return affordable_epochs(seconds, self.guess_s, self.config.minutes, self.plan.epochs)

    @property
    def finished(self) -> bool:
        """Whether every planned epoch is done, or the patience is at its end."""
        scores = [_score(entry) for entry in self.history]
        waited = len(scores) - 1 - int(np.argmax(scores)) if scores else 0
        patient = self.config.patience is None or self.val is None or waited < self.config.patience
        return len(self.history) >= self.epochs or not patient

    def span(self) -> tuple[float, float]:
        """(where the current epoch begins, how long it is), in shares of the run.

        Every epoch takes its share of what was left when it began, so a plan that changes on the way
        still ends at 1; with a fixed number of epochs this is the plain fraction.
        """
        begins = 0.0
        for at, entry in enumerate(self.history):
            begins += (1 - begins) / (entry["epochs"] - at)
        return begins, (1 - begins) / (self.epochs - len(self.history))

    @torch.no_grad()
    def follow(self, step: int) -> None:
        """Move every float of the average, batch statistics included, a little towards the network.

        Early on it follows closely, or the random start would linger in it.
        """
        at = len(self.history) * self.plan.steps + step
        decay = min(self.plan.average_decay, (1 + at) / (10 + at))
        pairs = zip(self.average.state_dict().values(), self.network.state_dict().values(), strict=True)
        floats = [(a, n) for a, n in pairs if a.is_floating_point()]
        torch._foreach_lerp_([a for a, _ in floats], [n for _, n in floats], 1.0 - decay)

    def close_epoch(self, loss: float, started: float) -> dict[str, float]:
        """Judge the average on the held-out images and write the epoch into the history."""
        entry = {"epoch": len(self.history) + 1, "epochs": self.epochs, "loss": loss}
        if self.val is not None:
            entry |= self._judged(self.val)
        entry["seconds"] = self.ranks.agreed(time.monotonic() - started, self.device)
        self.history.append(entry)
        if self.config.patience is not None and _score(entry) > max(
            map(_score, self.history[:-1]), default=-1
        ):
            self.best = {name: tensor.clone() for name, tensor in self.average.state_dict().items()}
        return entry

    def save(self, checkpoint: Path | None) -> None:
        """Write everything, if there is a place for it and this process is the one that writes."""
        if checkpoint is None or not self.ranks.leads:
            return
        tensors = {f"network.{name}": tensor for name, tensor in self.network.state_dict().items()}
        tensors |= {f"average.{name}": tensor for name, tensor in self.average.state_dict().items()}
        tensors |= {f"best.{name}": tensor for name, tensor in self.best.items()}
        for name, parameter in self.network.named_parameters():
            for key, value in self.optimiser.state.get(parameter, {}).items():
                if isinstance(value, Tensor):
                    tensors[f"optimiser.{key}.{name}"] = value
        state = {**self._identity(), "history": self.history, "guess_s": self.guess_s}
        save_checkpoint(checkpoint, Checkpoint(tensors, state))

    def trained(self) -> Network:
        """The weight average of the last epoch, or of the best with a patience; on the CPU, for inference."""
        self.average.load_state_dict(self.best or self.average.state_dict())
        return self.average.cpu().eval()

    def _restore(self, saved: Checkpoint) -> None:
        if other := _differences(saved.state, self._identity()):
            raise ModelError(
                f"the checkpoint is of another run: {'; '.join(other)}; resume with the same settings, or"
                " start again without --resume"
            )
        try:
            self.network.load_state_dict(saved.part("network"))
            self.average.load_state_dict(saved.part("average"))
        except RuntimeError as error:
            raise ModelError(f"the checkpoint is of another network ({error}); start again") from error
        self.best = saved.part("best")
        for name, parameter in self.network.named_parameters():
            values = {
                key.removeprefix("optimiser.").removesuffix(f".{name}"): _like(tensor, parameter)
                for key, tensor in saved.tensors.items()
                if key.startswith("optimiser.") and key.partition(".")[2].partition(".")[2] == name
            }
            if values:
                self.optimiser.state[parameter] = values
        self.history, self.guess_s = list(saved.state["history"]), float(saved.state["guess_s"])

    def _identity(self) -> dict[str, Any]:
        """What must be equal for a resumed run to be the same run; the device may differ."""
        config = {name: value for name, value in self.config.to_dict().items() if name != "device"}
        found = {"config": config, "model": self.model.to_dict(), "train_sha256": self.training.sha256}
        return dict(json.loads(json.dumps(found)))

    def _placed(self, network: Network) -> Network:
        """On the device, channels last: 1.1 to 1.4 times faster convolutions on CPUs, no slower elsewhere."""
        return network.to(memory_format=torch.channels_last).to(self.device)

    def _probe(self) -> float:
        """Seconds an epoch, from a few steps of a copy of the network; nothing of the run is touched."""
        network = copy.deepcopy(self.network).train()
        optimiser = optim.optimiser(network, self.model.kind, 1e-6, 0.0)
        took: list[float] = []
        started = last = time.monotonic()
        for batch in self.order.batches(self.training, 0, self.device):
            loss_of(network(batch.images), batch, 0.0, self.tag_weight).backward()  # type: ignore[no-untyped-call]
            self.ranks.average(network)
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
            took.append(-last + (last := time.monotonic()))
            if len(took) >= _PROBE_STEPS or self.ranks.agreed(last - started, self.device) > _PROBE_S:
                break
        return float(np.median(took)) * self.plan.steps

    def _plan_line(self) -> str:
        left, plan = self.epochs - len(self.history), self.plan
        if self.finished:
            return f"all {len(self.history)} epochs are done"
        pace = f", about {left * self.guess_s / 60:.1f} min" if self.guess_s else ""
        done = f", {len(self.history)} done" if self.history else ""
        mirrored = "on" if plan.augment.flip else "off (--flip if a mirrored image means the same)"
        return (
            f"{self.epochs} epochs of {plan.steps} steps of {plan.batch_size} images{done}{pace}; on"
            f" {self.device}; mirroring {mirrored}"
        )

    def _judged(self, val: Dataset) -> dict[str, float]:
        """Accuracy, and the mean F1 of the tags at one half, over known labels only."""
        counts = torch.zeros(2 + 3 * self.model.tags, dtype=torch.float64, device=self.device)
        self.average.eval()
        with torch.inference_mode():
            for batch in plain_batches(val, self.device, self.ranks):
                counts += _counts(self.average(batch.images), batch)
        right, known, *tags = self.ranks.total(counts).tolist()
        found = {"val_accuracy": right / known if known else 0.0}
        if tags:
            hits, claims, truths = np.split(np.array(tags), 3)
            found["val_tag_f1"] = float(np.mean(2 * hits / np.maximum(claims + truths, 1)))
        return found


def _counts(outputs: Any, batch: Batch) -> Tensor:
    """(2 + 3T,): right and known categories; then per tag said and true, said, true."""
    known, said, true = batch.labels >= 0, outputs.tag_logits > 0, batch.tags == 1
    said &= batch.tags >= 0
    right = (outputs.logits.argmax(1) == batch.labels) & known
    heads = torch.stack([right.sum(), known.sum()])
    return torch.cat([heads, (said & true).sum(0), said.sum(0), true.sum(0)]).double()


def _score(entry: dict[str, float]) -> float:
    """What patience waits for: held-out accuracy, plus the mean F1 of the tags if there are any."""
    return entry.get("val_accuracy", 0.0) + entry.get("val_tag_f1", 0.0)


def _differences(saved: dict[str, Any], own: dict[str, Any], name: str = "") -> list[str]:
    """What differs, by its path, among the keys of ``own``."""
    found = []
    for key, value in own.items():
        there, path = saved.get(key), f"{name}{key}"
        if isinstance(there, dict) and isinstance(value, dict):
            found += _differences(there, value, f"{path}.")
        elif there != value:
            found.append(f"{path} was {there}, is {value}")
    return found


def _like(tensor: Tensor, parameter: Tensor) -> Tensor:
    """On the parameter's device and, where it has four dimensions, in its fast layout."""
    moved = tensor.to(parameter.device) if tensor.ndim else tensor
    return moved.contiguous(memory_format=torch.channels_last) if tensor.ndim == 4 else moved


def _architecture(model: ModelConfig | Factory | str) -> tuple[ModelConfig, Factory | None]:
    """The configuration, and the factory of a custom body.

    Raises:
        ValueError: no preset or backbone of that name.
    """
    if isinstance(model, ModelConfig):
        return model, None
    if not isinstance(model, str):
        return ModelConfig(kind="custom"), model
    if model in PRESETS:
        return PRESETS[model], None
    if model in backbones.BACKBONES:
        return ModelConfig(kind=model), None
    raise ValueError(f"unknown model {model!r}; choose one of {', '.join([*PRESETS, *backbones.BACKBONES])}")
