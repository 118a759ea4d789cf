"""A replay and a purge, killed at random points: no letter is lost, and the next run finishes the work."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest
from dead_letters import GROUP, TOPIC, bury, found, kill_when, running, waiting

from broker import Broker, Message, connect
from client.dlq import Choice, purge, purged_ids, replay

LETTERS = 60
KILLS = 3
SEED = int(os.environ.get("COUTURIER_TEST_SEED", "44"))
# Where the first letters are worked on: slow enough that a kill comes before the last.
RATE = "60"
PURGE_SLOWLY = """
import asyncio, time
from broker import connect
from client import dlq_removal
from client.dlq import Choice, purge
async def main():
    dlq_removal._AT_ONCE = 1
    async with connect() as broker:
        await purge(broker, "images", "classifiers", Choice(), progress=lambda _: time.sleep(0.01))
asyncio.run(main())
"""
COMMANDS = {
    "replay": ["-m", "couturier", "dlq", "replay", "--all", "--rate", RATE],
    "purge": ["-c", PURGE_SLOWLY],
}


async def kill_in_the_middle(broker: Broker, command: str, url: str, after: int) -> int:
    """Start a command, SIGKILL it once ``after`` more letters are gone; return how many are left."""
    before = len(await found(broker))

    async def far_enough() -> bool:
        return len(await found(broker)) <= before - after

    with running(COMMANDS[command], BROKER_URL=url) as victim:
        await kill_when(far_enough, victim)
    left = len(await found(broker))
    assert 0 < left < before
    return left


@pytest.mark.anyio
@pytest.mark.parametrize("command", ["replay", "purge"])
async def test_a_killed_command_is_run_again(tmp_path: Path, command: str) -> None:
    """At every moment each letter is in its topic, or what it leaves behind is stored, or both."""
    url = f"sqlite:///{tmp_path}/queue.db?lease=0.5"
    dice = random.Random(SEED)
    async with connect(url) as broker:
        await broker.ensure(TOPIC, GROUP)
        ids = set(await bury(broker, [Message(data=b"%d" % n) for n in range(LETTERS)]))
        for _ in range(KILLS):
            await kill_in_the_middle(broker, command, url, dice.randint(1, LETTERS // (KILLS + 1) - 5))
            letters = {each.message_id for each in await found(broker)}
            sent = set(await waiting(broker))
            noted = await purged_ids(broker, TOPIC, GROUP)
            assert letters | sent | noted == ids
        end = replay if command == "replay" else purge
        await end(broker, TOPIC, GROUP, Choice())
        assert await found(broker) == []
        left = await waiting(broker) if command == "replay" else await purged_ids(broker, TOPIC, GROUP)
        assert set(left) == ids
        assert (await end(broker, TOPIC, GROUP, Choice())).done == []
