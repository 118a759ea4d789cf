"""Shared fixtures: encoded images, small data sets, a trained and exported tiny model."""

from __future__ import annotations

import gzip
import importlib
import io
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from classifier import Classifier, Dataset, validation_set
from classifier.bundle import SHIPPED
from classifier.data import LABELS, dataset


@pytest.fixture(scope="session")
def torch() -> Any:
    """The torch module on one thread; without it the test is skipped, or fails where everything must run.

    Nets this small gain nothing from a second thread, and on a busy machine wait for it at every layer.
    """
    try:
        module = importlib.import_module("torch")
        module.set_num_threads(1)
        return module
    except ModuleNotFoundError:
        if os.environ.get("REQUIRE_SERVICES") == "1":
            pytest.fail("torch is not installed, but REQUIRE_SERVICES=1 wants every test to run")
        pytest.skip("torch is not installed (extra 'train')")


@pytest.fixture(scope="session")
def encode() -> Callable[..., bytes]:
    """``encode(image_or_array, kind="PNG", **options)`` -> file content."""

    def encoded(image: Any, kind: str = "PNG", **options: Any) -> bytes:
        picture = image if isinstance(image, Image.Image) else Image.fromarray(image)
        target = io.BytesIO()
        picture.save(target, kind, **options)
        return target.getvalue()

    return encoded


@pytest.fixture(scope="session")
def validation() -> Dataset:
    """The 10,000 shipped images."""
    return validation_set()


@pytest.fixture(scope="session")
def pngs(validation: Dataset, encode: Callable[..., bytes]) -> list[bytes]:
    """The first 200 validation images as PNG files."""
    return [encode(image) for image in validation.images[:200]]


@pytest.fixture(scope="session")
def classifier() -> Classifier:
    """The shipped model on its default engine."""
    return Classifier.load()


@pytest.fixture
def bundle_copy(tmp_path: Path) -> Path:
    """A copy of the shipped bundle that a test may damage."""
    return Path(shutil.copytree(SHIPPED, tmp_path / "bundle"))


@pytest.fixture(scope="session")
def stripes() -> Dataset:
    """640 learnable images: class k is a bright bar at its own place, over noise."""
    rng = np.random.default_rng(7)
    labels = np.arange(640, dtype=np.int64) % 10
    images = rng.integers(0, 60, (640, 28, 28), dtype=np.uint8)
    for index, label in enumerate(labels):
        images[index, 2 + 2 * int(label) : 5 + 2 * int(label), 4:24] = 230
    return dataset(images, labels, LABELS)


@pytest.fixture
def idx_directory(tmp_path: Path) -> Callable[..., Path]:
    """``idx_directory(images, labels, packed=True)`` -> a directory with a t10k pair in IDX form."""

    def write(images: np.ndarray, labels: np.ndarray, packed: bool = True) -> Path:
        for kind, magic, array in (("images-idx3", 2051, images), ("labels-idx1", 2049, labels)):
            content = (
                struct.pack(f">{1 + array.ndim}I", magic, *array.shape) + array.astype(np.uint8).tobytes()
            )
            name = f"t10k-{kind}-ubyte" + (".gz" if packed else "")
            (tmp_path / name).write_bytes(gzip.compress(content, 1) if packed else content)
        return tmp_path

    return write
