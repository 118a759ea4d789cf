"""Scenes on every backend: a queue file with a results file, Kafka and Pub/Sub with PostgreSQL."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from .brokers import Place, SqlitePlace
from .kafka_place import KafkaPlace
from .pubsub_place import PubsubPlace
from .scene import Scene
from .tables import PostgresTable, SqliteTable, Table

Stage = Callable[..., Scene]


@pytest.fixture(
    params=[
        "sqlite",
        pytest.param("kafka", marks=pytest.mark.kafka),
        pytest.param("pubsub", marks=pytest.mark.pubsub),
    ]
)
def backend(request: pytest.FixtureRequest) -> str:
    """Each broker in turn."""
    return str(request.param)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Where a run writes."""
    return tmp_path


@pytest.fixture
def place(backend: str, directory: Path, request: pytest.FixtureRequest) -> Place:
    """A topic on the backend, with leases that are over soon."""
    if backend == "kafka":
        return KafkaPlace(request.getfixturevalue("kafka_service").bootstrap, session_s=3.0)
    if backend == "pubsub":
        return PubsubPlace(request.getfixturevalue("pubsub_service").host, lease_s=4.0)
    return SqlitePlace(directory)


@pytest.fixture
def table(backend: str, directory: Path, request: pytest.FixtureRequest) -> Table:
    """The results of the backend's usual companion."""
    if backend == "sqlite":
        return SqliteTable(directory / "results.db")
    return PostgresTable(request.getfixturevalue("postgres_service").new_database())


@pytest.fixture
def stage(place: Place, table: Table, directory: Path, request: pytest.FixtureRequest) -> Stage:
    """Makes the scene of a test."""

    def make(**options: Any) -> Scene:
        return Scene(request.node.name, place, table, directory, **options)

    return make
