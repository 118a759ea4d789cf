"""Splits: stratified, twins together, the same everywhere."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from classifier.data import DataOptions, prepare
from classifier.data.splitting import assign, complete, split_sha256
from classifier.data.twins import digests, twin_groups, twin_ids
from tests.classifier.digit_sets import digits, png, write_folder

ROWS = st.lists(st.tuples(st.integers(-1, 3), st.integers(0, 30)), min_size=1, max_size=120)
# Made once with this rule; to be changed only together with the form of the manifest.
PINNED = "1c0e0424f66fe3bec418ee60342db0dd4330640daf302b29a1540d5bea447733"
FRACTIONS = st.tuples(st.floats(0, 0.45), st.floats(0, 0.45))


@given(rows=ROWS, fractions=FRACTIONS, seed=st.integers(0, 2**63), order=st.randoms(use_true_random=False))
def test_a_split_is_stratified_and_independent_of_the_order(
    rows: list[tuple[int, int]], fractions: tuple[float, float], seed: int, order: object
) -> None:
    """Twins stay together, no side takes more than its share of a class, any order of rows gives the same."""
    labels = np.array([label for label, _ in rows])
    twins = np.array([twin for _, twin in rows])
    names = [f"row {row}" for row in range(len(rows))]
    sides = assign(names, labels, twins, fractions, seed)
    for twin in set(twins.tolist()):
        assert len({side for side, own in zip(sides, twins, strict=True) if own == twin}) == 1
    shuffled = list(range(len(rows)))
    order.shuffle(shuffled)  # type: ignore[attr-defined]
    again = assign([names[at] for at in shuffled], labels[shuffled], twins[shuffled], fractions, seed)
    assert [sides[at] for at in shuffled] == again
    assert split_sha256(names, sides) == split_sha256([names[at] for at in shuffled], again)


@given(counts=st.lists(st.integers(1, 60), min_size=1, max_size=5), seed=st.integers(0, 1000))
def test_without_twins_every_class_gives_its_rounded_share(counts: list[int], seed: int) -> None:
    """80/10/10 by class; at least one of five rows is held out on each side, none of four."""
    labels = np.repeat(np.arange(len(counts)), counts)
    names = [f"{row}.png" for row in range(len(labels))]
    sides = np.array(assign(names, labels, np.arange(len(labels)), (0.1, 0.1), seed))
    for label, count in enumerate(counts):
        expected = max(1, round(0.1 * count)) if count >= 5 else 0
        for side in ("val", "test"):
            assert int(((labels == label) & (sides == side)).sum()) == expected


def test_the_split_is_pinned() -> None:
    """The rule is part of the contract: manifests record its hash, and other machines must find it again."""
    names = [f"{row}.png" for row in range(40)]
    sides = assign(names, np.arange(40) % 2, np.arange(40), (0.1, 0.1), 0)
    assert split_sha256(names, sides) == PINNED
    lines = sorted(f"{name}\t{side}\n" for name, side in zip(names, sides, strict=True))
    assert hashlib.sha256("".join(lines).encode()).hexdigest() == PINNED


def test_what_the_source_holds_out_stays_held_out() -> None:
    """Stated sides are kept; with a test side alone, validation comes out of training and nothing else."""
    names = [f"{row}" for row in range(60)]
    labels, twins = np.zeros(60, np.int64), np.arange(60)
    stated = ["test"] * 20 + ["training"] * 40
    sides = complete(stated, names, labels, twins, (0.25, 0.25), 0)
    assert sides[:20] == ["test"] * 20
    assert sides[20:].count("val") == 10
    assert sides[20:].count("test") == 0
    alone = complete(["training"] * 60, names, labels, twins, (0.25, 0.25), 0)
    assert (alone.count("val"), alone.count("test")) == (15, 15)
    both = complete(["val"] * 10 + ["training"] * 50, names, labels, twins, (0.25, 0.25), 0)
    assert both == ["val"] * 10 + ["training"] * 50


def test_equal_pixels_are_found_and_nothing_else() -> None:
    """Digests are equal exactly for equal images."""
    images = np.zeros((5, 4, 4), np.uint8)
    images[1, 0, 0] = images[3, 0, 0] = 1
    images[4, 0, 1] = 1
    ids = twin_ids(digests(images))
    assert twin_groups(ids) == [[0, 2], [1, 3]]
    assert twin_groups(twin_ids(digests(images[:0]))) == []


@pytest.fixture(scope="module")
def doubled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Digits in which every image of class 0 lies three times, and one of them also as class 1."""
    root = write_folder(tmp_path_factory.mktemp("data"), 20)
    for path in sorted((root / "0").glob("*.png")):
        for copy in "ab":
            path.with_name(f"{path.stem}{copy}.png").write_bytes(path.read_bytes())
    (root / "1" / "wrong.png").write_bytes((root / "0" / "0000.png").read_bytes())
    return root


def test_copies_go_to_the_same_side_and_are_reported(doubled: Path) -> None:
    """Twenty images three times; the one under two classes is a conflict with both names."""
    prepared = prepare(doubled)
    assert prepared.facts["duplicates"]["groups"] == 20
    assert prepared.facts["duplicates"]["rows"] == 61
    assert prepared.facts["conflicts"]["groups"] == 1
    assert prepared.facts["leaks"]["groups"] == 0
    assert "1/wrong.png (1)" in prepared.describe()
    assert prepared.val is not None
    held_out = {digest.tobytes() for digest in digests(prepared.val.images)}
    assert not held_out & {digest.tobytes() for digest in digests(prepared.training.images)}


def test_a_leak_between_given_sides_is_reported(tmp_path: Path) -> None:
    """An image that the source has on both sides makes the test optimistic: both names are given."""
    write_folder(tmp_path, 10, lambda row, label: f"{'test' if row % 3 == 0 else 'train'}/{label}/{row}.png")
    (tmp_path / "test" / "4" / "copy.png").write_bytes((tmp_path / "train" / "1" / "1.png").read_bytes())
    prepared = prepare(tmp_path, DataOptions(val_fraction=0))
    assert prepared.val is None
    leaks = prepared.facts["leaks"]
    assert (leaks["groups"], leaks["rows"]) == (1, 2)
    assert sorted(leaks["first"][0]) == ["test/4/copy.png (test)", "train/1/1.png (training)"]
    assert "the same image on two sides of the split" in prepared.describe()


def test_blank_images_do_not_upset_the_split(tmp_path: Path) -> None:
    """All rows of a class may be the same image: then they are all trained on, and the report says it."""
    write_folder(tmp_path, 10)
    for path in (tmp_path / "5").glob("*.png"):
        path.write_bytes(png(np.zeros_like(digits()[0][0])))
    prepared = prepare(tmp_path)
    assert int((prepared.training.labels == 5).sum()) == 10
    assert prepared.facts["duplicates"]["rows"] == 10


@pytest.mark.parametrize("shares", [(-0.1, 0.1), (0.5, 0.5), (0.9, 0.2)])
def test_impossible_shares_are_refused(shares: tuple[float, float]) -> None:
    """Something must be left to train on."""
    with pytest.raises(ValueError, match="below 1 together"):
        DataOptions(val_fraction=shares[0], test_fraction=shares[1])
