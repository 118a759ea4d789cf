"""Rows for prediction: input order, one for each input row, and results written as tables."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest

from classifier import DataError, iter_images
from classifier.data import open_rows, write_table
from classifier.data.tables import open_table
from tests.classifier.digit_sets import (
    digits,
    marketplace,
    png,
    write_csv,
    write_folder,
    write_parquet,
    write_zip,
)


def test_the_marketplaces_test_table_is_read_in_order(tmp_path: Path) -> None:
    """A table of uuids alone and the zip: one row each, in input order, a missing image in its place."""
    marketplace(tmp_path)
    keys = [*open_table(tmp_path / "test.parquet").values("uuid"), "no-such-uuid", None]
    write_parquet(tmp_path / "more.parquet", {"uuid": keys[::-1]})
    with open_rows(tmp_path / "more.parquet", tmp_path / "data.zip") as rows:
        found = list(rows)
    assert rows.key_name == "uuid"
    assert list(rows.keys) == [key for key, _ in found] == keys[::-1]
    assert isinstance(found[0][1], DataError)
    assert "no-such-uuid" in str(found[1][1])
    assert all(isinstance(data, bytes) and data[:2] == b"\xff\xd8" for _, data in found[2:])


def test_integer_keys_keep_their_type(tmp_path: Path) -> None:
    """The result table can be joined to the input without a cast."""
    place = write_folder(tmp_path / "images", 1, lambda row, _: f"{row}.png")
    table = write_parquet(tmp_path / "t.parquet", {"id": [3, 1, 2]})
    with open_rows(table, place) as rows:
        assert rows.keys == (3, 1, 2)
        assert [data for _, data in rows] == [(place / f"{row}.png").read_bytes() for row in (3, 1, 2)]


def test_the_key_may_be_named(tmp_path: Path) -> None:
    """Otherwise it is the column that names the most images."""
    place = write_folder(tmp_path / "images", 1, lambda row, _: f"{row}.png")
    table = write_csv(tmp_path / "t.csv", {"rank": [1, 1, 1], "photo": ["7", "8", "9"]})
    with open_rows(table, place) as found, open_rows(table, place, key="rank") as named:
        assert (found.key_name, named.key_name) == ("photo", "rank")
        assert found.keys == ("7", "8", "9")
    with pytest.raises(DataError, match=r"no column 'foto'.*--key \"photo\""):
        open_rows(table, place, key="foto")


def test_bytes_without_an_identifier_are_counted(tmp_path: Path) -> None:
    """Rows are then numbered from 0; a column of distinct values serves as soon as there is one."""
    images = [png(image) for image in digits(1)[0]]
    with open_rows(write_parquet(tmp_path / "a.parquet", {"image": images, "fold": [1] * 10})) as rows:
        assert (rows.key_name, rows.keys) == ("row", tuple(range(10)))
        assert [data for _, data in rows] == images
    names = [f"n{at}" for at in range(10)]
    with open_rows(write_parquet(tmp_path / "b.parquet", {"image": images, "name": names})) as rows:
        assert (rows.key_name, rows.keys) == ("name", tuple(names))


def test_folders_zips_and_paths_are_sources_too(tmp_path: Path) -> None:
    """The same images, however they are given; hidden and foreign files are left out."""
    place = write_folder(tmp_path / "images", 1, lambda row, _: f"{row}.png")
    (place / ".hidden.png").write_bytes(b"x")
    (place / "notes.txt").write_text("x")
    packed = write_zip(tmp_path / "images.zip", {p.name: p.read_bytes() for p in place.glob("[0-9].png")})
    table = write_csv(tmp_path / "t.csv", {"file": [f"images/{row}.png" for row in range(10)]})
    with open_rows(place) as loose, open_rows(packed) as zipped, open_rows(table) as listed:
        assert loose.key_name == zipped.key_name == "path"
        assert list(loose) == list(zipped)
        assert [data for _, data in listed] == [data for _, data in loose]
    assert [data for _, data in iter_images([place])] == [data for _, data in iter_images([packed])]


def test_a_damaged_line_stays_a_row(tmp_path: Path) -> None:
    """One row out for one row in, also where a CSV line cannot be taken apart."""
    write_folder(tmp_path, 1, lambda row, _: f"{row}.png")
    (tmp_path / "t.csv").write_text("file,note\n0.png,x\n1.png\n2.png,y\n")
    with open_rows(tmp_path / "t.csv") as rows:
        found = [data for _, data in rows]
    assert [isinstance(data, bytes) for data in found] == [True, False, True]
    assert "1 fields where the header has 2" in str(found[1])


def test_a_zip_bomb_is_read_no_further_than_the_cap(tmp_path: Path) -> None:
    """A member that unpacks to 64 MiB of zeros gives one byte over what the decoder accepts."""
    from classifier.images import InvalidImage, Preprocessing, preprocess

    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb.png", bytes(64 << 20))
    with open_rows(tmp_path / "bomb.zip") as rows:
        ((_, data),) = rows
    assert isinstance(data, bytes)
    assert len(data) == Preprocessing().max_bytes + 1
    refused = preprocess(data, Preprocessing())
    assert isinstance(refused, InvalidImage)
    assert refused.reason == "too-large"


def test_an_encrypted_zip_says_so(tmp_path: Path) -> None:
    """The flag in the directory is enough; nothing is read."""
    path = write_zip(tmp_path / "secret.zip", {"a.png": png(digits()[0][0])})
    content = bytearray(path.read_bytes())
    content[content.rindex(b"PK\1\2") + 8] |= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match="encrypted; unpack it"):
        open_rows(path)


def test_sources_that_are_not_there_are_named(tmp_path: Path) -> None:
    """A typo in either path."""
    with pytest.raises(DataError, match=r"nowhere\.csv: no such file"):
        open_rows(tmp_path / "nowhere.csv")
    table = write_csv(tmp_path / "t.csv", {"id": [1]})
    with pytest.raises(DataError, match=r"nowhere\.zip: cannot be read"):
        open_rows(table, tmp_path / "nowhere.zip")


COLUMNS = {"uuid": ["a", "b", "c"], "category1": ["dress", None, "tee, plain"], "floral": [1, None, 0]}


def test_results_are_written_by_their_suffix(tmp_path: Path) -> None:
    """Parquet, CSV and JSON lines hold the same rows; what is not known is null."""
    for name in ("out.parquet", "out.csv", "out.jsonl"):
        write_table(tmp_path / name, COLUMNS)
    table = open_table(tmp_path / "out.parquet")
    assert {name: table.values(name) for name in table.columns} == COLUMNS
    assert (tmp_path / "out.csv").read_text().splitlines()[2] == "b,,"
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert lines[2] == {"uuid": "c", "category1": "tee, plain", "floral": 0}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.csv", "out.jsonl", "out.parquet"]


def test_a_table_that_cannot_be_written_says_why(tmp_path: Path) -> None:
    """Another suffix, a directory that is not there, columns that do not fit."""
    with pytest.raises(DataError, match=r"written as \.parquet, \.csv or \.jsonl"):
        write_table(tmp_path / "out.xlsx", COLUMNS)
    with pytest.raises(DataError, match="cannot be written"):
        write_table(tmp_path / "missing" / "out.csv", COLUMNS)
    with pytest.raises(ValueError, match="differ in length"):
        write_table(tmp_path / "out.csv", {"a": [1], "b": []})
