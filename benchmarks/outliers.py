"""How well a garment model knows what is no garment, and what its answer sets are worth.

``python -m benchmarks.outliers [--model DIR] [--json FILE]`` prints Markdown: the outlier score beside two
simple ones, the most probable label's doubt and the energy. Thresholds and quantiles are fitted on one half
of the validation images and judged on the other. The probe images fit nothing: noise, digits, textures and
photographs (:mod:`classifier.probes`), and the garments themselves inverted and turned.
Needs scikit-learn for handwritten digits and photographs.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.report import facts
from classifier import Classifier, ClassifierError, validation_set
from classifier.engines import Outputs
from classifier.metrics import softmax
from classifier.probes import altered, probe_sets
from classifier.uncertainty import LEVELS, answer_sets, fit_abstention, fit_conformal

from .report import add_outputs, keep

ACCEPTED = (0.90, 0.95, 0.98, 0.99, 0.995)
_SPLITS = 50

Scores = NDArray[np.float32]


def main(arguments: list[str] | None = None) -> int:
    """Measure, print, exit."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.outliers", description=__doc__)
    parser.add_argument("--model", help="a bundle for Fashion-MNIST's classes; without it the shipped one")
    parser.add_argument("--count", type=int, default=1000, help="probe images of each family")
    parser.add_argument("--seed", type=int, default=0)
    add_outputs(parser, page=False)
    options = parser.parse_args(arguments)
    try:
        report = measure(options.model, options.count, options.seed)
    except (ClassifierError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    print(markdown(report))
    keep(report, options)
    return 0


def measure(model: str | None, count: int, seed: int) -> dict[str, Any]:
    """Everything, as JSON.

    Raises:
        ClassifierError: the model cannot be loaded.
        ValueError: it has other classes than Fashion-MNIST, or no outlier score.
    """
    classifier = Classifier.load(model)
    manifest, garments = classifier.manifest, validation_set()
    if manifest.labels != garments.class_names:
        raise ValueError(
            f"{model}: its classes are {manifest.labels}, this compares garments: name another --model"
        )
    images = {"garments": garments.images, **probe_sets(garments.size, 1, count, seed)}
    images |= altered(garments.images[:count])
    outputs = _run(classifier, images)
    if not np.isfinite(outputs["garments"].outlier).all():
        raise ValueError(
            f"model {manifest.name} has no outlier score; train and export it again: couturier train"
        )
    order = np.random.default_rng(seed).permutation(len(garments))
    fitted_on, judged_on = np.array_split(order, 2)
    kinds = {
        "outlier score": {name: found.outlier for name, found in outputs.items()},
        "1 - confidence": {
            name: 1 - softmax(found.logits, manifest.temperature).max(1) for name, found in outputs.items()
        },
        "energy": {name: -np.logaddexp.reduce(found.logits, axis=1) for name, found in outputs.items()},
    }
    report = {
        **facts("classifier"),
        "model": {"name": manifest.name, "version": manifest.version, "hash": manifest.hash},
        "probe_images": count,
        "seed": seed,
        "scores": {kind: _judge(scores, fitted_on, judged_on) for kind, scores in kinds.items()},
        "answer_sets": _answer_sets(
            softmax(outputs["garments"].logits, manifest.temperature), garments.labels
        ),
    }
    if "onnx-int8" not in manifest.raw.get("unavailable", {}):
        found = _run(Classifier.load(model, "onnx-int8"), images)
        int8 = {name: each.outlier for name, each in found.items()}
        report["int8"] = _int8(kinds["outlier score"], int8, fitted_on)
    return report


def _run(classifier: Classifier, images: Mapping[str, NDArray[np.uint8]]) -> dict[str, Outputs]:
    found = {}
    for number, (name, pixels) in enumerate(images.items(), 1):
        print(f"{classifier.engine} {number}/{len(images)}: {name}, {len(pixels)} images", file=sys.stderr)
        found[name] = classifier.outputs(np.ascontiguousarray(pixels[:, None]))
    return found


def _judge(scores: Mapping[str, Scores], fitted_on: NDArray[Any], judged_on: NDArray[Any]) -> dict[str, Any]:
    """Thresholds from one half of the garments; what they accept of the other, and reject of every family."""
    ordinary = scores["garments"]
    judged = ordinary[judged_on]
    thresholds = {f"{a:g}": fit_abstention(ordinary[fitted_on], a).outlier_threshold for a in ACCEPTED}
    families = {
        name: {
            "rejected": {a: float((found > threshold).mean()) for a, threshold in thresholds.items()},
            "auroc": _auroc(judged, found),
            "fpr_at_95": float((found <= np.quantile(judged, 0.95)).mean()),
        }
        for name, found in scores.items()
        if name != "garments"
    }
    return {
        "garments_accepted": {a: float((judged <= threshold).mean()) for a, threshold in thresholds.items()},
        "families": families,
    }


def _auroc(ordinary: Scores, strange: Scores) -> float:
    """The chance that a strange image scores higher than an ordinary one; ties count half."""
    ordered = np.sort(ordinary)
    below, up_to = (np.searchsorted(ordered, strange, side).mean() for side in ("left", "right"))
    return float((below + up_to) / 2 / len(ordered))


def _int8(exact: Mapping[str, Scores], int8: Mapping[str, Scores], fitted_on: NDArray[Any]) -> dict[str, Any]:
    """Where the int8 network decides otherwise, by the thresholds of the exact one."""
    found = {}
    for accepted in ACCEPTED:
        threshold = fit_abstention(exact["garments"][fitted_on], accepted).outlier_threshold
        otherwise = {name: (exact[name] > threshold) != (int8[name] > threshold) for name in exact}
        found[f"{accepted:g}"] = {
            "garments_accepted": float((int8["garments"] <= threshold).mean()),
            "garments_decided_otherwise": float(otherwise.pop("garments").mean()),
            "probes_decided_otherwise": float(np.concatenate(list(otherwise.values())).mean()),
        }
    return found


def _answer_sets(probabilities: Scores, labels: NDArray[np.int64]) -> list[dict[str, Any]]:
    """Coverage and size over random halves: quantiles from one, judged on the other."""
    rng, rows = np.random.default_rng(0), []
    for _ in range(_SPLITS):
        fit, judge = np.array_split(rng.permutation(len(labels)), 2)
        quantiles = fit_conformal(probabilities[fit], labels[fit])
        rows.append([_coverage(probabilities[judge], labels[judge], q) for q in quantiles.values()])
    table = np.array(rows)  # (splits, levels, figures)
    names = ("coverage", "worst_class", "size", "single")
    found = []
    for at, level in enumerate(LEVELS):
        means = dict(zip(names, table[:, at].mean(0).tolist(), strict=True))
        low, high = table[:, at, 0].min(), table[:, at, 0].max()
        found.append({"level": level, **means, "coverage_low": float(low), "coverage_high": float(high)})
    return found


def _coverage(probabilities: Scores, labels: NDArray[np.int64], quantiles: list[float]) -> list[float]:
    sets = answer_sets(probabilities, quantiles)
    covered, sizes = sets[np.arange(len(labels)), labels], sets.sum(1)
    worst = min(float(covered[labels == k].mean()) for k in np.unique(labels))
    return [float(covered.mean()), worst, float(sizes.mean()), float((sizes == 1).mean())]


def markdown(report: Mapping[str, Any]) -> str:
    """The report as tables."""
    score = report["scores"]["outlier score"]
    levels = [f"{a:g}" for a in ACCEPTED]
    lines = [
        f"Model {report['model']['name']} {report['model']['version']}; share rejected, in %, at the share of"
        " garments accepted; AUROC and FPR@95 in %.",
        "",
        _row(["family", *(f"{float(a):.1%}" for a in levels), "AUROC", "FPR@95"]),
        _row(["---", *["---:"] * (len(levels) + 2)]),
    ]
    for family, found in score["families"].items():
        cells = [_percent(found["rejected"][a]) for a in levels]
        lines.append(_row([family, *cells, _percent(found["auroc"]), _percent(found["fpr_at_95"])]))
    accepted = [f"{100 * score['garments_accepted'][a]:.1f}" for a in levels]
    lines += [_row(["*garments accepted*", *accepted, "", ""]), "", *_against(report)]
    lines += [
        "",
        _row(["answer sets", "covered", "lowest, highest split", "worst class", "labels", "one label"]),
    ]
    lines.append(_row(["---", *["---:"] * 5]))
    for each in report["answer_sets"]:
        spread = f"{_percent(each['coverage_low'])} .. {_percent(each['coverage_high'])}"
        shares = [_percent(each[name]) for name in ("coverage", "worst_class", "single")]
        lines.append(
            _row([f"{each['level']:.0%}", shares[0], spread, shares[1], f"{each['size']:.2f}", shares[2]])
        )
    if "int8" in report:
        lines += [
            "",
            _row(["int8, thresholds of fp32", "garments accepted", "garments otherwise", "probes otherwise"]),
        ]
        lines.append(_row(["---", *["---:"] * 3]))
        lines += [
            _row([f"{float(a):.1%}", *(f"{100 * v:.2f}" for v in report["int8"][a].values())]) for a in levels
        ]
    return "\n".join(lines)


def _against(report: Mapping[str, Any]) -> list[str]:
    """The scores side by side at 95 and 99 %."""
    kinds = report["scores"]
    heads = [f"{kind}, {level}" for kind in kinds for level in ("95 %", "99 %", "AUROC")]
    lines = [_row(["rejected", *heads]), _row(["---", *["---:"] * len(heads)])]
    for family in kinds["energy"]["families"]:
        cells = []
        for kind in kinds.values():
            found = kind["families"][family]
            cells += [
                _percent(v) for v in (found["rejected"]["0.95"], found["rejected"]["0.99"], found["auroc"])
            ]
        lines.append(_row([family, *cells]))
    return lines


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


if __name__ == "__main__":
    sys.exit(main())
