"""The written report: what stands in metrics.json and on the page, and which rows are judged."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from classifier import Classifier, DataError, Dataset, Manifest, Report, StudyOptions, evaluate, write_report
from classifier.bundle import Tag
from classifier.data import DataOptions, dataset, prepare
from classifier.report.answers import ask, fitted
from classifier.report.page import render, thumbnail
from classifier.report.source import find_rows
from classifier.report.study import plain
from classifier.report.words import caution, summary
from tests.classifier.digit_sets import digits, write_csv, write_folder

BRIEF = StudyOptions(timing=False, probes=False)


class Page(HTMLParser):
    """Tags, ids, links and texts of a page; refuses crossed tags."""

    void = frozenset(("meta", "img", "br", "path", "use", "link", "input"))

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.sources: list[str] = []
        self.words = ""
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.sources += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href")]
        self.ids += [value or "" for name, value in attrs if name == "id"]
        if tag not in self.void:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.void:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.void:
            assert self.open.pop() == tag, (tag, self.open)

    def handle_data(self, data: str) -> None:
        self.words += data


@pytest.fixture(scope="module")
def rows(validation: Dataset) -> Dataset:
    """600 of the shipped images."""
    return validation.take(np.arange(600))


@pytest.fixture(scope="module")
def report(
    classifier: Classifier, rows: Dataset, tmp_path_factory: pytest.TempPathFactory, torch: Any
) -> Report:
    """A report on those, against the int8 engine. ``torch`` stands for the extra that draws the page."""
    options = StudyOptions(
        against=Classifier.load(engine="onnx-int8"), source="a test", role="test", gallery=3
    )
    return write_report(classifier, rows, tmp_path_factory.mktemp("report"), options)


def test_the_numbers_are_those_of_evaluate(report: Report, classifier: Classifier, rows: Dataset) -> None:
    """One way to count; the file holds what the object holds, in plain JSON."""
    metrics = evaluate(classifier, rows)
    document = json.loads(report.numbers.read_text(), parse_constant=pytest.fail)
    assert document == json.loads(json.dumps(report.document))
    assert report.metrics == metrics
    for name, value in metrics.summary().items():
        assert document[name] == value
    assert document["calibration"]["after"]["ece"] == pytest.approx(metrics.ece)
    assert document["selective"]["at"][0]["accuracy"] == pytest.approx(metrics.accuracy)
    low, high = document["intervals"]["macro_f1"]
    assert low < metrics.macro_f1 < high


def test_the_engines_are_compared(report: Report) -> None:
    """Every engine is timed or says why not; the default one comes first and agrees with itself."""
    from classifier import ENGINES

    engines = report.document["engines"]
    assert [entry["engine"] for entry in engines] == list(ENGINES)
    timed = [entry for entry in engines if "skipped" not in entry]
    assert timed[0]["disagreement"] == 0
    for entry in timed:
        assert [each["batch"] for each in entry["latency"]] == [1, 32, 256]
        assert all(0 < each["p50_ms"] <= each["p99_ms"] for each in entry["latency"])
        assert entry["disagreement"] < 0.02
    assert all(entry["skipped"] for entry in engines if entry not in timed)


def test_the_other_model_is_judged_on_the_same_rows(report: Report, rows: Dataset) -> None:
    """The four counts add up to the rows, and the other accuracy is the other model's own."""
    against = report.document["against"]
    assert sum(against[key] for key in ("both", "only_first", "only_second", "neither")) == len(rows)
    assert against["other_accuracy"] == evaluate(Classifier.load(engine="onnx-int8"), rows).accuracy
    assert 0 < against["p"] <= 1


def test_the_page_is_whole_and_needs_nothing_else(report: Report) -> None:
    """Well-formed, no script, nothing fetched, ids once, every section linked, no gap in the text."""
    assert report.page is not None
    text = report.page.read_text()
    page = Page(text)
    assert "script" not in page.tags
    assert page.tags.count("svg") == 6
    assert len(page.ids) == len(set(page.ids))
    for source in page.sources:
        assert source.startswith("data:image/png;base64,") or source[1:] in page.ids, source
    assert page.tags.count("img") == len(report.document["mistakes"]["surest"]) + len(
        report.document["mistakes"]["suspected"]
    )
    assert not re.search(r"\b(nan|None|Undefined)\b|{{|{%", page.words)
    for line in summary(report.document):
        assert line in page.words


@pytest.mark.parametrize(
    ("role", "says"),
    [
        ("test", ""),
        ("train", "The model was trained on these images, "),
        ("all", "The model was trained on most of these images, "),
        ("val", "These images took part in choices "),
        ("", "Nothing recorded says "),
    ],
)
def test_the_page_warns_of_images_the_model_knew(role: str, says: str) -> None:
    """What the rows were to the training is said before any figure."""
    found = caution({"data": {"role": role}})
    assert found.startswith(says)
    assert bool(found) == bool(says)


def test_names_of_files_and_classes_are_shown_not_run(report: Report, rows: Dataset) -> None:
    """A class may be called <script> or $x$, a file "a&b"."""
    evil = "<script>alert(1)</script> $x^$"
    document = json.loads(json.dumps(report.document).replace("Ankle boot", evil.replace('"', "")))
    document["data"]["role"] = "train"
    page = Page(render(document, rows))
    assert "script" not in page.tags
    assert evil in page.words
    assert caution(document) in page.words


def test_a_model_that_is_always_right_has_a_page_too(
    classifier: Classifier, validation: Dataset, tmp_path: Path, torch: Any
) -> None:
    """No mistake, no suspicion, one class alone: every section copes."""
    right = classifier.predict_tensor(validation.pixels(slice(200))).argmax(1) == validation.labels[:200]
    trousers = np.flatnonzero(right & (validation.labels[:200] == 1))
    written = write_report(classifier, validation.take(trousers), tmp_path, BRIEF)
    assert (written.document["accuracy"], written.document["mistakes"]["surest"]) == (1.0, [])
    assert written.page is not None
    assert "There is no mistake" in Page(written.page.read_text()).words


def test_one_image_is_enough(classifier: Classifier, validation: Dataset, tmp_path: Path, torch: Any) -> None:
    """N = 1: intervals are wide, nothing divides by zero."""
    written = write_report(classifier, validation.take(np.arange(1)), tmp_path, BRIEF)
    assert written.page is not None
    Page(written.page.read_text())
    assert written.document["accuracy_high"] - written.document["accuracy_low"] > 0.7


def test_rows_without_a_label_are_left_out(classifier: Classifier, rows: Dataset, tmp_path: Path) -> None:
    """They count as rows, not as mistakes; without any label there is nothing to judge."""
    labels = np.where(np.arange(600) < 100, rows.labels, -1)
    half = dataset(rows.images, labels, rows.class_names, names=tuple(f"file {at}" for at in range(600)))
    written = write_report(classifier, half, tmp_path, BRIEF)
    assert (written.document["data"]["rows"], written.document["images"]) == (600, 100)
    assert written.metrics == evaluate(classifier, rows, limit=100)
    for entry in written.document["mistakes"]["surest"]:
        assert entry["name"] == f"file {entry['row']}"
    with pytest.raises(ValueError, match="--label"):
        evaluate(classifier, replace(half, labels=np.full(600, -1)))


def test_fewer_classes_in_another_order_are_judged_alike(classifier: Classifier, rows: Dataset) -> None:
    """Labels are matched by name; a name that the model lacks is refused with the next step."""
    names = ("Bag", "Dress")
    chosen = rows.take(np.flatnonzero(np.isin(rows.labels, (8, 3))))
    turned = dataset(chosen.images, np.where(chosen.labels == 8, 0, 1), names)
    assert evaluate(classifier, turned) == evaluate(classifier, chosen)
    strange = dataset(chosen.images, turned.labels, ("Bag", "Sari"))
    with pytest.raises(ValueError, match=r"'Sari'.*couturier train"):
        evaluate(classifier, strange)


def test_tags_are_matched_by_name(classifier: Classifier, rows: Dataset) -> None:
    """A tag that only the model knows is unknown in the data; one that only the data know is dropped."""
    manifest = replace(classifier.manifest, tags=(Tag("floral", 0.5), Tag("dotted", 0.5)))
    tags = np.array([[1, 0], [0, 1]], np.int8)
    tagged = dataset(rows.images[:2], rows.labels[:2], rows.class_names, tags, ("striped", "floral"))
    found = fitted(tagged, manifest)
    assert found.tag_names == ("floral", "dotted")
    assert found.tags.tolist() == [[0, -1], [1, -1]]


def test_answers_come_in_blocks_with_progress(classifier: Classifier, validation: Dataset) -> None:
    """Two blocks give what one call gives, and every block is reported."""
    seen: list[tuple[str, int, int]] = []
    some = validation.take(np.arange(1100))
    found = ask(classifier, some, lambda *step: seen.append(step))
    assert [step[1:] for step in seen] == [(1024, 1100), (1100, 1100)]
    assert np.allclose(found.probabilities, classifier.predict_tensor(some.pixels()), atol=1e-5)


def test_the_shipped_images_are_known_to_be_held_out(classifier: Classifier, validation: Dataset) -> None:
    """The bundle says on what it was measured; a part of them is none of the recorded sets."""
    found = find_rows(classifier.manifest)
    assert (found.role, found.data.sha256) == ("test", validation.sha256)


@pytest.fixture
def trained(classifier: Classifier, tmp_path: Path) -> tuple[Manifest, Path]:
    """A folder of digits, and a manifest that says it was trained on it with a split of its own."""
    folder = write_folder(tmp_path / "digits")
    options = DataOptions(size=28, seed=5, val_fraction=0.2, test_fraction=0.3)
    prepared = prepare(folder, options)
    labels = tuple(str(digit) for digit in range(10))
    own = {
        "labels": labels,
        "tags": (),
        "preprocessing": prepared.preprocessing,
        "raw": {"data": prepared.facts},
    }
    return replace(classifier.manifest, **own), folder


def test_the_training_s_own_data_are_judged_on_what_it_held_out(trained: tuple[Manifest, Path]) -> None:
    """The recorded seed and shares give the same split again, wherever the folder lies now."""
    manifest, folder = trained
    found = find_rows(manifest, folder.rename(folder.with_name("moved")))
    assert (found.role, found.title) == ("test", "moved, the test split")
    assert found.data.sha256 == manifest.raw["data"]["sha256"]["test"]
    assert len(found.data) == manifest.raw["data"]["split"]["test"] > 20


@pytest.mark.parametrize(("split", "rows"), [("train", "training"), ("val", "val"), ("all", None)])
def test_other_splits_are_judged_on_request(
    trained: tuple[Manifest, Path], split: str, rows: str | None
) -> None:
    """With the role that the page warns of."""
    manifest, folder = trained
    found = find_rows(manifest, folder, split=split)
    sizes = manifest.raw["data"]["split"]
    assert found.role == split
    assert len(found.data) == (sizes[rows] if rows else 120)
    assert len(set(found.data.names)) == len(found.data)


def test_other_data_are_judged_whole(trained: tuple[Manifest, Path]) -> None:
    """One more file and it is not the set that was split: all rows count, and nothing is claimed of them."""
    manifest, folder = trained
    shutil.copy(
        folder / "3" / sorted(path.name for path in (folder / "3").iterdir())[0], folder / "3" / "new.png"
    )
    found = find_rows(manifest, folder)
    assert (found.role, found.title, len(found.data)) == ("", "digits, all rows", 121)


def test_a_split_that_is_not_there_is_named(trained: tuple[Manifest, Path]) -> None:
    """With the sizes of those that are; an unknown name is refused."""
    manifest, folder = trained
    bare = replace(manifest, raw={})
    whole = DataOptions(val_fraction=0.0, test_fraction=0.0)
    with pytest.raises(DataError, match=r"no val split \(train 120 rows\).*--split"):
        find_rows(bare, folder, whole, "val")
    with pytest.raises(ValueError, match="test, val, train, all"):
        find_rows(bare, folder, whole, "half")


def test_a_table_is_read_by_the_columns_of_the_training(classifier: Classifier, tmp_path: Path) -> None:
    """Label and tags need not be named again; a tag that the table lacks is unknown."""
    write_folder(tmp_path)
    files = [f"{label}/{row:04d}.png" for row, label in enumerate(digits()[1].tolist())]
    kinds = ["odd" if int(name[0]) % 2 else "even" for name in files]
    table = write_csv(
        tmp_path / "table.csv",
        {"path": files, "other": kinds[::-1], "kind": kinds, "large": [int(name[0]) > 4 for name in files]},
    )
    recorded = {"data": {"columns": {"label": "kind"}}}
    manifest = replace(
        classifier.manifest, labels=("odd", "even"), tags=(Tag("large", 0.5), Tag("red", 0.5)), raw=recorded
    )
    found = find_rows(manifest, table)
    assert found.data.labels.tolist().count(0) == 60
    assert found.data.tag_names == ("large", "red")
    assert sorted(set(found.data.tags[:, 0].tolist())) == [0, 1]
    assert set(found.data.tags[:, 1].tolist()) == {-1}


def test_numbers_that_json_lacks_become_null() -> None:
    """Infinity and NaN would make the file unreadable elsewhere."""
    assert plain({"a": (float("inf"), 1.5), "b": {1: float("nan")}}) == {"a": [None, 1.5], "b": {"1": None}}


def test_large_pictures_are_shrunk_and_colour_is_kept() -> None:
    """A 300 px photo becomes a thumbnail of at most 96 px."""
    import base64
    import io

    from PIL import Image

    images = np.zeros((1, 3, 300, 300), np.uint8)
    images[:, 0] = 200
    uri = thumbnail(dataset(images, np.zeros(1, np.int64), ("red", "blue")), 0)
    picture = Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1])))
    assert picture.size == (96, 96)
    assert picture.getpixel((50, 50)) == (200, 0, 0)


def test_without_the_extra_the_numbers_are_written(tmp_path: Path) -> None:
    """metrics.json is there, one line names the extra for the page, and the exit code is 0."""
    code = f"""
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "matplotlib", "jinja2", "openvino", "pyarrow"):
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Block())
sys.argv = ["x", "evaluate", "--limit", "50", "--no-timing", "--json", "--out", {str(tmp_path)!r}]
from classifier.__main__ import app
app()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == json.loads((tmp_path / "metrics.json").read_text())
    assert "no report.html: the page report.html needs the extra 'train'" in done.stderr
    assert not (tmp_path / "report.html").exists()
