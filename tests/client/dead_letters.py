"""A queue with dead letters, for the tests of those who look at them."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager

from broker import OPERATORS, Broker, Delivery, Done, Message, Outcome, Reject, dead_letter_topic
from client.dlq import Letter, letters

TOPIC, GROUP = "images", "classifiers"
DEAD = dead_letter_topic(TOPIC, GROUP)


async def process(broker: Broker, count: int, *, reject: bool, topic: str = TOPIC) -> list[Delivery]:
    """Run a handler over ``count`` messages that rejects all of them, or none."""
    stop, seen = asyncio.Event(), []

    async def handler(deliveries: Sequence[Delivery]) -> Sequence[Outcome]:
        seen.extend(deliveries)
        if len(seen) >= count:
            stop.set()
        return [Reject("bad-image", "cannot be read", "decode") if reject else Done()] * len(deliveries)

    async with asyncio.timeout(60):
        await broker.process(topic, group=GROUP, handler=handler, stop=stop)
    return seen


async def kill(broker: Broker, count: int, topic: str = TOPIC) -> list[Message]:
    """Publish messages and dead-letter every one of them."""
    sent = [Message(data=b"body %d" % n, key=f"k{n}", attributes={"site": str(n)}) for n in range(count)]
    await broker.publish(topic, sent)
    await process(broker, count, reject=True, topic=topic)
    return sent


async def bury(broker: Broker, messages: Sequence[Message], topic: str = TOPIC) -> list[str]:
    """Put messages among the dead letters as they are, as anybody may; return their ids."""
    dead = dead_letter_topic(topic, GROUP)
    await broker.ensure(dead, OPERATORS)
    await broker.publish(dead, messages)
    return [each.id for each in messages]


async def found(broker: Broker, topic: str = TOPIC) -> list[Letter]:
    """Return all letters."""
    return [each async for each in letters(broker, topic, GROUP)]


async def waiting(broker: Broker, topic: str = TOPIC, group: str = GROUP) -> list[str]:
    """Return the ids of what a group has before it."""
    return [each.message.id async for each in broker.browse(topic, group)]


@contextmanager
def running(words: Sequence[str], **env: str) -> Iterator[subprocess.Popen[bytes]]:
    """A Python process of its own; dead at the end in any case."""
    command = [sys.executable, *words]
    with subprocess.Popen(command, env={**os.environ, **env}, stdout=subprocess.DEVNULL) as running:
        try:
            yield running
        finally:
            running.kill()


async def kill_when(condition: Callable[[], Awaitable[bool]], victim: subprocess.Popen[bytes]) -> None:
    """SIGKILL a process as soon as something holds, which must be before it ends by itself."""
    deadline = time.monotonic() + 120
    while not await condition():
        assert victim.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)
    victim.kill()
    assert victim.wait() == -signal.SIGKILL
