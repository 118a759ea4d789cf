"""``Broker.process`` in the background, for the checks of the processing loop."""

from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..message import Delivery
from ..processing.batcher import Batching
from ..processing.dead_letter import OPERATORS, dead_letter_topic
from ..processing.handling import Handler
from ..processing.outcomes import Done, Outcome, RetryPolicy
from ..processing.watch import Totals
from ..subscription import Subscription
from .bench import GROUP, Bench, within

# Retries come at once, so that no check depends on a backoff.
AT_ONCE = RetryPolicy(attempts=3, base=0.0, cap=0.0)


@dataclass
class Recorder:
    """A handler that asks ``judge`` about every delivery and remembers what it was called with.

    Attributes:
        judge: returns the outcome of one delivery, or raises.
        batches: bodies of every call, in order.
        seen: attempt numbers by body, in order.
    """

    judge: Callable[[Delivery], Outcome] = lambda _: Done()
    batches: list[list[bytes]] = field(default_factory=list)
    seen: dict[bytes, list[int]] = field(default_factory=lambda: defaultdict(list))

    async def __call__(self, deliveries: Sequence[Delivery]) -> list[Outcome]:
        self.batches.append([each.message.data for each in deliveries])
        for each in deliveries:
            attempts = self.seen[each.message.data]
            if each.attempt not in attempts:
                attempts.append(each.attempt)
        await asyncio.sleep(0)
        return [self.judge(each) for each in deliveries]


@dataclass
class Running:
    """One ``process`` call.

    Attributes:
        bench: where it runs.
        task: the call.
        stop: its stop event.
        members: the subscription that the call made, once it has.
    """

    bench: Bench
    task: asyncio.Task[Totals]
    stop: asyncio.Event
    members: list[Subscription]

    async def until(self, condition: Callable[[], bool], what: str) -> None:
        """Wait for a condition while the call must not end."""

        def holds() -> bool:
            self._must_run(what)
            return condition()

        await self.bench.eventually(holds, what)

    async def until_joined(self) -> Subscription:
        """Wait until the call takes part in its group; return its member."""
        await self.until(lambda: bool(self.members) and self.members[0]._member is not None, "it joined")
        await self.bench.harness.rebalanced()
        return self.members[0]

    async def until_settled(self, count: int) -> None:
        """Wait until the group has settled ``count`` messages."""

        async def settled() -> bool:
            self._must_run(f"{count} messages are settled")
            return await self.bench.settled() >= count

        await self.bench.eventually(settled, f"{count} messages are settled")

    def _must_run(self, what: str) -> None:
        if self.task.done():
            cause = None if self.task.cancelled() else self.task.exception()
            raise AssertionError(f"process ended before: {what}; {self.task!r}") from cause

    async def finish(self) -> Totals:
        """Ask it to drain and return what it returns."""
        self.stop.set()
        async with within(self.bench.harness.patience, "the end of process"):
            return await self.task


@contextlib.asynccontextmanager
async def processing(
    bench: Bench,
    handler: Handler,
    *,
    batch: Batching | None = None,
    retry: RetryPolicy = AT_ONCE,
    dead_letter: bool = True,
    drain_timeout: float = 10.0,
) -> AsyncIterator[Running]:
    """Run ``process`` for the length of the block; what still runs at its end is cancelled."""
    stop = asyncio.Event()
    members: list[Subscription] = []
    subscribe = bench.broker.subscribe

    def remembered(*args: Any, **kwargs: Any) -> Subscription:
        members.append(subscribe(*args, **kwargs))
        return members[-1]

    bench.broker.subscribe = remembered  # type: ignore[method-assign]
    call = bench.broker.process(
        bench.topic, group=GROUP, handler=handler, batch=batch, retry=retry, dead_letter=dead_letter,
        stop=stop, drain_timeout=drain_timeout,
    )  # fmt: skip
    task = asyncio.create_task(call)
    try:
        yield Running(bench, task, stop, members)
    finally:
        bench.broker.subscribe = subscribe  # type: ignore[method-assign]
        task.cancel()
        await asyncio.wait({task})
        if not task.cancelled():
            task.exception()


async def dead_letters(bench: Bench, count: int) -> list[Delivery]:
    """Receive exactly ``count`` dead letters of the group, ready-made group ``operators``, and ack them."""
    letters = Bench(bench.harness, bench.broker, dead_letter_topic(bench.topic, GROUP))
    async with letters.subscribe(group=OPERATORS) as subscription:
        came = await letters.take_and_ack(subscription, count) if count else []
        await letters.nothing_comes(subscription)
    return came
