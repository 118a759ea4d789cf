"""The outlier score finds what is strange; the probe images are what they say."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from classifier import Dataset
from classifier.probes import altered, probe_sets
from classifier.uncertainty import fit_abstention

NOISE = ("uniform noise", "Gaussian noise", "salt and pepper", "blurred noise")
DIGITS = ("printed digits", "handwritten digits", "handwritten digits, small")


def clusters(rows: int, width: int, seed: int = 0) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Evidence, logits and labels of three classes, correlated within a class."""
    rng, shape = np.random.default_rng(seed), np.random.default_rng(99)
    centres, mixing = shape.uniform(1, 5, (3, width)), shape.normal(0, 0.1, (width, width))
    labels = rng.integers(0, 3, rows)
    evidence = np.abs(centres[labels] + rng.normal(size=(rows, width)) @ mixing).astype(np.float32)
    logits = (8 * np.eye(3)[labels] + rng.normal(0, 0.5, (rows, 3))).astype(np.float32)
    return evidence, logits, labels


def score(torch: Any, arrays: dict[str, NDArray[Any]], evidence: NDArray[Any], logits: NDArray[Any]) -> Any:
    """The module's answer for numpy arrays."""
    from classifier.outliers import OutlierScore

    with torch.inference_mode():
        return OutlierScore(arrays)(torch.from_numpy(evidence), torch.from_numpy(logits)).numpy()


def test_the_score_is_mahalanobis_distance_plus_energy(torch: Any) -> None:
    """Recomputed with scikit-learn's OAS covariance; 40 channels are fewer than the directions kept."""
    from sklearn.covariance import OAS

    from classifier.outliers import fit_outliers

    evidence, logits, labels = clusters(600, 40)
    roots = np.sqrt(evidence.astype(np.float64))
    z = (roots - roots.mean(0)) / roots.std(0)
    centres = np.stack([z[labels == k].mean(0) for k in range(3)])
    covariance = OAS(assume_centered=True).fit(z - centres[labels])
    gaps = z[:, None] - centres
    distance = np.einsum("nki,ij,nkj->nk", gaps, covariance.precision_, gaps).min(1)
    energy = -np.log(np.exp(logits.astype(np.float64)).sum(1))

    def in_spreads(values: NDArray[Any]) -> NDArray[Any]:
        middle, high = np.quantile(values, (0.5, 0.95))
        return (values - middle) / (high - middle)

    expected = in_spreads(distance) + 0.5 * in_spreads(energy)
    found = score(torch, fit_outliers(evidence, logits, labels), evidence, logits)
    np.testing.assert_allclose(found, expected, atol=2e-4)


@pytest.mark.parametrize(("rows", "width"), [(3000, 200), (300, 200), (60, 120)])
def test_strangers_score_higher_than_unseen_members(torch: Any, rows: int, width: int) -> None:
    """Wide evidence and few images too: the line at 95 % holds for unseen members and stops strangers."""
    from classifier.outliers import fit_outliers

    arrays = fit_outliers(*clusters(rows, width))
    line = fit_abstention(score(torch, arrays, *clusters(1000, width, 1)[:2]), 0.95).outlier_threshold
    members = score(torch, arrays, *clusters(1000, width, 2)[:2])
    assert 0.92 < (members <= line).mean() < 0.98
    evidence, logits, _ = clusters(1000, width, 3)
    turned = evidence[:, ::-1].copy()
    assert (score(torch, arrays, turned, logits) > line).mean() > 0.99


def test_uncommitted_logits_are_strange_by_themselves(torch: Any) -> None:
    """The energy part: evidence of a member, but no class responds."""
    from classifier.outliers import fit_outliers

    evidence, logits, labels = clusters(1000, 30)
    arrays = fit_outliers(evidence, logits, labels)
    line = np.quantile(score(torch, arrays, evidence, logits), 0.99)
    assert (score(torch, arrays, evidence, np.zeros_like(logits)) > line).mean() > 0.9


def test_single_precision_is_enough(torch: Any) -> None:
    """Distances are differences of large sums: float32 keeps four digits, far away too."""
    from classifier.outliers import OutlierScore, fit_outliers

    evidence, logits, labels = clusters(800, 200)
    arrays = fit_outliers(evidence, logits, labels)
    exact = OutlierScore(arrays).double()
    for factor in (1, 100):
        inputs = torch.from_numpy(evidence * factor).double(), torch.from_numpy(logits).double()
        wanted = exact(*inputs).numpy()
        found = score(torch, arrays, evidence * np.float32(factor), logits)
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-3)


def test_silent_channels_neither_divide_by_zero_nor_shout(torch: Any) -> None:
    """A channel that was always 0 may tremble by a rounding error later."""
    from classifier.outliers import fit_outliers

    evidence, logits, labels = clusters(500, 30)
    evidence[:, :5] = 0
    arrays = fit_outliers(evidence, logits, labels)
    before = score(torch, arrays, evidence, logits)
    evidence[:, :5] = 1e-8
    assert np.isfinite(before).all()
    assert np.abs(score(torch, arrays, evidence, logits) - before).max() < 0.05


def test_images_without_a_class_are_left_out_unless_there_are_no_others(torch: Any) -> None:
    """Tags alone make a data set as well: its images are then one class."""
    from classifier.outliers import fit_outliers

    evidence, logits, labels = clusters(400, 20)
    some = np.where(np.arange(400) < 100, -1, labels)
    left_out = fit_outliers(evidence, logits, some)
    for name, array in fit_outliers(evidence[100:], logits[100:], labels[100:]).items():
        np.testing.assert_array_equal(left_out[name], array)
    nobody = fit_outliers(evidence, logits, np.full(400, -1))
    assert nobody["tilt"].shape == (20, 1)
    assert np.isfinite(score(torch, nobody, evidence, logits)).all()


def test_what_cannot_be_learned_from_is_refused(torch: Any) -> None:
    """Shapes, values, too few rows: each is named."""
    from classifier.outliers import fit_outliers

    evidence, logits, labels = clusters(50, 20)
    with pytest.raises(ValueError, match=r"\(50, 20\) evidence, \(49, 3\) logits"):
        fit_outliers(evidence, logits[1:], labels)
    with pytest.raises(ValueError, match="1 rows of use"):
        fit_outliers(evidence[:1], logits[:1], labels[:1])
    with pytest.raises(ValueError, match="too narrow"):
        fit_outliers(evidence[:, :1], logits, labels)
    evidence[3, 3] = np.nan
    with pytest.raises(ValueError, match="not finite"):
        fit_outliers(evidence, logits, labels)


def test_the_shipped_network_tells_garments_from_noise_and_digits(torch: Any, validation: Dataset) -> None:
    """At 95 % of garments accepted, at least 90 % of noise and of digits are rejected."""
    from classifier.bundle import Bundle
    from classifier.outliers import OutlierScore, fit_outliers
    from classifier.torch_engine import load_network, network_outputs

    network, images = load_network(Bundle.load()), validation.pixels()
    outputs, evidence = network_outputs(network, None, images[:2000])
    module = OutlierScore(fit_outliers(evidence, outputs.logits, validation.labels[:2000])).eval()
    line = fit_abstention(network_outputs(network, module, images[2000:3500])[0].outlier, 0.95)
    unseen = network_outputs(network, module, images[3500:5000])[0].outlier
    assert (unseen <= line.outlier_threshold).mean() > 0.93
    for family, probes in probe_sets(28, 1, 100).items():
        strange = network_outputs(network, module, probes[:, None])[0].outlier
        least = 0.9 if family in NOISE + DIGITS else 0.8
        assert (strange > line.outlier_threshold).mean() >= least, family


@pytest.mark.parametrize(("size", "channels"), [(8, 1), (28, 1), (33, 3)])
def test_probe_images_fit_the_network_and_differ(size: int, channels: int) -> None:
    """Every family has the asked shape, and no two of its images are equal."""
    found = probe_sets(size, channels, 6)
    assert {*NOISE, *DIGITS, "photographs", "wood", "brick", "scenes"} <= set(found)
    for family, images in found.items():
        assert images.dtype == np.uint8
        assert images.shape == ((6, size, size) if channels == 1 else (6, 3, size, size)), family
        assert len(np.unique(images.reshape(6, -1), axis=0)) == 6, family
        assert images.flags.c_contiguous


def test_probe_images_come_from_the_seed() -> None:
    """The same again, others for another seed."""
    first, again, other = probe_sets(16, 1, 4), probe_sets(16, 1, 4), probe_sets(16, 1, 4, seed=1)
    for family, images in first.items():
        np.testing.assert_array_equal(images, again[family])
        assert (images != other[family]).any(), family


def test_probe_images_take_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Large images come in smaller number."""
    monkeypatch.setattr("classifier.probes._MAX_FAMILY_BYTES", 9 * 16 * 16)
    assert {len(images) for images in probe_sets(16, 1, 20).values()} == {9}


def test_probe_images_do_without_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it would bring is left out, nothing else."""
    complete = set(probe_sets(12, 1, 2))
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    assert complete - set(probe_sets(12, 1, 2)) == {*DIGITS[1:], "photographs"}


@pytest.mark.parametrize(("size", "channels", "count"), [(7, 1, 5), (28, 2, 5), (28, 1, 0)])
def test_impossible_probe_images_are_refused(size: int, channels: int, count: int) -> None:
    """The message repeats what was asked."""
    with pytest.raises(ValueError, match=f"got {size}, {channels} and {count}"):
        probe_sets(size, channels, count)


def test_altered_images_are_negatives_and_turns() -> None:
    """Colour planes stay where they are."""
    image = np.random.default_rng(0).integers(0, 256, (2, 3, 9, 9), dtype=np.uint8)
    found = altered(image)
    assert (found["inverted"].astype(int) + image == 255).all()
    np.testing.assert_array_equal(found["turned 180"], image[:, :, ::-1, ::-1])
    np.testing.assert_array_equal(found["turned 90"][:, :, ::-1, ::-1], found["turned 270"])
    np.testing.assert_array_equal(found["turned 90"][0, 1], np.rot90(image[0, 1]))
