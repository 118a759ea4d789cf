"""The encoded images of a data set's rows, wherever they are, read in the order of the rows."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..errors import DataError
from .store import ImageStore
from .tables import import_arrow

_BATCH_ROWS = 256  # of a parquet file held in memory at once
_BUFFER_BYTES = 1 << 20


class Pictures(Protocol):
    """One encoded image a row; a row without one reads as the error that says why."""

    def __len__(self) -> int: ...

    def read(self, rows: Sequence[int]) -> Iterator[bytes | DataError]:
        """The images of ``rows``, which ascend; memory holds a few at a time."""

    def sample(self, count: int) -> list[int]:
        """At most ``count`` rows, spread evenly and cheap to read."""

    def fingerprint(self) -> str:
        """A hash that changes when the images do, without reading them."""

    def close(self) -> None: ...


class StoredPictures:
    """Images in folders and zips: ``refs`` holds one a row, (store, name inside) or an error."""

    def __init__(self, refs: Sequence[tuple[ImageStore, str] | DataError]) -> None:
        self._refs = refs

    def __len__(self) -> int:
        return len(self._refs)

    def read(self, rows: Sequence[int]) -> Iterator[bytes | DataError]:
        for row in rows:
            ref = self._refs[row]
            yield ref if isinstance(ref, DataError) else ref[0].read(ref[1])

    def sample(self, count: int) -> list[int]:
        return spread(len(self), count)

    def fingerprint(self) -> str:
        digest = sha256()
        stores: dict[int, tuple[ImageStore, list[str]]] = {}
        for ref in self._refs:
            if not isinstance(ref, DataError):
                stores.setdefault(id(ref[0]), (ref[0], []))[1].append(ref[1])
            digest.update(b"\n" if isinstance(ref, DataError) else os.fsencode(ref[1]) + b"\n")
        for store, names in stores.values():
            digest.update(store.fingerprint(names).encode())
        return digest.hexdigest()

    def close(self) -> None:
        for store in {id(ref[0]): ref[0] for ref in self._refs if not isinstance(ref, DataError)}.values():
            store.close()


class ParquetPictures:
    """Images in a parquet column of bytes, or of Hugging Face's structs of bytes and path."""

    def __init__(self, path: Path, column: str, rows: int) -> None:
        self._path, self._column, self._rows = path, column, rows

    def __len__(self) -> int:
        return self._rows

    def read(self, rows: Sequence[int]) -> Iterator[bytes | DataError]:
        arrow, parquet = import_arrow()
        wanted = np.asarray(rows, np.int64)
        try:
            # By default the whole column of a row group is read at once, and that is often the whole file.
            with parquet.ParquetFile(self._path, buffer_size=_BUFFER_BYTES, pre_buffer=False) as file:
                first = 0
                for group in range(file.num_row_groups):
                    end = first + file.metadata.row_group(group).num_rows
                    inside = wanted[(wanted >= first) & (wanted < end)]
                    if len(inside):
                        yield from self._group(file, group, inside - first)
                    first = end
        except (arrow.ArrowException, OSError, ValueError) as error:
            raise DataError(f"{self._path}: column {self._column!r} cannot be read ({error})") from error

    def _group(self, file: Any, group: int, wanted: NDArray[np.int64]) -> Iterator[bytes | DataError]:
        first = 0
        for batch in file.iter_batches(_BATCH_ROWS, row_groups=[group], columns=[self._column]):
            end = first + batch.num_rows
            for at in wanted[(wanted >= first) & (wanted < end)]:
                value = batch.column(0)[int(at) - first].as_py()
                data = value.get("bytes") if isinstance(value, dict) else value
                yield DataError("the row has no image") if data is None else bytes(data)
            first = end
        if first <= wanted[-1]:
            raise DataError(f"{self._path}: row group {group} ends after {first} rows; the file is damaged")

    def sample(self, count: int) -> list[int]:
        _, parquet = import_arrow()
        with parquet.ParquetFile(self._path) as file:
            sizes = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
        starts = np.concatenate([[0], np.cumsum(sizes)]).tolist()
        # A row group is read whole, so sixteen of them must do for a look.
        groups = spread(len(sizes), 16)
        each = -(-count // len(groups))
        return [starts[group] + at for group in groups for at in spread(sizes[group], each)]

    def fingerprint(self) -> str:
        stat = self._path.stat()
        return sha256(f"{self._column}\0{stat.st_size}\0{stat.st_mtime_ns}".encode()).hexdigest()

    def close(self) -> None:
        pass


class ArrayPictures:
    """Gray pixels (N, H, W) uint8 that act as PNG files, so that every source passes the same decoder."""

    def __init__(self, images: NDArray[np.uint8]) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def read(self, rows: Sequence[int]) -> Iterator[bytes | DataError]:
        for row in rows:
            target = io.BytesIO()
            Image.fromarray(self.images[row]).save(target, "PNG", compress_level=1)
            yield target.getvalue()

    def sample(self, count: int) -> list[int]:
        return spread(len(self), count)

    def fingerprint(self) -> str:
        return sha256(np.ascontiguousarray(self.images).data).hexdigest()

    def close(self) -> None:
        pass


def spread(total: int, count: int) -> list[int]:
    """At most ``count`` of the numbers below ``total``, evenly spread and ascending."""
    return np.unique(np.linspace(0, total - 1, min(total, count)).astype(np.int64)).tolist() if total else []
