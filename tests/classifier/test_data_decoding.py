"""Sizes, colours, streaming to a file, IDX, and data in the form of a trained model."""

from __future__ import annotations

import gzip
import os
import struct
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from classifier import DataError, training_set, validation_set
from classifier.data import DataOptions, Form, dataset, places, prepare
from classifier.data.fashion_mnist import GROUPS, LABELS, SHIPPED
from classifier.images import Preprocessing
from tests.classifier.digit_sets import digits, marketplace, png, write_folder


def write_pictures(root: Path, pictures: dict[str, bytes]) -> Path:
    """Files below ``root``."""
    for name, content in pictures.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def write_idx(path: Path, array: NDArray[np.uint8]) -> None:
    """One IDX file, gzipped when the name says so."""
    magic = {3: 2051, 1: 2049}[array.ndim]
    content = struct.pack(f">{1 + array.ndim}I", magic, *array.shape) + array.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(content, 1) if path.suffix == ".gz" else content)


@pytest.mark.parametrize(
    ("sides", "size"),
    [([8], 28), ([28], 28), ([30], 32), ([29], 28), ([40, 44, 48], 44), ([64], 64), ([300], 64)],
)
def test_the_size_follows_the_images(tmp_path: Path, sides: list[int], size: int) -> None:
    """The median of the longer side, in steps of 4, from 28 to 64 pixels."""
    rng = np.random.default_rng(0)
    pictures = {
        f"{at % 2}/{at}.png": png(rng.integers(0, 255, (side // 2, side), np.uint8))
        for at, side in enumerate(sides * 6)
    }
    assert prepare(write_pictures(tmp_path, pictures)).preprocessing.size == size


def test_colour_is_kept_as_soon_as_it_is_there(tmp_path: Path) -> None:
    """Gray pictures stored as RGB or as JPEG stay gray; one coloured image in a hundred counts."""
    rng = np.random.default_rng(0)
    gray = [Image.fromarray(rng.integers(0, 255, (20, 20), np.uint8)).convert("RGB") for _ in range(99)]
    pictures = {
        f"{at % 2}/{at}.{kind.lower()}": png(image, kind)
        for at, image in enumerate(gray)
        for kind in ["JPEG" if at % 3 else "PNG"]
    }
    place = write_pictures(tmp_path, pictures)
    assert prepare(place).training.images.shape[1:] == (28, 28)
    write_pictures(place, {"0/red.png": png(Image.new("RGB", (20, 20), (200, 20, 20)))})
    prepared = prepare(place)
    assert prepared.training.images.shape[1:] == (3, 28, 28)
    assert prepared.training.pixels(slice(0, 5)).shape == (5, 3, 28, 28)
    assert prepare(place, DataOptions(channels=1, size=36)).training.images.shape[1:] == (36, 36)


def test_a_set_keeps_its_own_polarity_unless_told(tmp_path: Path) -> None:
    """Dark on light is reported, not turned over; with "invert" it is."""
    frame = np.full((28, 28), 230, np.uint8)
    frame[8:20, 8:20] = 10
    pictures = {f"{at % 2}/{at}.png": png(frame + np.uint8(at)) for at in range(12)}
    place = write_pictures(tmp_path, pictures)
    kept, turned = prepare(place), prepare(place, DataOptions(polarity="invert"))
    assert "100% dark on light" in kept.describe()
    assert (kept.preprocessing.polarity, turned.preprocessing.polarity) == ("keep", "invert")
    assert kept.training.images[0, 0, 0] == 255 - turned.training.images[0, 0, 0]


def test_large_sets_live_in_a_file_that_is_used_again(tmp_path: Path) -> None:
    """Above the limit pixels go to a memory map, equal to the bit, decoded once until the source changes."""
    place = write_folder(tmp_path / "data", 20)
    (place / "3" / "broken.png").write_bytes(b"not an image")
    calls: list[tuple[str, int, int]] = []
    options = DataOptions(cache=tmp_path / "cache", memory_bytes=20_000)
    in_memory = prepare(place, report=lambda *call: calls.append(call))
    assert calls[-1] == ("reading images", 201, 201)
    calls.clear()
    streamed = prepare(place, options, lambda *call: calls.append(call))
    assert len(calls) == 4
    again = prepare(place, options, lambda *call: calls.append(call))
    assert len(calls) == 4
    for prepared in (streamed, again):
        assert prepared.test is not None
        assert isinstance(prepared.training.images, np.memmap)
        assert not prepared.training.images.flags.writeable
        assert not isinstance(prepared.test.images, np.memmap)  # small enough for memory
        assert prepared.training.sha256 == in_memory.training.sha256
        assert prepared.facts["dropped"] == in_memory.facts["dropped"]
        assert prepared.facts["split"] == in_memory.facts["split"]
    assert again.training.pixels(np.array([5, 1])).shape == (2, 1, 28, 28)
    (place / "3" / "more.png").write_bytes(png(digits()[0][7]))
    assert prepare(place, options).facts["used"] == 201


def test_the_cache_is_bounded_and_the_oldest_goes(tmp_path: Path) -> None:
    """What was used longest ago makes room, what a killed run left goes, and nothing else is touched."""
    cache = tmp_path / "cache"
    places = [write_folder(tmp_path / name, 20) for name in ("first", "second", "third")]
    free = DataOptions(cache=cache, memory_bytes=0)
    first, second = (prepare(place, free) for place in places[:2])
    sets = sorted(cache.iterdir(), key=lambda each: each.stat().st_mtime_ns)
    for age, each in enumerate(reversed(sets), start=1):
        for file in (*each.iterdir(), each):
            os.utime(file, (0, age))
    running, killed = (cache / f"{'0' * 32}.{pid}" for pid in (1, 2))
    for each in (running, killed, cache / "mine"):
        each.mkdir()
    os.utime(killed, (0, 0))
    assert prepare(places[0], free).training.sha256 == first.training.sha256  # now the last that was used
    held = sum(file.stat().st_size for each in sets for file in (each, *each.iterdir()))
    prepare(places[2], DataOptions(cache=cache, memory_bytes=0, cache_bytes=held + 10_000))
    left = set(cache.iterdir())
    assert len(left) == 4
    assert {sets[0], running, cache / "mine"} < left
    assert second.training.images.sum() > 0  # mapped before, still whole


def test_a_damaged_cache_says_what_to_remove(tmp_path: Path) -> None:
    """A file cut by a full disk is found when it is opened."""
    options = DataOptions(cache=tmp_path / "cache", memory_bytes=0)
    place = write_folder(tmp_path / "data", 6)
    prepare(place, options)
    (stored,) = (tmp_path / "cache").glob("*/pixels.npy")
    stored.write_bytes(stored.read_bytes()[:-100])
    with pytest.raises(DataError, match=r"damaged.*remove the directory"):
        prepare(place, options)


def test_a_cache_that_cannot_be_written_names_the_variable(tmp_path: Path) -> None:
    """The next step is another disk."""
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(DataError, match=r"cannot be written.*XDG_CACHE_HOME"):
        prepare(write_folder(tmp_path / "data", 6), DataOptions(cache=tmp_path / "cache", memory_bytes=0))


def test_fashion_mnist_is_the_default_with_its_published_hash() -> None:
    """Without a path: the pinned release, and with no validation share every training image in its order."""
    if not any(path.is_dir() for _, path in places()):
        pytest.skip("the 60,000 training images are not on this machine")
    prepared = prepare(None, DataOptions(val_fraction=0))
    assert prepared.training.sha256 == training_set().sha256
    assert prepared.test is not None
    assert prepared.test.sha256 == validation_set().sha256
    assert prepared.groups == GROUPS
    assert prepared.val is None


@pytest.mark.parametrize("name", ["{}-{}-idx{}-ubyte", "{}-{}-idx{}-ubyte.gz", "{}-{}.idx{}-ubyte"])
def test_any_idx_pair_is_a_data_set(tmp_path: Path, name: str) -> None:
    """Sides by the prefix, classes by number, small images enlarged by the one preprocessing."""
    images, labels = digits(20)
    for prefix, part in (("train", slice(0, 160)), ("t10k", slice(160, 200))):
        write_idx(tmp_path / name.format(prefix, "images", 3), images[part])
        write_idx(tmp_path / name.format(prefix, "labels", 1), labels[part])
    prepared = prepare(tmp_path)
    assert prepared.test is not None
    assert len(prepared.test) == 40
    assert prepared.training.class_names == tuple("0123456789")
    assert prepared.training.size == 28
    assert prepared.groups == {}
    as_folder = prepare(write_folder(tmp_path / "folder", 20))
    assert set(map(bytes, prepared.test.images)) <= {
        bytes(image)
        for part in (as_folder.training, as_folder.val, as_folder.test)
        for image in (part.images if part else [])
    }
    alone = prepare(next(path for path in tmp_path.glob("train-images*")))
    assert alone.facts["split"]["given"] == []


def test_a_copy_of_fashion_mnist_is_recognised(tmp_path: Path) -> None:
    """Recognised by its hash wherever it lies, either pair alone too; then its classes have names."""
    (tmp_path / "t10k-images-idx3-ubyte.gz").symlink_to(SHIPPED / "t10k-images-idx3-ubyte.gz")
    (tmp_path / "t10k-labels-idx1-ubyte.gz").symlink_to(SHIPPED / "t10k-labels-idx1-ubyte.gz")
    prepared = prepare(tmp_path, DataOptions(val_fraction=0, test_fraction=0))
    assert prepared.training.class_names == LABELS
    assert prepared.training.sha256 == validation_set().sha256


def test_idx_files_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    """No labels, another count, other sizes."""
    images, labels = digits(6)
    write_idx(tmp_path / "train-images-idx3-ubyte", images)
    with pytest.raises(DataError, match="labels are missing; put train-labels-idx1-ubyte"):
        prepare(tmp_path)
    write_idx(tmp_path / "train-labels-idx1-ubyte", labels[:-1].astype(np.uint8))
    with pytest.raises(DataError, match="one label an image"):
        prepare(tmp_path)
    write_idx(tmp_path / "train-labels-idx1-ubyte", labels.astype(np.uint8))
    write_idx(tmp_path / "test-images-idx3-ubyte", images[:, :7])
    write_idx(tmp_path / "test-labels-idx1-ubyte", labels.astype(np.uint8))
    with pytest.raises(DataError, match="image sizes differ"):
        prepare(tmp_path)


def test_data_take_the_form_of_a_trained_model(tmp_path: Path) -> None:
    """Its classes, tags and preprocessing in its order; a class it does not know is dropped by name."""
    marketplace(tmp_path)
    options = DataOptions(images=tmp_path / "data.zip", label="cc3", tags=("floral", "checker"))
    form = Form(Preprocessing(size=32, channels=3), ("skirt", "dress"), ("checker", "dotted", "floral"))
    trained, judged = (
        prepare(tmp_path / "data.parquet", options),
        prepare(tmp_path / "data.parquet", options, form=form),
    )
    assert judged.training.class_names == ("skirt", "dress")
    assert judged.training.images.shape[1:] == (3, 32, 32)
    assert set(judged.facts["dropped"]["reasons"]) == {"unknown class"}
    assert (judged.training.tags[:, 1] == -1).all()
    where = {name: row for row, name in enumerate(trained.training.names)}
    for row, name in enumerate(judged.training.names):
        if name in where:
            assert judged.training.tags[row, [2, 0]].tolist() == trained.training.tags[where[name]].tolist()


def test_the_same_form_gives_the_same_split(tmp_path: Path) -> None:
    """What training held out is what an evaluation with the model's form holds out."""
    place = write_folder(tmp_path, 12)
    trained = prepare(place)
    judged = prepare(place, form=Form(trained.preprocessing, trained.training.class_names))
    assert trained.test is not None
    assert judged.test is not None
    assert judged.test.sha256 == trained.test.sha256
    assert judged.facts["split"] == trained.facts["split"]


def test_a_data_set_of_arrays_is_checked() -> None:
    """Shapes, names and tag values must fit; the error says which do not."""
    images, labels = np.zeros((4, 8, 8), np.uint8), np.array([0, 1, -1, 0])
    tags = np.array([[1], [0], [-1], [1]], np.int8)
    good = dataset(images, labels, ("a", "b"), tags, ("t",), ("w", "x", "y", "z"))
    assert good.take(np.array([3, 1])).names == ("z", "x")
    assert good.take(np.array([3, 1])).tags.tolist() == [[1], [0]]
    assert good.sha256 != dataset(images, labels, ("a", "b"), -tags, ("t",)).sha256
    for arguments, message in (
        ((images, labels[:3], ("a", "b")), "do not fit together"),
        ((images[:, :4], labels, ("a", "b")), "not square"),
        ((np.zeros((4, 2, 8, 8), np.uint8), labels, ("a", "b")), "do not fit together"),
        ((images, labels, ("a", "b"), tags), "tags .* must be"),
        ((images, labels, ("a", "b"), tags * 3, ("t",)), "tags .* must be"),
        ((images, labels, ("a", "b"), tags, ("t",), ("w",)), "1 row names for 4 rows"),
    ):
        with pytest.raises(DataError, match=message):
            dataset(*arguments)
