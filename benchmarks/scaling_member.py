"""One worker of ``benchmarks.scaling``: a handler on the loop of ``couturier worker``."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection

from broker import Batching, Delivery, Done, Outcome, Processor, connect

GROUP = "scaling"
# A batch costs as much as a fast device needs for a middling network; larger batches pay.
_BATCH, _BATCH_S, _IMAGE_S = 32, 0.04, 0.005
# Images per second of a worker that never waits for the queue.
IDEAL = _BATCH / (_BATCH_S + _BATCH * _IMAGE_S)


@dataclass(frozen=True, slots=True)
class Work:
    """One batch: when it began and ended, monotonic seconds; images; CPU seconds of the process so far."""

    began: float
    ended: float
    images: int
    cpu_s: float

    def images_within(self, start: float, end: float) -> float:
        """Return how many of its images count in that time."""
        inside = min(end, self.ended) - max(start, self.began)
        return self.images * max(0.0, inside) / (self.ended - self.began)


def member(url: str, topic: str, pipe: Connection) -> None:
    """Be one worker: say so after the first batch, work until told to stop, then send what was done.

    Sends:
        Every batch, and how many of its images were acked; others were too late, and done by another worker.
    """
    pipe.send(asyncio.run(_work(url, topic, pipe)))


async def _work(url: str, topic: str, pipe: Connection) -> tuple[list[Work], int]:
    done: list[Work] = []
    device, stop = asyncio.Lock(), asyncio.Event()

    async def handle(deliveries: Sequence[Delivery]) -> list[Outcome]:
        async with device:
            began = time.monotonic()
            await asyncio.sleep(_BATCH_S + len(deliveries) * _IMAGE_S)
            done.append(Work(began, time.monotonic(), len(deliveries), time.process_time()))
        if len(done) == 1:
            pipe.send("began")
        return [Done()] * len(deliveries)

    async with connect(url) as broker:
        asyncio.get_running_loop().add_reader(pipe.fileno(), stop.set)
        # Like the worker, which predicts one batch while another is written.
        batching = Batching(max_messages=_BATCH, concurrency=2)
        processor = Processor(broker, topic, GROUP, handle, batching)
        totals = await processor.run(dead_letter=False, stop=stop)
    return done, totals.done
