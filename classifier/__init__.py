"""A training and inference library for image classifiers. Knows no message broker.

    from classifier import export, load, prepare, train
    results = load().predict([png_bytes, jpeg_bytes])

    prepared = prepare("garments")
    result = train(prepared.training, model="student", val=prepared.val)
    export(result, prepared.training, Path("model"), card=prepared.test)

Names are imported on first use: ``import classifier`` costs nothing, and only
``train``, ``export`` and their kin need torch (the extra ``train``).
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .augment import AugmentConfig
    from .bundle import Bundle, Manifest
    from .data import (
        GROUPS,
        LABELS,
        DataOptions,
        Dataset,
        Prepared,
        dataset,
        open_rows,
        prepare,
        training_set,
        validation_set,
        write_table,
    )
    from .engines import ENGINES
    from .errors import ClassifierError, DataError, ExportRefused, MissingExtra, ModelError
    from .evaluation import evaluate, text_report
    from .exporting import ExportConfig, export
    from .files import iter_images
    from .headers import declared_pixels
    from .images import Decoded, InvalidImage, Preprocessing
    from .metrics import Metrics, measure
    from .model import ModelConfig
    from .predict import Classifier, Prediction
    from .report import Report, StudyOptions, write_report
    from .training import TrainConfig, TrainResult, train

    load = Classifier.load

__all__ = [
    "ENGINES",
    "GROUPS",
    "LABELS",
    "AugmentConfig",
    "Bundle",
    "Classifier",
    "ClassifierError",
    "DataError",
    "DataOptions",
    "Dataset",
    "Decoded",
    "ExportConfig",
    "ExportRefused",
    "InvalidImage",
    "Manifest",
    "Metrics",
    "MissingExtra",
    "ModelConfig",
    "ModelError",
    "Prediction",
    "Prepared",
    "Preprocessing",
    "Report",
    "StudyOptions",
    "TrainConfig",
    "TrainResult",
    "dataset",
    "declared_pixels",
    "evaluate",
    "export",
    "iter_images",
    "load",
    "measure",
    "open_rows",
    "prepare",
    "text_report",
    "train",
    "training_set",
    "validation_set",
    "write_report",
    "write_table",
]

_HOME = {
    "augment": ("AugmentConfig",),
    "bundle": ("Bundle", "Manifest"),
    "data": (
        "GROUPS",
        "LABELS",
        "DataOptions",
        "Dataset",
        "Prepared",
        "dataset",
        "open_rows",
        "prepare",
        "training_set",
        "validation_set",
        "write_table",
    ),
    "engines": ("ENGINES",),
    "errors": ("ClassifierError", "DataError", "ExportRefused", "MissingExtra", "ModelError"),
    "evaluation": ("evaluate", "text_report"),
    "exporting": ("ExportConfig", "export"),
    "files": ("iter_images",),
    "headers": ("declared_pixels",),
    "images": ("Decoded", "InvalidImage", "Preprocessing"),
    "metrics": ("Metrics", "measure"),
    "model": ("ModelConfig",),
    "predict": ("Classifier", "Prediction"),
    "report": ("Report", "StudyOptions", "write_report"),
    "training": ("TrainConfig", "TrainResult", "train"),
}
_WHERE = {name: module for module, names in _HOME.items() for name in names}
_NEEDS_TORCH = frozenset(("augment", "exporting", "model", "training"))


def __getattr__(name: str) -> Any:
    if name == "load":
        return __getattr__("Classifier").load
    module = _WHERE.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        value = getattr(import_module(f".{module}", __name__), name)
    except ModuleNotFoundError as error:
        if module not in _NEEDS_TORCH:
            raise
        from .errors import MissingExtra

        raise MissingExtra(f"classifier.{name}", "train", error.name) from error
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
