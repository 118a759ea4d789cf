"""``couturier train``: one command from images to a bundle, its mistakes, and its second try."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from PIL import Image
from typer.testing import CliRunner, Result

from classifier import Dataset, exporting, load
from classifier.commands import register

QUICK = ("--epochs", "3", "--batch-size", "16", "--model", "4-6-8", "--device", "cpu")


@pytest.fixture
def couturier(torch: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """``couturier("train", ...)`` -> result of the command."""
    monkeypatch.delenv("COUTURIER_MODEL", raising=False)
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")
    app = typer.Typer()
    register(app)

    def invoke(*arguments: Any) -> Result:
        return CliRunner().invoke(app, [str(each) for each in arguments])

    return invoke


@pytest.fixture
def folder(tmp_path: Path, stripes: Dataset) -> Path:
    """240 PNG files in three class folders."""
    root = tmp_path / "stripes"
    for index in np.flatnonzero(stripes.labels < 3)[:180]:
        target = root / f"class {stripes.labels[index]}" / f"{index}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(stripes.images[index]).save(target)
    return root


def test_a_folder_becomes_a_bundle_in_one_command(couturier: Any, folder: Path, tmp_path: Path) -> None:
    """The data are described, the result measured on what was held out, and the next commands named."""
    out = tmp_path / "out"
    result = couturier("train", folder, "--out", out, *QUICK)
    assert result.exit_code == 0, result.output
    for expected in ("class 2", "training", "accuracy", f"couturier predict IMAGES --model {out}"):
        assert expected in result.stdout
    assert "epoch   3/3" in result.stderr
    manifest = load(out).manifest
    assert manifest.labels == ("class 0", "class 1", "class 2")
    assert manifest.raw["metrics_on"]["images"] == 18

    again = couturier("train", folder, "--out", out, *QUICK, "--resume", "--json")
    assert again.exit_code == 0, again.output
    assert "epoch" not in again.stderr.replace("epochs", "")
    found = json.loads(again.stdout)
    assert found["hash"] == manifest.hash
    assert found["epochs"] == 3


def test_ctrl_c_keeps_the_last_epoch_and_says_so(
    couturier: Any, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exit 130 with the option to go on, which refuses other settings and says which."""
    from classifier import progress

    def press(self: Any, report: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(progress.Lines, "epoch", press)
        result = couturier("train", folder, "--out", tmp_path, *QUICK)
    assert result.exit_code == 130
    assert "holds the last whole epoch, continue with --resume" in result.stderr
    assert not (tmp_path / "manifest.json").exists()
    other = couturier("train", folder, "--out", tmp_path, *QUICK, "--resume", "--batch-size", "8")
    assert other.exit_code == 78
    assert "config.batch_size was 16, is 8" in other.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("--model", "vgg"), 2, "neither of student, base"),
        (("--minutes", "3", "--epochs", "3"), 1, "no epochs beside them"),
        (("--resume",), 78, "not a training checkpoint"),
        (("--device", "warp"), 1, "--device warp: not usable here"),
    ],
)
def test_mistakes_are_explained(
    couturier: Any, folder: Path, tmp_path: Path, arguments: tuple[str, ...], code: int, said: str
) -> None:
    """One line, the agreed exit code, no bundle."""
    out = tmp_path / "out"
    result = couturier("train", folder, "--out", out, *arguments)
    assert (result.exit_code, said in result.stderr) == (code, True), result.output
    assert not (out / "manifest.json").exists()


def test_a_mistake_leaves_the_earlier_run_where_it_was(couturier: Any, folder: Path, tmp_path: Path) -> None:
    """A run that never starts takes nobody's checkpoint: --resume still finds it."""
    checkpoint = tmp_path / "out" / "training" / "checkpoint.safetensors"
    checkpoint.parent.mkdir(parents=True)
    checkpoint.write_bytes(b"hours of work")
    weights = ("--weights", tmp_path / "none.pth")
    for code, mistake in ((1, ("--minutes", "0")), (1, ("--device", "warp")), (78, weights)):
        result = couturier("train", folder, "--out", tmp_path / "out", *mistake)
        assert (result.exit_code, f"is back at {checkpoint}" in result.stderr) == (code, True)
        assert checkpoint.read_bytes() == b"hours of work"


def test_strict_refuses_what_would_be_written_without_int8(
    couturier: Any, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the shipped models are exported; both this training and an earlier one are kept."""
    training = tmp_path / "out" / "training"
    training.mkdir(parents=True)
    (training / "checkpoint.safetensors").write_bytes(b"hours of work")
    monkeypatch.setattr(exporting, "int8_problems", lambda figures, limits: ["too far"])
    refused = couturier("train", folder, "--out", tmp_path / "out", *QUICK, "--epochs", "1", "--strict")
    assert (refused.exit_code, "int8 is not good enough (onnx-int8: too far)" in refused.stderr) == (1, True)
    assert not (tmp_path / "out" / "manifest.json").exists()
    assert (training / "previous-checkpoint.safetensors").read_bytes() == b"hours of work"
    assert (training / "checkpoint.safetensors").stat().st_size > 1000


def test_options_reach_the_data_and_the_run(torch: Any) -> None:
    """Without DATA a thirtieth is held out for choices, with it a tenth; tags are split at commas."""
    from classifier.commands.options import DataChoice

    choice = DataChoice(tags=" polka dot, floral,", label="kind")
    assert choice.options(7, shipped=False).tags == ("polka dot", "floral")
    assert choice.options(7, shipped=False).val_fraction == 0.1
    assert choice.options(7, shipped=True).val_fraction == 1 / 30
    assert choice.options(7, shipped=True).seed == 7
