"""The dead-letter workbench on real brokers: the same commands, and a look that leaves no trace."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from uuid import uuid4

import pytest
from dead_letters import GROUP, bury, found, kill, kill_when, process, running, waiting

from broker import OPERATORS, Broker, Message, connect, dead_letter_topic
from client.dlq import Choice, pick, purge, purged_ids, replay
from tests.services.kafka import KafkaService
from tests.services.pubsub import PubSubService

pytestmark = pytest.mark.anyio


@pytest.fixture(
    params=[
        pytest.param("kafka", marks=pytest.mark.kafka),
        pytest.param("pubsub", marks=pytest.mark.pubsub),
    ]
)
def url(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """A broker on which no other test is a member of our groups."""
    if request.param == "pubsub":
        emulator: PubSubService = request.getfixturevalue("pubsub_service")
        monkeypatch.setenv("PUBSUB_EMULATOR_HOST", emulator.host)
        return f"pubsub://dlq-{uuid4().hex[:8]}?lease=10"
    service: KafkaService = request.getfixturevalue("kafka_service")
    return f"kafka://{service.bootstrap}?group_id={{topic}}.{{group}}&session=6"


@pytest.fixture
async def broker(url: str) -> AsyncIterator[Broker]:
    async with connect(url) as broker:
        yield broker


@pytest.fixture
async def topic(broker: Broker) -> str:
    name = f"images-{uuid4().hex[:8]}"
    await broker.ensure(name, GROUP, partitions=2)
    return name


async def test_looking_is_without_a_trace_and_replaying_is_once(broker: Broker, topic: str) -> None:
    """Looked at, the letters are all there, free for others and no older; a replay takes its own."""
    sent = await kill(broker, 12, topic)
    first = await found(broker, topic)
    assert sorted(each.message_id for each in first) == sorted(each.id for each in sent)
    assert {(each.reason, each.attempts, each.topic) for each in first} == {("bad-image", 1, topic)}
    picked = await pick(broker, topic, GROUP, Choice(reason="bad-image"), limit=4)
    assert (len(picked.identities), picked.seen) == (4, 12)
    async with broker.subscribe(dead_letter_topic(topic, GROUP), group=OPERATORS) as subscription:
        taken = []
        async with asyncio.timeout(90):
            while len(taken) < 12:
                taken += await subscription.receive(timeout=2.0)
        assert {each.attempt for each in taken} == {1}
    assert sorted(each.identity for each in await found(broker, topic)) == sorted(
        each.identity for each in first
    )

    replayed = await replay(broker, topic, GROUP, picked)
    assert sorted(replayed.done) == sorted(picked.ids)
    assert (await replay(broker, topic, GROUP, Choice(frozenset(picked.ids)))).done == []
    again = await process(broker, 4, reject=False, topic=topic)
    bodies = {each.id: (each.data, each.key, each.attributes["site"]) for each in sent}
    for each in again:
        message = each.message
        assert (message.data, message.key, message.attributes["site"]) == bodies[message.id]
    assert ({each.message.id for each in again}, {each.attempt for each in again}) == (set(picked.ids), {1})
    assert len(await found(broker, topic)) == 8


async def test_a_purge_leaves_notes_only(broker: Broker, topic: str) -> None:
    """The chosen letters are gone for good; the others can still be replayed."""
    ids = await bury(broker, [Message(data=b"%d" % n) for n in range(10)], topic)
    gone = frozenset(ids[3:6])
    assert sorted((await purge(broker, topic, GROUP, Choice(gone))).done) == sorted(gone)
    assert await purged_ids(broker, topic, GROUP) == gone
    assert {each.message_id for each in await found(broker, topic)} == set(ids) - gone
    assert len((await replay(broker, topic, GROUP, Choice())).done) == 7
    assert set(await waiting(broker, topic)) == set(ids) - gone


async def test_a_killed_replay_is_run_again(broker: Broker, topic: str, url: str) -> None:
    """Killed while it held letters, it has lost none: what did not go comes back and goes with the next."""
    ids = set(await bury(broker, [Message(data=b"%d" % n) for n in range(40)], topic))
    words = ["-m", "couturier", "dlq", "replay", "--all", "--rate", "4"]

    async def begun() -> bool:
        return len(await found(broker, topic)) < 40

    with running(words, BROKER_URL=url, COUTURIER_TOPIC=topic) as victim:
        await kill_when(begun, victim)
    left = {each.message_id for each in await found(broker, topic)}
    assert 0 < len(left) < 40
    assert left | set(await waiting(broker, topic)) == ids
    assert set((await replay(broker, topic, GROUP, Choice())).done) <= left
    assert await found(broker, topic) == []
    assert set(await waiting(broker, topic)) == ids


async def test_the_commands_work(broker: Broker, topic: str, url: str) -> None:
    """From the shell: list, purge with --yes, list."""
    sent = await kill(broker, 2, topic)
    env = {**os.environ, "BROKER_URL": url, "COUTURIER_TOPIC": topic}

    def couturier(*words: str) -> dict[str, list[str]]:
        done = subprocess.run(
            [sys.executable, "-m", "couturier", "dlq", *words, "--json"],
            env=env,
            capture_output=True,
            text=True,
            check=True,
        )
        return json.loads(done.stdout)  # type: ignore[no-any-return]

    listed = await asyncio.to_thread(couturier, "list")
    assert {each["message_id"] for each in listed} == {each.id for each in sent}  # type: ignore[index]
    purged = await asyncio.to_thread(couturier, "purge", sent[0].id, "--yes")
    assert purged["purged"] == [sent[0].id]
    assert len(await asyncio.to_thread(couturier, "list")) == 1
