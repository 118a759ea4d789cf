"""Data sets: find them out, check them, read them, split them. Needs numpy and pillow; parquet needs pyarrow.

    prepared = prepare("garments.csv", DataOptions(label="category", tags=("floral",)))
    print(prepared.describe())

Without a path it is Fashion-MNIST, with its pinned hashes (:mod:`.fashion_mnist`).
"""

from __future__ import annotations

from .arrays import Dataset, dataset
from .fashion_mnist import (
    GROUPS,
    LABELS,
    SHIPPED,
    TRAINING,
    VALIDATION,
    Split,
    load_fashion_mnist,
    places,
    training_set,
    validation_set,
)
from .idx import read_idx
from .options import DataOptions, Dropped, Prepared
from .preparing import Form, prepare
from .rows import Rows, open_rows
from .splitting import stratified_split
from .tables import write_table

__all__ = [
    "GROUPS",
    "LABELS",
    "SHIPPED",
    "TRAINING",
    "VALIDATION",
    "DataOptions",
    "Dataset",
    "Dropped",
    "Form",
    "Prepared",
    "Rows",
    "Split",
    "dataset",
    "load_fashion_mnist",
    "open_rows",
    "places",
    "prepare",
    "read_idx",
    "stratified_split",
    "training_set",
    "validation_set",
    "write_table",
]
