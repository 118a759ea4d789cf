"""The model card: what a bundle's manifest says, for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .metrics import Metrics

USE = (
    "Images like those it was trained on, prepared by the same rules: see `preprocessing` in `manifest.json`."
)
LIMITS = (
    "It knows the classes above and no others. How it does on images of another kind (other background,"
    " light, cut or camera) was not measured; measure it on yours: `couturier evaluate DATA --model DIR`."
)
_CURVE_ROWS = 12


def card_text(document: Mapping[str, Any], judged: Metrics | None, use: str, limits: str) -> str:
    """The card in Markdown.

    Args:
        document: the manifest, complete but for hashes.
        judged: the default engine's quality on ``metrics_on``; None if it was not measured.
        use, limits: what the model is meant for, and what it is not; "" for general words.
    """
    parts = [
        f"# {document['name']} {document['version']}",
        _what(document),
        "## Data\n\n" + _data(document),
        "## Recipe\n\n" + _recipe(document),
        "## Figures\n\n" + _figures(document, judged),
        "## When it does not answer\n\n" + _declining(document),
        "## Intended use\n\n" + (use or USE),
        "## Limits\n\n" + (limits or LIMITS),
        "`manifest.json` has every number, setting and package version, and the hash of each file.",
    ]
    return "\n\n".join(parts) + "\n"


def _what(document: Mapping[str, Any]) -> str:
    shape, spec = document["architecture"], document["preprocessing"]
    colour = "colour" if spec["channels"] == 3 else "gray"
    tags = [tag["name"] for tag in document["tags"]]
    besides = f", and says which of {len(tags)} tags it has ({', '.join(tags)})" if tags else ""
    return (
        f"A network of {document['parameter_count']:,} trained values ({shape['kind']}) that names the class"
        f" of one {spec['size']}x{spec['size']} {colour} image{besides}.\n\n"
        f"Classes: {', '.join(document['labels'])}."
    )


def _data(document: Mapping[str, Any]) -> str:
    data = document["data"]
    lines = [
        f"- Trained on {data['images']:,} images, sha256 `{data['training_sha256']}`"
        + (f", of {data['source']}." if "source" in data else ".")
    ]
    split = data.get("split")
    if isinstance(split, Mapping):
        lines.append(f"- Split: {', '.join(f'{name} {_short(value)}' for name, value in split.items())}.")
    measured = document.get("metrics_on")
    if measured:
        lines.append(
            f"- Measured on {measured['images']:,} images ({measured['split']}), sha256"
            f" `{measured['sha256']}`."
        )
    if document["calibrated_on"]:
        held_out = document["calibrated_on"]
        lines.append(
            f"- Temperature and thresholds fitted on {held_out['images']:,} held-out images, sha256"
            f" `{held_out['sha256']}`."
        )
    return "\n".join(lines)


def _recipe(document: Mapping[str, Any]) -> str:
    provenance = document["provenance"]
    settings = ", ".join(
        f"{name} {_short(value)}" for name, value in provenance["train"].items() if value is not None
    )
    curve = _curve(provenance["history"])
    return f"{settings}; {provenance['wall_s'] / 60:.0f} minutes.\n\n{curve}".rstrip()


def _curve(history: Sequence[Mapping[str, float]]) -> str:
    """The loss and whatever was measured while training, at a dozen epochs."""
    if not history:
        return ""
    columns = ["epoch", "loss", *(name for name in history[0] if name.startswith("val_"))]
    step = max(1, -(-len(history) // _CURVE_ROWS))
    rows = [entry for at, entry in enumerate(history, 1) if at % step == 0 or at == len(history)]
    return _table(columns, [[_number(row.get(name, float("nan"))) for name in columns] for row in rows])


def _figures(document: Mapping[str, Any], judged: Metrics | None) -> str:
    if not document["metrics"]:
        return "Nothing was held out, so nothing was measured."
    columns = ["engine", "accuracy", "95 % interval", "macro F1", "groups", "ECE"]
    rows = [
        [
            engine,
            f"{found['accuracy']:.2%}",
            f"{found['accuracy_low']:.2%} to {found['accuracy_high']:.2%}",
            f"{found['macro_f1']:.4f}",
            f"{found['group_accuracy']:.2%}",
            f"{found['ece']:.4f}",
        ]
        for engine, found in document["metrics"].items()
    ]
    text = _table(columns, rows)
    if judged is not None:
        weakest = min((row for row in judged.classes if row.support), key=lambda row: row.recall)
        text += f"\n\nWeakest class: {weakest.name}, recall {weakest.recall:.3f} on {weakest.support} images."
    if document["tag_metrics"]:
        names = ["precision", "recall", "f1", "positives"]
        found = [
            [tag["name"], *(_number(tag[name]) for name in names), f"{tag['threshold']:.3f}"]
            for tag in document["tag_metrics"]
        ]
        text += "\n\n" + _table(["tag", *names, "threshold"], found)
    for engine, why in document["unavailable"].items():
        text += f"\n\nNot available on {engine}: {why}."
    return text


def _declining(document: Mapping[str, Any]) -> str:
    abstention = document["abstention"]
    if abstention is None:
        return "It always answers: nothing was held out to fit a threshold on."
    lines = []
    if abstention["outlier_threshold"] is not None:
        lines.append(
            f"- An image whose outlier score is above {abstention['outlier_threshold']:.4g} is no kind of"
            f" image it knows; {abstention['accepted']:.0%} of the held-out images are below."
        )
    if abstention["confidence_threshold"] > 0:
        lines.append(f"- A best guess below {abstention['confidence_threshold']:.0%} is unsure.")
    if document["conformal"]:
        levels = ", ".join(f"{float(level):.0%}" for level in document["conformal"])
        lines.append(f"- Answer sets hold the true class in {levels} of images like the held-out ones.")
    return "\n".join(lines)


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _number(value: float) -> str:
    return str(int(value)) if float(value).is_integer() else f"{value:.4f}"


def _short(value: Any) -> str:
    if isinstance(value, Mapping):
        return "(" + ", ".join(f"{name} {_short(each)}" for name, each in value.items()) + ")"
    return f"{value:g}" if isinstance(value, float) else str(value)
