"""What the group has before it, how fast it gets done, and which partition does not move."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import structlog

from broker import Broker, Lag

log = structlog.stdlib.get_logger("worker")

# Rates are of the last minute: long enough to be steady, short enough to follow an outage.
_WINDOW_S = 60.0
# A question that hangs is not to hold up the next one for ever.
_ASK_S = 60.0


@dataclass(frozen=True, slots=True)
class _Sample:
    """One look, at ``at`` seconds: messages that are not finished, and those that are; None if unknown."""

    at: float
    unsettled: int
    settled: int | None


@dataclass(frozen=True, slots=True)
class Part:
    """One part of the topic, as it was seen last.

    Attributes:
        partition: its number; None on a backend without partitions.
        unsettled: messages that are not finished.
        stalled_s: for how long nothing in it got done although there is work, seconds.
    """

    partition: int | None
    unsettled: int
    stalled_s: float


class Backlog:
    """Remembers looks at the broker; pure, any thread may read."""

    def __init__(self) -> None:
        self._samples: deque[_Sample] = deque()
        self._parts: dict[int | None, tuple[Lag, float]] = {}
        self._seen = 0.0

    def add(self, now: float, parts: Sequence[Lag], settled: int | None) -> None:
        """Take one look.

        Args:
            now: monotonic, seconds.
            parts: from ``Broker.lag``.
            settled: messages that the group has finished since it exists; None if the backend does not count.
        """
        samples = deque(each for each in self._samples if each.at > now - _WINDOW_S)
        samples.append(_Sample(now, sum(each.unsettled for each in parts), settled))
        moved = {}
        for each in parts:
            before, since = self._parts.get(each.partition, (each, now))
            same = (before.position, before.unsettled) == (each.position, each.unsettled)
            moved[each.partition] = (each, since if same and each.unsettled else now)
        self._samples, self._parts, self._seen = samples, moved, now

    def lose(self) -> None:
        """Forget the figures, because the broker does not answer; what stood still goes on standing."""
        self._samples = deque()

    @property
    def unsettled(self) -> int | None:
        """Messages that the group has not finished; None if that is not known."""
        samples = self._samples
        return samples[-1].unsettled if samples else None

    @property
    def drain_s(self) -> float | None:
        """Seconds until the backlog is done at the group's rate of the last minute; None if not known.

        Time without work does not count, so that a queue that fills again is not judged by its rest. Where
        nothing got done, one message is assumed: the figure is large, and finite for autoscalers.
        """
        samples = list(self._samples)
        if not samples or samples[-1].settled is None:
            return None
        if not samples[-1].unsettled:
            return 0.0
        steps = list(pairwise(samples))
        steps = [step for step in steps if step[0].unsettled] or steps
        elapsed = sum(after.at - before.at for before, after in steps)
        if not elapsed:
            return None
        done = sum((after.settled or 0) - (before.settled or 0) for before, after in steps)
        return samples[-1].unsettled * elapsed / max(done, 1)

    def parts(self) -> list[Part]:
        """Return the parts of the topic, by number."""
        if not self._samples:
            return []
        return [
            Part(number, lag.unsettled, self._seen - since)
            for number, (lag, since) in sorted(self._parts.items(), key=lambda item: item[0] or 0)
        ]


async def poll(broker: Broker, topic: str, group: str, backlog: Backlog, interval_s: float) -> None:
    """Look every ``interval_s`` seconds until cancelled; a broker that does not answer is asked again."""
    known = True
    while True:
        try:
            async with asyncio.timeout(_ASK_S):
                parts = await broker.lag(topic, group)
                counts = broker.capabilities.counts
                settled = (await broker.stats(topic, group)).settled if counts else None
            backlog.add(time.monotonic(), parts, settled)
            known = True
        except Exception as error:  # figures are no reason to end a worker
            backlog.lose()
            if known:
                log.warning("the backlog is not known", error=str(error) or type(error).__name__)
            known = False
        await asyncio.sleep(interval_s)
