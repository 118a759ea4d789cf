"""Small real data sets in every form that ``classifier.data`` reads: scikit-learn's digits."""

from __future__ import annotations

import csv
import gzip
import io
import zipfile
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image


@cache
def digits(each: int = 12) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """((10 * each, 8, 8) uint8, labels): the first ``each`` of every digit."""
    # The file that load_digits reads, without the seconds that importing scikit-learn takes.
    package = find_spec("sklearn")
    if package is None or package.origin is None:
        pytest.skip("the digits come from scikit-learn")
    source = Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz"
    table = np.loadtxt(gzip.decompress(source.read_bytes()).decode().splitlines(), delimiter=",")
    labels = table[:, -1].astype(np.int64)
    chosen = np.sort(np.concatenate([np.flatnonzero(labels == digit)[:each] for digit in range(10)]))
    pixels = (table[chosen, :-1].reshape(-1, 8, 8) * 15.9375).astype(np.uint8)  # 0..16 in the source
    return pixels, labels[chosen]


def png(pixels: NDArray[np.uint8] | Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    """An image file's content."""
    target = io.BytesIO()
    (pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)).save(target, kind, **options)
    return target.getvalue()


def write_folder(
    root: Path, each: int = 12, place: Callable[[int, int], str] = lambda row, label: f"{label}/{row:04d}.png"
) -> Path:
    """The digits as files; ``place(row, label)`` says where."""
    for row, (image, label) in enumerate(zip(*digits(each), strict=True)):
        path = root / place(row, int(label))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(image))
    return root


def write_csv(path: Path, columns: Mapping[str, Sequence[Any]], **options: Any) -> Path:
    """A CSV file; None is an empty field."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, **options)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))
    return path


def write_parquet(path: Path, columns: Mapping[str, Sequence[Any]], **options: Any) -> Path:
    """A parquet file."""
    arrow = pytest.importorskip("pyarrow", reason="parquet needs the extra 'train'")
    import pyarrow.parquet

    pyarrow.parquet.write_table(arrow.table({k: list(v) for k, v in columns.items()}), path, **options)
    return path


def write_zip(path: Path, files: Mapping[str, bytes]) -> Path:
    """A zip of files."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def marketplace(root: Path, count: int = 60, seed: int = 0) -> Path:
    """``data.zip``, ``data.parquet`` and ``test.parquet`` as a marketplace gives them, of squares.

    ``cc3`` is the shape of a square (three classes), ``floral`` whether it is outlined; some values lack.
    """
    rng = np.random.default_rng(seed)
    keys = [f"{value:032x}" for value in rng.integers(0, 2**62, count)]
    kinds = rng.integers(0, 3, count)
    files: dict[str, bytes] = {"__MACOSX/images/._x.jpg": b"shadow", "readme.txt": b"hello"}
    for at, (key, kind) in enumerate(zip(keys, kinds.tolist(), strict=True)):
        pixels = rng.integers(0, 60, (40, 30 + 5 * (at % 3), 3), np.uint8)
        pixels[5 : 15 + 10 * kind, 5:25] = (200, 40 * kind, 90)
        files[f"images/{kind}/{key}.jpg"] = png(pixels, "JPEG")
    write_zip(root / "data.zip", files)
    known = count - 10
    write_parquet(
        root / "data.parquet",
        {
            "uuid": keys[:known],
            "cc3": [("dress", "shirt", "skirt")[kind] for kind in kinds[:known]],
            "color1": [("red", "blue", None, "green")[at % 4] for at in range(known)],
            "polka dot": [at % 2 for at in range(known)],
            "floral": [None if at % 5 == 0 else int(kinds[at] == 1) for at in range(known)],
            "checker": [at % 3 == 0 for at in range(known)],
        },
    )
    write_parquet(root / "test.parquet", {"uuid": keys[known:]})
    return root
