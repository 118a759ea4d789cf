"""What a manifest says about a model before it is measured: what it is, and where it comes from."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .bundle import FORMAT_VERSION
from .calibration import Calibration, tag_entries
from .data import GROUPS, Dataset
from .images import Preprocessing
from .installed import package_versions
from .model import parameter_count
from .training import TrainResult

if TYPE_CHECKING:
    from .exporting import ExportConfig


def describe(
    result: TrainResult, training: Dataset, fitted: Calibration, config: ExportConfig, name: str
) -> dict[str, Any]:
    """The manifest before anything was measured.

    Args:
        result: the trained network and how it came about.
        training: what it was trained on.
        fitted: what turns its outputs into answers.
        config: how it is exported.
        name: of the model.
    """
    shape = result.network.config
    spec = config.preprocessing or Preprocessing(size=shape.size, channels=shape.channels)
    names, val = training.class_names, result.val
    return {
        "format_version": FORMAT_VERSION,
        "name": name,
        "version": config.version,
        "labels": list(names),
        "groups": {group: list(members) for group, members in _groups(config.groups, names).items()},
        "tags": tag_entries(training.tag_names, fitted),
        "preprocessing": spec.to_dict(),
        "temperature": fitted.temperature,
        "abstention": None if fitted.abstention is None else fitted.abstention.to_dict(),
        "conformal": fitted.conformal or {},
        "architecture": shape.to_dict(),
        "parameter_count": parameter_count(result.network),
        "metrics": {},
        "tag_metrics": [],
        "unavailable": {},
        "data": {
            **(config.facts or {}),
            "training_sha256": result.train_sha256,
            "images": len(training),
        },
        "calibrated_on": None if val is None else {"images": len(val), "sha256": val.sha256},
        "provenance": {
            "train": result.config.to_dict(),
            "history": result.history,
            "wall_s": round(result.wall_s, 1),
            "exported_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "packages": package_versions("numpy", "onnx", "onnxruntime", "onnxscript", "pillow", "torch"),
            "python": platform.python_version(),
            "machine": platform.machine(),
            "git": _git_state(),
        },
    }


def check_data(training: Dataset, sha256: str) -> None:
    """Raises ValueError unless ``sha256`` is that of the data set."""
    if training.sha256 != sha256:
        raise ValueError(
            f"the network was trained on images with sha256 {sha256}, these have {training.sha256};"
            " give the data set and the split that it was trained on"
        )


def _groups(
    wanted: Mapping[str, tuple[str, ...]] | None, names: tuple[str, ...]
) -> Mapping[str, tuple[str, ...]]:
    if wanted:
        return wanted
    known = {name for members in GROUPS.values() for name in members} == set(names)
    return GROUPS if known else {name: (name,) for name in names}


def _git_state() -> str | None:
    """The commit this code stands on, with "-dirty" if it was changed; None outside a checkout."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        done = subprocess.run(  # noqa: S603 - fixed command
            command, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10.0, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
