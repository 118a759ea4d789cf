"""``Broker.process`` with a handler that is a function of one delivery, on a backend that can fail."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from faulty import until

from broker import (
    Broker,
    Delivery,
    Message,
    Outcome,
    Processor,
    RetryPolicy,
    Totals,
    Watch,
    dead_letter_topic,
)

TOPIC, GROUP = "images", "workers"
LETTERS = dead_letter_topic(TOPIC, GROUP)


class Run:
    """One ``process`` call.

    Args:
        broker: with topic and group.
        judge: says what becomes of a delivery, or raises.
        options: ``batch``, ``retry``, ``dead_letter`` and ``drain_timeout`` of ``process``.

    Attributes:
        seen: body and attempt of every delivery that the handler got, in order.
        watch: of the processor.
        stop: set it to drain.
    """

    def __init__(self, broker: Broker, judge: Callable[[Delivery], Outcome], **options: Any) -> None:
        self.seen: list[tuple[bytes, int]] = []
        self.stop = asyncio.Event()
        self._broker = broker
        self._judge = judge
        retry = options.pop("retry", RetryPolicy(attempts=3, base=0.0, cap=0.0))
        self._processor = Processor(broker, TOPIC, GROUP, self._handle, options.pop("batch", None), retry)
        self._options = options
        self.watch: Watch = self._processor.watch

    async def _handle(self, deliveries: Sequence[Delivery]) -> list[Outcome]:
        self.seen += [(each.message.data, each.attempt) for each in deliveries]
        await asyncio.sleep(0)
        return [self._judge(each) for each in deliveries]

    async def until_settled(self, count: int) -> Totals:
        """Process until ``count`` messages are settled, then drain."""

        async def settled() -> bool:
            return (await self._broker.stats(TOPIC, GROUP)).settled >= count  # type: ignore[operator]

        return await self.until(settled)

    async def until(self, *conditions: Callable[[], Any]) -> Totals:
        """Process until each condition has held, one after the other, then drain."""
        task = asyncio.create_task(self._processor.run(stop=self.stop, **self._options))
        try:
            for condition in conditions:

                async def holds(condition: Callable[[], Any] = condition) -> bool:
                    if task.done():
                        return True
                    found = condition()
                    return bool(await found if asyncio.iscoroutine(found) else found)

                await until(holds)
            self.stop.set()
            return await task
        finally:
            task.cancel()
            await asyncio.wait({task})


async def publish(broker: Broker, count: int) -> None:
    """Publish numbered messages."""
    await broker.publish(TOPIC, [Message(data=b"%d" % number) for number in range(count)])
