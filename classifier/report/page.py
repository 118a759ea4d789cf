"""One self-contained HTML page from ``metrics.json`` and the pictures: no script, nothing to fetch."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..data import Dataset
from ..errors import MissingExtra
from .words import caution, percent, summary

Document = Mapping[str, Any]
# Larger tables of confusion are unreadable; the list of confused pairs remains.
_MATRIX_CLASSES = 30
_THUMBNAIL_PX = 96


def render(document: Document, data: Dataset) -> str:
    """The page.

    Args:
        document: ``metrics.json``, see :func:`classifier.report.study`.
        data: the judged rows, for the pictures of mistakes.

    Raises:
        MissingExtra: matplotlib or jinja2 is not installed.
    """
    try:
        from jinja2 import Environment, FileSystemLoader, StrictUndefined
        from matplotlib import rc_context

        from . import plots
    except ModuleNotFoundError as error:
        raise MissingExtra("the page report.html", "train", error.name) from error
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": percent, "size": _size, "ms": _milliseconds, "count": "{:,}".format}
    with rc_context(plots.STYLE):
        figures = _figures(document)
    pictures = {
        entry["row"]: thumbnail(data, entry["row"])
        for kind in ("surest", "suspected")
        for entry in document["mistakes"][kind]
    }
    return environment.get_template("page.html").render(
        d=document,
        caution=caution(document),
        findings=summary(document),
        figures=figures,
        pictures=pictures,
        matrix=_matrix(document) if len(document["classes"]) <= _MATRIX_CLASSES else [],
        facts=list(_facts(document["training"])),
    )


def _figures(document: Document) -> dict[str, str]:
    """Name -> SVG; a figure without numbers is left out."""
    from . import plots

    history = document["training"]["provenance"].get("history") or []
    figures = {
        "recall": plots.recalls(document["classes"]),
        "reliability": plots.reliability(document["calibration"]),
        "confidence": plots.confidences(document["calibration"]["histogram"]),
        "risk": plots.risk_coverage(document["selective"]),
        "slices": plots.slices(document["slices"]),
    }
    if document["tags"] and any(tag["curve"] for tag in document["tags"]["tags"]):
        figures["tags"] = plots.precision_recall(document["tags"]["tags"])
    if len(history) > 1:
        figures["training"] = plots.training(history)
    return figures


def thumbnail(data: Dataset, row: int) -> str:
    """One image as a PNG data URI, at most 96 pixels a side."""
    pixels = data.images[row]
    image = Image.fromarray(np.ascontiguousarray(pixels if pixels.ndim == 2 else pixels.transpose(1, 2, 0)))
    image.thumbnail((_THUMBNAIL_PX, _THUMBNAIL_PX))
    target = io.BytesIO()
    image.save(target, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(target.getvalue()).decode()


def _matrix(document: Document) -> list[dict[str, Any]]:
    """Rows of cells: count, share of the row, and how strongly to shade it (0..1).

    Mistakes are shaded on a scale of their own: beside the diagonal, a few percent would be invisible.
    """
    counts = np.array(document["confusion"])
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    wrong = shares - np.diag(np.diag(shares))
    strongest = wrong.max() or 1.0
    rows = []
    for at, entry in enumerate(document["classes"]):
        cells = [
            {
                "count": int(counts[at, other]),
                "share": float(shares[at, other]),
                "hit": at == other,
                "shade": round(
                    float(shares[at, at] if at == other else (wrong[at, other] / strongest) ** 0.6), 2
                ),
            }
            for other in range(len(counts))
        ]
        rows.append({"name": entry["name"], "cells": cells})
    return rows


def _facts(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """(dotted name, text) of what the manifest records; long lists are left to ``metrics.json``."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            if key != "history":
                yield from _facts(item, f"{path}.{key}" if path else str(key))
    elif isinstance(value, (list, tuple)):
        plain = all(not isinstance(item, (Mapping, list, tuple)) for item in value)
        yield path, ", ".join(map(str, value)) if plain and len(value) <= 20 else f"{len(value)} entries"
    else:
        yield path, "–" if value is None else str(value)


def _size(count: int) -> str:
    return f"{count / 1e6:.2f} MB" if count >= 1e6 else f"{count / 1e3:.0f} kB"


def _milliseconds(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:.0f}"
