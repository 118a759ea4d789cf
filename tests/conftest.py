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
