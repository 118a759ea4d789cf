"""What a backend takes from its URL, and what of it may be shown."""

from __future__ import annotations

import re
from collections.abc import Mapping


def public_url(url: str) -> str:
    """Return ``url`` without user and password, for logs and errors."""
    return re.sub(r"//[^/@]*@", "//***@", url)


def take_seconds(options: Mapping[str, str], defaults: Mapping[str, float]) -> dict[str, float]:
    """Return ``defaults`` overridden by ``options``, all in seconds above 0.

    Raises:
        ValueError: an unknown option, or a value that is no number above 0.
    """
    unknown = sorted(set(options) - set(defaults))
    if unknown:
        raise ValueError(f"unknown option {unknown[0]!r}; known are {', '.join(sorted(defaults))}")
    values = dict(defaults)
    for name, text in options.items():
        try:
            values[name] = float(text)
        except ValueError:
            raise ValueError(f"option {name}={text!r} is not a number of seconds") from None
        if not 0 < values[name] < float("inf"):
            raise ValueError(f"option {name}={text!r} must be above 0 seconds")
    return values
