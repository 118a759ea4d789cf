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


def serve_alone(kind: type[S], service: S, run: Run) -> Iterator[S]:
    """Yield a service that may be taken down: the run's, or another one where several processes use that."""
    if not run.shared or not service.can_restart:
        yield service
        return
    own = Run.alone()
    yield from serve(kind, own)
    own.remove()


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


@pytest.fixture(scope="module")
def mortal_kafka(kafka_service: KafkaService, services_run: Run) -> Iterator[KafkaService]:
    """A Kafka that a test may restart."""
    yield from serve_alone(KafkaService, kafka_service, services_run)


@pytest.fixture(scope="module")
def mortal_pubsub(pubsub_service: PubSubService, services_run: Run) -> Iterator[PubSubService]:
    """An emulator that a test may restart."""
    yield from serve_alone(PubSubService, pubsub_service, services_run)


@pytest.fixture(scope="module")
def mortal_postgres(postgres_service: PostgresService, services_run: Run) -> Iterator[PostgresService]:
    """A PostgreSQL that a test may restart."""
    yield from serve_alone(PostgresService, postgres_service, services_run)


@pytest.fixture(scope="session")
def mock_kafka() -> Iterator[MockKafka]:
    """The mock cluster of librdkafka, one per process."""
    with MockKafka() as cluster:
        yield cluster
