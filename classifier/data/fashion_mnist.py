"""Fashion-MNIST: find it, check it, load it. Needs numpy only.

A data set is four IDX files, plain or gzipped. The *decompressed* bytes are
checked against the hashes of the current release (after the fix of 31 August
2017, which removed train/test overlaps); Debian's package recompresses the
files, so hashes of the ``.gz`` differ between sources while the content does not.

The 10,000 validation images ship inside this package (MIT licence, see
``assets/fashion-mnist/LICENSE``); the 60,000 training images do not.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import DataError
from .arrays import Dataset, dataset
from .idx import read_idx

LABELS = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
# Most confusions stay inside a group; what is left is mainly a dress taken for an upper garment.
GROUPS: dict[str, tuple[str, ...]] = {
    "Upper": ("T-shirt/top", "Pullover", "Coat", "Shirt"),
    "Bottom": ("Trouser",),
    "OnePiece": ("Dress",),
    "Footwear": ("Sandal", "Sneaker", "Ankle boot"),
    "Bags": ("Bag",),
}
SHIPPED = Path(__file__).parent.parent / "assets" / "fashion-mnist"
SYSTEM = Path("/usr/share/datasets/fashion-mnist")
UPSTREAM = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"


@dataclass(frozen=True, slots=True)
class Split:
    """One split of the release: its files and what they must contain."""

    name: str
    prefix: str
    count: int
    images_sha256: str
    labels_sha256: str


TRAINING = Split(
    "training",
    "train",
    60_000,
    "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
)
VALIDATION = Split(
    "validation",
    "t10k",
    10_000,
    "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
)


def training_set(path: str | os.PathLike[str] | None = None) -> Dataset:
    """The 60,000 training images; see :func:`load_fashion_mnist` for the search."""
    return load_fashion_mnist(TRAINING, path)


def validation_set(path: str | os.PathLike[str] | None = None) -> Dataset:
    """The 10,000 validation images, from ``path`` if given, else those shipped with this package."""
    return _load(VALIDATION, SHIPPED if path is None else _directory(Path(path), VALIDATION))


def load_fashion_mnist(
    split: Split,
    path: str | os.PathLike[str] | None = None,
    fetch: Callable[[str, Path], None] | None = None,
) -> Dataset:
    """Load one split from the first place that has it.

    Order: ``path``; ``COUTURIER_DATA_DIR``; torchvision's cache (``data`` here or in the
    home directory); Debian's ``dataset-fashion-mnist``; a download into the user's cache.
    A place named on purpose (``path``, the variable) is never passed over in silence.

    Args:
        split: which split.
        path: directory with the IDX files, ``.gz`` or plain.
        fetch: how to download (url, target); the default uses ``urllib``.

    Raises:
        DataError: nowhere to be found (every place is listed), or a file is damaged.
    """
    if path is not None:
        return _load(split, _directory(Path(path), split))
    looked: list[str] = []
    for origin, directory in places():
        if _has(directory, split):
            return _load(split, directory)
        looked.append(f"  {directory} ({origin})")
        if origin == "COUTURIER_DATA_DIR":
            raise DataError(_missing(split, looked))
    try:
        return _load(split, _download(split, fetch or _fetch))
    except OSError as error:
        looked.append(f"  {UPSTREAM} ({error})")
        raise DataError(_missing(split, looked)) from error


def places() -> Iterator[tuple[str, Path]]:
    """The directories searched for the data set, in order, each with why it is searched."""
    chosen = os.environ.get("COUTURIER_DATA_DIR")
    if chosen:
        yield "COUTURIER_DATA_DIR", Path(chosen)
        return
    for root in (Path("data"), Path.home() / "data"):
        yield "torchvision's cache", root / "FashionMNIST" / "raw"
    yield "Debian package dataset-fashion-mnist", SYSTEM
    yield "earlier download", cache_directory()


def cache_directory() -> Path:
    """Where downloads are kept: ``$XDG_CACHE_HOME/couturier/fashion-mnist``."""
    cache = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(cache) / "couturier" / "fashion-mnist"


def _load(split: Split, directory: Path) -> Dataset:
    images = read_idx(_file(directory, split, "images-idx3-ubyte"), split.images_sha256)
    labels = read_idx(_file(directory, split, "labels-idx1-ubyte"), split.labels_sha256)
    return dataset(images, labels.astype(np.int64), LABELS)


def _file(directory: Path, split: Split, kind: str) -> Path:
    """The plain or gzipped file; the plain path when neither exists."""
    plain = directory / f"{split.prefix}-{kind}"
    packed = plain.with_name(plain.name + ".gz")
    return packed if packed.is_file() else plain


def _has(directory: Path, split: Split) -> bool:
    return all(_file(directory, split, kind).is_file() for kind in ("images-idx3-ubyte", "labels-idx1-ubyte"))


def _directory(path: Path, split: Split) -> Path:
    """``path`` itself or its torchvision layout below.

    Raises:
        DataError: neither holds the split's files.
    """
    for directory in (path, path / "FashionMNIST" / "raw"):
        if _has(directory, split):
            return directory
    raise DataError(_missing(split, [f"  {path} (given)"]))


def _missing(split: Split, looked: list[str]) -> str:
    return (
        f"the Fashion-MNIST {split.name} set ({split.prefix}-images-idx3-ubyte and"
        f" {split.prefix}-labels-idx1-ubyte, .gz or plain) was not found. Looked in:\n"
        + "\n".join(looked)
        + "\nNext: apt-get install"
        " dataset-fashion-mnist, or name the directory with --data DIR or COUTURIER_DATA_DIR."
    )


def _download(split: Split, fetch: Callable[[str, Path], None]) -> Path:
    directory = cache_directory()
    directory.mkdir(parents=True, exist_ok=True)
    for kind in ("images-idx3-ubyte.gz", "labels-idx1-ubyte.gz"):
        target = directory / f"{split.prefix}-{kind}"
        partial = target.with_name(target.name + f".{os.getpid()}.part")
        fetch(UPSTREAM + target.name, partial)
        partial.replace(target)
    return directory


def _fetch(url: str, target: Path) -> None:
    from urllib.request import urlopen

    # Upstream offers plain HTTP only; the content is checked against a pinned hash, nothing slips in.
    with urlopen(url, timeout=10.0) as response:  # noqa: S310 - fixed http URL of this module
        target.write_bytes(response.read())
