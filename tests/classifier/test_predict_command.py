"""``couturier predict`` with tables: one row for every input row, whatever happens to the images."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as arrow
import pyarrow.parquet as parquet
import pytest
import typer
from PIL import Image
from typer.testing import CliRunner, Result

from classifier import Classifier, Preprocessing
from classifier.commands import register
from classifier.data import LABELS, dataset

KEYS = ["u3", "u1", "gone", "u1", "broken", "u0"]
Couturier = Callable[..., Result]


@pytest.fixture
def couturier(monkeypatch: pytest.MonkeyPatch) -> Couturier:
    """``couturier("predict", ...)`` -> result of the command."""
    monkeypatch.delenv("COUTURIER_MODEL", raising=False)
    app = typer.Typer()
    register(app)
    return lambda *arguments: CliRunner().invoke(app, [str(each) for each in arguments])


@pytest.fixture
def shop(tmp_path: Path, pngs: list[bytes]) -> Path:
    """``data.zip`` with images in folders, and ``test.parquet`` that names them by their stems alone."""
    with zipfile.ZipFile(tmp_path / "data.zip", "w") as archive:
        for at in range(5):
            archive.writestr(f"deep/part{at % 2}/u{at}.png", pngs[at])
        archive.writestr("broken.jpg", b"\xff\xd8\xff not a photo")
        archive.writestr("readme.txt", "hello")
    parquet.write_table(arrow.table({"uuid": KEYS}), tmp_path / "test.parquet")
    return tmp_path


@pytest.fixture
def expected(classifier: Classifier, pngs: list[bytes]) -> list[Any]:
    """What the library says about the images of the six rows; None where there is none."""
    answers: list[Any] = classifier.predict(pngs[:5])
    return [answers[3], answers[1], None, answers[1], None, answers[0]]


@pytest.fixture(scope="module")
def tagged(torch: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(bundle, folder of images) of a tiny colour model: three places of a bar, two tags as bright edges."""
    from classifier import ExportConfig, ModelConfig, TrainConfig, export, train

    rng = np.random.default_rng(5)
    labels, tags = np.arange(240) % 3, rng.integers(0, 2, (240, 2), np.int8)
    images = rng.integers(0, 60, (240, 3, 24, 24), np.uint8)
    for image, label, (red, blue) in zip(images, labels, tags, strict=True):
        image[1, 4 + 6 * label : 8 + 6 * label] = 240
        image[0, :, :4] = 240 * int(red)
        image[2, :, -4:] = 240 * int(blue)
    root = tmp_path_factory.mktemp("tagged")
    garments = dataset(images, labels, ("top", "middle", "low"), tags, ("red edge", "blue edge"))
    config = TrainConfig(epochs=12, batch_size=32, val_fraction=0.2, average_decay=0.8)
    spec = Preprocessing(size=24, channels=3)
    run = train(garments, config, ModelConfig(widths=(8, 16, 16), stem=8))
    export(run, garments, root / "model", ExportConfig(preprocessing=spec))
    (root / "images").mkdir()
    for at in range(12):
        picture = Image.fromarray(images[at].transpose(1, 2, 0))
        picture.resize((72, 72)).save(root / "images" / f"g{at}.png")
    return root / "model", root / "images"


def table(path: Path) -> dict[str, list[Any]]:
    """A parquet file as columns."""
    return dict(parquet.read_table(path).to_pydict())


@pytest.mark.parametrize("images", ["zip", "folder"])
def test_a_table_beside_its_images(
    couturier: Couturier, shop: Path, expected: list[Any], images: str
) -> None:
    """Input order, duplicate keys, a missing and a broken image: a row each, the last two empty and named."""
    place = shop / "data.zip"
    if images == "folder":
        with zipfile.ZipFile(place) as archive:
            archive.extractall(shop / "images")
        place = shop / "images"
    out = shop / "predictions.parquet"
    result = couturier("predict", shop / "test.parquet", "--images", place, "--out", out)
    assert result.exit_code == 0, result.output
    assert table(out) == {
        "uuid": KEYS,
        "category1": [answer and answer.label for answer in expected],
        "category2": [answer and answer.runner_up for answer in expected],
    }
    assert "gone: no image 'gone'" in result.stderr
    assert "broken: refused" in result.stderr
    assert "warning: 2 of 6 rows have no prediction" in result.stderr
    assert "4 of 6 rows classified" in result.stdout


def test_details_are_further_columns(couturier: Couturier, shop: Path, expected: list[Any]) -> None:
    """Confidence, group, abstention and why a row is empty."""
    out = shop / "predictions.parquet"
    couturier("predict", shop / "test.parquet", "--images", shop / "data.zip", "--out", out, "--details")
    found = table(out)
    for column, field in {
        "confidence": "confidence",
        "runner_up_confidence": "runner_up_confidence",
        "group": "group_label",
        "outlier": "outlier",
        "abstained": "abstained",
        "why": "why",
    }.items():
        assert found[column] == [answer and getattr(answer, field) for answer in expected], column
    assert found["answer_set"] == [answer and "|".join(answer.answer_set) for answer in expected]
    assert [error is None for error in found["error"]] == [True, True, False, True, False, True]
    assert "no image 'gone'" in found["error"][2]


def test_tags_are_columns_of_their_own(
    couturier: Couturier, tagged: tuple[Path, Path], tmp_path: Path
) -> None:
    """The tags follow the categories as 1 and 0, null where there is no image; with --details as shares."""
    model, images = tagged
    (tmp_path / "test.csv").write_text("uuid\n" + "".join(f"g{at}\n" for at in range(12)) + "gone\n")
    out = tmp_path / "predictions.parquet"
    arguments = ["predict", tmp_path / "test.csv", "--images", images, "--model", model, "--out", out]
    result = couturier(*arguments)
    assert result.exit_code == 0, result.output
    found, schema = table(out), parquet.read_schema(out)
    assert list(found) == ["uuid", "category1", "category2", "red edge", "blue edge"]
    assert arrow.types.is_integer(schema.field("red edge").type)
    pictures = [(images / f"g{at}.png").read_bytes() for at in range(12)]
    answers: list[Any] = Classifier.load(model).predict(pictures)
    for tag in ("red edge", "blue edge"):
        assert found[tag] == [*(int(tag in answer.tags) for answer in answers), None]
        assert {0, 1} <= set(found[tag])
    couturier(*arguments, "--details")
    shares = table(out)["blue edge probability"]
    assert shares == [*(answer.tag_probabilities[1] for answer in answers), None]
    printed = couturier("predict", images / "g0.png", "--model", model).stdout
    assert all(tag in printed for tag in answers[0].tags)


def test_a_colour_bundle_with_tags_proves_itself(tagged: tuple[Path, Path]) -> None:
    """Its golden images hold colour pixels and tag probabilities, and this machine gives the same."""
    classifier = Classifier.load(tagged[0])
    classifier.self_test()
    vectors = json.loads((tagged[0] / "golden.json").read_text())["vectors"]
    assert {len(vector["answers"]["fp32"]["tag_probabilities"]) for vector in vectors} == {2}
    assert classifier.decode([(tagged[1] / "g0.png").read_bytes()]).tensor.shape == (1, 3, 24, 24)


def test_the_suffix_decides_the_format(couturier: Couturier, shop: Path, expected: list[Any]) -> None:
    """CSV with empty cells, JSON lines with null."""
    for suffix in ("csv", "jsonl"):
        out = shop / f"predictions.{suffix}"
        done = couturier("predict", shop / "test.parquet", "--images", shop / "data.zip", "--out", out)
        assert done.exit_code == 0
    with (shop / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["uuid"] for row in rows] == KEYS
    assert [row["category1"] for row in rows] == [answer.label if answer else "" for answer in expected]
    lines = [json.loads(line) for line in (shop / "predictions.jsonl").read_text().splitlines()]
    assert [line["category2"] for line in lines] == [answer and answer.runner_up for answer in expected]


def test_image_bytes_in_a_table_keep_the_keys_type(
    couturier: Couturier, tmp_path: Path, pngs: list[bytes]
) -> None:
    """A whole-number key stays a number, a row without bytes is empty."""
    columns = {"id": [30, 10, 20], "image": [pngs[0], None, pngs[1]]}
    parquet.write_table(arrow.table(columns), tmp_path / "t.parquet")
    out = tmp_path / "out.parquet"
    result = couturier("predict", tmp_path / "t.parquet", "--out", out)
    assert result.exit_code == 0, result.output
    assert table(out)["id"] == [30, 10, 20]
    assert [label is None for label in table(out)["category1"]] == [False, True, False]


def test_folders_and_zips_become_a_table_of_paths(
    couturier: Couturier, shop: Path, pngs: list[bytes]
) -> None:
    """Without a table the key is the path; several sources follow one another."""
    (shop / "alone").write_bytes(pngs[7])
    out = shop / "out.csv"
    result = couturier("predict", shop / "data.zip", shop / "alone", "--out", out, "--json")
    about = json.loads(result.stdout)
    assert (about["rows"], about["classified"], about["out"]) == (7, 6, str(out))
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["path", "category1", "category2"]
    assert rows[0] == {"path": f"{shop / 'data.zip'}/broken.jpg", "category1": "", "category2": ""}
    assert rows[-1]["path"] == str(shop / "alone")
    assert {row["category1"] for row in rows[1:]} <= set(LABELS)


def test_a_table_can_be_printed(couturier: Couturier, shop: Path, expected: list[Any]) -> None:
    """Without --out a line or a JSON object a row."""
    result = couturier("predict", shop / "test.parquet", "--images", shop / "data.zip")
    assert [line.split(":")[0] for line in result.stdout.splitlines()] == ["u3", "u1", "u1", "u0"]
    result = couturier("predict", shop / "test.parquet", "--images", shop / "data.zip", "--json")
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert [row["key"] for row in rows] == KEYS
    assert [row["valid"] for row in rows] == [answer is not None for answer in expected]
    assert rows[2]["reason"] == "missing"


def test_nothing_but_bad_images_is_a_failure(couturier: Couturier, tmp_path: Path) -> None:
    """Exit 1, and no table that looks like a result."""
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / "a.png").write_bytes(b"garbage")
    out = tmp_path / "out.parquet"
    result = couturier("predict", folder, "--out", out)
    assert result.exit_code == 1
    assert "no image could be classified" in result.stderr
    assert not out.exists()


def test_an_empty_table_and_an_empty_folder_are_failures(couturier: Couturier, shop: Path) -> None:
    """Exit 1 with the reason."""
    schema = arrow.schema([("uuid", arrow.string())])
    parquet.write_table(schema.empty_table(), shop / "empty.parquet")
    out = shop / "out.parquet"
    result = couturier("predict", shop / "empty.parquet", "--images", shop / "data.zip", "--out", out)
    assert (result.exit_code, "no rows" in result.stderr) == (1, True)
    (shop / "nothing").mkdir()
    result = couturier("predict", shop / "nothing", "--out", out)
    assert (result.exit_code, "no PNG or JPEG file there" in result.stderr) == (1, True)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["data.zip", "--out", "out.xlsx"], "out.xlsx"),
        (["data.zip", "--out", "nowhere/out.csv"], "no such folder"),
        (["data.zip", "--out", "folder.csv"], "is a folder"),
        (["test.parquet", "--images", "data.zip", "--out", "test.parquet"], "overwrite its own input"),
        (["test.parquet", "data.zip"], "stands alone"),
        (["data.zip", "--images", "data.zip"], "belong to a table"),
        (["data.zip", "--details"], "--out"),
        (["missing.csv"], "no such file"),
    ],
)
def test_wrong_use_is_told_before_any_work(
    couturier: Couturier, shop: Path, arguments: list[str], words: str
) -> None:
    """Exit 2 with what to change; nothing is written."""
    (shop / "folder.csv").mkdir()
    before = {path: path.stat().st_mtime_ns for path in shop.rglob("*")}
    result = couturier("predict", *(arg if arg.startswith("--") else shop / arg for arg in arguments))
    assert (result.exit_code, words in result.stderr) == (2, True), result.output
    assert {path: path.stat().st_mtime_ns for path in shop.rglob("*")} == before


def test_a_column_that_no_row_names_an_image_with(couturier: Couturier, shop: Path) -> None:
    """Exit 1: the columns are named, and the option to choose with."""
    parquet.write_table(arrow.table({"name": ["x", "y"]}), shop / "other.parquet")
    result = couturier("predict", shop / "other.parquet", "--images", shop / "data.zip")
    assert result.exit_code == 1
    assert "--key" in result.stderr


def test_a_key_called_like_an_answer_is_refused(couturier: Couturier, shop: Path) -> None:
    """No column is overwritten in silence."""
    parquet.write_table(arrow.table({"category1": KEYS}), shop / "test.parquet")
    out = shop / "out.parquet"
    result = couturier("predict", shop / "test.parquet", "--images", shop / "data.zip", "--out", out)
    assert result.exit_code == 1
    assert "'category1'" in result.stderr


def test_one_pass_of_the_network_holds_few_images(classifier: Classifier, pngs: list[bytes]) -> None:
    """Batches are bounded by count and by bytes, and every row is answered in order."""
    from classifier.answers import BATCH_BYTES, BATCH_IMAGES, classify

    read = 0

    def rows() -> Any:
        nonlocal read
        for at in range(3 * BATCH_IMAGES + 5):
            read += 1
            yield at, pngs[at % 100]

    answers = classify(classifier, rows())
    assert next(answers)[0] == 0
    assert read == BATCH_IMAGES
    assert [key for key, _ in answers] == list(range(1, 3 * BATCH_IMAGES + 5))
    read = 0
    padded = ((at, pngs[0] + bytes(BATCH_BYTES // 2)) for at in range(5))
    assert len(list(classify(classifier, padded))) == 5


def opened_for_writing(path: Path, reader: subprocess.Popen[bytes]) -> int:
    """A descriptor of a named pipe, as soon as ``reader`` has it open; fails if that ends before."""
    while reader.poll() is None:
        try:
            return os.open(path, os.O_WRONLY | os.O_NONBLOCK)
        except OSError:  # nobody reads it yet
            time.sleep(0.01)
    pytest.fail(f"the command ended before it read {path}")


@pytest.mark.parametrize("blow", [signal.SIGKILL, signal.SIGINT])
def test_a_run_that_is_stopped_leaves_the_old_table(shop: Path, pngs: list[bytes], blow: int) -> None:
    """Killed in the middle of its rows: no half table, and what was there stays."""
    os.mkfifo(shop / "slow.png")
    (shop / "good.png").write_bytes(pngs[0])
    (shop / "rows.csv").write_text("path\n" + "good.png\n" * 130 + "slow.png\n" + "good.png\n" * 10)
    out = shop / "out.csv"
    out.write_text("old")
    command = [sys.executable, "-m", "classifier", "predict", str(shop / "rows.csv"), "--out", str(out)]
    before = sorted(shop.iterdir())
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        pipe = opened_for_writing(shop / "slow.png", process)
        process.send_signal(blow)
        process.wait(30)
        os.close(pipe)
    assert process.returncode == (-signal.SIGKILL if blow == signal.SIGKILL else 130)
    assert out.read_text() == "old"
    assert sorted(shop.iterdir()) == before


def test_predicting_a_csv_imports_neither_torch_nor_pyarrow(shop: Path, pngs: list[bytes]) -> None:
    """A worker's environment is enough for CSV and JSON lines."""
    (shop / "good.png").write_bytes(pngs[0])
    (shop / "rows.csv").write_text("path\ngood.png\n")
    arguments = ["predict", str(shop / "rows.csv"), "--out", str(shop / "out.csv")]
    code = (
        "import sys; from typer.testing import CliRunner; from classifier.__main__ import app\n"
        f"done = CliRunner().invoke(app, {arguments!r})\n"
        "print(done.exit_code, {'torch', 'pyarrow', 'matplotlib', 'onnx'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "0 set()", done.stderr
