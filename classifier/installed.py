"""Which versions of which packages are installed, for manifests and reports."""

from __future__ import annotations

import contextlib
from importlib.metadata import PackageNotFoundError, version


def package_versions(*names: str) -> dict[str, str]:
    """Name -> version of those that are installed."""
    found = {}
    for name in names:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found
