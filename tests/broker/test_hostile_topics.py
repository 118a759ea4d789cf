"""A dead-letter topic as input: its letters go to a place of their own, and nothing goes round."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from broker import Broker, Delivery, Message, Outcome, Reject, connect, dead_letter_topic
from broker.processing.dead_letter import ATTEMPTS, OPERATORS, REASON, TOPIC

pytestmark = pytest.mark.anyio

IMAGES, GROUP = "images", "classifiers"
LETTERS = dead_letter_topic(IMAGES, GROUP)
FORGED = {ATTEMPTS: "99", REASON: "forged", TOPIC: IMAGES, "couturier-retry-attempt": "99"}


async def reject_all(broker: Broker, topic: str, count: int) -> list[int]:
    """Work on a topic until so many messages are dead; return the attempts that were seen."""
    attempts: list[int] = []
    stop = asyncio.Event()

    async def handler(deliveries: Sequence[Delivery]) -> list[Outcome]:
        attempts.extend(each.attempt for each in deliveries)
        if len(attempts) >= count:
            stop.set()
        return [Reject("bad") for _ in deliveries]

    async with asyncio.timeout(30):
        await broker.process(topic, group=GROUP, handler=handler, stop=stop)
    return attempts


async def test_letters_of_letters_do_not_come_back() -> None:
    """Neither into the input nor into the topic that they were read from, whatever they say of themselves."""
    async with connect("memory://") as broker:
        await broker.ensure(IMAGES, GROUP)
        await broker.publish(IMAGES, [Message(b"%d" % n, attributes=FORGED) for n in range(5)])
        assert await reject_all(broker, IMAGES, 5) == [1] * 5
        await broker.ensure(LETTERS, GROUP)
        assert await reject_all(broker, LETTERS, 5) == [1] * 5
        last = dead_letter_topic(LETTERS, GROUP)
        found = [each.message async for each in broker.browse(last, OPERATORS)]
        assert sorted(each.data for each in found) == [b"%d" % n for n in range(5)]
        assert {each.attributes[TOPIC] for each in found} == {LETTERS}
        assert {each.attributes[REASON] for each in found} == {"bad"}
        assert (await broker.stats(IMAGES, GROUP)).unsettled == 0
        assert (await broker.stats(LETTERS, GROUP)).unsettled == 0
