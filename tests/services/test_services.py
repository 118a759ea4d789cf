"""Each fixture serves, survives what it says it survives, and its faults are seen by real clients."""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest
from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic
from google.cloud import pubsub_v1

from . import KafkaService, MockKafka, PostgresService, PubSubService, RemoteProxy, ServiceError

PATIENCE_S = 20.0
TOOLS = "org.apache.kafka.tools"
quiet: dict[str, Any] = {"logger": logging.getLogger("tests.services.clients")}


def config(bootstrap: str, client_id: str) -> dict[str, Any]:
    """Return what every client here has."""
    return {"bootstrap.servers": bootstrap, "client.id": client_id, "log_level": 0}


def publish(bootstrap: str, topic: str, *values: bytes) -> None:
    """Produce values, each acknowledged."""
    errors: list[KafkaError | None] = []
    producer = Producer(config(bootstrap, "publisher"), **quiet)
    for value in values:
        producer.produce(topic, value, partition=0, on_delivery=lambda error, _: errors.append(error))
    assert producer.flush(PATIENCE_S) == 0
    assert errors == [None] * len(values)


def read(bootstrap: str, topic: str, count: int) -> list[bytes | None]:
    """Return the first ``count`` values of partition 0."""
    consumer = Consumer({**config(bootstrap, "reader"), "group.id": uuid.uuid4().hex}, **quiet)
    try:
        consumer.assign([TopicPartition(topic, 0, 0)])
        found: list[Message] = []
        deadline = time.monotonic() + PATIENCE_S
        while len(found) < count and time.monotonic() < deadline:
            found += [each for each in consumer.consume(count, timeout=0.2) if each.error() is None]
        return [message.value() for message in found]
    finally:
        consumer.close()


def answers(admin: AdminClient) -> bool:
    """Tell whether the cluster answers this client within a second."""
    try:
        return bool(admin.list_topics(timeout=1).brokers)
    except KafkaException:
        return False


def new_topic(bootstrap: str) -> Iterator[str]:
    """Yield the name of a topic with two partitions, and delete it afterwards."""
    name = f"t-{uuid.uuid4().hex[:12]}"
    admin = AdminClient(config(bootstrap, "admin"), **quiet)
    admin.create_topics([NewTopic(name, 2, 1)])[name].result(PATIENCE_S)
    yield name
    admin.delete_topics([name])[name].result(PATIENCE_S)


@pytest.fixture
def topic(kafka_service: KafkaService) -> Iterator[str]:
    yield from new_topic(kafka_service.bootstrap)


@pytest.fixture
def mortal_topic(mortal_kafka: KafkaService) -> Iterator[str]:
    yield from new_topic(mortal_kafka.bootstrap)


@pytest.mark.kafka
@pytest.mark.parametrize("listener", ["bootstrap", "proxied_bootstrap"])
def test_kafka_serves_through_both_listeners(kafka_service: KafkaService, topic: str, listener: str) -> None:
    """What is produced through a listener is consumed through it."""
    address = getattr(kafka_service, listener)

    publish(address, topic, b"one", b"two")

    assert read(address, topic, 2) == [b"one", b"two"]


@pytest.mark.kafka
def test_clients_of_the_proxied_listener_stay_behind_the_proxy(
    kafka_service: KafkaService, kafka_proxy: RemoteProxy
) -> None:
    """The address in the metadata is the proxy's, not the broker's."""
    admin = AdminClient(config(kafka_service.proxied_bootstrap, "behind"), **quiet)

    brokers = admin.list_topics(timeout=PATIENCE_S).brokers.values()

    assert [f"{each.host}:{each.port}" for each in brokers] == [kafka_service.proxied_bootstrap]
    deadline = time.monotonic() + PATIENCE_S  # librdkafka moves from the bootstrap connection to another
    while "behind" not in kafka_proxy.clients():
        assert time.monotonic() < deadline
        answers(admin)


@pytest.mark.kafka
def test_a_cut_client_is_off_and_its_neighbour_is_not(
    kafka_service: KafkaService, kafka_proxy: RemoteProxy
) -> None:
    """Cut closes and refuses by prefix; heal lets the same client in again."""
    victim = AdminClient(config(kafka_service.proxied_bootstrap, "victim-1"), **quiet)
    neighbour = AdminClient(config(kafka_service.proxied_bootstrap, "neighbour-1"), **quiet)
    assert answers(victim)
    assert answers(neighbour)

    kafka_proxy.cut("victim")
    assert not answers(victim)
    assert answers(neighbour)
    assert "victim-1" not in kafka_proxy.clients()

    kafka_proxy.heal("victim")
    assert any(answers(victim) for _ in range(10))


@pytest.mark.kafka
def test_a_held_producer_goes_on_where_it_stopped(
    kafka_service: KafkaService, kafka_proxy: RemoteProxy, topic: str
) -> None:
    """Hold closes nothing: the message is undelivered, and arrives once after heal."""
    producer = Producer(config(kafka_service.proxied_bootstrap, "slow-1"), **quiet)
    producer.produce(topic, b"before", partition=0)
    assert producer.flush(PATIENCE_S) == 0

    kafka_proxy.hold("slow")
    producer.produce(topic, b"held", partition=0)
    assert producer.flush(1.0) == 1
    assert "slow-1" in kafka_proxy.clients()

    kafka_proxy.heal("slow")
    assert producer.flush(PATIENCE_S) == 0
    assert read(kafka_service.bootstrap, topic, 2) == [b"before", b"held"]


@pytest.mark.kafka
@pytest.mark.parametrize("kill", [False, True], ids=["stopped", "killed"])
def test_a_restarted_kafka_keeps_its_records_and_addresses(
    mortal_kafka: KafkaService, mortal_topic: str, kill: bool
) -> None:
    """Clean or with SIGKILL: what was acknowledged is there again, on both listeners."""
    publish(mortal_kafka.bootstrap, mortal_topic, b"kept")

    mortal_kafka.restart(kill=kill)

    publish(mortal_kafka.proxied_bootstrap, mortal_topic, b"later")
    assert read(mortal_kafka.bootstrap, mortal_topic, 2) == [b"kept", b"later"]


@pytest.mark.kafka
def test_kafka_is_away_for_the_length_of_an_outage(mortal_kafka: KafkaService) -> None:
    """Nobody answers inside the block, and somebody does after it."""
    admin = AdminClient(config(mortal_kafka.bootstrap, "outage"), **quiet)
    assert answers(admin)

    with mortal_kafka.outage(kill=True):
        assert not answers(admin)

    assert any(answers(admin) for _ in range(10))


@pytest.mark.kafka
def test_kafkas_own_tools_read_and_write(kafka_service: KafkaService, topic: str) -> None:
    """A foreign client: the console producer's line comes out of the console consumer."""
    server = ("--bootstrap-server", kafka_service.bootstrap)

    kafka_service.run_tool(f"{TOOLS}.ConsoleProducer", *server, "--topic", topic, stdin="hello\n")
    printed = kafka_service.run_tool(
        f"{TOOLS}.consumer.ConsoleConsumer",
        *server,
        "--topic",
        topic,
        "--from-beginning",
        "--max-messages",
        "1",
    )

    assert printed == "hello\n"


@pytest.mark.kafka
def test_a_failing_tool_says_why(kafka_service: KafkaService) -> None:
    """Its output is in the error."""
    with pytest.raises(ServiceError, match="bootstrap-server"):
        kafka_service.run_tool("kafka.admin.ConfigCommand", "--describe")


@pytest.mark.pubsub
def test_the_emulator_serves_and_is_empty_after_a_restart(
    mortal_pubsub: PubSubService, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Publish and pull; after a restart the same address serves and knows nothing."""
    monkeypatch.setenv("PUBSUB_EMULATOR_HOST", mortal_pubsub.host)
    publisher, subscriber = pubsub_v1.PublisherClient(), pubsub_v1.SubscriberClient()
    topic = publisher.topic_path("tests", f"t-{uuid.uuid4().hex}")
    subscription = subscriber.subscription_path("tests", f"s-{uuid.uuid4().hex}")
    with closing(publisher.transport), subscriber:
        publisher.create_topic(name=topic)
        subscriber.create_subscription(name=subscription, topic=topic)

        publisher.publish(topic, b"hello").result(PATIENCE_S)

        pulled = subscriber.pull(subscription=subscription, max_messages=1, timeout=PATIENCE_S)
        assert [each.message.data for each in pulled.received_messages] == [b"hello"]
        mortal_pubsub.restart()
        again = publisher.list_topics(project="projects/tests", timeout=PATIENCE_S)
        assert topic not in [each.name for each in again]
        publisher.stop()


def test_postgres_serves_and_keeps_its_rows_when_killed(mortal_postgres: PostgresService) -> None:
    """SELECT 1; what was committed survives SIGKILL."""
    url = mortal_postgres.new_database()
    assert mortal_postgres.sql("SELECT 1", url) == "1"
    mortal_postgres.sql("CREATE TABLE kept AS SELECT 7 AS number", url)

    mortal_postgres.restart(kill=True)

    assert mortal_postgres.sql("SELECT number FROM kept", url) == "7"


def test_a_new_database_is_empty_and_of_its_own(postgres_service: PostgresService) -> None:
    """Tests do not see each other's tables, and refused SQL is an error."""
    first, second = postgres_service.new_database(), postgres_service.new_database()
    postgres_service.sql("CREATE TABLE mine (id int)", first)

    with pytest.raises(ServiceError, match="mine"):
        postgres_service.sql("SELECT * FROM mine", second)


def test_the_mock_cluster_creates_topics_with_four_partitions(mock_kafka: MockKafka) -> None:
    """Produce to a new topic and read it back, without Java."""
    name = f"t-{uuid.uuid4().hex[:12]}"

    publish(mock_kafka.bootstrap, name, b"one")

    assert read(mock_kafka.bootstrap, name, 1) == [b"one"]
    admin = AdminClient(config(mock_kafka.bootstrap, "admin"), **quiet)
    assert len(admin.list_topics(name, timeout=5).topics[name].partitions) == MockKafka.partitions


def test_a_closed_mock_cluster_is_down() -> None:
    """Its brokers go with it."""
    with MockKafka(brokers=2) as cluster:
        admin = AdminClient(config(cluster.bootstrap, "late"), **quiet)
        assert len(admin.list_topics(timeout=5).brokers) == 2
    assert not answers(admin)
