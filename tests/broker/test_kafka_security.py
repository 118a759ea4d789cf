"""A Kafka that demands TLS and a login and grants what ``docs/security.md`` says, and nothing else."""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import re
import shlex
import sqlite3
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka.admin import (
    AclBinding,
    AclOperation,
    AclPermissionType,
    AdminClient,
    ResourcePatternType,
    ResourceType,
    ScramCredentialInfo,
    ScramMechanism,
    UserScramCredentialUpsertion,
)

import couturier
from broker import (
    Broker,
    BrokerError,
    Message,
    NotFound,
    PermissionDenied,
    PublishError,
    Unavailable,
    connect,
)
from tests.commands import Run, env, run
from tests.faults.fleet import Fleet, until
from tests.services import NotInstalledError, give_up
from tests.services.secured_kafka import SecuredKafka

__all__ = ["env", "run"]
pytestmark = [pytest.mark.anyio, pytest.mark.kafka]

PAGE = Path(__file__).resolve().parents[2] / "docs" / "security.md"
TOPIC, GROUP = "images", "classifiers"
CANARY = "canary-7f3a"
SECRETS = {who: f"{CANARY}-{who}" for who in ("worker", "client", "operator", "latecomer")}


@pytest.fixture(scope="module")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecuredKafka]:
    """The broker, with the users and the rights of the page."""
    try:
        with SecuredKafka.start(tmp_path_factory.mktemp("kafka")) as kafka:
            secret = tmp_path_factory.mktemp("secret") / "worker.properties"
            secret.write_text(f"SCRAM-SHA-512=password={SECRETS['worker']}\n")
            (line,) = lines("kafka-configs.sh")
            kafka.administrate(line.replace("worker.properties", str(secret)))
            first, *rest = lines("kafka-acls.sh")
            # Kafka's own tool takes the first; the others say the same of other names, and each costs a JVM.
            kafka.administrate(first)
            admin = administrator(kafka)
            add_users(admin, *(each for each in SECRETS if each != "worker"))
            for line in rest:
                grant(admin, line)
            for line in (*lines("couturier topics ensure"), "couturier topics ensure late"):
                make(line, super_user(kafka))
            yield kafka
    except NotInstalledError as error:
        give_up(f"the secured Kafka needs Java and Maven: {error}")


def lines(command: str) -> list[str]:
    """The lines of the page that run a command."""
    return re.findall(rf"^{re.escape(command)} .*", PAGE.read_text(), re.MULTILINE)


def administrator(kafka: SecuredKafka) -> AdminClient:
    """A client with the super user's certificate."""
    return AdminClient(kafka.super_user, logger=logging.getLogger("tests.services.kafka"))


def add_users(admin: AdminClient, *names: str) -> None:
    """Give each a password."""
    scram = ScramCredentialInfo(ScramMechanism.SCRAM_SHA_512, 4096)
    wanted = [UserScramCredentialUpsertion(name, scram, SECRETS[name].encode()) for name in names]
    for answer in admin.alter_user_scram_credentials(wanted).values():
        answer.result(20)


def make(line: str, variables: dict[str, str]) -> None:
    """Have the administrator, who has a certificate for a login, type a line of the page."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "environ", {**os.environ, **variables})
        patch.setattr(sys, "argv", shlex.split(line))
        with pytest.raises(SystemExit) as end:
            couturier.main()
    assert not end.value.code


def grant(admin: AdminClient, line: str) -> None:
    """Do what a line of the page says; an option that Kafka's tool does not have is an error."""
    options = argparse.ArgumentParser(exit_on_error=False, allow_abbrev=False)
    for name in ("--bootstrap-server", "--command-config", "--allow-principal"):
        options.add_argument(name, required=True)
    options.add_argument("--add", action="store_true", required=True)
    for name in ("--operation", "--topic", "--group"):
        options.add_argument(name, action="append", default=[])
    said = options.parse_args(shlex.split(line)[1:])
    named = {ResourceType.TOPIC: said.topic, ResourceType.GROUP: said.group}
    bindings = [
        AclBinding(
            kind, name, ResourcePatternType.LITERAL, said.allow_principal, "*",
            AclOperation[operation.upper()], AclPermissionType.ALLOW,
        )
        for kind, names in named.items() for name in names for operation in said.operation
    ]  # fmt: skip
    for answer in admin.create_acls(bindings).values():
        answer.result(20)


def login(kafka: SecuredKafka, who: str, **more: str) -> dict[str, str]:
    """The environment of somebody."""
    return {
        "BROKER_URL": f"kafka://{kafka.bootstrap}",
        "COUTURIER_ENV": "production",
        "COUTURIER_CREATE": "false",
        "KAFKA_SECURITY_PROTOCOL": "SASL_SSL",
        "KAFKA_SASL_MECHANISM": "SCRAM-SHA-512",
        "KAFKA_SASL_USERNAME": who,
        "KAFKA_SASL_PASSWORD": SECRETS[who],
        "KAFKA_SSL_CA_LOCATION": str(kafka.authority),
        **more,
    }


@pytest.fixture
def become(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, str]], None]:
    """Puts a login into the environment."""

    def become(variables: dict[str, str]) -> None:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return become


REFUSED: dict[str, tuple[dict[str, str], type[BrokerError], str]] = {
    "plaintext": (
        {"KAFKA_SECURITY_PROTOCOL": "", "KAFKA_SASL_MECHANISM": "", "KAFKA_SASL_USERNAME": "",
         "KAFKA_SASL_PASSWORD": "", "KAFKA_SSL_CA_LOCATION": ""},
        Unavailable, "does it speak PLAINTEXT there .KAFKA_SECURITY_PROTOCOL",
    ),
    "TLS without a login": (
        {"KAFKA_SECURITY_PROTOCOL": "SSL", "KAFKA_SASL_MECHANISM": "", "KAFKA_SASL_USERNAME": "",
         "KAFKA_SASL_PASSWORD": ""},
        Unavailable, "does it speak SSL there .KAFKA_SECURITY_PROTOCOL",
    ),
    "a wrong password": ({"KAFKA_SASL_PASSWORD": f"{CANARY}-wrong"}, PermissionDenied, "KAFKA_SASL_PASSWORD"),
    "nobody": ({"KAFKA_SASL_USERNAME": "nobody"}, PermissionDenied, "KAFKA_SASL_USERNAME"),
    "a weaker mechanism": ({"KAFKA_SASL_MECHANISM": "PLAIN"}, PermissionDenied, "KAFKA_SASL_MECHANISM"),
    "another authority": ({"KAFKA_SSL_CA_LOCATION": "STRANGER"}, PermissionDenied, "KAFKA_SSL_CA_LOCATION"),
    "the system's authorities": ({"KAFKA_SSL_CA_LOCATION": ""}, PermissionDenied, "KAFKA_SSL_CA_LOCATION"),
    "another host": ({"BROKER_URL": "kafka://localhost:PORT"}, PermissionDenied, "of this host"),
    "a certificate that has run out": ({"BROKER_URL": "kafka://EXPIRED"}, PermissionDenied, "in date"),
    "no certificate": (
        {"BROKER_URL": "kafka://ADMINISTRATION", "KAFKA_SECURITY_PROTOCOL": "SSL", "KAFKA_SASL_MECHANISM": "",
         "KAFKA_SASL_USERNAME": "", "KAFKA_SASL_PASSWORD": ""},
        Unavailable, "bad certificate|certificate required",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
async def test_what_is_not_to_be_trusted_is_refused_on_both_sides(
    kafka: SecuredKafka,
    become: Callable[[dict[str, str]], None],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    case: str,
) -> None:
    """The error names the variable to change, and neither it nor the client's own log holds the password."""
    changes, kind, said = REFUSED[case]
    caplog.set_level(0)
    places = {
        "STRANGER": str(kafka.stranger),
        "PORT": kafka.bootstrap.partition(":")[2],
        "EXPIRED": kafka.expired,
        "ADMINISTRATION": kafka.administration,
    }
    for place, value in places.items():
        changes = {name: text.replace(place, value) for name, text in changes.items()}
    become(
        {**login(kafka, "worker", KAFKA_CLIENT_CONFIG=json.dumps({"debug": "security,broker"})), **changes}
    )
    # How long a broker that says nothing is waited for.
    monkeypatch.setattr("broker.drivers.kafka._CONNECT_S", 3.0)
    with pytest.raises(kind, match=said) as error:
        await connect().__aenter__()
    assert caplog.text
    assert CANARY not in caplog.text + str(error.value) + repr(error.value.__cause__)


@pytest.mark.parametrize(
    "command", [("broker", "ping"), ("client", "send", "--images", "1"), ("dlq", "list")]
)
def test_a_command_with_a_wrong_password_says_what_to_change(
    kafka: SecuredKafka, run: Run, command: tuple[str, ...]
) -> None:
    """Exit code 69 and one line."""
    done = run(*command, **login(kafka, "worker", KAFKA_SASL_PASSWORD=f"{CANARY}-wrong"))
    assert done.returncode == 69
    assert "check KAFKA_SASL_USERNAME, KAFKA_SASL_PASSWORD" in done.stderr.splitlines()[-1]
    assert CANARY not in done.stdout + done.stderr


def test_the_rights_of_the_page_are_enough(kafka: SecuredKafka, run: Run, tmp_path: Path) -> None:
    """Publish, classify, dead-letter, look, replay, balance the books: each by the one who may."""
    results = {"SINK_URL": f"sqlite:///{tmp_path}/results.db"}
    client, operator = login(kafka, "client"), login(kafka, "operator", **results)
    with Fleet(tmp_path, {**login(kafka, "worker"), **results}) as fleet:
        sent = run("client", "send", "--images", "30", "--bad-ratio", "0.1", **client)
        assert sent.returncode == 0, sent.stderr
        worker = fleet.start()
        until(lambda: rows(tmp_path) == 27, "all rows are written")
        until(lambda: len(letters(run, operator)) == 3, "the bad ones are dead")
        assert "of 30 to do" in run("status", **operator).stdout
        assert run("audit", **operator).returncode == 0
        replayed = run("dlq", "replay", "--all", **operator)
        assert "replayed 3 letter(s)" in replayed.stdout, replayed.stderr
        until(lambda: len(letters(run, operator)) == 3, "they are dead again")
        purged = run("dlq", "purge", "--all", "--yes", **operator)
        assert "purged 3 letter(s)" in purged.stdout, purged.stderr
        assert fleet.stop() == [0], worker.text
    assert CANARY not in worker.text + kafka.log()


def super_user(kafka: SecuredKafka) -> dict[str, str]:
    """The environment of the administrator, who has a certificate."""
    return {
        "BROKER_URL": f"kafka://{kafka.administration}",
        "KAFKA_SECURITY_PROTOCOL": "SSL",
        "KAFKA_SSL_CA_LOCATION": str(kafka.authority),
        "KAFKA_SSL_CERTIFICATE_LOCATION": str(kafka.certificate),
        "KAFKA_SSL_KEY_LOCATION": str(kafka.key),
    }


def rows(directory: Path) -> int:
    """How many results there are."""
    with closing(sqlite3.connect(directory / "results.db", timeout=30)) as db:
        try:
            return int(db.execute("SELECT count(*) FROM results").fetchone()[0])
        except sqlite3.OperationalError:
            return 0


def letters(run: Run, operator: dict[str, str]) -> list[Any]:
    """The dead letters, as an operator sees them."""
    done = run("dlq", "list", "--json", **operator)
    assert done.returncode == 0, done.stderr
    return list(json.loads(done.stdout))


async def take(broker: Broker, topic: str, group: str) -> None:
    """Join a group; whoever may not is told by the first thing that it receives."""
    async with broker.subscribe(topic, group=group) as subscription:
        await subscription.receive(timeout=20.0)


LETTERS = f"{TOPIC}.{GROUP}.dlq"
DENIED: dict[str, tuple[str, Callable[[Broker], Awaitable[object]]]] = {
    "a worker publishes images": ("worker", lambda broker: broker.publish(TOPIC, [Message(b"x")])),
    "a worker writes elsewhere": ("worker", lambda broker: broker.publish("payroll", [Message(b"x")])),
    "a worker makes a topic": ("worker", lambda broker: broker.ensure("mine")),
    "a worker makes a group": ("worker", lambda broker: broker.ensure(TOPIC, "mine")),
    "a worker joins another group": ("worker", lambda broker: take(broker, TOPIC, "payroll")),
    "a worker deletes its group": ("worker", lambda broker: broker.remove_group(TOPIC, GROUP)),
    "a worker takes what is dead": ("worker", lambda broker: take(broker, LETTERS, "operators")),
    "a client reads": ("client", lambda broker: take(broker, TOPIC, GROUP)),
    "a client counts": ("client", lambda broker: broker.lag(TOPIC, GROUP)),
    "an operator does a worker's work": ("operator", lambda broker: take(broker, TOPIC, GROUP)),
    "an operator makes a topic": ("operator", lambda broker: broker.ensure("mine")),
}


@pytest.mark.parametrize("case", DENIED)
async def test_a_role_may_do_nothing_else(
    kafka: SecuredKafka, become: Callable[[dict[str, str]], None], case: str
) -> None:
    """Denied, or as if it were not there; within seconds, and said as such."""
    who, attempt = DENIED[case]
    become(login(kafka, who))
    begin = time.monotonic()
    async with connect() as broker:
        with pytest.raises(BrokerError) as error:
            await attempt(broker)
    problem = error.value
    if isinstance(problem, PublishError):
        (problem,) = problem.failed.values()
    assert isinstance(problem, PermissionDenied | NotFound), problem
    assert re.search(r"lacks a right; docs/security\.md|this login may not see it", str(problem))
    assert time.monotonic() - begin < 60


async def stored(broker: Broker) -> bool:
    """Whether a message could be published; nothing but a denial keeps it out."""
    try:
        await broker.publish("late", [Message(b"late")])
    except PublishError as error:
        if {type(each) for each in error.failed.values()} != {PermissionDenied}:
            raise
        return False
    return True


async def test_a_right_that_comes_later_is_enough(
    kafka: SecuredKafka, become: Callable[[dict[str, str]], None]
) -> None:
    """A producer that was denied has ended for good, which must not be the end of who uses it."""
    (line,) = (each for each in lines("kafka-acls.sh") if "User:client" in each)
    line = line.replace("User:client", "User:latecomer").replace(f"--topic {TOPIC}", "--topic late")
    admin = administrator(kafka)
    grant(admin, line.replace("Write", "Describe"))
    become(login(kafka, "latecomer"))
    async with connect() as broker:
        for _ in range(2):
            with pytest.raises(PublishError) as error:
                await broker.publish("late", [Message(b"early")])
            assert {type(each) for each in error.value.failed.values()} == {PermissionDenied}
        grant(admin, line)
        async with asyncio.timeout(60):
            while not await stored(broker):  # a broker hears of new rights a moment after they are given
                pass
