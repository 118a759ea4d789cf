"""The page's plots, drawn from ``metrics.json`` alone: each function returns one SVG element as text.

matplotlib is imported on use; its object interface leaves the state of pyplot and of the user's own
figures alone. Two colours that every kind of colour vision tells apart, blue for right or after, orange
for wrong or before; markers differ too, so a print without colour can be read.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, ORANGE, INK, MUTED, RULE = "#0b5fa5", "#c4561a", "#1c2127", "#5c6670", "#dfe3e8"
_CYCLE = (BLUE, ORANGE, "#1a7f5a", "#7a4fa3", "#8a6d00", "#b03060", "#4a5560")
_DASHES = ("-", "--", "-.", ":")
STYLE: Any = {
    "svg.fonttype": "none",  # text stays text: it can be searched, read aloud, and uses the reader's fonts
    "svg.hashsalt": "couturier",  # the same numbers give the same bytes
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 10.0,
    "text.parse_math": False,  # a class may be called "$5"
    "text.color": INK,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": MUTED,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": RULE,
    "grid.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.size": 0.0,
    "ytick.major.size": 0.0,
    "legend.frameon": False,
}
_WIDTH = 5.4  # inches: on a phone the text then stays near 9 pixels


def recalls(classes: Sequence[Mapping[str, Any]]) -> str:
    """Recall per class with its interval, worst at the top; of many classes the 30 worst."""
    rows = sorted((c for c in classes if c["support"]), key=lambda c: -c["recall"])[-30:]
    return _whiskers(
        [c["name"] for c in rows],
        [(c["recall"], c["recall_low"], c["recall_high"]) for c in rows],
        "recall: share of the class that is found",
    )


def slices(found: Sequence[Mapping[str, Any]]) -> str:
    """Accuracy per slice with its interval, first slice at the top."""
    rows = list(reversed(found))
    return _whiskers(
        [f"{s['name']} {s['low']:.0f}–{s['high']:.0f}" for s in rows],
        [(s["accuracy"], s["accuracy_low"], s["accuracy_high"]) for s in rows],
        "accuracy",
    )


def reliability(calibration: Mapping[str, Any]) -> str:
    """Accuracy against confidence, before and after temperature scaling."""
    figure, axes = _figure(3.9)
    looks = (("before", ORANGE, "s", "white"), ("after", BLUE, "o", BLUE))
    lowest = 1.0
    for when, colour, marker, fill in looks:
        bins = calibration[when]["reliability"]
        x, y = [b["confidence"] for b in bins], [b["accuracy"] for b in bins]
        lowest = min(lowest, *x, *y)
        name = f"{when} temperature scaling, ECE {calibration[when]['ece']:.3f}"
        axes.plot(
            x, y, color=colour, marker=marker, markerfacecolor=fill, markersize=5, linewidth=1.3, label=name
        )
    low = max(0.0, int(lowest * 10) / 10 - 0.02)
    axes.plot([low, 1], [low, 1], color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
    axes.annotate(
        "as sure as right", (1, 1), (-70, -84), textcoords="offset points", color=MUTED, fontsize=9, va="top"
    )
    axes.set(xlim=(low, 1.01), ylim=(low, 1.03), xlabel="mean confidence", ylabel="accuracy")
    axes.legend(loc="upper left", fontsize=9, bbox_to_anchor=(0.0, 1.17), borderaxespad=0)
    _percent(axes, "both")
    return _svg(figure, "Reliability: accuracy against confidence, before and after temperature scaling")


def confidences(histogram: Mapping[str, Any]) -> str:
    """How sure the model is when it is right, and when it is wrong."""
    figure = _bare(3.9)
    edges = histogram["edges"]
    middle = [(a + b) / 2 for a, b in pairwise(edges)]
    for place, (kind, colour, title) in enumerate(
        (("right", BLUE, "right answers"), ("wrong", ORANGE, "mistakes"))
    ):
        axes = figure.add_subplot(2, 1, place + 1)
        axes.bar(middle, histogram[kind], width=0.043, color=colour)
        axes.set_title(f"{sum(histogram[kind]):,} {title}", loc="left", fontsize=10, color=colour)
        axes.set(xlim=(0, 1), ylabel="images")
        axes.grid(visible=False, axis="x")
        axes.locator_params(axis="y", nbins=4, integer=True)
        _percent(axes, "x")
    axes.set_xlabel("confidence")
    return _svg(figure, "Histogram of confidence, right answers above, mistakes below")


def risk_coverage(selective: Mapping[str, Any]) -> str:
    """Mistakes among the answered images, by the share that is answered."""
    figure, axes = _figure(3.6)
    axes.plot(*zip(*selective["curve"], strict=True), color=BLUE, linewidth=1.8)
    for point in selective["at"]:
        risk = 1 - point["accuracy"]
        axes.plot([point["coverage"]], [risk], "o", color=BLUE, markersize=5)
        axes.annotate(
            f"{100 * risk:.1f} %",
            (point["coverage"], risk),
            (-4, 6),
            textcoords="offset points",
            ha="right",
            fontsize=9,
        )
    axes.set(xlim=(0, 1.02), xlabel="share answered, surest first", ylabel="mistakes among the answered")
    axes.set_ylim(0, max(0.01, 1.25 * (1 - selective["at"][0]["accuracy"])))
    _percent(axes, "both")
    return _svg(figure, "Risk against coverage")


def precision_recall(tags: Sequence[Mapping[str, Any]]) -> str:
    """One precision-recall curve per tag, with the operating point."""
    figure, axes = _figure(3.9)
    for at, tag in enumerate(t for t in tags if t["curve"]):
        colour = _CYCLE[at % len(_CYCLE)]
        line = _DASHES[(at // len(_CYCLE)) % len(_DASHES)]
        axes.step(
            *zip(*[(0.0, tag["curve"][0][1]), *tag["curve"]], strict=True),
            where="pre",
            color=colour,
            linestyle=line,
            linewidth=1.6,
            label=f"{tag['name']}, AP {tag['average_precision']:.3f}",
        )
        axes.plot([tag["recall"]], [tag["precision"]], "o", color=colour, markersize=6)
    axes.set(xlim=(0, 1.02), ylim=(0, 1.04), xlabel="recall", ylabel="precision")
    axes.legend(loc="lower left", fontsize=9)
    _percent(axes, "both")
    return _svg(figure, "Precision against recall per tag")


def training(history: Sequence[Mapping[str, Any]]) -> str:
    """Loss, and the accuracy on held-out rows where the run measured it, epoch by epoch."""
    figure = _bare(3.6)
    epochs = [entry["epoch"] for entry in history]
    scored = [(e["epoch"], e["val_accuracy"]) for e in history if e.get("val_accuracy") is not None]
    loss = figure.add_subplot(2 if scored else 1, 1, 1)
    loss.plot(epochs, [entry["loss"] for entry in history], color=ORANGE, linewidth=1.6)
    loss.set(ylabel="training loss", xlim=(0, max(epochs)))
    last = loss
    if scored:
        last = figure.add_subplot(2, 1, 2)
        last.plot(*zip(*scored, strict=True), color=BLUE, linewidth=1.6, marker="o", markersize=3)
        last.set(ylabel="val accuracy", xlim=(0, max(epochs)))
        _percent(last, "y")
    last.set_xlabel("epoch")
    return _svg(figure, "Training loss and held-out accuracy by epoch")


def _whiskers(names: Sequence[str], rows: Sequence[tuple[float, float, float]], xlabel: str) -> str:
    """A point and its interval per row, last row at the top."""
    figure, axes = _figure(0.95 + 0.29 * len(rows))
    places = range(len(rows))
    axes.hlines(places, [r[1] for r in rows], [r[2] for r in rows], color=BLUE, linewidth=2.2, alpha=0.45)
    axes.plot([r[0] for r in rows], places, "o", color=BLUE, markersize=5.5)
    low = min(r[1] for r in rows)
    low = max(0.0, low - 0.12 * (1 - low) - 0.01)
    for place, row in zip(places, rows, strict=True):
        axes.annotate(
            f"{100 * row[0]:.1f} %",
            (1.015, place),
            xycoords=("axes fraction", "data"),
            va="center",
            fontsize=9,
        )
    axes.set_yticks(list(places), list(names), color=INK)
    axes.set(xlim=(low, 1.0), ylim=(-0.6, len(rows) - 0.4), xlabel=xlabel)
    axes.grid(visible=False, axis="y")
    axes.locator_params(axis="x", nbins=5)
    _percent(axes, "x")
    return _svg(figure, xlabel)


def _percent(axes: Axes, which: str) -> None:
    def percent(share: float, _: object) -> str:
        return f"{100 * share:.3g} %"

    if which in ("x", "both"):
        axes.xaxis.set_major_formatter(percent)
    if which in ("y", "both"):
        axes.yaxis.set_major_formatter(percent)


def _bare(height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(_WIDTH, height), layout="constrained")


def _figure(height: float) -> tuple[Figure, Axes]:
    figure = _bare(height)
    return figure, figure.add_subplot()


def _svg(figure: Figure, title: str) -> str:
    """The figure as an <svg> that scales with the page, with ids of its own and a name for screen readers."""
    target = io.StringIO()
    figure.savefig(target, format="svg", transparent=True, metadata={"Date": None})
    text = target.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"| height="[\d.]+pt"', r"\1", text, count=2)
    key = re.sub(r"\W+", "-", title.lower())[:24]
    text = re.sub(r'\bid="|"#|url\(#', lambda found: found[0] + key + "-", text)
    return text.replace("<svg", f'<svg role="img" aria-label="{title}"', 1)
