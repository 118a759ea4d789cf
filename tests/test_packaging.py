"""What is installed works without the checkout and without torch."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def run(*command: str | Path, cwd: Path, **env: str) -> str:
    """Run a command that must succeed; return what it printed."""
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, f"{command}:\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def uv() -> str:
    found = shutil.which("uv")
    if found is None:
        message = "uv builds the wheel; install it with `pip install uv`"
        if os.environ.get("REQUIRE_SERVICES"):
            pytest.fail(message)
        pytest.skip(message)
    return found


@pytest.fixture(scope="module")
def wheel(uv: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dist")
    run(uv, "build", "--wheel", "--out-dir", out, ROOT, cwd=out)
    return next(out.glob("*.whl"))


def test_the_wheel_ships_types_model_images_and_licences(wheel: Path) -> None:
    """Everything that runs, nothing that does not."""
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    for package in ("broker", "classifier", "client", "worker"):
        assert f"{package}/py.typed" in names
    assert "couturier.py" in names
    assert any(name.endswith("model.onnx") for name in names)
    assert any(name.endswith("t10k-images-idx3-ubyte.gz") for name in names)
    assert not any(name.startswith(("tests/", "docs/")) for name in names)


def test_the_wheel_runs_the_demo_outside_the_checkout_without_torch(
    uv: str, wheel: Path, tmp_path: Path
) -> None:
    """The base install is enough for the main job."""
    run(uv, "venv", "--python", sys.executable, tmp_path / "venv", cwd=tmp_path)
    python = tmp_path / "venv" / "bin" / "python"
    run(uv, "pip", "install", "--python", python, wheel, cwd=tmp_path)
    listing = run(uv, "pip", "list", "--python", python, "--format", "json", cwd=tmp_path)
    installed = {each["name"] for each in json.loads(listing)}
    assert not installed & {"torch", "torchvision", "onnx", "matplotlib"}
    home = str(tmp_path / "home")
    command = tmp_path / "venv" / "bin" / "couturier"
    printed = run(command, "demo", "--images", "300", "--json", cwd=tmp_path, COUTURIER_HOME=home)
    report = json.loads(printed)
    assert report["lost"] == 0
    assert report["stored"] + report["dead_lettered"] == report["published"] == 300
    evaluated = run(command, "evaluate", "--json", "--limit", "500", cwd=tmp_path, COUTURIER_HOME=home)
    assert json.loads(evaluated)["images"] == 500
