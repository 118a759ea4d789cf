"""The fewest rights on Pub/Sub that ``docs/security.md`` gives: a client and a worker need no other."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from broker import (
    OPERATORS,
    Broker,
    Delivery,
    Done,
    Message,
    Outcome,
    Reject,
    Retry,
    RetryPolicy,
    connect,
    dead_letter_topic,
)
from tests.services.fake_pubsub import RPCS, FakePubSub

pytestmark = pytest.mark.anyio

TOPIC, GROUP = "images", "classifiers"
ALL = {name for names in RPCS.values() for name in names.split()} | {"StreamingPull"}
# What the service asks for: cloud.google.com/pubsub/docs/access-control, "Required permissions".
PUBLISHER = {"Publish"}
SUBSCRIBER = {"Pull", "StreamingPull", "Acknowledge", "ModifyAckDeadline"}
VIEWER = {"GetTopic", "GetSubscription", "ListTopics", "ListSubscriptions", "ListTopicSubscriptions"}


@pytest.fixture
async def fake(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[FakePubSub]:
    """A service on which an administrator has made everything."""
    with FakePubSub() as fake:
        monkeypatch.setenv("PUBSUB_EMULATOR_HOST", fake.host)
        monkeypatch.setenv("GOOGLE_CLOUD_PROJECT", "proj-rights")
        async with connect("pubsub://proj-rights") as broker:
            await broker.ensure(TOPIC, GROUP)
            await broker.ensure(dead_letter_topic(TOPIC, GROUP), OPERATORS)
        yield fake


def allow(fake: FakePubSub, rights: set[str]) -> Broker:
    """Return a client of somebody who may do this and nothing else."""
    for rpc in sorted(ALL):
        (fake.allow if rpc in rights else fake.deny)(rpc)
    return connect("pubsub://proj-rights")


async def test_a_worker_needs_no_right_to_make_or_to_list(fake: FakePubSub) -> None:
    """Done, failed and tried again, dead: with the rights to receive, to publish and to look up alone."""
    async with allow(fake, PUBLISHER) as client:
        await client.publish(TOPIC, [Message(data=each) for each in (b"good", b"weak", b"bad")])
    seen: list[tuple[bytes, int]] = []
    stop = asyncio.Event()

    async def handler(deliveries: list[Delivery]) -> list[Outcome]:
        outcomes: list[Outcome] = []
        for each in deliveries:
            data = each.message.data
            seen.append((data, each.attempt))
            if data == b"bad":
                outcomes.append(Reject("no"))
            elif data == b"weak" and each.attempt == 1:
                outcomes.append(Retry("again"))
            else:
                outcomes.append(Done())
        if len(seen) == 4:
            stop.set()
        return outcomes

    async with asyncio.timeout(60), allow(fake, PUBLISHER | SUBSCRIBER | (VIEWER - {"ListTopics"})) as worker:
        retry = RetryPolicy(attempts=3, base=0.01, cap=0.01)
        totals = await worker.process(TOPIC, group=GROUP, handler=handler, stop=stop, retry=retry)
    assert (totals.done, totals.retried, totals.dead_lettered) == (2, 1, 1)
    assert sorted(seen) == [(b"bad", 1), (b"good", 1), (b"weak", 1), (b"weak", 2)]
