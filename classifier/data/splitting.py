"""Who is trained on and who is held out.

The order in which rows are held out is that of sha256(seed, name): it depends on nothing but the names,
neither on the order of files nor on a library's random numbers, and rows that are added move no others
across except at the margins.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from .listing import SIDES, TEST, TRAINING, VAL

_MIN_ROWS = 5  # a class with fewer is trained on whole: one row held out would be a fifth of it or more


def assign(
    names: Sequence[str],
    labels: NDArray[np.int64],
    twins: NDArray[np.int64],
    fractions: tuple[float, float],
    seed: int,
) -> list[str]:
    """The side of every row: stratified by label, rows with equal pixels together.

    A class gives the rounded fraction of its rows to each held-out side, at least one row when it
    has five. A group of twins counts for the class of its first row by name.

    Args:
        names: N unique names.
        labels: (N,) classes, -1 for not known, which is a stratum of its own.
        twins: (N,) equal for rows with equal pixels.
        fractions: shares for validation and test.
        seed: chooses.
    """
    members: dict[int, list[int]] = defaultdict(list)
    for row in sorted(range(len(names)), key=names.__getitem__):
        members[int(twins[row])].append(row)
    strata: dict[int, list[list[int]]] = defaultdict(list)
    for group in members.values():
        strata[int(labels[group[0]])].append(group)
    sides = [TRAINING] * len(names)
    for groups in strata.values():
        groups.sort(key=lambda group: hashlib.sha256(f"{seed}\0{names[group[0]]}".encode()).digest())
        total = sum(map(len, groups))
        for side, fraction in zip((VAL, TEST), fractions, strict=True):
            room = max(round(total * fraction), 1) if fraction and total >= _MIN_ROWS else 0
            for group in [group for group in groups if sides[group[0]] == TRAINING]:
                if len(group) <= room:
                    room -= len(group)
                    for row in group:
                        sides[row] = side
                if not room:
                    break
    return sides


def complete(
    given: Sequence[str | None],
    names: Sequence[str],
    labels: NDArray[np.int64],
    twins: NDArray[np.int64],
    fractions: tuple[float, float],
    seed: int,
) -> list[str]:
    """The side of every row where the source states some.

    What the source holds out stays held out. Without a validation part, one is taken from its training
    rows; without any held-out part, both are.
    """
    stated = {side for side in given if side}
    if not stated:
        return assign(names, labels, twins, fractions, seed)
    sides = [side or TRAINING for side in given]
    if VAL not in stated:
        rows = [row for row, side in enumerate(sides) if side == TRAINING]
        shares = (fractions[0], 0.0 if TEST in stated else fractions[1])
        own = assign([names[row] for row in rows], labels[rows], twins[rows], shares, seed)
        for row, side in zip(rows, own, strict=True):
            sides[row] = side
    return sides


def split_sha256(names: Sequence[str], sides: Sequence[str]) -> str:
    """sha256 of names and sides, independent of the order of the rows."""
    lines = sorted(f"{name}\t{side}\n" for name, side in zip(names, sides, strict=True))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def rows_of(sides: Sequence[str], side: str) -> NDArray[np.int64]:
    """The rows of one of :data:`SIDES`, ascending."""
    assert side in SIDES, side
    return np.array([row for row, found in enumerate(sides) if found == side], np.int64)


def stratified_split(
    labels: NDArray[np.int64], fraction: float, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Indices (kept, held out); every class gives the same fraction, rounded down.

    For arrays without names; :func:`assign` is for sources.

    Raises:
        ValueError: ``fraction`` is outside [0, 1).
    """
    if not 0.0 <= fraction < 1.0:
        raise ValueError(f"val_fraction must be in [0, 1), got {fraction}")
    rng = np.random.default_rng(seed)
    held: list[NDArray[np.int64]] = []
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        held.append(rng.permutation(members)[: int(len(members) * fraction)])
    held_out = np.sort(np.concatenate(held)) if held else np.empty(0, np.int64)
    kept = np.setdiff1d(np.arange(len(labels)), held_out)
    return kept.astype(np.int64), held_out.astype(np.int64)
