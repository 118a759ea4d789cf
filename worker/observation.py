"""What is known of a running worker, read from any thread without disturbing it."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import version
from statistics import median
from typing import TYPE_CHECKING, Any

from broker.message import utc_now
from client.workers import FROZEN_S

from .backlog import Backlog

if TYPE_CHECKING:
    from broker import Capabilities, Delivery, Held, Watch

    from .engine import Engine
    from .handler import ImageHandler
    from .settings import WorkerSettings

_RUNNING = "running"


class Observation:
    """Plain figures of one worker.

    Args:
        settings: of the worker.
        watch: what the processing loop says of itself.
        handler: what it did.
        engine: that predicts.
        backend: what the broker promises.
    """

    def __init__(
        self,
        settings: WorkerSettings,
        watch: Watch,
        handler: ImageHandler,
        engine: Engine,
        backend: Capabilities,
    ) -> None:
        self.settings = settings
        self.watch = watch
        self.handler = handler
        self.engine = engine
        self.backend = backend.backend
        self._counts = backend.counts
        self.backlog = Backlog()
        self.version = version("couturier")
        self.pid = os.getpid()
        self.started = time.time()
        self._beat = self._settled_at = time.monotonic()
        self._settled = 0

    def tick(self, now: float) -> None:
        """Note that the event loop turns; called from it, ``now`` being monotonic seconds."""
        totals = self.watch.totals
        settled = totals.done + totals.retried + totals.dead_lettered + totals.dropped + totals.lost_leases
        if settled != self._settled:
            self._settled, self._settled_at = settled, now
        self._beat = now

    def beat_s(self, now: float) -> float:
        """Return for how long the event loop, or the processing loop on it, has not turned, seconds."""
        beats = [self._beat]
        if self.watch.state in (_RUNNING, "paused", "draining"):
            beats.append(self.watch.beat)
        return max(0.0, now - min(beats))

    def why_not_live(self, now: float) -> str:
        """Say why this process should be ended and started again; empty when it should not."""
        still_s = self.beat_s(now)
        return f"the event loop has not turned for {still_s:.1f} s" if still_s > FROZEN_S else ""

    def why_not_ready(self, now: float) -> str:
        """Say why it takes no messages; empty when it does."""
        if why := self.why_not_live(now):
            return why
        if self.watch.outage:
            return f"paused: {self.watch.outage}"
        if self.watch.state != _RUNNING:
            return self.watch.state
        return "" if self.engine.alive else "the engine is being restarted"

    def status(self, now: float, message_id: str | None = None) -> dict[str, Any]:
        """Return all of it, for JSON.

        Args:
            now: monotonic, seconds.
            message_id: say where this message is, too.
        """
        watch, oldest = self.watch, self.watch.oldest()
        held = list(watch.held.items())
        wanted = next((each for each in held if each[0].message.id == message_id), None)
        name, model_version, model_hash, engine = self.engine.model
        return {
            "worker": self.settings.worker_id,
            "pid": self.pid,
            "host": socket.gethostname(),
            "version": self.version,
            "started": self.started,
            "topic": self.settings.topic,
            "group": self.settings.group,
            "backend": self.backend,
            "state": "paused" if watch.outage and watch.state == _RUNNING else watch.state,
            "reason": self.why_not_ready(now),
            "outage": watch.outage,
            "beat_s": self.beat_s(now),
            "idle_s": now - self._settled_at,
            "held": len(held),
            "oldest_held": None if oldest is None else _place(*oldest, now),
            "message": None if wanted is None else _place(*wanted, now),
            "totals": asdict(watch.totals),
            "rows": asdict(self.handler.tally),
            "dead_letters": dict(watch.dead_letters),
            "failures": [each._asdict() for each in list(watch.failures)],
            "engine": {
                "alive": self.engine.alive,
                "restarts": self.engine.restarts,
                "crashes": self.engine.crashes,
            },
            "model": {"name": name, "version": model_version, "sha256": model_hash, "engine": engine},
            "drift": self._drift(),
            "drain_s": self.drain_s(),
            "lag": [asdict(each) for each in self.backlog.parts()],
        }

    def _drift(self) -> Mapping[str, Any]:
        psi, why_not, window, reference = self.handler.quality.drift()
        return {
            "psi": psi,
            "why_not": why_not,
            "images": window.images,
            "ratios": window.ratios(),
            "reference": None if reference is None else reference.ratios(),
        }

    def drain_s(self) -> float | None:
        """Return what the group needs for what lies before it at its present pace, seconds; None: not known.

        Where the broker does not count (Pub/Sub): how long ago the messages held here were published. In a
        queue served in its order, that is how long the last one of it will wait if it goes on as it came.
        The median, because one retry of an old message is no backlog.
        """
        if self._counts:
            return self.backlog.drain_s
        return max(0.0, median(self._ages_s() or [0.0]))

    def oldest_age_s(self) -> float:
        """Return how long ago the oldest message that is held was published, seconds; 0 when none is."""
        return max(self._ages_s(), default=0.0)

    def _ages_s(self) -> list[float]:
        now = utc_now()
        return [(now - each.message.time).total_seconds() for each in list(self.watch.held)]


def _place(delivery: Delivery, held: Held, now: float) -> Mapping[str, Any]:
    message = delivery.message
    return {
        "message_id": message.id,
        "subject": message.subject,
        "attempt": delivery.attempt,
        "stage": held.stage,
        "held_s": now - held.since,
        "age_s": (utc_now() - message.time).total_seconds(),
    }
