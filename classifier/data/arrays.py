"""The form every data set takes before training: arrays, names, and a hash of the content."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError

NO, YES, UNKNOWN = 0, 1, -1


@dataclass(frozen=True, slots=True)
class Dataset:
    """Images with their labels and tags; make one with :func:`dataset`.

    Attributes:
        images: (N, H, W) uint8 gray or (N, 3, H, W) uint8 RGB, H = W; may be a read-only memory map.
        labels: (N,) int64 indexing ``class_names``, -1 where not known.
        class_names: the classes in the order of the network's outputs.
        sha256: of the content (shape, names, pixels, labels, tags), as manifests record it.
        tags: (N, T) int8, 1 yes, 0 no, -1 not known.
        tag_names: the T tags in the order of the network's outputs.
        names: where each row came from, or () when nobody said.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    class_names: tuple[str, ...]
    sha256: str
    tags: NDArray[np.int8]
    tag_names: tuple[str, ...] = ()
    names: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def channels(self) -> int:
        """1 for gray, 3 for RGB."""
        return 1 if self.images.ndim == 3 else 3

    @property
    def size(self) -> int:
        """Side of the images in pixels."""
        return int(self.images.shape[-1])

    def pixels(self, index: NDArray[np.int64] | slice = slice(None)) -> NDArray[np.uint8]:
        """The chosen images as a contiguous (n, C, H, W) uint8 array in memory."""
        chosen = self.images[index]
        return np.ascontiguousarray(chosen[:, None] if self.channels == 1 else chosen)

    def take(self, index: NDArray[np.int64]) -> Dataset:
        """The chosen rows, in the order of ``index``, with their own content hash; copied into memory."""
        names = tuple(self.names[at] for at in index) if self.names else ()
        return dataset(
            self.images[index], self.labels[index], self.class_names, self.tags[index], self.tag_names, names
        )


def dataset(
    images: NDArray[np.uint8],
    labels: NDArray[np.int64],
    class_names: tuple[str, ...],
    tags: NDArray[np.int8] | None = None,
    tag_names: tuple[str, ...] = (),
    names: tuple[str, ...] = (),
) -> Dataset:
    """Build a :class:`Dataset` and hash its content (``names`` are not part of it).

    Raises:
        DataError: the arrays do not fit together, or a label or tag has no name.
    """
    tags = np.empty((len(labels), 0), np.int8) if tags is None else tags
    colour = images.ndim == 4 and images.shape[1] == 3
    if not (images.ndim == 3 or colour) or len(images) != len(labels):
        raise DataError(f"images {images.shape} and labels {labels.shape} do not fit together")
    if images.shape[-1] != images.shape[-2]:
        raise DataError(f"images {images.shape} are not square; classifier.data.prepare resizes them")
    if len(labels) and not (int(labels.min()) >= UNKNOWN and int(labels.max()) < len(class_names)):
        raise DataError(
            f"labels lie in {labels.min()}..{labels.max()}, but there are {len(class_names)} class names"
        )
    if tags.shape != (len(labels), len(tag_names)) or (tags.size and not -1 <= tags.min() <= tags.max() <= 1):
        raise DataError(f"tags {tags.shape} must be -1, 0 or 1 for {len(labels)} rows and {tag_names}")
    if names and len(names) != len(labels):
        raise DataError(f"{len(names)} row names for {len(labels)} rows")
    digest = hashlib.sha256(repr((images.shape, class_names)).encode())
    digest.update(np.ascontiguousarray(images).data)
    digest.update(np.ascontiguousarray(labels.astype("<i8")).data)
    # Sets without tags keep the hash they had before there were tags: published manifests name it.
    if tag_names:
        digest.update(repr(tag_names).encode())
        digest.update(np.ascontiguousarray(tags).data)
    return Dataset(images, labels, class_names, digest.hexdigest(), tags, tag_names, names)
