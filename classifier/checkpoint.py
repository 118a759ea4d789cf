"""Training checkpoints: one safetensors file with every tensor and, in its header, the JSON state.

One file, written beside its target and renamed, so a crash leaves the previous
checkpoint whole. Nothing here is pickled, so a checkpoint from a stranger can
at worst be refused.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from .errors import ModelError

_KEY = "couturier.training"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Tensors by name (``network.``, ``average.``, ``momentum.`` prefixes) and JSON state."""

    tensors: dict[str, Tensor]
    state: dict[str, Any]

    def part(self, prefix: str) -> dict[str, Tensor]:
        """The tensors below ``prefix.``, without it."""
        start = prefix + "."
        return {name[len(start) :]: tensor for name, tensor in self.tensors.items() if name.startswith(start)}


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write atomically: the file is either the old one or the complete new one."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in checkpoint.tensors.items()}
    write_atomic(path, save(tensors, metadata={_KEY: json.dumps(checkpoint.state)}))


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint.

    Raises:
        ModelError: missing, damaged, or not a checkpoint of this library.
    """
    try:
        with safe_open(path, framework="pt") as file:
            state = json.loads((file.metadata() or {})[_KEY])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise ModelError(
            f"{path}: not a training checkpoint ({error}); start again without --resume"
        ) from error
    return Checkpoint(tensors, state)


def write_atomic(path: Path, content: bytes) -> None:
    """Write to a neighbour, flush to disk, rename over ``path``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
