"""The page's first lines: what the numbers mean, in plain sentences."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Document = Mapping[str, Any]


def percent(share: float | None, digits: int = 1) -> str:
    """A share as people write it: 0.9444 -> "94.4 %"; None -> "–"."""
    return "–" if share is None else f"{100 * share:.{digits}f}\u00a0%"


def caution(document: Document) -> str:
    """What to know before reading any figure: whether the model had seen these images; "" if it had not."""
    role = document["data"]["role"]
    instead = " Judge it on images it never saw: --split test."
    if role in ("train", "all"):
        part = "these images" if role == "train" else "most of these images"
        return f"The model was trained on {part}, so every figure below flatters it.{instead}"
    if role == "val":
        return (
            "These images took part in choices (when to stop, temperature, thresholds), so the figures"
            f" flatter the model a little.{instead}"
        )
    if not role:
        return (
            "Nothing recorded says whether the model was trained on any of these images; the figures hold"
            " for new images only if it was not."
        )
    return ""


def summary(document: Document) -> list[str]:
    """The findings that decide whether and how to use the model, most important first."""
    lines = [_accuracy(document), _weakest(document), _trust(document), _delegation(document)]
    lines += [_sets(document), _tags(document), against(document)]
    return [line for line in lines if line]


def _accuracy(d: Document) -> str:
    low, high = percent(d["accuracy_low"]), percent(d["accuracy_high"])
    return (
        f"It names {percent(d['accuracy'])} of {d['images']:,} images rightly; on other such images"
        f" expect {low} to {high}. The right name is among its first two in {percent(d['top2_accuracy'])}."
    )


def _weakest(d: Document) -> str:
    present = [c for c in d["classes"] if c["support"]]
    worst = min(present, key=lambda c: c["recall"])
    text = f"Weakest class: {worst['name']}, of which it finds {percent(worst['recall'])}"
    taken = [p for p in d["mistakes"]["pairs"] if p["true"] == worst["name"]]
    return text + (f"; most of the rest is taken for {taken[0]['predicted']}." if taken else ".")


def _trust(d: Document) -> str:
    ece, before = d["ece"], d["calibration"]["before"]["ece"]
    verdict = "can be read as a probability" if ece < 0.02 else "is roughly a probability"
    if d["intervals"]["ece"][0] >= 0.05:  # few images alone make a large error of an honest model
        verdict = "is not to be taken as a probability"
    return (
        f"Its confidence {verdict}: it is off by {100 * ece:.1f} points on average"
        f" ({100 * before:.1f} before temperature scaling)."
    )


def _delegation(d: Document) -> str:
    at = {point["coverage"]: point for point in d["selective"]["at"]}
    return (
        f"If a person looks at the 10 % of images it is least sure of, it is right in"
        f" {percent(at[0.9]['accuracy'])} of the others."
    )


def _sets(d: Document) -> str:
    for entry in d["conformal"]:
        if entry["level"] == 0.95:
            return (
                f"Its 95 % answer sets hold the truth in {percent(entry['coverage'])};"
                f" {percent(entry['single'])} of them are a single name."
            )
    return ""


def _tags(d: Document) -> str:
    if not d["tags"]:
        return ""
    worst = min(d["tags"]["tags"], key=lambda tag: tag["f1"])
    exact = d["tags"]["exact_match"]
    together = "" if exact is None else f" All tags together are right on {percent(exact)} of the images."
    return f"Weakest tag: {worst['name']}, F1 {worst['f1']:.3f}.{together}"


def against(d: Document) -> str:
    """One sentence on the other model; "" without one."""
    other = d["against"]
    if not other:
        return ""
    name = f"{other['model']} {other['model_version']} ({other['engine']})"
    if other["p"] >= 0.05:
        return f"Against {name} no difference can be shown on these images (McNemar p = {other['p']:.2f})."
    better = "better" if other["difference"] > 0 else "worse"
    points = abs(100 * other["difference"])
    return f"It is {better} than {name} by {points:.2f} points (McNemar p = {other['p']:.2g})."


def tag_table(document: Document) -> str:
    """The tags as plain text, for a terminal; "" without tags."""
    if not document["tags"]:
        return ""
    lines = ["\n", f"{'tag':<14}{'precision':>10}{'recall':>10}{'F1':>10}{'AP':>10}{'yes':>9}"]
    for tag in document["tags"]["tags"]:
        ap = "-" if tag["average_precision"] is None else f"{tag['average_precision']:.4f}"
        lines.append(
            f"{tag['name']:<14}{tag['precision']:>10.4f}{tag['recall']:>10.4f}{tag['f1']:>10.4f}{ap:>10}"
            f"{tag['positives']:>9}"
        )
    return "\n".join(lines)
