"""Whether the engines of a bundle give the same answers: the gate that every export must pass.

The fp32 engines compute what the trained network computes, up to rounding. int8 may differ in a few
answers: the limits are a loss of accuracy and a share of changed labels or tags. On n images even an
int8 network that keeps to them changes some answers by chance, so it is refused when its figures would
be unlikely (below 5 %) at the limit itself:

    changed answers   P(X >= found), X ~ Binomial(n, limit)
    lost accuracy     (lost - won - n limit) / sqrt(lost + won) > 1.645; lost and won are the images
                      that only fp32 or only int8 names rightly (McNemar 1947)

With 180 images and limits of 1 % and 0.3 points, 4 changed labels pass and 5 do not; with 5,000 images,
62 and 63. A strict export compares the figures themselves with the limits.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .data import Dataset
from .engines import INT8_ENGINES, Outputs
from .predict import OUTLIER_SLACK

_UNLIKELY, _UNLIKELY_Z = 0.05, 1.645


@dataclass(frozen=True, slots=True)
class Limits:
    """How far engines may be apart.

    Attributes:
        difference: of an fp32 engine's outputs from the network's, in shares of the largest of them but at
            least of 1; float rounding gives about 1e-5. Ten times as much for the outlier score.
        int8_disagreement: share of images on which int8 names another class, or decides a tag otherwise.
        int8_drop: loss of accuracy by int8, in shares (0.003 = 0.3 points).
        strict: the figures themselves must be within the limits, whatever their sampling error.
    """

    difference: float = 1e-3
    int8_disagreement: float = 0.01
    int8_drop: float = 0.003
    strict: bool = False


def differences(found: Outputs, trained: Outputs) -> dict[str, float]:
    """The largest difference of every output, relative to its largest value or 1."""
    gaps = {}
    for name, ours, reference in zip(Outputs._fields, found, trained, strict=True):
        if reference.size and not np.isnan(reference).all():
            scale = max(1.0, float(np.abs(reference).max()))
            gaps[name] = float(np.abs(ours - reference).max()) / scale
    return gaps


def too_far(gaps: Mapping[str, Mapping[str, float]], limits: Limits) -> list[str]:
    """Which fp32 engines, by :func:`differences` of each, are not the trained network."""
    allowed = {
        name: limits.difference * (OUTLIER_SLACK if name == "outlier" else 1.0) for name in Outputs._fields
    }
    return [
        f"{engine}: {name} differ by {gap:.2g}, at most {allowed[name]:g}"
        for engine, outputs in gaps.items()
        for name, gap in outputs.items()
        if not gap <= allowed[name]
    ]


def int8_figures(
    int8: Outputs, fp32: Outputs, gate: Dataset, tag_logits: NDArray[np.float32]
) -> dict[str, Any]:
    """What int8 changes.

    Args:
        int8, fp32: outputs for the gate images.
        gate: their labels; rows below 0 (not known) count for the changed labels alone.
        tag_logits: (T,) from which on a tag is there.
    """
    said, reference = int8.logits.argmax(1), fp32.logits.argmax(1)
    known = gate.labels >= 0
    right, right_before = (labels[known] == gate.labels[known] for labels in (said, reference))
    decided = (int8.tag_logits >= tag_logits) != (fp32.tag_logits >= tag_logits)
    images, judged = len(gate), int(known.sum())
    lost, won = int((right_before & ~right).sum()), int((right & ~right_before).sum())
    return {
        "images": images,
        "judged": judged,
        "changed": int((said != reference).sum()),
        "disagreement": float((said != reference).mean()),
        "lost": lost,
        "won": won,
        "drop": (lost - won) / judged if judged else 0.0,
        "tags_changed": int(decided.sum(0).max(initial=0)),
        "tag_disagreement": float(decided.mean(0).max(initial=0.0)),
    }


def int8_problems(found: Mapping[str, Any], limits: Limits) -> list[str]:
    """Why int8 is not good enough; see the rule at the top. Empty when it is."""
    few, drop = limits.int8_disagreement, limits.int8_drop
    problems = []
    for what, count, share in (
        ("another class", found["changed"], found["disagreement"]),
        ("another answer on a tag", found["tags_changed"], found["tag_disagreement"]),
    ):
        over = share > few if limits.strict else _chance_of(count, found["images"], few) < _UNLIKELY
        if over:
            problems.append(f"{what} for {share:.2%} of {found['images']} images, at most {few:.2%}")
    excess = found["lost"] - found["won"] - found["judged"] * drop
    noise = 0.0 if limits.strict else _UNLIKELY_Z * math.sqrt(found["lost"] + found["won"])
    if excess > noise:
        problems.append(
            f"{found['drop'] * 100:.2f} points less accuracy on {found['judged']} images,"
            f" at most {drop * 100:.2f}"
        )
    return problems


def _chance_of(count: int, images: int, share: float) -> float:
    """P(X >= count) for X ~ Binomial(images, share)."""
    if not 0 < share < 1:
        return 1.0 if count <= images * share else 0.0
    below, log_p, log_q = 0.0, math.log(share), math.log1p(-share)
    for k in range(count):
        ways = math.lgamma(images + 1) - math.lgamma(k + 1) - math.lgamma(images - k + 1)
        below += math.exp(ways + k * log_p + (images - k) * log_q)
    return 1.0 - below


def fp32_names(engines: Mapping[str, Any]) -> list[str]:
    """The engines that must equal the trained network."""
    return [name for name in engines if name not in INT8_ENGINES]
