"""The user's own images: files, folders and zips."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

import pytest

from client import SourceError
from client.sources.files import MAX_FILE_BYTES, Files


def subjects(files: Files) -> list[str]:
    return [each.request.subject or "" for each in files]


def test_a_named_file_is_sent_whatever_it_is(tmp_path: Path) -> None:
    """The user said so; the worker will say what it thinks of it."""
    path = tmp_path / "notes.txt"
    path.write_bytes(b"hello")
    (submission,) = Files([path])
    assert submission.request.image == b"hello"
    assert submission.request.content_type == "application/octet-stream"
    assert submission.request.subject == str(path)
    assert submission.label is None


def test_a_folder_gives_its_images_in_order_and_counts_the_rest(tmp_path: Path) -> None:
    """Recursively, by extension in any case, without the shadows that macOS leaves."""
    for name in ("b/2.JPG", "a.png", "b/1.png", "c.txt", "b/._1.png", "._a.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    files = Files([tmp_path])
    assert subjects(files) == [str(tmp_path / name) for name in ("a.png", "b/1.png", "b/2.JPG")]
    assert [each.request.content_type for each in files] == ["image/png", "image/png", "image/jpeg"]
    assert (len(files), files.skipped) == (3, 3)


def test_a_zip_gives_its_images(tmp_path: Path) -> None:
    """Several zips and files may be mixed."""
    for name in ("x.zip", "y.zip"):
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            archive.writestr("in/1.png", f"{name}1")
            archive.writestr("in/2.png", f"{name}2")
            archive.writestr("readme.md", "no image")
            archive.writestr("__MACOSX/in/1.png", "no image")
    (tmp_path / "z.png").write_bytes(b"z")
    files = Files([tmp_path / "x.zip", tmp_path / "z.png", tmp_path / "y.zip"])
    assert [each.request.image for each in files] == [b"x.zip1", b"x.zip2", b"z", b"y.zip1", b"y.zip2"]
    assert subjects(files)[0] == f"{tmp_path}/x.zip/in/1.png"
    assert files.skipped == 4


def test_a_name_that_is_not_unicode_can_be_sent(tmp_path: Path) -> None:
    """A subject must be text, so such bytes are replaced."""
    path = os.fsencode(tmp_path) + b"/caf\xe9.png"
    with open(path, "wb") as file:  # noqa: PTH123 - the path is bytes
        file.write(b"x")
    assert subjects(Files([tmp_path])) == [f"{tmp_path}/caf\ufffd.png"]


def test_every_path_is_checked_before_anything_is_read(tmp_path: Path) -> None:
    """The second path fails while the first has not been touched."""
    (tmp_path / "a.png").write_bytes(b"a")
    with pytest.raises(SourceError, match="nowhere does not exist"):
        Files([tmp_path / "a.png", tmp_path / "nowhere"])


def test_what_holds_no_image_is_an_error(tmp_path: Path) -> None:
    """Silence would look like success."""
    (tmp_path / "c.txt").touch()
    with pytest.raises(SourceError, match="holds no image"):
        Files([tmp_path])
    with zipfile.ZipFile(tmp_path / "e.zip", "w"):
        pass
    with pytest.raises(SourceError, match="holds no image"):
        Files([tmp_path / "e.zip"])


def test_a_damaged_zip_is_an_error(tmp_path: Path) -> None:
    """At once if it is no zip; with the member's name if only the content is damaged."""
    path = tmp_path / "a.zip"
    path.write_bytes(b"PK but no more")
    with pytest.raises(SourceError, match="as a zip"):
        Files([path])
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("1.png", b"0123456789" * 10)
    content = bytearray(path.read_bytes())
    content[60] ^= 1
    path.write_bytes(content)
    with pytest.raises(SourceError, match=r"1\.png cannot be unpacked"):
        list(Files([path]))


def test_a_zip_bomb_is_left_out(tmp_path: Path) -> None:
    """A member over the limit is never unpacked; as a file of its own it is an error."""
    path = tmp_path / "bomb.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb.png", bytes(MAX_FILE_BYTES + 1))
        archive.writestr("good.png", b"x")
    files = Files([path])
    assert (len(files), files.skipped) == (1, 1)
    with (tmp_path / "big.png").open("wb") as file:
        file.truncate(MAX_FILE_BYTES + 1)
    with pytest.raises(SourceError, match="at most"):
        Files([tmp_path / "big.png"])


def test_a_file_that_goes_away_is_named(tmp_path: Path) -> None:
    """Found when its turn comes."""
    path = tmp_path / "a.png"
    path.write_bytes(b"a")
    files = Files([path])
    path.unlink()
    with pytest.raises(SourceError, match=r"a\.png cannot be read"):
        list(files)
