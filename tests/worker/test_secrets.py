"""No secret comes out of a worker or a command, whatever goes wrong; strangers' texts make no metrics."""

from __future__ import annotations

import json
import logging
import re
import signal
from urllib.request import urlopen

import pytest
from rig import GROUP, TOPIC, Rig

from broker import Message, connect, dead_letter_topic
from client.schema import ClassifyRequest
from tests.commands import Run, env, run
from tests.services import PostgresService

__all__ = ["env", "run"]
pytestmark = pytest.mark.anyio

CANARY = "canary-7f3a"
# One in every place where a secret can be; none of these is what a worker on SQLite uses.
ELSEWHERE = {
    "KAFKA_SECURITY_PROTOCOL": "SASL_SSL",
    "KAFKA_SASL_MECHANISM": "PLAIN",
    "KAFKA_SASL_USERNAME": "bob",
    "KAFKA_SASL_PASSWORD": f"{CANARY}-sasl",
    "KAFKA_SSL_KEY_PASSWORD": f"{CANARY}-key",
    "KAFKA_CLIENT_CONFIG": json.dumps({"sasl.oauthbearer.client.secret": f"{CANARY}-oauth", "debug": "all"}),
    "BROKER_CLAIM_CHECK_URL": f"s3://bob:{CANARY}-claims@bucket",
    "CATALOGUE_URL": f"postgresql://bob:{CANARY}-catalogue@127.0.0.1:1/shop",
    "COUTURIER_GATEWAY_TOKEN": f"{CANARY}-gateway-token",
    "LOG_LEVEL": "debug",
}
ATTRIBUTES = 99  # beside the one that tells what kind of message it is


def with_password(url: str) -> str:
    """The same database, with a password that its server does not ask for."""
    return re.sub(r"//(\w+)@", rf"//\1:{CANARY}-results@", url)


async def test_a_worker_keeps_its_secrets_and_counts_no_strangers_words(
    rig: Rig, pictures: list[bytes], postgres_service: PostgresService
) -> None:
    """Rows, dead letters, a table that is taken away, a stop: none of it is in any log, page or letter.

    Ten thousand different attribute values, keys and subjects are no series of their own.
    """
    url = postgres_service.new_database()
    own = {"BROKER_CLAIM_CHECK_URL": f"file://{rig.directory}/claims", "SINK_URL": with_password(url)}
    worker = await rig.worker(**{**ELSEWHERE, **own, "COUTURIER_DRAIN_TIMEOUT": "3"})
    served = rig.events(worker)["serving"]["url"]

    def page(path: str) -> str:
        with urlopen(f"{served}{path}", timeout=30) as reply:
            return str(reply.read().decode())

    await publish(rig, pictures[:2], strange=False)
    await rig.until(rig.settled)
    before = series(page("/metrics"))
    await publish(rig, pictures[:101], strange=True)
    await rig.until(rig.settled)
    after = page("/metrics")
    shown = after + page("/status") + page("/readyz")
    assert series(after) == before
    postgres_service.sql("ALTER TABLE results RENAME TO gone", url)
    await publish(rig, pictures[:3], strange=False)
    await rig.until(lambda: "outage" in rig.log_of(worker))
    shown += page("/metrics") + page("/status")
    worker.send_signal(signal.SIGTERM)
    assert await rig.ended(worker) == 75
    async with connect(rig.url) as broker:
        letters = [each async for each in broker.browse(dead_letter_topic(TOPIC, GROUP), "operators")]
    assert len(letters) in (2, 3)  # the last bad one came when nothing was finished any more
    shown += "".join(f"{each.message.attributes}{each.message.data!r}" for each in letters)
    assert CANARY not in shown + rig.log_of(worker)


async def publish(rig: Rig, pictures: list[bytes], strange: bool) -> None:
    """Store images, each with a hundred attributes of its own if it is to be strange, and one bad one."""
    bodies = [*pictures, b"no picture"]
    messages = []
    for number, data in enumerate(bodies):
        more = {f"h{place}": f"v{number}-{place}" for place in range(ATTRIBUTES if strange else 0)}
        made = ClassifyRequest(image=data, key=f"key-{number}", subject=f"subject-{number}").to_message()
        messages.append(
            Message(data, key=made.key, attributes={**made.attributes, **more}, subject=made.subject)
        )
    async with connect(rig.url) as broker:
        await broker.ensure(TOPIC, GROUP)
        await broker.publish(TOPIC, messages)


def series(text: str) -> set[str]:
    """Name and labels of every series; classes and buckets come as the model answers."""
    found = {line.rpartition(" ")[0] for line in text.splitlines() if line and line[0] != "#"}
    return {each for each in found if "class_name=" not in each}


COMMANDS = {
    "ping": ("broker", "ping", "--timeout", "2"),
    "send": ("client", "send", "--images", "1"),
    "catalogue": ("client", "send", "--source", "postgres"),
    "config": ("config", "show"),
    "config for machines": ("config", "show", "--json"),
    "dead letters": ("dlq", "list"),
    "doctor": ("doctor", "--json"),
    "results": ("results",),
    "status": ("status",),
    "audit": ("audit",),
    "worker": ("worker",),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_that_fails_shows_no_secret(
    run: Run,
    command: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """With broker, database and catalogue all away, and the Kafka client telling everything."""
    caplog.set_level(0)
    monkeypatch.setattr("broker.drivers.kafka._CONNECT_S", 0.2)
    monkeypatch.setattr("worker.sinks.postgres._OPENING_S", 0.2)
    away = f"postgresql://bob:{CANARY}-results@127.0.0.1:1/results?sslpassword={CANARY}-ssl"
    root, handlers = logging.getLogger(), logging.getLogger().handlers[:]
    done = run(*COMMANDS[command], **{**ELSEWHERE, "BROKER_URL": "kafka://127.0.0.1:1", "SINK_URL": away})
    root.handlers[:] = handlers
    assert done.returncode in (1, 69, 78), done.stderr
    assert done.stdout + done.stderr
    assert CANARY not in done.stdout + done.stderr + caplog.text
