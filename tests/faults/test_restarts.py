"""Brokers and databases that go down under load: matrix rows 7 and 8, and the same for PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest

from tests.services import KafkaService, PostgresService, PubSubService

from .fleet import until
from .kafka_place import KafkaPlace
from .pictures import stream
from .proxy import Proxy
from .pubsub_place import PubsubPlace
from .scene import Scene
from .tables import PostgresTable

CLEAN_S, KILLED_S = 10.0, 30.0


@pytest.fixture
def kafka_scene(
    mortal_kafka: KafkaService,
    mortal_postgres: PostgresService,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> Iterator[Scene]:
    """A scene on servers that may be restarted."""
    place = KafkaPlace(mortal_kafka.bootstrap)
    with Scene(request.node.name, place, PostgresTable(mortal_postgres.new_database()), tmp_path) as scene:
        yield scene


def restarted(scene: Scene, service: KafkaService | PostgresService, kill: bool, name: str) -> None:
    """Restart a server under load, and wait for progress after that."""
    before = service.server_pid()
    service.restart(kill=kill)
    assert service.server_pid() != before or before is None, "it is the same process"
    scene.did(f"{name} {'killed' if kill else 'restarted'}")
    taken = scene.progress()
    scene.timed(f"to_first_progress, {name} {'killed' if kill else 'restarted'}", taken)
    assert taken <= (KILLED_S if kill else CLEAN_S), taken


@pytest.mark.kafka
def test_servers_restart_under_load(
    kafka_scene: Scene, mortal_kafka: KafkaService, mortal_postgres: PostgresService
) -> None:
    """Row 7: Kafka and PostgreSQL, cleanly and with SIGKILL; the workers stay and go on by themselves."""
    scene = kafka_scene
    workers = scene.fleet.start_all(2, "--batch-size", "32")
    with scene.load(stream(7, poison=0.01), rate=100):
        scene.all_work()
        for kill in (False, True):
            restarted(scene, mortal_kafka, kill, "broker")
            restarted(scene, mortal_postgres, kill, "database")
    scene.settle()
    assert [each.alive for each in workers] == [True, True], "a worker gave up"
    assert scene.fleet.stop() == [0, 0]
    report = scene.check()
    assert report.dead.keys() <= {"invalid-image"}
    assert {each.attempt for each in scene.table.rows()} == {1}


@pytest.mark.kafka
def test_the_broker_dies_while_letters_are_written(kafka_scene: Scene, mortal_kafka: KafkaService) -> None:
    """Row 8: nothing is acked before its letter is confirmed; no letter is lost, none is for a good image."""
    scene = kafka_scene
    scene.fleet.start("--batch-size", "32")
    scene.send(islice(stream(8, poison=0.5), 50))
    scene.settle()
    scene.send(islice(stream(9, poison=0.9), 1500))
    until(lambda: scene.table.count() > 40, "letters are being written", pause_s=0.001)
    mortal_kafka.restart(kill=True)
    scene.did("broker killed")
    assert len(scene.place.letters()) < scene.ledger.totals()[1], "all letters had been written before"
    scene.settle()
    assert scene.fleet.stop() == [0]
    scene.check()


@pytest.mark.pubsub
def test_connections_to_pubsub_are_cut(
    pubsub_service: PubSubService, postgres_service: PostgresService, tmp_path: Path
) -> None:
    """Row 7 on the emulator, which forgets all when it ends: every connection is reset, then refused."""
    table = PostgresTable(postgres_service.new_database())
    with Proxy(pubsub_service.host) as proxy:
        place = PubsubPlace(pubsub_service.host, proxy.address)
        with Scene("test_connections_to_pubsub_are_cut", place, table, tmp_path) as scene:
            workers = scene.fleet.start_all(2, "--batch-size", "32")
            with scene.load(stream(7, poison=0.01), rate=100):
                scene.all_work()
                for _ in range(5):
                    until(proxy.reset, "somebody is connected, and cut off")
                    scene.did("connections reset")
                    scene.timed("to_first_progress", scene.progress())
                proxy.down()
                until(lambda: proxy.refused > 5, "the workers try again")
                proxy.up()
                scene.did("broker unreachable")
                assert scene.timed("to_first_progress", scene.progress()) <= CLEAN_S
            scene.settle()
            assert [each.alive for each in workers] == [True, True], "a worker gave up"
            assert scene.fleet.stop() == [0, 0]
            scene.check()
