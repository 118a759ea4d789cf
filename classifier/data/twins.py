"""Rows with exactly the same pixels: duplicates, contradictions, leaks."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

SHOWN = 10  # examples of anything that a report names


def digests(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(N, 16) uint8, the BLAKE2b hash of every image's pixels; equal exactly for equal pixels."""
    found = b"".join(
        hashlib.blake2b(np.ascontiguousarray(image).data, digest_size=16).digest() for image in images
    )
    return np.frombuffer(found, np.uint8).reshape(len(images), 16)


def twin_ids(found: NDArray[np.uint8]) -> NDArray[np.int64]:
    """(N,) a number for each row, equal for rows with equal digests (N, 16)."""
    if not len(found):
        return np.empty(0, np.int64)
    _, inverse = np.unique(np.ascontiguousarray(found).view("V16").ravel(), return_inverse=True)
    return inverse.astype(np.int64)


def twin_groups(ids: NDArray[np.int64]) -> list[list[int]]:
    """The rows of every group of two and more, in the order of their first rows."""
    rows: dict[int, list[int]] = defaultdict(list)
    repeated = np.flatnonzero(np.bincount(ids) > 1) if len(ids) else np.empty(0, np.int64)
    for row in np.flatnonzero(np.isin(ids, repeated)).tolist():
        rows[int(ids[row])].append(row)
    return list(rows.values())


def duplicate_facts(groups: Sequence[Sequence[int]], names: Sequence[str]) -> dict[str, Any]:
    """How many images occur more than once, and the first of them."""
    return {
        "groups": len(groups),
        "rows": sum(map(len, groups)),
        "first": [[names[row] for row in group[:SHOWN]] for group in groups[:SHOWN]],
    }


def differing(
    groups: Sequence[Sequence[int]], names: Sequence[str], values: Sequence[str | None]
) -> dict[str, Any]:
    """The groups whose rows differ in a known value: contradicting labels, or both sides of a split."""
    torn = [group for group in groups if len({values[row] for row in group} - {None}) > 1]
    return {
        "groups": len(torn),
        "rows": sum(map(len, torn)),
        "first": [[f"{names[row]} ({values[row]})" for row in group[:SHOWN]] for group in torn[:SHOWN]],
    }
