"""IDX files as a data set: an images file with its labels file, or a folder of such pairs."""

from __future__ import annotations

import hashlib
import struct
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from . import fashion_mnist
from .idx import IDX_IMAGES, read_idx
from .listing import SIDE_NAMES, TEST, TRAINING, Listing, in_order, no_tags
from .pictures import ArrayPictures

_SIDES = {**SIDE_NAMES, "t10k": TEST}


def find_idx(path: Path) -> list[Path]:
    """The images files at ``path``: itself, those in the folder, or in torchvision's ``*/raw`` below it."""
    if path.is_file():
        return [path] if "idx" in path.name.lower() else []
    for pattern in ("*idx3*", "*/raw/*idx3*"):
        found = sorted(
            {_plain_name(file): file for file in sorted(path.glob(pattern)) if file.is_file()}.values()
        )
        if found:
            return found
    return []


def list_idx(files: list[Path]) -> Listing:
    """The rows of one or several pairs; the prefix of a name (train, t10k, ...) says which side they are on.

    The release of Fashion-MNIST is recognised by its hash and gets its class names; elsewhere a class is
    its number.

    Raises:
        DataError: a labels file is missing, the counts differ, or the image sizes do.
    """
    images, labels, names, given, notes = [], [], [], [], []
    for file in files:
        pixels, numbers = _pair(file)
        prefix = _plain_name(file).lower().split("images")[0].strip("-_.") or "row"
        side = _SIDES.get(prefix) if len(files) > 1 else None
        images.append(pixels)
        labels.append(numbers)
        names += [f"{prefix}/{row}" for row in range(len(numbers))]
        given += [side or (TRAINING if len(files) > 1 else None)] * len(numbers)
    if len({array.shape[1:] for array in images}) > 1:
        raise DataError(f"{files[0].parent}: image sizes differ: {[array.shape for array in images]}")
    release = {fashion_mnist.TRAINING.images_sha256, fashion_mnist.VALIDATION.images_sha256}
    fashion = all(_content_sha256(array) in release for array in images)
    numbers = np.concatenate(labels)
    class_names = fashion_mnist.LABELS if fashion else in_order(map(str, np.unique(numbers).tolist()))
    classes = [class_names[label] if fashion else str(label) for label in numbers.tolist()]
    notes.append("Fashion-MNIST, the release of 31 August 2017" if fashion else "classes are numbers")
    return Listing(
        "IDX",
        ArrayPictures(np.concatenate(images) if len(images) > 1 else images[0]),
        names,
        list(classes),
        given,
        no_tags(len(names)),
        class_names=class_names,
        groups=fashion_mnist.GROUPS if fashion else {},
        notes=notes,
    )


def _pair(file: Path) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """(images (N, H, W), labels (N,)) of an images file and the labels file beside it.

    Raises:
        DataError: either is missing or damaged, or their counts differ.
    """
    wanted = _plain_name(file).replace("images", "labels").replace("idx3", "idx1")
    found = [path for path in (file.with_name(wanted), file.with_name(wanted + ".gz")) if path.is_file()]
    if not found or found[0] == file:
        raise DataError(f"{file}: its labels are missing; put {wanted} (or {wanted}.gz) beside it")
    images, labels = read_idx(file), read_idx(found[0])
    if images.ndim != 3 or labels.ndim != 1 or len(images) != len(labels):
        raise DataError(
            f"{file}: {images.shape} does not fit {found[0].name}: {labels.shape};"
            " one label an image is needed"
        )
    return images, labels


def _plain_name(file: Path) -> str:
    return file.name.removesuffix(".gz")


def _content_sha256(images: NDArray[np.uint8]) -> str:
    """The hash of the IDX file that holds these images."""
    digest = hashlib.sha256(struct.pack(">4I", IDX_IMAGES, *images.shape))
    digest.update(np.ascontiguousarray(images).data)
    return digest.hexdigest()


def list_fashion_mnist() -> Listing:
    """The release from the first place that has it (see :func:`.fashion_mnist.places`), hashes pinned."""
    training, test = fashion_mnist.training_set(), fashion_mnist.validation_set()
    numbers = np.concatenate([training.labels, test.labels])
    sides = [TRAINING] * len(training) + [TEST] * len(test)
    names = [f"train/{row}" for row in range(len(training))] + [f"t10k/{row}" for row in range(len(test))]
    return Listing(
        "IDX",
        ArrayPictures(np.concatenate([training.images, test.images])),
        names,
        [fashion_mnist.LABELS[label] for label in numbers.tolist()],
        list(sides),
        no_tags(len(names)),
        class_names=fashion_mnist.LABELS,
        groups=fashion_mnist.GROUPS,
        notes=["Fashion-MNIST, the release of 31 August 2017"],
    )
