"""The commands: output, exit codes, and what a newcomer's mistakes lead to."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from typer.testing import CliRunner, Result

from classifier import DataError, Dataset, iter_images
from classifier.cli import register
from classifier.evaluation import text_report
from classifier.metrics import measure


@pytest.fixture
def couturier(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """``couturier("predict", ...)`` -> result of the command, run in an empty directory of its own."""
    monkeypatch.delenv("COUTURIER_MODEL", raising=False)
    monkeypatch.chdir(tmp_path)
    app = typer.Typer()
    register(app)

    def invoke(*arguments: str) -> Result:
        return CliRunner().invoke(app, list(arguments))

    return invoke


@pytest.fixture
def album(tmp_path: Path, pngs: list[bytes]) -> Path:
    """A folder with two images, a bad one, a text file and a zip."""
    folder = tmp_path / "album"
    (folder / "deep").mkdir(parents=True)
    (folder / "a.png").write_bytes(pngs[0])
    (folder / "deep" / "b.PNG").write_bytes(pngs[1])
    (folder / "c.jpg").write_bytes(b"not a jpeg")
    (folder / "notes.txt").write_text("hello")
    with zipfile.ZipFile(folder / "more.zip", "w") as archive:
        archive.writestr("x/d.png", pngs[2])
        archive.writestr("readme.md", "hi")
    return folder


def test_predict_prints_a_line_for_every_image(couturier: Any, album: Path) -> None:
    """Folders and zips are opened, other files in them passed over, bad images reported."""
    result = couturier("predict", str(album), str(album / "more.zip"))
    assert result.exit_code == 0
    assert [line.split(":")[0] for line in result.stdout.splitlines()] == [
        str(album / "a.png"),
        str(album / "deep" / "b.PNG"),
        str(album / "more.zip" / "x" / "d.png"),
    ]
    assert "Ankle boot" in result.stdout
    assert f"{album / 'c.jpg'}: refused, not-an-image" in result.stderr


def test_predict_prints_json_lines(couturier: Any, album: Path) -> None:
    """One object an image on stdout, bad ones among them."""
    result = couturier("predict", "--json", str(album))
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert [row["valid"] for row in rows] == [True, False, True]
    assert rows[0]["label"] == "Ankle boot"
    assert rows[1]["reason"] == "not-an-image"


def test_predict_says_what_it_passes_over(couturier: Any, album: Path, tmp_path: Path) -> None:
    """What a folder holds beside its images is counted by suffix, on stderr; an empty folder says so."""
    for name in ("a.gif", "b.GIF", "notes"):
        (album / name).write_bytes(b"x")
    result = couturier("predict", str(album))
    assert "passed over, neither PNG nor JPEG by name: 2 .gif, 1 .txt, 1 .zip, 1 no suffix" in result.stderr
    (tmp_path / "empty").mkdir()
    empty = couturier("predict", str(tmp_path / "empty"))
    assert (empty.exit_code, empty.stderr) == (1, "error: no PNG or JPEG file there, by its name\n")


def test_predict_fails_when_nothing_could_be_classified(couturier: Any, album: Path) -> None:
    """Exit 1, with what is accepted."""
    result = couturier("predict", str(album / "c.jpg"))
    assert result.exit_code == 1
    assert "no image could be classified" in result.stderr


def test_a_missing_path_is_wrong_use(couturier: Any, tmp_path: Path) -> None:
    """Exit 2, before the model is loaded."""
    result = couturier("predict", str(tmp_path / "nowhere.png"))
    assert result.exit_code == 2
    assert "no such file" in result.stderr


def test_a_missing_model_is_wrong_configuration(couturier: Any, album: Path, tmp_path: Path) -> None:
    """Exit 78, named with the option to use."""
    result = couturier("predict", "--model", str(tmp_path / "nowhere"), str(album))
    assert result.exit_code == 78
    assert "no such model directory" in result.stderr


def test_a_tampered_model_is_wrong_configuration(couturier: Any, bundle_copy: Path) -> None:
    """Exit 78 with both hashes, no traceback."""
    path = bundle_copy / "model.onnx"
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    result = couturier("evaluate", "--model", str(bundle_copy))
    assert result.exit_code == 78
    assert "model.onnx: sha256" in result.stderr
    assert "Traceback" not in result.output


def test_an_unknown_engine_is_wrong_use(couturier: Any) -> None:
    """Exit 2 with the choice."""
    result = couturier("evaluate", "--engine", "tpu")
    assert result.exit_code == 2
    assert "onnx, onnx-int8, openvino" in result.stderr


def test_evaluate_prints_a_table(couturier: Any) -> None:
    """Headline, every class, every group, the confusion matrix."""
    result = couturier("evaluate", "--limit", "500", "--no-timing")
    assert result.exit_code == 0
    for expected in ("accuracy", "95 % interval", "Ankle boot", "Footwear", "confusion", "500 images"):
        assert expected in result.stdout


def test_a_model_without_groups_has_one_table() -> None:
    """Every class is its own group then: a second table of the same rows would say nothing."""
    labels, names = np.arange(2), ["cat", "dog"]
    for groups, tables in (({"cat": ["cat"], "dog": ["dog"]}, 1), ({"pet": names}, 2)):
        shown = text_report(measure(labels, np.eye(2, dtype=np.float32), names, groups), "title")
        assert ("group accuracy" in shown, "\npet " in shown) == (tables == 2, tables == 2)
        assert shown.count("\ncat ") == 2  # in the table of classes and in the confusion matrix


def test_evaluate_prints_json(couturier: Any) -> None:
    """One object with the model's identity and every number."""
    options = ("--limit", "300", "--no-timing", "--engine", "onnx-int8", "--json")
    report = json.loads(couturier("evaluate", *options).stdout)
    assert report["images"] == 300
    assert report["engine"] == "onnx-int8"
    assert sum(map(sum, report["confusion"])) == 300
    assert len(report["model_hash"]) == 64


def test_evaluate_without_images_says_what_it_takes(couturier: Any, tmp_path: Path) -> None:
    """Exit 1: the place, and what it should hold."""
    result = couturier("evaluate", str(tmp_path))
    assert result.exit_code == 1
    assert f"error: {tmp_path}: " in result.stderr


def test_train_refuses_nonsense_before_it_starts(couturier: Any, torch: Any, tmp_path: Path) -> None:
    """An unknown architecture is wrong use, missing data a failure; neither leaves a bundle."""
    out = tmp_path / "out"
    assert couturier("train", str(tmp_path), "--out", str(out)).exit_code == 1
    assert couturier("train", "--model", "resnet", "--out", str(out)).exit_code == 2
    assert not out.exists()


def test_every_command_has_help(couturier: Any) -> None:
    """Options are explained."""
    for command in ("train", "evaluate", "predict"):
        assert couturier(command, "--help").exit_code == 0


def test_iter_images_names_what_it_cannot_read(tmp_path: Path) -> None:
    """A missing path and a damaged zip are told apart from bad images."""
    bad = tmp_path / "bad.zip"
    bad.write_bytes(b"PK\3\4 nonsense")
    with pytest.raises(DataError, match=r"bad\.zip: cannot be read"):
        list(iter_images([bad]))
    with pytest.raises(DataError, match="no such file"):
        list(iter_images([tmp_path / "nowhere"]))


def test_a_zip_bomb_is_read_up_to_the_cap(tmp_path: Path) -> None:
    """A member that unpacks to 100 MB costs 16 MiB and is refused as too large."""
    from classifier.images import Preprocessing, preprocess

    path = tmp_path / "bomb.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.png", bytes(100_000_000))
    ((_, data),) = iter_images([path])
    assert len(data) == 16 * 1024 * 1024 + 1
    result = preprocess(data, Preprocessing())
    assert not isinstance(result, bytes)
    assert result.reason == "too-large"


def test_the_validation_images_survive_a_folder(couturier: Any, validation: Dataset, album: Path) -> None:
    """Labels printed for files equal those of the arrays."""
    from classifier import Classifier

    expected = Classifier.load().predict_tensor(validation.images[:2, None].copy()).argmax(1)
    result = couturier("predict", "--json", str(album / "a.png"), str(album / "deep" / "b.PNG"))
    assert [json.loads(line)["label_index"] for line in result.stdout.splitlines()] == expected.tolist()
