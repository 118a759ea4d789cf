"""Commands, run as a user types them: ``env`` and ``run`` are fixtures for those who import them."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

import couturier


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    """Nothing configured but the state directory."""
    ours = ("BROKER_", "SINK_", "COUTURIER_", "KAFKA_", "PUBSUB_", "GOOGLE_")
    clean = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    return {**clean, "COUTURIER_HOME": str(tmp_path / "home")}


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    returncode: int
    stdout: str
    stderr: str


Run = Callable[..., Done]


@pytest.fixture
def run(env: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command in this process, which saves a second of imports each time."""

    def run(*arguments: str, **more: str) -> Done:
        with monkeypatch.context() as patch:
            patch.setattr(sys, "argv", ["couturier", *arguments])
            patch.setattr(os, "environ", {**env, **more})
            with pytest.raises(SystemExit) as end:
                couturier.main()
        return Done(int(end.value.code or 0), *capsys.readouterr())

    return run
