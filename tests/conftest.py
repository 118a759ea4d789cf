"""Fixtures that all tests share."""

from __future__ import annotations

import pytest

from .services.fixtures import (
    kafka_proxy,
    kafka_service,
    mock_kafka,
    mortal_kafka,
    mortal_postgres,
    mortal_pubsub,
    postgres_service,
    pubsub_service,
    services_run,
)

__all__ = [
    "kafka_proxy",
    "kafka_service",
    "mock_kafka",
    "mortal_kafka",
    "mortal_postgres",
    "mortal_pubsub",
    "postgres_service",
    "pubsub_service",
    "services_run",
]


@pytest.fixture
def anyio_backend() -> str:
    """The event loop that the packages are written for."""
    return "asyncio"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep modules whose fixtures are costly in one process; all other tests go to any."""
    for item in items:
        if item.path.parent.name in ("classifier", "tests"):
            item.add_marker(pytest.mark.xdist_group(item.path.stem))
