"""What one ``process`` call is doing: plain figures that any thread may read at any time."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import repeat
from typing import Literal, NamedTuple

from ..message import Delivery

State = Literal["starting", "running", "paused", "draining", "stopped"]
Stage = Literal["waiting", "handling", "settling", "outage"]

_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_LATENCIES = (*_SECONDS[2:], 300.0, 900.0, 3600.0)


@dataclass(slots=True)
class Totals:
    """What became of the messages that ``process`` received.

    Attributes:
        done: acked.
        retried: failures recorded; the message comes again.
        dead_lettered: stored in the dead-letter topic and acked.
        dropped: rejected or exhausted with ``dead_letter=False``, logged and acked.
        lost_leases: another member had them before they were settled, or before they were handled.
        batches: handler calls that succeeded or were blamed on one message.
        received: deliveries taken in; one message may come several times.
        unblamed: failures that counted against no message, because the breaker was open.
        outages: how often something that was needed stopped working.
    """

    done: int = 0
    retried: int = 0
    dead_lettered: int = 0
    dropped: int = 0
    lost_leases: int = 0
    batches: int = 0
    received: int = 0
    unblamed: int = 0
    outages: int = 0


@dataclass(slots=True)
class Held:
    """Where deliveries that are held stand; those of one batch share it.

    Attributes:
        stage: ``waiting`` for a batch, ``handling``, ``settling``, or in an ``outage`` of what is needed.
        since: when that began, seconds of ``time.monotonic()``.
    """

    stage: Stage
    since: float

    def enter(self, stage: Stage) -> None:
        """Go over to another stage, now."""
        self.stage, self.since = stage, time.monotonic()


class Failure(NamedTuple):
    """A message that failed lately.

    Attributes:
        message_id: which.
        attempt: which hand-over of it, from 1.
        stage: where, one word.
        error: what went wrong, one line.
        at: when, seconds since 1970.
    """

    message_id: str
    attempt: int
    stage: str
    error: str
    at: float


class Histogram:
    """How often values fell up to each bound.

    Args:
        bounds: rising; a value counts for the first bound that is not below it.

    Attributes:
        bounds: as given.
        counts: one for each bound, then one for what is above all of them.
        sum: of all values.
        count: of all values.
    """

    __slots__ = ("bounds", "count", "counts", "sum")

    def __init__(self, bounds: Iterable[float]) -> None:
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(self.bounds) + 1)
        self.sum = 0.0
        self.count = 0

    def observe(self, value: float) -> None:
        """Count one value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value
        self.count += 1


@dataclass(slots=True)
class Watch:
    """Figures of one ``process`` call, kept up to date by its loop alone.

    Each is a plain value; read it from any thread. Copy a collection before walking through it, in one
    go: ``list(watch.held.items())``.

    Attributes:
        totals: what became of the messages so far.
        state: ``starting``, ``running``, ``paused`` (nothing is taken in: see ``outage``), ``draining`` or
            ``stopped``.
        held: every delivery that is not settled yet, and where it stands.
        outage: what stands in the way right now, for a person; None while all is well.
        dead_letters: by reason; dropped ones too.
        failures: the newest 20.
        batch_size: messages of each batch.
        handler_seconds: each call of the handler, in which nothing was away.
        end_to_end_seconds: from the time that the message carries until it was acked, by the clocks of two
            machines; of up to 8 messages of each batch, since reading that time is dear on some backends.
        estimate: learned seconds of a batch, ``(per message, per batch)``; None until enough is known.
        beat: ``time.monotonic()`` of the loop's last turn; it turns at least once a second.
    """

    totals: Totals = field(default_factory=Totals)
    state: State = "starting"
    held: dict[Delivery, Held] = field(default_factory=dict)
    outage: str | None = None
    dead_letters: Counter[str] = field(default_factory=Counter)
    failures: deque[Failure] = field(default_factory=lambda: deque(maxlen=20))
    batch_size: Histogram = field(default_factory=lambda: Histogram(_SIZES))
    handler_seconds: Histogram = field(default_factory=lambda: Histogram(_SECONDS))
    end_to_end_seconds: Histogram = field(default_factory=lambda: Histogram(_LATENCIES))
    estimate: tuple[float, float] | None = None
    beat: float = field(default_factory=time.monotonic)

    def oldest(self) -> tuple[Delivery, Held] | None:
        """Return the delivery that has stood longest where it stands, if any is held."""
        return min(list(self.held.items()), key=lambda item: item[1].since, default=None)

    def enter(self, deliveries: Iterable[Delivery], stage: Stage) -> Held:
        """Note that ``deliveries`` are at ``stage`` from now on; return what they share."""
        held = Held(stage, time.monotonic())
        self.held.update(zip(deliveries, repeat(held)))
        return held

    def leave(self, deliveries: Iterable[Delivery]) -> None:
        """Note that ``deliveries`` are no longer held."""
        deque(map(self.held.pop, deliveries, repeat(None)), maxlen=0)
