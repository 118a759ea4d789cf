"""From encoded images to one array: in memory when it is small, else in a file that the system pages."""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import sha256
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.lib.format import open_memmap
from numpy.typing import NDArray

from ..errors import DataError
from ..images import Decoded, Preprocessing, decode
from ..polarity import normalise_polarity
from .options import DataOptions, Report
from .pictures import ArrayPictures, Pictures
from .twins import digests

_CHUNK = 64  # images decoded by one task: enough to hide the cost of handing them over
_VERSION = 1  # of the cache's files
# A set, or what another process makes of one; what a killed one left is told by its age.
_MADE, _ABANDONED_S = re.compile(r"[0-9a-f]{32}(\.\d+)?"), 86_400.0


@dataclass(frozen=True, slots=True)
class Pixels:
    """Decoded rows.

    Attributes:
        images: (M, H, W) gray or (M, 3, H, W) colour, uint8; a read-only memory map when large.
        rows: (M,) the source's row of each image, ascending.
        digests: (M, 16) uint8 hash of each image's pixels.
        refused: row -> (reason, detail) of what could not be decoded.
        file: where the memory map is, or None.
    """

    images: NDArray[np.uint8]
    rows: NDArray[np.int64]
    digests: NDArray[np.uint8]
    refused: dict[int, tuple[str, str]]
    file: Path | None = None

    def part(self, index: NDArray[np.int64], memory_bytes: int) -> NDArray[np.uint8]:
        """The chosen images: copied into memory, or into a file of their own above ``memory_bytes``."""
        if self.file is None or len(index) * self.images[0].nbytes <= memory_bytes:
            return self.images[index]
        target = self.file.with_name(f"part-{sha256(index.tobytes()).hexdigest()[:16]}.npy")
        if not target.exists():
            _check_space(target.parent, len(index) * self.images[0].nbytes)
            partial = target.with_name(f"{target.name}.{os.getpid()}")
            out = open_memmap(partial, "w+", np.uint8, (len(index), *self.images.shape[1:]))
            for at in range(0, len(index), 4096):
                out[at : at + 4096] = self.images[index[at : at + 4096]]
            out.flush()
            partial.replace(target)
        return _mapped(target)


def decode_rows(
    pictures: Pictures, rows: Sequence[int], spec: Preprocessing, options: DataOptions, report: Report
) -> Pixels:
    """Decode ``rows`` (ascending); above ``options.memory_bytes`` into a file that later runs use again.

    Raises:
        DataError: the source is damaged as a whole, or the disk is full.
    """
    shape = (len(rows), *((spec.size, spec.size) if spec.channels == 1 else spec.shape))
    if isinstance(pictures, ArrayPictures) and spec.channels == 1 and pictures.images.shape[1:] == shape[1:]:
        # Gray pixels of the right size: of the preprocessing only the polarity is left to be applied.
        images = pictures.images if len(rows) == len(pictures) else pictures.images[np.asarray(rows)]
        images = normalise_polarity(images[:, None], spec.polarity)[:, 0]
        return Pixels(images, np.asarray(rows, np.int64), digests(images), {})
    if int(np.prod(shape)) <= options.memory_bytes:
        return _fill(np.empty(shape, np.uint8), pictures, rows, spec, report)
    directory = _cache(options) / _key(pictures, rows, spec)
    if directory.exists():
        os.utime(directory)
    else:
        # Beside them the parts of the split, which are as large again.
        _make_room(directory.parent, 2 * int(np.prod(shape)), options.cache_bytes)
        _decode_to(directory, shape, pictures, rows, spec, report)
    return _stored(directory)


def _fill(
    out: NDArray[np.uint8], pictures: Pictures, rows: Sequence[int], spec: Preprocessing, report: Report
) -> Pixels:
    """Decode into ``out`` (len(rows), ...); what cannot be decoded leaves no gap."""
    kept: list[int] = []
    found: list[NDArray[np.uint8]] = []
    refused: dict[int, tuple[str, str]] = {}
    done = 0
    for chunk, unread, decoded in _decoded(pictures, rows, spec):
        refused |= unread
        readable = [row for row in chunk if row not in unread]
        for row, error in zip(readable, decoded.errors, strict=True):
            if error is not None:
                refused[row] = (error.reason, error.detail)
        images = decoded.tensor[:, 0] if spec.channels == 1 else decoded.tensor
        out[len(kept) : len(kept) + len(images)] = images
        found.append(digests(images))
        kept += [row for row in readable if row not in refused]
        done += len(chunk)
        report("reading images", done, len(rows))
    hashes = np.concatenate(found) if found else np.empty((0, 16), np.uint8)
    return Pixels(out[: len(kept)], np.array(kept, np.int64), hashes, refused)


def _decoded(
    pictures: Pictures, rows: Sequence[int], spec: Preprocessing
) -> Iterator[tuple[list[int], dict[int, tuple[str, str]], Decoded]]:
    """(rows, those that could not be read, the others decoded), chunk by chunk, in order.

    One thread reads while the others decode: Pillow lets go of the interpreter in its decoders.
    """
    content, waiting = (
        pictures.read(rows),
        deque[tuple[list[int], dict[int, tuple[str, str]], Future[Decoded]]](),
    )
    workers = os.cpu_count() or 1
    with ThreadPoolExecutor(workers, "decode") as pool:
        for start in range(0, len(rows), _CHUNK):
            chunk = list(rows[start : start + _CHUNK])
            data = list(islice(content, len(chunk)))
            unread = {
                row: ("no image", str(each))
                for row, each in zip(chunk, data, strict=True)
                if isinstance(each, DataError)
            }
            good = [each for each in data if isinstance(each, bytes)]
            waiting.append((chunk, unread, pool.submit(decode, good, spec)))
            if len(waiting) > 2 * workers:
                rows_of, missing, future = waiting.popleft()
                yield rows_of, missing, future.result()
        for rows_of, missing, future in waiting:
            yield rows_of, missing, future.result()


def _cache(options: DataOptions) -> Path:
    if options.cache is not None:
        return Path(options.cache)
    home = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(home) / "couturier" / "decoded"


def _key(pictures: Pictures, rows: Sequence[int], spec: Preprocessing) -> str:
    """Changes with the source's files, the rows that are used, and the preprocessing."""
    chosen = sha256(np.asarray(rows, "<i8").tobytes()).hexdigest()
    return sha256(
        json.dumps([_VERSION, pictures.fingerprint(), chosen, spec.to_dict()]).encode()
    ).hexdigest()[:32]


def _make_room(cache: Path, needed_bytes: int, limit_bytes: int) -> None:
    """Remove the sets that were used longest ago, until so much more fits into the limit and on the disk.

    A run that has one of them mapped keeps what it has: the system frees a file when the last has closed it.
    """
    if not cache.is_dir():
        return
    made = [each for each in cache.iterdir() if _MADE.fullmatch(each.name) and each.is_dir()]
    found = {each: [file.stat() for file in (each, *each.iterdir())] for each in made}
    used = {each: max(stat.st_mtime for stat in stats) for each, stats in found.items()}
    sizes = {each: sum(stat.st_size for stat in stats) for each, stats in found.items()}
    held = sum(sizes.values())
    room = min(limit_bytes, held + shutil.disk_usage(cache).free) - needed_bytes
    for each in sorted(made, key=used.__getitem__):
        unfinished = bool(each.suffix)
        abandoned = unfinished and time.time() - used[each] > _ABANDONED_S
        if abandoned or (held > room and not unfinished):
            shutil.rmtree(each, ignore_errors=True)
            held -= sizes[each]


def _decode_to(
    directory: Path,
    shape: tuple[int, ...],
    pictures: Pictures,
    rows: Sequence[int],
    spec: Preprocessing,
    report: Report,
) -> None:
    """Decode into a new directory, which appears when it is complete."""
    partial = directory.with_name(f"{directory.name}.{os.getpid()}")
    try:
        partial.mkdir(parents=True)
        _check_space(partial, int(np.prod(shape)))
        out = open_memmap(partial / "pixels.npy", "w+", np.uint8, shape)
        pixels = _fill(out, pictures, rows, spec, report)
        out.flush()
        np.save(partial / "rows.npy", pixels.rows)
        np.save(partial / "digests.npy", pixels.digests)
        (partial / "refused.json").write_text(json.dumps(list(pixels.refused.items())))
        partial.rename(directory)
    except OSError as error:
        raise DataError(
            f"{directory}: cannot be written ({error}); set XDG_CACHE_HOME to another disk"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _stored(directory: Path) -> Pixels:
    try:
        rows = np.load(directory / "rows.npy")
        refused = {
            int(row): (str(why), str(more))
            for row, (why, more) in json.loads((directory / "refused.json").read_text())
        }
        images = _mapped(directory / "pixels.npy")[: len(rows)]
        return Pixels(images, rows, np.load(directory / "digests.npy"), refused, directory / "pixels.npy")
    except (OSError, ValueError, TypeError) as error:
        raise DataError(
            f"{directory}: damaged ({error}); remove the directory, it will be made again"
        ) from error


def _mapped(path: Path) -> NDArray[np.uint8]:
    mapped: NDArray[np.uint8] = np.load(path, mmap_mode="r", allow_pickle=False)
    return mapped


def _check_space(directory: Path, needed_bytes: int) -> None:
    free_bytes = shutil.disk_usage(directory).free
    if needed_bytes > free_bytes:
        raise DataError(
            f"{directory}: decoding needs {needed_bytes >> 20:,} MiB, {free_bytes >> 20:,} MiB are free;"
            " set XDG_CACHE_HOME to a larger disk, or choose smaller images with --size"
        )
