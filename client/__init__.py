"""What other teams import: the wire contract, image sources, publishing, results. Needs no torch."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .client import Client, SendReport
    from .errors import ClientError, ResultsTimeout, SourceError, StoreError, StoreUnavailable
    from .ledger import Ledger
    from .schema import ClassifyRequest, ClassifyResult
    from .sources.base import Submission

__all__ = [
    "ClassifyRequest",
    "ClassifyResult",
    "Client",
    "ClientError",
    "Ledger",
    "ResultsTimeout",
    "SendReport",
    "SourceError",
    "StoreError",
    "StoreUnavailable",
    "Submission",
]

_HOMES = {
    ".client": ("Client", "SendReport"),
    ".errors": ("ClientError", "ResultsTimeout", "SourceError", "StoreError", "StoreUnavailable"),
    ".ledger": ("Ledger",),
    ".schema": ("ClassifyRequest", "ClassifyResult"),
    ".sources.base": ("Submission",),
}


def __getattr__(name: str) -> object:
    # The command line imports this package for its help text alone; pydantic and the rest come on use.
    for module, names in _HOMES.items():
        if name in names:
            return getattr(import_module(module, __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
