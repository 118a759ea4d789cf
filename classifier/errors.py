"""Errors of the classifier, one class per cause.

    ClassifierError
    ├── DataError      a data set is missing or is not what it claims to be
    ├── ModelError     a model bundle is missing, damaged, or does not fit its manifest
    ├── MissingExtra   an optional dependency (torch, onnx, ...) is not installed
    └── ExportRefused  the engines disagree, so no bundle was written

A bad *image* is not an error but a value: see :class:`classifier.images.InvalidImage`.
Every message ends with what to do next.
"""

from __future__ import annotations


class ClassifierError(Exception):
    """Base of all errors the classifier raises on purpose."""


class DataError(ClassifierError):
    """A data set is missing or is not what it claims to be."""


class ModelError(ClassifierError):
    """A model bundle is missing, damaged, or does not fit its manifest."""


class MissingExtra(ClassifierError):  # noqa: N818 - reads as the state it names, like ExportRefused
    """An optional dependency is not installed."""

    def __init__(self, purpose: str, extra: str, missing: str | None) -> None:
        super().__init__(
            f"{purpose} needs the extra {extra!r} ({missing} is not installed):"
            f" `uv sync --extra {extra}`, or `pip install -e '.[{extra}]'` in the checkout"
        )
        self.extra = extra


class ExportRefused(ClassifierError):  # noqa: N818 - reads as the outcome it names
    """The exported engines disagree with the trained network, so no bundle was written."""
