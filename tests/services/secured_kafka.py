"""A Kafka as it should stand in production: TLS on every port, logins, and nothing allowed to anybody.

One KRaft node with three listeners for clients, none of them plaintext:

- ``bootstrap``: TLS and SCRAM-SHA-512, for workers, clients and operators;
- ``administration``: TLS and a certificate of the client's own; ``CN=administrator`` is the super user;
- ``expired``: like the first, with a certificate that has run out.

The certificates name 127.0.0.1 alone, so ``localhost`` is a wrong host name for the same address.
"""

from __future__ import annotations

import json
import logging
import shlex
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from .engines import HOST, ProcessEngine, Server, free_ports, tied
from .errors import ServiceError
from .kafka_jars import java, kafka_jars
from .kafka_server import CLUSTER_ID, properties

TOOL_LIMIT_S = 120.0
# What an administrator types, and the class behind it.
TOOLS = {
    "kafka-acls.sh": "org.apache.kafka.tools.AclCommand",
    "kafka-configs.sh": "kafka.admin.ConfigCommand",
}


class SecuredKafka:
    """The broker, its certificates, and Kafka's own tools with the super user's login.

    Attributes:
        bootstrap: ``host:port`` that takes a name and a password.
        administration: ``host:port`` that takes a certificate.
        expired: ``host:port`` whose own certificate has run out.
        authority: file of the authority that signed the certificates.
        stranger: file of another authority.
        certificate: the super user's certificate, a file.
        key: its private key, a file.
    """

    def __init__(self, home: Path) -> None:
        """Use ``SecuredKafka.start``."""
        ports = dict(zip(("clients", "administration", "expired", "controller"), free_ports(4), strict=True))
        self.bootstrap, self.administration, self.expired = (
            f"{HOST}:{ports[name]}" for name in ("clients", "administration", "expired")
        )
        self._home, self._libs, self._ports = home, kafka_jars(), ports
        self.authority, self.stranger = home / "authority.pem", home / "stranger.pem"
        self.certificate, self.key = home / "administrator.pem", home / "administrator.key"
        self._admin_file = home / "admin.properties"

    @classmethod
    @contextmanager
    def start(cls, home: Path) -> Iterator[SecuredKafka]:
        """Start one for the length of the block.

        Args:
            home: where certificates, configuration, data and log go.

        Raises:
            NotInstalledError: Java, or Maven for the first download, is not installed.
            ServiceError: it did not start; the text ends with its log.
        """
        kafka = cls(home)
        config = kafka._write()
        kafka._java("kafka.tools.StorageTool", "format", "-t", CLUSTER_ID, "-c", str(config))
        engine = ProcessEngine(java(kafka._libs, "kafka.Kafka", config, heap="512m"), home / "server.log")
        server = Server(engine, kafka._serves, {})
        try:
            server.up()
            yield kafka
        finally:
            server.destroy()

    @property
    def super_user(self) -> dict[str, str]:
        """How the client logs in who may do anything."""
        return {
            "bootstrap.servers": self.administration,
            "security.protocol": "SSL",
            "ssl.ca.location": str(self.authority),
            "ssl.certificate.location": str(self.certificate),
            "ssl.key.location": str(self.key),
        }

    def log(self) -> str:
        """What the broker said."""
        return (self._home / "server.log").read_text(errors="replace")

    def administrate(self, line: str) -> str:
        """Run a line of documentation as the super user, and return what it printed.

        Args:
            line: ``kafka-acls.sh --bootstrap-server HOST --command-config FILE ...``; host and file are
                replaced by ours.

        Raises:
            ServiceError: its exit status is not 0, or it took more than 120 s.
        """
        tool, *arguments = shlex.split(line)
        for option, value in (
            ("--bootstrap-server", self.administration),
            ("--command-config", str(self._admin_file)),
        ):
            arguments[arguments.index(option) + 1] = value
        return self._java(TOOLS[tool], *arguments)

    def _java(self, main: str, *arguments: str) -> str:
        done = subprocess.run(
            tied(java(self._libs, main, *arguments)),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=TOOL_LIMIT_S,
            check=False,
        )
        if done.returncode != 0:
            raise ServiceError(f"{main}: exit status {done.returncode}\n{done.stdout}{done.stderr}")
        return done.stdout

    def _serves(self) -> bool:
        from confluent_kafka import KafkaException
        from confluent_kafka.admin import AdminClient

        config = {**self.super_user, "log_level": 0}
        try:
            found = AdminClient(config, logger=logging.getLogger("tests.services.kafka"))
            return bool(found.list_topics(timeout=1).brokers)
        except KafkaException:
            return False

    def _write(self) -> Path:
        """Make the certificates, and write what the broker and the tools are told."""
        import trustme

        ours, others = trustme.CA(), trustme.CA()
        ours.cert_pem.write_to_path(self.authority)
        others.cert_pem.write_to_path(self.stranger)
        administrator = ours.issue_cert(HOST, common_name="administrator")
        administrator.private_key_pem.write_to_path(self.key)
        administrator.cert_chain_pems[0].write_to_path(self.certificate)
        node = ours.issue_cert(HOST, common_name="node")
        gone = ours.issue_cert(HOST, common_name="node", not_after=datetime.now(UTC) - timedelta(hours=1))
        trusted = {
            "ssl.truststore.type": "PEM",
            "ssl.truststore.certificates": ours.cert_pem.bytes().decode(),
        }
        old = {f"listener.name.expired.{key}": value for key, value in _keystore(gone).items()}
        self._admin_file.write_text(
            _lines({"security.protocol": "SSL", **trusted, **_keystore(administrator)})
        )
        config = self._home / "server.properties"
        config.write_text(_lines({**self._properties(), **trusted, **_keystore(node), **old}))
        return config

    def _properties(self) -> dict[str, str]:
        ports = self._ports
        plain = properties(
            {"direct": 0, "proxied": 0, "advertised": 0, "controller": ports["controller"]},
            str(self._home / "data"),
        )
        served = {"CLIENTS": "clients", "ADMINISTRATION": "administration", "EXPIRED": "expired"}
        addresses = ",".join(f"{name}://{HOST}:{ports[port]}" for name, port in served.items())
        return {
            **plain,
            "listeners": f"{addresses},CONTROLLER://{HOST}:{ports['controller']}",
            "advertised.listeners": addresses,
            "listener.security.protocol.map": (
                "CLIENTS:SASL_SSL,EXPIRED:SASL_SSL,ADMINISTRATION:SSL,CONTROLLER:SSL"
            ),
            "inter.broker.listener.name": "ADMINISTRATION",
            "sasl.enabled.mechanisms": "SCRAM-SHA-512",
            **{
                f"listener.name.{name}.scram-sha-512.sasl.jaas.config": (
                    "org.apache.kafka.common.security.scram.ScramLoginModule required;"
                )
                for name in ("clients", "expired")
            },
            "listener.name.administration.ssl.client.auth": "required",
            "listener.name.controller.ssl.client.auth": "required",
            "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
            "allow.everyone.if.no.acl.found": "false",
            "super.users": "User:CN=administrator;User:CN=node",
            "ssl.principal.mapping.rules": "RULE:^.*(CN=[a-z]+).*$/$1/",
        }


def _keystore(certificate: Any) -> dict[str, str]:
    """Return a certificate and its key in the one form that Kafka reads: PKCS#8."""
    from cryptography.hazmat.primitives.serialization import (
        Encoding,
        NoEncryption,
        PrivateFormat,
        load_pem_private_key,
    )

    key = load_pem_private_key(certificate.private_key_pem.bytes(), None)
    return {
        "ssl.keystore.type": "PEM",
        "ssl.keystore.key": key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode(),
        "ssl.keystore.certificate.chain": "".join(
            each.bytes().decode() for each in certificate.cert_chain_pems
        ),
    }


def _lines(config: dict[str, str]) -> str:
    """Return the text of a properties file; JSON escapes line ends as it does."""
    return "".join(f"{key}={json.dumps(value)[1:-1]}\n" for key, value in config.items())
