"""The commands' old address; see :mod:`classifier.commands`."""

from __future__ import annotations

from .commands import register

__all__ = ["register"]
