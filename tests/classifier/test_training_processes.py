"""Training that is killed, and training by several processes."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
# Trains on 90 images for three epochs; killed at a step if asked; prints where it stands.
SCRIPT = """
import hashlib, json, os, signal, sys
from pathlib import Path
import numpy as np
import torch
torch.set_num_threads(1)
from classifier import ModelConfig, TrainConfig, dataset, train
from classifier.distributed import process_group

checkpoint, stop_at, resume = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "resume"

class Report:
    def note(self, line): pass
    def step(self, done, total):
        if done == stop_at:
            os.kill(os.getpid(), signal.SIGKILL)
    def epoch(self, report): pass

rng = np.random.default_rng(1)
labels = np.arange(90) % 3
images = rng.integers(0, 80, (90, 20, 20), dtype=np.uint8) + (80 * labels[:, None, None]).astype(np.uint8)
tags = (labels[:, None] == 1).astype(np.int8)
data = dataset(images, labels.astype(np.int64), ("a", "b", "c"), tags, ("one",))
config = TrainConfig(epochs=3, batch_size=12, val_fraction=0.2, seed=3, device="cpu")
with process_group("cpu") as ranks:
    result = train(data, config, ModelConfig(widths=(4, 6, 8), stem=3), checkpoint, resume, Report())
    digest = hashlib.sha256(b"".join(v.numpy().tobytes() for v in result.network.state_dict().values()))
    accuracy = [entry["val_accuracy"] for entry in result.history]
    Path(f"{checkpoint}.{ranks.rank}.json").write_text(json.dumps([digest.hexdigest(), accuracy]))
"""


@pytest.fixture(autouse=True)
def _needs_torch(torch: Any) -> None:
    """Every test here trains."""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    """The script as a file."""
    path = tmp_path / "script.py"
    path.write_text(SCRIPT)
    return path


def here(script: Path, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    """Run the script in this process, which saves an import of torch."""
    monkeypatch.setattr(sys, "argv", [str(script), *arguments])
    runpy.run_path(str(script))


def elsewhere(script: Path, *arguments: str, processes: int = 1) -> int:
    """Exit status of the script in a process of its own, or in several under torchrun."""
    torchrun = ["-m", "torch.distributed.run", f"--nproc-per-node={processes}", "--standalone"]
    command = [sys.executable, *(torchrun if processes > 1 else ()), str(script), *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        command, env=environment, timeout=600.0, check=False, capture_output=True
    ).returncode


def outcome(checkpoint: Path, rank: int = 0) -> Any:
    """What the script found: a digest of the weights, and the accuracies."""
    return json.loads(Path(f"{checkpoint}.{rank}.json").read_text())


def test_a_killed_run_resumes_to_the_bit(
    script: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGKILL in the middle of the second epoch, then resume: the weights of the run that was left alone."""
    straight, killed = tmp_path / "straight.safetensors", tmp_path / "killed.safetensors"
    here(script, monkeypatch, str(straight), "0", "new")
    assert elsewhere(script, str(killed), "9", "new") == -9
    assert not Path(f"{killed}.0.json").exists()
    here(script, monkeypatch, str(killed), "0", "resume")
    assert outcome(killed) == outcome(straight)


def test_two_processes_end_with_equal_weights_and_one_writes(
    script: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under torchrun: the same network in both, judged over all held-out images; one process goes on."""
    together = tmp_path / "together.safetensors"
    assert elsewhere(script, str(together), "0", "new", processes=2) == 0
    assert outcome(together, 0) == outcome(together, 1)
    assert outcome(together)[1][-1] > 0.5
    left = {path.name for path in tmp_path.iterdir()} - {"script.py"}
    assert left == {together.name, f"{together.name}.0.json", f"{together.name}.1.json"}
    before = outcome(together)
    here(script, monkeypatch, str(together), "0", "resume")
    assert outcome(together) == before
