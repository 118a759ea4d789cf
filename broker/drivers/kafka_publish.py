"""The producer: hands records over as fast as they come, and counts the reports that they are stored.

One thread serves the reports. No record has a future of its own: a call waits for the last of its reports.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import repeat
from typing import Any

from ..errors import BrokerError, Closed, MessageTooLarge
from ..message import Receipt, made
from .kafka_errors import mapped, refused

log = logging.getLogger("broker")

# Body, key, headers and id of a record; the id is that of its receipt.
Row = tuple[bytes | None, Any, Any, str]
Report = Callable[[Any, Any], None]

_DELIVERY_S = 30.0
# Of the broker's default `message.max.bytes`, 1,048,588, some is for the batch around the record:
# kafka.apache.org/documentation/#brokerconfigs
_MAX_RECORD_BYTES = 1_048_000
# After so many records the event loop may do something else.
_TURN_ROWS = 500
_FULL_S = 0.005


class Publisher:
    """An idempotent producer and the thread that serves it.

    Args:
        config: where the brokers are, and any further settings.
        address: for errors.

    Raises:
        ValueError: the client refuses its settings.
    """

    def __init__(self, config: Mapping[str, Any], address: str) -> None:
        from confluent_kafka import Producer

        settings = {
            "linger.ms": 5,
            # Records without a key stay with one partition for so long. The client's own 10 ms put batches of
            # 500 into few partitions: of 12, four or five had none of 10,000 records.
            "sticky.partitioning.linger.ms": 1,
            "partitioner": "murmur2_random",
            **config,
            "enable.idempotence": True,
            "acks": "all",
            "message.max.bytes": _MAX_RECORD_BYTES,
            "delivery.timeout.ms": int(_DELIVERY_S * 1000),
            "allow.auto.create.topics": False,
        }
        try:
            self.client: Any = Producer(settings)
        except Exception as error:
            raise refused(error) from None
        self._address = address
        # Why it takes nothing any more, however often it is asked; another one may.
        self.failure: BrokerError | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(
            target=self._serve, args=(self.client,), name="kafka producer", daemon=True
        )
        self._thread.start()

    async def store(self, topic: str, rows: Sequence[Row]) -> list[Receipt | BrokerError]:
        """Store records; return once every one has its report: a receipt or an error for each."""
        positions = [""] * len(rows)
        failed: dict[int, BrokerError] = {}
        # Several threads count, and none waits for another: one appends, one adds up, and both compare.
        reported: list[int] = []
        refused, expected = 0, -1
        loop = asyncio.get_running_loop()
        done: asyncio.Future[None] = loop.create_future()

        def report(index: int, error: Any, native: Any) -> None:
            if error is None:
                positions[index] = f"{native.partition()}/{native.offset()}"
            else:
                failed[index] = self.failure or mapped(error, f"storing in {topic}")
            reported.append(index)
            if len(reported) == expected:
                _wake(loop, done)

        for index, (data, key, head, _) in enumerate(rows):
            told = partial(report, index)
            try:
                self.client.produce(topic, data, key, headers=head, on_delivery=told)
            except Exception:
                # Seldom, and this is hot: what is wrong shows when it is tried again.
                problem = await self._enqueue(topic, data, key, head, told)
                if problem is not None:
                    failed[index] = problem
                    refused += 1
            if index % _TURN_ROWS == 0:
                await asyncio.sleep(0)
        expected = len(rows) - refused
        if len(reported) < expected:
            await done
        ids = [each[3] for each in rows]
        answers: list[Any] = made(Receipt, len(rows), message_id=ids, topic=repeat(topic), position=positions)
        for index, error in failed.items():
            answers[index] = error
        return answers

    async def _enqueue(
        self, topic: str, data: bytes | None, key: Any, head: Any, report: Report
    ) -> BrokerError | None:
        """Give one record to the client, waiting while its queue is full."""
        from confluent_kafka import KafkaException

        while self.client is not None:
            try:
                self.client.produce(topic, data, key, headers=head, on_delivery=report)
            except BufferError:
                await asyncio.sleep(_FULL_S)
            except KafkaException as error:
                if error.args[0].name() == "MSG_SIZE_TOO_LARGE":
                    around = sum(len(name) + len(value or b"") for name, value in dict(head).items())
                    return MessageTooLarge(len(data or b"") + around, _MAX_RECORD_BYTES)
                return self.failure or mapped(error, f"storing in {topic}")
            else:
                return None
        return Closed("the broker was closed")

    async def aclose(self) -> None:
        """Wait, within bounds, until everything has its report."""
        client, self.client = self.client, None  # from here on nothing is taken
        # What was taken last reports within its own limit, which the client looks at once a second.
        await asyncio.to_thread(client.flush, _DELIVERY_S + 5.0)
        self._ended.set()
        await asyncio.to_thread(self._thread.join)

    def _serve(self, client: Any) -> None:
        from confluent_kafka import KafkaException

        while not self._ended.is_set():
            try:
                client.poll(0.1)
            except KafkaException as error:
                # Raised here is only what ends the client for good; all else goes to its callbacks. Whoever
                # may not write anywhere meets it at once, and need not know unless something is published.
                self.failure = mapped(error, f"publishing at {self._address}")
                log.debug("%s", self.failure)
            except Exception:
                # What a callback raises comes out here; without this thread no publish would ever return.
                log.exception("serving the delivery reports of %s failed", self._address)
                time.sleep(0.1)


def _wake(loop: asyncio.AbstractEventLoop, done: asyncio.Future[None]) -> None:
    def give() -> None:
        if not done.done():
            done.set_result(None)

    # Whoever waited may be gone, with its event loop.
    if not loop.is_closed():
        loop.call_soon_threadsafe(give)
