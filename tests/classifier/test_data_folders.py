"""A folder of classes, as people have it: found, counted, split, and nothing passed over in silence."""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path

import numpy as np
import pytest

from classifier import DataError
from classifier.data import DataOptions, prepare
from tests.classifier.digit_sets import digits, png, write_folder, write_zip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """digits/CLASS/NUMBER.png, 12 of each."""
    return write_folder(tmp_path_factory.mktemp("data") / "digits")


def test_a_folder_of_classes_needs_no_option(folder: Path) -> None:
    """Classes are the folders' names in order, every image is used, each side has every class."""
    prepared = prepare(folder)
    assert prepared.training.class_names == tuple("0123456789")
    assert prepared.val is not None
    assert prepared.test is not None
    assert len(prepared.training) + len(prepared.val) + len(prepared.test) == 120
    assert np.bincount(prepared.test.labels).tolist() == [1] * 10
    assert prepared.training.images.shape == (100, 28, 28)
    assert prepared.training.names[0].endswith(".png")
    assert prepared.facts["classes"] == {str(digit): 12 for digit in range(10)}


def test_the_description_says_what_was_found(folder: Path) -> None:
    """Kind, rows, classes with counts, sizes, modes and split are echoed."""
    text = prepare(folder).describe()
    for expected in (
        "digits: folder of classes, 120 rows, 120 used",
        "classes: 10",
        "longer side 8 to 8 px",
        "PNG L 120",
        "28 x 28 px, gray, polarity keep",
        "100 training, 10 validation, 10 test",
    ):
        assert expected in text


def test_the_pixels_are_those_of_the_one_preprocessing(folder: Path) -> None:
    """What is trained on is what a worker would see of the same file."""
    from classifier.images import decode

    prepared = prepare(folder)
    name, pixels = prepared.training.names[7], prepared.training.pixels(np.array([7]))
    decoded = decode([(folder / name).read_bytes()], prepared.preprocessing)
    assert np.array_equal(pixels, decoded.tensor)


def test_the_split_depends_on_names_alone(folder: Path, tmp_path: Path) -> None:
    """Files written in another order, at another time, elsewhere: the same split, hash for hash."""
    files = list(folder.rglob("*.png"))
    random.Random(3).shuffle(files)
    for path in files:
        target = tmp_path / "copy" / path.relative_to(folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    first, second = prepare(folder), prepare(tmp_path / "copy")
    assert first.facts["split"] == second.facts["split"]
    assert first.training.sha256 == second.training.sha256
    assert first.facts["split"]["sha256"] != prepare(folder, DataOptions(seed=1)).facts["split"]["sha256"]


def test_train_val_and_test_folders_are_honoured(tmp_path: Path) -> None:
    """A split that the source states stays as it is; 'valid' and 'testing' are its usual other names."""
    sides = ("train", "train", "train", "valid", "testing")
    write_folder(tmp_path, 10, lambda row, label: f"{sides[row % 5]}/{label}/{row}.png")
    prepared = prepare(tmp_path)
    assert prepared.val is not None
    assert prepared.test is not None
    assert {name.split("/")[0] for name in prepared.training.names} == {"train"}
    assert {name.split("/")[0] for name in prepared.val.names} == {"valid"}
    assert {name.split("/")[0] for name in prepared.test.names} == {"testing"}
    assert prepared.facts["split"]["given"] == ["training", "val", "test"]


def test_validation_is_held_out_of_training_where_the_source_has_none(tmp_path: Path) -> None:
    """train and test folders alone: the test folder is left whole."""
    write_folder(tmp_path, 20, lambda row, label: f"{'test' if row % 4 == 0 else 'train'}/{label}/{row}.png")
    prepared = prepare(tmp_path)
    assert prepared.test is not None
    assert prepared.val is not None
    assert len(prepared.test) == 50
    assert {name.split("/")[0] for name in prepared.val.names} == {"train"}
    assert "held out of its training rows" in prepared.describe()


def test_a_class_called_test_is_a_class(tmp_path: Path) -> None:
    """Only when every folder is the name of a side, and one is for training, are they sides."""
    write_folder(tmp_path, 6, lambda row, label: f"{('test', 'exam')[label % 2]}/{row}.png")
    assert prepare(tmp_path).training.class_names == ("exam", "test")


def test_a_class_without_training_rows_is_dropped_by_name(tmp_path: Path) -> None:
    """Nothing can be learnt of a class that is only in the test folder."""
    write_folder(tmp_path, 6, lambda row, label: f"{'test' if label == 9 else 'train'}/{label}/{row}.png")
    prepared = prepare(tmp_path)
    assert len(prepared.training.class_names) == 9
    assert prepared.facts["dropped"]["reasons"] == {"unknown class": 6}


def test_what_is_no_image_is_passed_over_and_said(tmp_path: Path) -> None:
    """Hidden files, system litter and links do not count; other kinds of files are counted."""
    write_folder(tmp_path, 6)
    (tmp_path / "0" / ".hidden.png").write_bytes(b"x")
    (tmp_path / "0" / "Thumbs.db").write_bytes(b"x")
    (tmp_path / "0" / "moving.gif").write_bytes(b"GIF89a")
    (tmp_path / "__MACOSX" / "0").mkdir(parents=True)
    (tmp_path / "__MACOSX" / "0" / "a.png").write_bytes(b"x")
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "a.png").write_bytes(b"x")
    (tmp_path / "1" / "link.png").symlink_to(tmp_path / "0" / "0000.png")
    (tmp_path / "loop").symlink_to(tmp_path)
    prepared = prepare(tmp_path)
    assert prepared.facts["used"] == prepared.facts["rows"] == 60
    assert "passed over, not PNG or JPEG by name: 1 .gif" in prepared.describe()


def test_every_bad_file_is_named_and_the_rest_goes_on(tmp_path: Path) -> None:
    """Ten are shown, all are written to a file."""
    write_folder(tmp_path / "data", 10)
    for at in range(13):
        (tmp_path / "data" / "3" / f"bad{at:02d}.png").write_bytes(b"not an image at all")
    (tmp_path / "data" / "stray.png").write_bytes(png(digits()[0][0]))
    prepared = prepare(tmp_path / "data")
    assert prepared.facts["dropped"]["reasons"] == {"not-an-image": 13, "no class": 1}
    assert len(prepared.facts["dropped"]["first"]) == 10
    assert "3/bad00.png: not-an-image: neither PNG nor JPEG" in prepared.describe()
    prepared.write_dropped(tmp_path / "dropped.csv")
    lines = (tmp_path / "dropped.csv").read_text().splitlines()
    assert lines[0] == "name,reason,detail"
    assert len(lines) == 15


def test_a_single_folder_around_the_classes_is_stepped_into(tmp_path: Path) -> None:
    """Zips and downloads often have one; folders inside a class belong to it."""
    for name in ("digits-1.0", "test"):
        write_folder(tmp_path / "in" / name / name, 6, lambda row, label: f"{label}/part{row % 2}/{row}.png")
        prepared = prepare(tmp_path / "in" / name)
        assert prepared.training.class_names == tuple("0123456789")
        assert f"classes are the folders in {name}/" in prepared.describe()


def test_a_zip_of_class_folders_is_the_same_data_set(folder: Path, tmp_path: Path) -> None:
    """Packed or not: the same rows, pixels and split."""
    files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.png")}
    packed = prepare(write_zip(tmp_path / "digits.zip", files))
    loose = prepare(folder)
    assert packed.training.sha256 == loose.training.sha256
    assert packed.facts["split"] == loose.facts["split"]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "no PNG or JPEG file"),
        ({"a.png": b"x"}, "1 images outside any folder.*CLASS/image.png"),
        ({"only/a.png": png(np.zeros((9, 9), np.uint8))}, "needs two classes, found only"),
        ({"cats/a.gif": b"GIF8", "dogs/b.gif": b"GIF8"}, "no PNG or JPEG file.*2 .gif"),
        ({"labels.csv": b"a,b\n1,2\n"}, "name one:.*labels.csv"),
        ({"t.csv": b"a,b\n1,2\n", "pictures/x.png": b"x"}, "name one:.*t.csv"),
        ({"a/x.png": b"x", "b/y.png": b"y"}, "no image can be used: 2 not-an-image.*a/x.png"),
    ],
)
def test_a_folder_that_cannot_be_used_says_why(tmp_path: Path, files: dict[str, bytes], message: str) -> None:
    """Every error names what was found and what to do."""
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        prepare(tmp_path)


def test_a_missing_path_and_an_unknown_kind_are_refused(tmp_path: Path) -> None:
    """The error lists what is accepted."""
    with pytest.raises(DataError, match="no such file"):
        prepare(tmp_path / "nothing")
    (tmp_path / "data.xlsx").write_bytes(b"PK")
    with pytest.raises(DataError, match="accepted are a folder or zip"):
        prepare(tmp_path / "data.xlsx")


def test_options_of_tables_are_refused_for_folders(folder: Path) -> None:
    """An option that would be ignored is a mistake."""
    with pytest.raises(DataError, match=r"--label.*are for CSV and parquet"):
        prepare(folder, DataOptions(label="class"))


def test_a_damaged_zip_is_refused(tmp_path: Path) -> None:
    """Cut off, encrypted, or not a zip: one line with the file."""
    path = tmp_path / "data.zip"
    path.write_bytes(b"PK\3\4 and nothing more")
    with pytest.raises(DataError, match=r"data\.zip: cannot be read"):
        prepare(path)


def test_one_damaged_member_of_a_zip_costs_one_row(tmp_path: Path) -> None:
    """A wrong checksum inside is found when the member is read."""
    images = digits()[0]
    files = {f"{at % 2}/{at}.png": png(images[at]) for at in range(20)}
    path = write_zip(tmp_path / "data.zip", files)
    content = bytearray(path.read_bytes())
    at = content.index(files["1/7.png"]) + 40
    content[at] ^= 0xFF
    path.write_bytes(content)
    prepared = prepare(path)
    assert prepared.facts["used"] == 19
    assert "1/7.png" in prepared.dropped[0].name


def test_names_that_are_not_unicode_do_no_harm(tmp_path: Path) -> None:
    """A name on disk is bytes; it is read, and shown as text."""
    write_folder(tmp_path, 6)
    odd = os.fsencode(tmp_path / "0") + b"/caf\xe9.png"
    with open(odd, "wb") as file:  # noqa: PTH123 - a path of bytes
        file.write(png(digits()[0][5]))
    prepared = prepare(tmp_path)
    assert prepared.facts["used"] == 61
    prepared.describe().encode()
