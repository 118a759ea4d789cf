"""The fixtures that ``tests/conftest.py`` gives to all tests. A service starts when a test first asks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeVar

import pytest

from .errors import NotInstalledError
from .kafka import KafkaService, RemoteProxy
from .mock_kafka import MockKafka
from .postgres import PostgresService
from .pubsub import PubSubService
from .service import Run, give_up

S = TypeVar("S", KafkaService, PubSubService, PostgresService)


def serve(kind: type[S], run: Run) -> Iterator[S]:
    """Yield the run's service and end it afterwards; skip, or fail, where no rung of the ladder holds."""
    try:
        service = kind.start(run)
    except NotInstalledError as error:
        give_up(f"{kind.__name__} needs {kind.address_variable}, or one of these is to be mended: {error}")
    yield service
    service.stop()


@pytest.fixture(scope="session")
def services_run(request: pytest.FixtureRequest) -> Iterator[Run]:
    """The run that this process belongs to."""
    run = Run.of(request.config)
    yield run
    run.remove()


@pytest.fixture(scope="session")
def kafka_service(services_run: Run) -> Iterator[KafkaService]:
    """Apache Kafka, one node."""
    yield from serve(KafkaService, services_run)


@pytest.fixture
def kafka_proxy(kafka_service: KafkaService) -> Iterator[RemoteProxy]:
    """The proxy before ``kafka_service.proxied_bootstrap``, healed after the test."""
    proxy = kafka_service.proxy
    yield proxy
    proxy.heal_all()


@pytest.fixture(scope="session")
def pubsub_service(services_run: Run) -> Iterator[PubSubService]:
    """Google's Pub/Sub emulator."""
    yield from serve(PubSubService, services_run)


@pytest.fixture(scope="session")
def postgres_service(services_run: Run) -> Iterator[PostgresService]:
    """PostgreSQL."""
    yield from serve(PostgresService, services_run)


@pytest.fixture(scope="session")
def mock_kafka() -> Iterator[MockKafka]:
    """The mock cluster of librdkafka, one per process."""
    with MockKafka() as cluster:
        yield cluster
