"""The consumer process: one handler on ``broker.process`` that decodes, predicts and writes."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .handler import ImageHandler
    from .launch import Launch
    from .main import run
    from .settings import WorkerSettings
    from .sinks import Sink, SinkUnavailable, open_sink

__all__ = [
    "ImageHandler",
    "Launch",
    "Sink",
    "SinkUnavailable",
    "WorkerSettings",
    "open_sink",
    "run",
]

_HOMES = {
    ".handler": ("ImageHandler",),
    ".launch": ("Launch",),
    ".main": ("run",),
    ".settings": ("WorkerSettings",),
    ".sinks": ("Sink", "SinkUnavailable", "open_sink"),
}


def __getattr__(name: str) -> object:
    # The command line imports this package for its help text alone; the classifier comes on use.
    for module, names in _HOMES.items():
        if name in names:
            return getattr(import_module(module, __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
