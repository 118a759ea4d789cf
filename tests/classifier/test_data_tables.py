"""Tables as training sets: columns found out, values read kindly, everything doubtful named."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from classifier import ClassifierError, DataError
from classifier.data import DataOptions, prepare
from tests.classifier.digit_sets import (
    digits,
    marketplace,
    png,
    write_csv,
    write_folder,
    write_parquet,
    write_zip,
)


def csv_of_paths(root: Path, each: int = 8, **columns: list[Any]) -> Path:
    """digits.csv with ``file`` and ``digit`` beside a folder of images."""
    labels = digits(each)[1].tolist()
    write_folder(root / "images", each, lambda row, _: f"{row}.png")
    files = [f"images/{row}.png" for row in range(len(labels))]
    return write_csv(root / "digits.csv", {"file": files, "digit": labels, **columns})


def parquet_of_bytes(root: Path, each: int = 8, **columns: list[Any]) -> Path:
    """digits.parquet with ``picture`` and ``digit``."""
    images, labels = digits(each)
    pictures = [png(image) for image in images]
    return write_parquet(root / "digits.parquet", {"picture": pictures, "digit": labels.tolist(), **columns})


def test_a_csv_with_paths_needs_no_option(tmp_path: Path) -> None:
    """The paths are found, the only other column is the category, and both are said."""
    prepared = prepare(csv_of_paths(tmp_path))
    assert prepared.facts["used"] == 80
    assert prepared.training.class_names == tuple("0123456789")
    assert "image paths in column 'file'" in prepared.describe()
    assert "column 'digit' taken as the category" in prepared.describe()


def test_a_parquet_with_bytes_gives_the_same_pixels_as_files(tmp_path: Path) -> None:
    """Where an image lies changes nothing."""
    from_bytes = prepare(parquet_of_bytes(tmp_path), DataOptions(val_fraction=0, test_fraction=0))
    from_files = prepare(csv_of_paths(tmp_path), DataOptions(val_fraction=0, test_fraction=0))
    assert from_bytes.training.sha256 == from_files.training.sha256
    assert from_bytes.training.names[3] == "row 3"


def test_small_row_groups_are_read_in_order(tmp_path: Path) -> None:
    """A parquet file in many pieces gives the same rows."""
    images, labels = digits(8)
    columns = {"picture": [png(image) for image in images], "digit": labels.tolist()}
    pieces = prepare(write_parquet(tmp_path / "a.parquet", columns, row_group_size=7))
    whole = prepare(write_parquet(tmp_path / "b.parquet", columns))
    assert pieces.training.sha256 == whole.training.sha256


def test_hugging_faces_layout_is_read_with_its_class_names(tmp_path: Path) -> None:
    """Structs of bytes and path, and names of classes in the file's metadata; -1 is "not known"."""
    arrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet

    images, labels = digits(6)
    names = [f"digit {label}" for label in range(10)]
    features = {"image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}
    table = arrow.table(
        {
            "image": [{"bytes": png(image), "path": None} for image in images],
            "label": [-1, *labels.tolist()[1:-1], 77],
        }
    ).replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pyarrow.parquet.write_table(table, tmp_path / "train.parquet")
    prepared = prepare(tmp_path / "train.parquet")
    assert prepared.training.class_names == tuple(names)
    assert prepared.facts["dropped"]["reasons"] == {"no label": 1, "unknown class": 1}


def test_the_marketplace_layout_works_as_it_comes(tmp_path: Path) -> None:
    """A zip with images in folders, named by uuid; category and tags by column; missing tags masked."""
    marketplace(tmp_path)
    options = DataOptions(
        images=tmp_path / "data.zip", label="cc3", tags=("polka dot", "floral", "checker"), val_fraction=0.2
    )
    prepared = prepare(tmp_path / "data.parquet", options)
    training = prepared.training
    assert training.class_names == ("dress", "shirt", "skirt")
    assert training.tag_names == ("polka dot", "floral", "checker")
    assert (training.channels, training.size, training.images.shape[1:]) == (3, 40, (3, 40, 40))
    floral = prepared.facts["tags"]["floral"]
    assert floral["missing"] == 10
    assert floral["yes"] + floral["no"] == 40
    assert set(np.unique(training.tags[:, 1]).tolist()) == {-1, 0, 1}
    assert len(training.names[0]) == 32
    assert "images of data.zip named by column 'uuid'" in prepared.describe()
    assert prepared.facts["columns"] == {"image": "uuid", "key": "uuid", "label": "cc3"}
    assert json.loads(json.dumps(prepared.facts)) == prepared.facts


def test_several_possible_categories_are_listed_with_the_command(tmp_path: Path) -> None:
    """The error shows each column's distinct values and what to type."""
    marketplace(tmp_path)
    with pytest.raises(DataError) as caught:
        prepare(tmp_path / "data.parquet", DataOptions(images=tmp_path / "data.zip"))
    said = ("2 columns could be: cc3, color1", "cc3 3", "color1 3", "uuid 50", '--label "cc3"', "--images")
    for expected in said:
        assert expected in str(caught.value)


def test_columns_that_look_like_tags_are_offered(tmp_path: Path) -> None:
    """They are not learnt unasked, but the words to type are given."""
    marketplace(tmp_path)
    prepared = prepare(tmp_path / "data.parquet", DataOptions(images=tmp_path / "data.zip", label="cc3"))
    assert '--tags "polka dot,floral,checker"' in prepared.describe()


WRITTEN = [("1", "0"), ("True", "false"), ("yes", "NO"), ("y", "n"), ("1.0", "0.0")]


@pytest.mark.parametrize("written", WRITTEN)
def test_tags_are_read_in_every_usual_way(tmp_path: Path, written: tuple[str, str]) -> None:
    """0/1, true/false, yes/no; empty, null, NaN and NA are missing."""
    values = [*[written[row % 2] for row in range(76)], "", "null", "NaN", "NA"]
    prepared = prepare(csv_of_paths(tmp_path, round=values), DataOptions(label="digit", tags=("round",)))
    assert prepared.facts["tags"]["round"] == {"yes": 38, "no": 38, "missing": 4, "prevalence": 0.5}


def test_a_few_odd_tag_values_are_masked_and_named(tmp_path: Path) -> None:
    """One "maybe" costs one value, not the run; a column full of them is refused."""
    values: list[Any] = [row % 2 for row in range(80)]
    values[5] = "maybe"
    prepared = prepare(csv_of_paths(tmp_path, round=values), DataOptions(label="digit", tags=("round",)))
    assert prepared.facts["tags"]["round"]["missing"] == 1
    assert "row 5: 'maybe'" in prepared.describe()
    values = digits(8)[1].tolist()
    with pytest.raises(DataError, match="column 'round' is no tag, 64 of its values"):
        prepare(csv_of_paths(tmp_path, round=values), DataOptions(label="digit", tags=("round",)))


def test_a_row_without_label_is_kept_for_its_tags(tmp_path: Path) -> None:
    """Without either it is dropped, and said."""
    labels: list[Any] = digits(8)[1].tolist()
    labels[3] = labels[4] = None
    tags = [None if row == 4 else row % 2 for row in range(80)]
    columns = {"digit": labels, "round": tags}
    prepared = prepare(csv_of_paths(tmp_path, **columns), DataOptions(label="digit", tags=("round",)))
    assert prepared.facts["unlabelled"] == 1
    assert prepared.facts["dropped"]["reasons"] == {"no label": 1}
    both = [*prepared.training.labels, *(prepared.val.labels if prepared.val else [])]
    assert sorted(both)[0] == -1


def test_a_split_column_is_honoured(tmp_path: Path) -> None:
    """Its values are train, val and test in their usual spellings; a row with another one is dropped."""
    sides = [("train", "Training", "TRAIN", "dev", "test")[row % 5] for row in range(80)]
    sides[0] = "elsewhere"
    prepared = prepare(csv_of_paths(tmp_path, split=sides))
    assert prepared.test is not None
    assert prepared.val is not None
    assert (len(prepared.training), len(prepared.val), len(prepared.test)) == (47, 16, 16)
    assert "split is 'elsewhere'" in prepared.describe()


def test_numbers_are_classes_by_their_value(tmp_path: Path) -> None:
    """A column with gaps is stored as floats: 3.0 is the class 3, and 10 comes after 9."""
    labels = [float(label + 2) if row else None for row, label in enumerate(digits(8)[1].tolist())]
    for path in (parquet_of_bytes(tmp_path, digit=labels), csv_of_paths(tmp_path, digit=labels)):
        assert prepare(path).training.class_names == tuple(str(number) for number in range(2, 12))


@pytest.mark.parametrize("store", ["folder", "zip"])
@pytest.mark.parametrize("key", ["stem", "name", "path", "below", "above", "number"])
def test_keys_name_images_in_a_folder_or_zip(tmp_path: Path, store: str, key: str) -> None:
    """By stem, file name or path, in folders or not, as text or number; a path may start above or below."""
    labels = digits(8)[1].tolist()
    place = write_folder(tmp_path / "images", 8, lambda row, label: f"by/{label}/{1000 + row}.png")
    if store == "zip":
        files = {path.relative_to(place).as_posix(): path.read_bytes() for path in place.rglob("*.png")}
        place = write_zip(tmp_path / "images.zip", files)
    write = {
        "stem": lambda row: f"{1000 + row}",
        "name": lambda row: f"{1000 + row}.png",
        "path": lambda row: f"by/{labels[row]}/{1000 + row}.png",
        "below": lambda row: f"{labels[row]}/{1000 + row}.png",
        "above": lambda row: f"shop/images/by/{labels[row]}/{1000 + row}.png",
        "number": lambda row: 1000 + row,
    }[key]
    columns = {"digit": labels, "which": [write(row) for row in range(80)]}
    prepared = prepare(write_parquet(tmp_path / "t.parquet", columns), DataOptions(images=place))
    assert prepared.facts["used"] == 80
    assert prepared.preprocessing.channels == 1


def test_a_key_that_fits_two_images_is_an_error_naming_both(tmp_path: Path) -> None:
    """Which of two files is meant cannot be guessed, so the row is dropped and both are named."""
    labels = digits(8)[1].tolist()
    place = write_folder(tmp_path / "images", 8, lambda row, _: f"a/{row}.png")
    (place / "b").mkdir()
    (place / "b" / "7.png").write_bytes((place / "a" / "7.png").read_bytes())
    columns = {"uuid": list(range(80)), "digit": labels}
    prepared = prepare(write_csv(tmp_path / "t.csv", columns), DataOptions(images=place))
    assert prepared.facts["used"] == 79
    assert "'7' is both a/7.png and b/7.png" in prepared.describe()


def test_missing_images_are_named(tmp_path: Path) -> None:
    """A path without a file, an empty path, a damaged image: each row says why."""
    path = csv_of_paths(tmp_path)
    (tmp_path / "images" / "3.png").unlink()
    (tmp_path / "images" / "4.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    path.write_text(path.read_text().replace("images/5.png", ""))
    prepared = prepare(path)
    assert prepared.facts["dropped"]["reasons"] == {"no image": 2, "truncated": 1}
    assert [row.name for row in prepared.dropped] == ["images/3.png", "images/4.png", "row 5"]


def test_absolute_paths_split_like_any_other_root(tmp_path: Path) -> None:
    """The same files below another folder are held out alike."""
    splits = []
    for place in ("one", "another/place"):
        root = write_folder(tmp_path / place, 8, lambda row, _: f"images/{row}.png")
        files = [str(root / f"images/{row}.png") for row in range(80)]
        table = write_csv(tmp_path / "t.csv", {"file": files, "digit": digits(8)[1].tolist()})
        splits.append(prepare(table).facts["split"]["sha256"])
    assert splits[0] == splits[1]


def test_separators_quotes_and_byte_order_marks_are_understood(tmp_path: Path) -> None:
    """Spreadsheets write semicolons and a mark in front; tabs are as good."""
    labels = digits(8)[1].tolist()
    write_folder(tmp_path, 8, lambda row, _: f"{row}, a.png")
    files = [f"{row}, a.png" for row in range(80)]
    results = []
    for name, separator in (("a.csv", ","), ("b.csv", ";"), ("c.tsv", "\t")):
        path = write_csv(tmp_path / name, {"file": files, "digit": labels}, delimiter=separator)
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
        results.append(prepare(path).training.sha256)
    assert len(set(results)) == 1


def test_a_damaged_line_costs_one_row(tmp_path: Path) -> None:
    """Too many or too few fields: the row is named with both counts."""
    path = csv_of_paths(tmp_path)
    lines = path.read_text().splitlines()
    lines[3], lines[9] = "images/2.png", lines[9] + ",1,2"
    path.write_text("\n".join(lines))
    prepared = prepare(path)
    assert prepared.facts["dropped"]["reasons"] == {"damaged row": 2}
    assert "4 fields where the header has 2" in prepared.describe()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty"),
        (b"\n\n", "the file is empty"),
        (b"file,digit\n", "no rows, only the columns file, digit"),
        (b"file,file\na.png,b\n", "column 'file' occurs twice"),
        (b"file,digit\ncaf\xe9.png,1\n", r"not UTF-8 at byte \d+.*iconv"),
        (b'file,digit\n"a.png,1\nb.png,2\n', "is a quote left open"),
        (b"a,b\n1,2\n3,4\n", "no column holds images or paths"),
        (b"a.png,b\n1,2\n", "no column holds images"),
        (b"x,y\n1.png,2.png\n3.png,4.png\n", "several columns hold paths of images: x, y.*--key"),
        (b"file\na.png\nb.png\n", "no column looks like it"),
        (b"u,c\nhttps://x/1.jpg,a\nhttps://x/2.jpg,b\n", "'u' holds web addresses; download"),
        (b"file,a,b\n1.png,u,u\n2.png,v,v\n3.png,u,v\n4.png,u,u\n", "2 columns could be: a, b"),
    ],
)
def test_a_table_that_cannot_be_used_says_why(tmp_path: Path, content: bytes, message: str) -> None:
    """Each mistake has its own words and the next step."""
    path = tmp_path / "table.csv"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        prepare(path)


def test_wrong_column_names_are_answered_with_the_right_ones(tmp_path: Path) -> None:
    """A near miss gets the spelling, a far one the list."""
    path = csv_of_paths(tmp_path, round=[row % 2 for row in range(80)])
    for options, message in (
        (DataOptions(label="digits"), "no column 'digits'.*next: --label \"digit\""),
        (DataOptions(label="zzz"), "no column 'zzz', only file, digit, round; give --label one of them"),
        (DataOptions(label="digit", tags=("rounds",)), 'next: --tags "round"'),
        (DataOptions(key="uuid"), "no column 'uuid'.*--key"),
        (DataOptions(label="round", tags=("round",)), "'round' is named twice"),
        (DataOptions(label="digit", tags=("round", "round")), "'round' is named twice"),
        (DataOptions(label="file"), "'file' has 80 distinct values in 80 rows"),
    ):
        with pytest.raises(DataError, match=message):
            prepare(path, options)


def test_images_that_no_column_names_are_an_error_with_examples(tmp_path: Path) -> None:
    """Values and file names stand side by side, so that the reader sees why nothing fits."""
    table = write_csv(tmp_path / "t.csv", {"id": ["x1", "x2"], "digit": [0, 1]})
    place = write_folder(tmp_path / "images", 6)
    with pytest.raises(DataError, match=r"First values: .*'id': 'x1'.*first image: '0/0000\.png'.*--key"):
        prepare(table, DataOptions(images=place))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no PNG or JPEG"):
        prepare(table, DataOptions(images=tmp_path / "empty"))


def test_files_of_another_kind_are_refused_one_by_one(tmp_path: Path) -> None:
    """A GIF in a column of paths is named as what it is."""
    path = csv_of_paths(tmp_path)
    for row in range(60):
        (tmp_path / "images" / f"{row}.gif").write_bytes(b"GIF89a and more")
        path.write_text(path.read_text().replace(f"images/{row}.png", f"images/{row}.gif"))
    prepared = prepare(path)
    assert prepared.facts["dropped"]["reasons"] == {"unsupported-format": 60}
    assert "GIF is not accepted, send PNG or JPEG" in prepared.describe()


def test_a_zip_or_folder_beside_the_table_is_suggested(tmp_path: Path) -> None:
    """Whoever forgets --images gets the words to type."""
    marketplace(tmp_path)
    with pytest.raises(DataError, match=r"--images .*data\.zip"):
        prepare(tmp_path / "data.parquet", DataOptions(label="cc3"))


def test_a_file_that_is_no_parquet_is_refused(tmp_path: Path) -> None:
    """Garbage, an empty file, a cut one."""
    good = parquet_of_bytes(tmp_path).read_bytes()
    for content in (b"", b"PAR1", b"hello world" * 9, good[:-50]):
        path = tmp_path / "bad.parquet"
        path.write_bytes(content)
        with pytest.raises(DataError, match="not a parquet file"):
            prepare(path)


def test_groups_come_from_json_or_csv(tmp_path: Path) -> None:
    """Both directions of JSON and a two-column CSV say the same; the summary lists them."""
    path = csv_of_paths(tmp_path)
    odd, even = [str(n) for n in range(1, 10, 2)], [str(n) for n in range(0, 10, 2)]
    files = {
        "a.json": json.dumps({"even": even, "odd": odd}),
        "b.json": json.dumps({name: ("even", "odd")[int(name) % 2] for name in [*even, *odd]}),
        "c.csv": "class,group\n" + "".join(f"{n},{('even', 'odd')[int(n) % 2]}\n" for n in [*even, *odd]),
        "d.csv": "".join(f"{n},{('even', 'odd')[int(n) % 2]}\n" for n in [*even, *odd]),
    }
    for name, content in files.items():
        (tmp_path / name).write_text(content)
        prepared = prepare(path, DataOptions(groups=tmp_path / name))
        assert prepared.groups == {"even": tuple(even), "odd": tuple(odd)}
        assert "group odd: 1, 3, 5, 7, 9" in prepared.describe()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("g.json", "[1]", "not a map of groups"),
        ("g.json", "{", "not a map of groups"),
        ("g.json", '{"even": 3}', "'even' maps to 3"),
        ("g.json", '{"all": ["0", "elf"]}', "'elf' are no classes"),
        ("g.json", '{"all": ["0", "1"]}', "2, 3, 4, 5, 6, 7, 8, 9 in no group"),
        ("g.json", '{"a": ["0"], "b": ["0"]}', "0 in several groups"),
        ("g.csv", "class,group,more\n", "line 1 has 3 columns"),
        ("missing.json", None, "No such file"),
    ],
)
def test_a_wrong_map_of_groups_is_refused(
    tmp_path: Path, name: str, content: str | None, message: str
) -> None:
    """Every class needs exactly one group, and the classes are named."""
    path = csv_of_paths(tmp_path)
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=message):
        prepare(path, DataOptions(groups=tmp_path / name))


WORDS = st.sampled_from(["1.png", "0", "1", "yes", "train", "NaN", "é\0"])
CELL = st.one_of(st.none(), st.text(max_size=6), WORDS)
SETTINGS = settings(
    deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@SETTINGS
@given(rows=st.lists(st.lists(CELL, min_size=1, max_size=4), max_size=8), tail=st.binary(max_size=30))
def test_no_csv_gets_past_as_another_exception(
    tmp_path: Path, rows: list[list[str | None]], tail: bytes
) -> None:
    """Whatever stands in the file, the answer is a data set or one of our errors."""
    images = digits(2)[0]
    (tmp_path / "1.png").write_bytes(png(images[0]))
    (tmp_path / "0.png").write_bytes(png(images[5]))
    text = "\n".join(",".join(value or "" for value in row) for row in rows)
    (tmp_path / "t.csv").write_bytes(text.encode("utf-8", "surrogatepass") + tail)
    acceptable(lambda: prepare(tmp_path / "t.csv", DataOptions(images=tmp_path)))
    acceptable(lambda: prepare(tmp_path / "t.csv"))


@SETTINGS
@given(data=st.data())
def test_no_damaged_parquet_gets_past_as_another_exception(tmp_path: Path, data: st.DataObject) -> None:
    """Bytes changed anywhere: a data set, or one of our errors."""
    (tmp_path / "t.parquet").write_bytes(damaged(data, parquet_of_bytes(tmp_path, 2).read_bytes()))
    acceptable(lambda: prepare(tmp_path / "t.parquet"))


@SETTINGS
@given(data=st.data())
def test_no_damaged_zip_gets_past_as_another_exception(tmp_path: Path, data: st.DataObject) -> None:
    """The directory of an archive is at its end, so that is where most bytes are changed."""
    files = {f"{at % 2}/{at}.png": png(image) for at, image in enumerate(digits(1)[0])}
    content = write_zip(tmp_path / "good.zip", files).read_bytes()
    (tmp_path / "t.zip").write_bytes(damaged(data, content))
    acceptable(lambda: prepare(tmp_path / "t.zip"))


def test_an_archive_with_an_impossible_directory_is_refused(tmp_path: Path) -> None:
    """An empty name and a name that is not UTF-8 make the standard library raise undocumented errors."""
    content = write_zip(tmp_path / "good.zip", {"0/é.png": b"x", "1/b.png": b"y"}).read_bytes()
    for old, new in (("é".encode(), b"\xff\xff"), (b"1/b.png", b"\0" * 7)):
        (tmp_path / "t.zip").write_bytes(content.replace(old, new))
        with pytest.raises(DataError):
            prepare(tmp_path / "t.zip")


def damaged(data: st.DataObject, content: bytes) -> bytes:
    """One to four bytes changed, or the end cut off."""
    changed = bytearray(content)
    if data.draw(st.integers(0, 4)) == 0:
        return content[: data.draw(st.integers(0, len(content)))]
    for _ in range(data.draw(st.integers(1, 4))):
        changed[-1 - data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    return bytes(changed)


def acceptable(read: Callable[[], object]) -> None:
    """Run; our own errors are fine, anything else fails the test."""
    with suppress(ClassifierError):
        read()
