"""How strange an image is to a trained network: one number, higher = stranger.

Two signs are added, because each sees what the other misses (as ViM does, Wang et al. 2022,
arXiv:2203.10807). The *distance* of the evidence to the nearest class mean under one shared
covariance (Mahalanobis; Lee et al. 2018, arXiv:1807.03888) notices textures, noise and photos.
The *energy* -logsumexp(logits) (Liu et al. 2020, arXiv:2010.03759) notices what looks like an
ordinary image in every part and still excites no class: digits, simple shapes.

Evidence goes through a signed square root first: means of ReLU outputs are skewed, and the root
makes them nearly normal (Tukey's ladder; Yang et al. 2021, arXiv:2101.06395). The covariance is
shrunk by the OAS rule (Chen et al. 2010, doi:10.1109/TSP.2010.2053029), so a few hundred images
suffice; beyond its 64 strongest directions it is replaced by the mean of the rest
(probabilistic PCA; Tipping and Bishop 1999), so the score stays small beside the network.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

# More rows and directions cost time and bytes and reject no more (docs/results.md).
_ROWS, _DIRECTIONS = 20_000, 64
# In units of their spread over ordinary images; 0.3 misses digits, 0.8 misses photos (docs/results.md).
_ENERGY_WEIGHT = 0.5
# An evidence channel that hardly moves on ordinary images would shout at rounding errors.
_LEAST_SCALE = 0.05

Matrix = NDArray[np.float64]


def fit_outliers(
    evidence: NDArray[np.float32], logits: NDArray[np.float32], labels: NDArray[np.int64]
) -> dict[str, NDArray[np.float32]]:
    """Learn what ordinary images look like to the network.

    The score's unit comes out such that half of these images lie near 0 or below. Where the
    line is drawn is decided on other images, see :func:`classifier.uncertainty.fit_abstention`.

    Args:
        evidence: (N, E), E >= 2, of training images; of more than 20,000 an even selection is used.
        logits: (N, K), of the same images.
        labels: (N,) classes; below 0 = not known. Rows without a class are left out, unless all are: then
            they count as one class.

    Returns:
        The arrays of :class:`OutlierScore`.

    Raises:
        ValueError: shapes do not fit, values are not finite, or fewer than two rows can be used.
    """
    every = -(-len(labels) // _ROWS) or 1
    known = np.flatnonzero(labels >= 0)[::every]
    rows = known if len(known) else np.arange(len(labels))[::every]
    if evidence.shape[:1] != labels.shape or logits.shape[:1] != labels.shape or len(rows) < 2:
        raise ValueError(
            f"cannot learn from {evidence.shape} evidence, {logits.shape} logits and {len(rows)} rows of use"
        )
    if evidence.shape[1] < 2 or not (np.isfinite(evidence[rows]).all() and np.isfinite(logits[rows]).all()):
        raise ValueError(
            f"evidence of shape {evidence.shape} is too narrow or holds values that are not finite"
        )
    rooted = _rooted(evidence[rows].astype(np.float64))
    mean, scale = rooted.mean(0), _scales(rooted)
    z = (rooted - mean) * scale
    _, classes = np.unique(labels[rows], return_inverse=True)
    centres = np.stack([z[classes == k].mean(0) for k in range(classes.max() + 1)])  # (C, E)
    directions, rest = _covariance(z - centres[classes])

    # The distance is |z - c|^2 / rest - |(z - c) directions|^2; written out, the class enters by one product.
    tilt = 2 * (directions @ (centres @ directions).T - centres.T / rest)  # (E, C)
    offset = (centres**2).sum(1) / rest - ((centres @ directions) ** 2).sum(1)  # (C,)
    distance = (z**2).sum(1) / rest - ((z @ directions) ** 2).sum(1) + (z @ tilt + offset).min(1)
    distance_at, distance_spread = _centre_and_spread(distance)
    energy_at, energy_spread = _centre_and_spread(-_log_sum_exp(logits[rows].astype(np.float64)))
    weight = _ENERGY_WEIGHT / energy_spread
    unit = np.sqrt(rest * distance_spread)
    arrays = {
        "mean": mean,
        "scale": scale / unit,
        "directions": directions * np.sqrt(rest),
        "tilt": tilt * unit / distance_spread,
        "offset": (offset - distance_at) / distance_spread - weight * energy_at,
        "energy_weight": np.array([weight]),
    }
    return {name: value.astype(np.float32) for name, value in arrays.items()}


class OutlierScore(nn.Module):
    """The score as a module, so that it is exported with the network: two matrix products an image."""

    mean: Tensor
    scale: Tensor
    directions: Tensor
    tilt: Tensor
    offset: Tensor
    energy_weight: Tensor

    def __init__(self, arrays: Mapping[str, Any]) -> None:
        """Build from the arrays of :func:`fit_outliers`, numpy or torch.

        Raises:
            KeyError: one is missing.
        """
        super().__init__()
        for name in ("mean", "scale", "directions", "tilt", "offset", "energy_weight"):
            self.register_buffer(name, torch.as_tensor(arrays[name]).float())

    def forward(self, evidence: Tensor, logits: Tensor) -> Tensor:
        """Score a batch.

        Args:
            evidence: (N, E).
            logits: (N, K).

        Returns:
            (N,) float32, higher = stranger.
        """
        z = (evidence.sign() * evidence.abs().sqrt() - self.mean) * self.scale  # (N, E)
        inside = z @ self.directions  # (N, R)
        nearest = (z @ self.tilt + self.offset).amin(1)  # (N,)
        distance = (z * z).sum(1) - (inside * inside).sum(1) + nearest
        return distance - self.energy_weight * torch.logsumexp(logits, 1)


def _rooted(evidence: Matrix) -> Matrix:
    return np.sign(evidence) * np.sqrt(np.abs(evidence))


def _scales(rooted: Matrix) -> Matrix:
    """(E,) what brings every channel to a standard deviation of one, or nearly so where it is tiny."""
    spread = rooted.std(0)
    moving = spread[spread > 0]
    return np.asarray(1.0 / np.maximum(spread, _LEAST_SCALE * np.median(moving) if len(moving) else 1.0))


def _covariance(inside: Matrix) -> tuple[Matrix, float]:
    """The shrunk covariance of (N, E) rows around their class means, as directions (E, R) and a rest.

    Its inverse is I / rest - directions @ directions.T.
    """
    count, width = inside.shape
    found = inside.T @ inside / count
    level = max(np.trace(found) / width, 1e-6)
    power = (found**2).mean()
    gap = (count + 1) * (power - level**2 / width)
    shrink = 1.0 if gap <= 0 else min(1.0, (power + level**2) / gap)
    values, vectors = np.linalg.eigh((1 - shrink) * found + shrink * level * np.eye(width))
    values, vectors = np.maximum(values[::-1], 1e-6 * level), vectors[:, ::-1]
    kept = min(_DIRECTIONS, width - 1)
    rest = float(values[kept:].mean())
    return vectors[:, :kept] * np.sqrt(np.maximum(1 / rest - 1 / values[:kept], 0.0)), rest


def _centre_and_spread(scores: Matrix) -> tuple[float, float]:
    """The median, and from there to the 95th percentile."""
    middle, high = np.quantile(scores, (0.5, 0.95))
    return float(middle), max(float(high - middle), 1e-6)


def _log_sum_exp(logits: Matrix) -> Matrix:
    peak = logits.max(1)
    return np.asarray(peak + np.log(np.exp(logits - peak[:, None]).sum(1)))
