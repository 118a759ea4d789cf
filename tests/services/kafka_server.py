"""What a keeper starts for ``kafka_service``: one KRaft node, a proxy before its second listener."""

from __future__ import annotations

import logging
import subprocess
from functools import partial
from pathlib import Path

from .containers import ContainerEngine
from .engines import HOST, Engine, ProcessEngine, Server, climb, free_ports, tied
from .errors import ServiceError
from .kafka_jars import KAFKA_VERSION, java, kafka_jars
from .kafka_proxy import KafkaProxy

IMAGE = f"apache/kafka:{KAFKA_VERSION}"
CLUSTER_ID = "Y291dHVyaWVyLXRlc3RzMQ"
CONTAINER_DATA = "/tmp/kafka-data"


def properties(ports: dict[str, int], data: str, bind: str = HOST) -> dict[str, str]:
    """Return the broker's configuration: small, quick to rebalance, quick to delete.

    Args:
        ports: ``direct``, ``proxied`` (the broker's), ``advertised`` (the proxy's) and ``controller``.
        data: the log directory.
        bind: the address to listen on.
    """
    return {
        "process.roles": "broker,controller",
        "node.id": "1",
        # Static voters: the official image formats its storage for these only.
        "controller.quorum.voters": f"1@{HOST}:{ports['controller']}",
        "listeners": (
            f"PLAINTEXT://{bind}:{ports['direct']},PROXIED://{bind}:{ports['proxied']},"
            f"CONTROLLER://{HOST}:{ports['controller']}"
        ),
        "advertised.listeners": (
            f"PLAINTEXT://{HOST}:{ports['direct']},PROXIED://{HOST}:{ports['advertised']}"
        ),
        "listener.security.protocol.map": "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT,PROXIED:PLAINTEXT",
        "controller.listener.names": "CONTROLLER",
        "inter.broker.listener.name": "PLAINTEXT",
        "log.dirs": data,
        "auto.create.topics.enable": "false",
        # One node.
        "offsets.topic.num.partitions": "4",
        "offsets.topic.replication.factor": "1",
        "transaction.state.log.num.partitions": "2",
        "transaction.state.log.replication.factor": "1",
        "transaction.state.log.min.isr": "1",
        "share.coordinator.state.topic.num.partitions": "2",
        "share.coordinator.state.topic.replication.factor": "1",
        "share.coordinator.state.topic.min.isr": "1",
        # Groups: join at once, and let a test choose short sessions.
        "group.initial.rebalance.delay.ms": "0",
        "group.min.session.timeout.ms": "1000",
        "group.consumer.min.session.timeout.ms": "1000",
        "group.consumer.min.heartbeat.interval.ms": "200",
        "group.consumer.heartbeat.interval.ms": "500",
        # Retention: looked at every second, so that a test can see it.
        "log.retention.check.interval.ms": "1000",
        "log.initial.task.delay.ms": "1000",
        "log.segment.delete.delay.ms": "1000",
        # Two cores, little memory.
        "log.cleaner.dedupe.buffer.size": "4194304",
        "num.network.threads": "2",
        "num.io.threads": "4",
        "background.threads": "2",
    }


def open_server(home: Path) -> Server:
    """Start Kafka in a container or from its jars.

    Raises:
        NotInstalledError: neither is possible.
        ServiceError: it did not start.
    """
    return climb([_in_container, partial(_native, home)])


def _ports() -> dict[str, int]:
    return dict(zip(("direct", "proxied", "advertised", "controller"), free_ports(4), strict=True))


def _server(engine: Engine, ports: dict[str, int], libs: Path | None) -> Server:
    proxy = KafkaProxy((HOST, ports["proxied"]), ports["advertised"])
    bootstrap = f"{HOST}:{ports['direct']}"
    facts = {"bootstrap": bootstrap, "proxied_bootstrap": f"{HOST}:{proxy.port}", "libs": libs and str(libs)}
    return Server(engine, partial(_serves, bootstrap), facts, proxy)


def _in_container() -> Server:
    """Start the official image, which takes ``a.b`` of ``server.properties`` as ``KAFKA_A_B``."""
    ports = _ports()
    config = properties(ports, CONTAINER_DATA, bind="0.0.0.0")  # published on loopback alone
    env = {f"KAFKA_{key.upper().replace('.', '_')}": value for key, value in config.items()}
    env |= {"CLUSTER_ID": CLUSTER_ID, "KAFKA_HEAP_OPTS": "-Xmx768m"}
    published = {port: port for port in (ports["direct"], ports["proxied"])}
    return _server(ContainerEngine(IMAGE, env, published), ports, libs=None)


def _native(home: Path) -> Server:
    libs = kafka_jars()
    ports = _ports()
    config = home / "server.properties"
    lines = properties(ports, str(home / "data"))
    config.write_text("".join(f"{key}={value}\n" for key, value in lines.items()))
    done = subprocess.run(
        tied(java(libs, "kafka.tools.StorageTool", "format", "-t", CLUSTER_ID, "-c", config)),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    if done.returncode != 0:
        raise ServiceError(f"Kafka cannot format its storage:\n{done.stdout}{done.stderr}")
    engine = ProcessEngine(java(libs, "kafka.Kafka", config, heap="768m"), home / "server.log")
    return _server(engine, ports, libs)


def _serves(bootstrap: str) -> bool:
    """Tell whether the broker is registered and answers clients."""
    from confluent_kafka import KafkaException
    from confluent_kafka.admin import AdminClient

    admin = AdminClient(
        {"bootstrap.servers": bootstrap, "log_level": 0}, logger=logging.getLogger("tests.services.kafka")
    )
    try:
        return bool(admin.list_topics(timeout=1).brokers)
    except KafkaException:
        return False
