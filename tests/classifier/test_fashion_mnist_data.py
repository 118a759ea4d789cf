"""The data set: found in order, checked byte by byte, refused in plain words."""

from __future__ import annotations

import gzip
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from classifier import DataError, Dataset, training_set, validation_set
from classifier.data import (
    GROUPS,
    LABELS,
    TRAINING,
    VALIDATION,
    dataset,
    load_fashion_mnist,
    read_idx,
    stratified_split,
)


def test_the_validation_set_ships_with_the_package(validation: Dataset) -> None:
    """10,000 images, a thousand of each class, without network or system package."""
    assert validation.images.shape == (10_000, 28, 28)
    assert np.bincount(validation.labels).tolist() == [1000] * 10
    assert validation.class_names == LABELS


def test_every_class_belongs_to_exactly_one_group() -> None:
    """The five groups partition the ten classes."""
    members = [name for names in GROUPS.values() for name in names]
    assert len(GROUPS) == 5
    assert sorted(members) == sorted(LABELS)


@pytest.mark.parametrize("packed", [True, False])
def test_plain_and_gzipped_files_load_alike(
    validation: Dataset, idx_directory: Callable[..., Path], packed: bool
) -> None:
    """Only the decompressed content counts, so a recompressed copy is as good."""
    loaded = validation_set(idx_directory(validation.images, validation.labels, packed))
    assert loaded.sha256 == validation.sha256


def test_one_changed_pixel_is_refused(validation: Dataset, idx_directory: Callable[..., Path]) -> None:
    """A file that is not the release is named, with found and expected hash."""
    images = validation.images.copy()
    images[0, 0, 0] ^= 1
    with pytest.raises(DataError, match=r"t10k-images-idx3-ubyte\.gz: not the content.*expected 5b4141f0"):
        validation_set(idx_directory(images, validation.labels))


def test_a_wrong_magic_number_is_named(tmp_path: Path) -> None:
    """A file of another kind is told apart from a damaged one."""
    path = tmp_path / "labels"
    path.write_bytes(struct.pack(">II", 1234, 5) + b"abcde")
    with pytest.raises(DataError, match=r"labels: not an IDX file, magic number 1234"):
        read_idx(path)


def test_a_truncated_gzip_is_refused(validation: Dataset, idx_directory: Callable[..., Path]) -> None:
    """An interrupted download is named as such, with what to do."""
    directory = idx_directory(validation.images[:50], validation.labels[:50])
    path = directory / "t10k-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match=r"cannot be read or decompressed.*fetch it again"):
        read_idx(path)


@pytest.mark.parametrize(
    "content", [b"", b"\0\0\x08\x03", b"\0\0\x08\x03\0\0\0\x05", gzip.compress(b"hello", mtime=0)]
)
def test_files_too_short_for_a_header_are_refused(tmp_path: Path, content: bytes) -> None:
    """No content is short or odd enough to get past the reader as another exception."""
    path = tmp_path / "images"
    path.write_bytes(content)
    with pytest.raises(DataError):
        read_idx(path)


def test_a_header_that_lies_about_the_size_is_refused(tmp_path: Path) -> None:
    """A header may claim more images than there are, or terabytes of them."""
    path = tmp_path / "images"
    for count in (3, 2**32 - 1):
        path.write_bytes(struct.pack(">4I", 2051, count, 28, 28) + bytes(2 * 784))
        with pytest.raises(DataError, match="header says"):
            read_idx(path)


def test_a_missing_data_set_lists_every_place_and_the_next_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error of a newcomer without data says where it looked and what to type."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("COUTURIER_DATA_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("classifier.data.fashion_mnist.SYSTEM", tmp_path / "system")

    def offline(url: str, target: Path) -> None:
        raise OSError(f"no route to {url}")

    with pytest.raises(DataError) as caught:
        load_fashion_mnist(TRAINING, fetch=offline)
    text = str(caught.value)
    for expected in ("FashionMNIST/raw", "system", "cache", "no route", "apt-get install", "--data DIR"):
        assert expected in text


def test_the_environment_variable_is_not_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A directory named on purpose but empty is an error, not a reason to look elsewhere."""
    monkeypatch.setenv("COUTURIER_DATA_DIR", str(tmp_path))
    with pytest.raises(DataError, match="COUTURIER_DATA_DIR"):
        training_set()


def test_a_given_path_without_the_files_is_refused(tmp_path: Path) -> None:
    """``--data`` at the wrong directory names that directory."""
    with pytest.raises(DataError, match="given"):
        training_set(tmp_path)


def test_torchvisions_layout_below_a_given_path_is_found(
    validation: Dataset, idx_directory: Callable[..., Path], tmp_path: Path
) -> None:
    """Whoever has torchvision's download can point at its root."""
    raw = tmp_path / "root" / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for file in idx_directory(validation.images, validation.labels, packed=False).glob("t10k-*"):
        file.rename(raw / file.name)
    assert validation_set(tmp_path / "root").sha256 == validation.sha256


def test_a_download_is_kept_and_checked(
    validation: Dataset, idx_directory: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was fetched once is found the next time without fetching."""
    source = idx_directory(validation.images, validation.labels)
    monkeypatch.setattr("classifier.data.fashion_mnist.SYSTEM", tmp_path / "none")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("COUTURIER_DATA_DIR", raising=False)
    monkeypatch.chdir(source)
    fetched: list[str] = []

    def fetch(url: str, target: Path) -> None:
        fetched.append(url)
        target.write_bytes((source / url.rsplit("/", 1)[1]).read_bytes())

    first = load_fashion_mnist(VALIDATION, fetch=fetch)
    second = load_fashion_mnist(VALIDATION, fetch=fetch)
    assert len(fetched) == 2
    assert first.sha256 == second.sha256 == validation.sha256


def test_a_label_without_a_name_is_refused() -> None:
    """Labels index the class names, so one past the end is a mistake in the data."""
    with pytest.raises(DataError, match="3 class names"):
        dataset(np.zeros((2, 28, 28), np.uint8), np.array([0, 3]), ("a", "b", "c"))


def test_the_content_hash_sees_pixels_labels_and_names() -> None:
    """Any change of content changes the hash that manifests record."""
    images, labels = np.zeros((2, 28, 28), np.uint8), np.array([0, 1])
    hashes = {
        dataset(images, labels, ("a", "b")).sha256,
        dataset(images + 1, labels, ("a", "b")).sha256,
        dataset(images, labels[::-1].copy(), ("a", "b")).sha256,
        dataset(images, labels, ("a", "c")).sha256,
    }
    assert len(hashes) == 4


@given(
    counts=st.lists(st.integers(1, 40), min_size=1, max_size=6),
    fraction=st.floats(0, 0.9),
    seed=st.integers(0, 2**32 - 1),
)
def test_a_split_is_a_stratified_partition(counts: list[int], fraction: float, seed: int) -> None:
    """Every image is on exactly one side, every class gives its share, and the seed decides alone."""
    labels = np.repeat(np.arange(len(counts)), counts).astype(np.int64)
    kept, held = stratified_split(labels, fraction, seed)
    assert sorted([*kept, *held]) == list(range(len(labels)))
    assert np.bincount(labels[held], minlength=len(counts)).tolist() == [int(n * fraction) for n in counts]
    again = stratified_split(labels, fraction, seed)
    assert np.array_equal(kept, again[0])
    assert np.array_equal(held, again[1])


def test_an_impossible_fraction_is_refused() -> None:
    """Holding out everything would leave nothing to train on."""
    with pytest.raises(ValueError, match="val_fraction"):
        stratified_split(np.zeros(4, np.int64), 1.0, 0)
