"""A finished network from a training checkpoint, for instance to export it again."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

from .augment import AugmentConfig
from .checkpoint import load_checkpoint
from .data import Dataset, stratified_split
from .errors import ModelError
from .model import Factory, ModelConfig, Network, current_names
from .provenance import check_data
from .training import TrainConfig, TrainResult


def trained(
    checkpoint: Path, dataset: Dataset, val: Dataset | None = None, model: Factory | None = None
) -> TrainResult:
    """What ``train`` returned, or would return if it stopped now, from a checkpoint of it.

    Args:
        checkpoint: the file that ``train`` wrote.
        dataset, val: what ``train`` was given.
        model: the factory, if ``train`` was given one.

    Raises:
        ModelError: no checkpoint, or of another network.
        ValueError: it was trained on other data.
    """
    saved = load_checkpoint(checkpoint)
    state, config, training = saved.state, _config(saved.state["config"]), dataset
    if val is None and config.val_fraction:
        kept, held_out = stratified_split(dataset.labels, config.val_fraction, config.seed)
        training, val = dataset.take(kept), dataset.take(held_out)
    check_data(training, state["train_sha256"])
    shape = ModelConfig.from_dict(state["model"])
    network = Network(shape, None if model is None else model(shape.channels, shape.size))
    try:
        network.load_state_dict(current_names(saved.part("best") or saved.part("average")))
    except RuntimeError as error:
        raise ModelError(f"{checkpoint}: is of another network ({error})") from error
    history = list(state["history"])
    wall_s = sum(entry["seconds"] for entry in history)
    return TrainResult(network.eval(), config, history, training.sha256, val, wall_s)


def _config(settings: dict[str, Any]) -> TrainConfig:
    """The settings as far as this release knows them."""
    known = {each.name: settings[each.name] for each in fields(TrainConfig) if each.name in settings}
    augment = known.get("augment")
    return TrainConfig(**{**known, "augment": None if augment is None else AugmentConfig(**augment)})
