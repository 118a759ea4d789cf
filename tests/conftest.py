"""Fixtures that all tests share."""

from __future__ import annotations

import pytest


@pytest.fixture
def anyio_backend() -> str:
    """The event loop that the packages are written for."""
    return "asyncio"
