"""What the routes of one gateway share."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field

from broker import Broker, BrokerError

from ..ledger import Entry, Ledger
from .bodies import Bodies
from .intake import Intake
from .metrics import Metrics
from .outcomes import Outcomes

_ASK_S = 2.0


@dataclass(slots=True)
class Gateway:
    """What the routes work with.

    Attributes:
        broker: open.
        topic: where images go.
        intake: open.
        outcomes: open.
        ledger: for reading; what this and other gateways of this machine accepted.
        max_bytes: of one image.
        token: that is demanded, or None.
        metrics: what is counted.
        streams: that are open.
        bodies: reads images.
        turn: of whoever reads the ledger.
        asked_at: when the broker was asked how it does, monotonic seconds; ``said`` is what it said.
    """

    broker: Broker
    topic: str
    intake: Intake
    outcomes: Outcomes
    ledger: Ledger
    max_bytes: int
    token: bytes | None = None
    metrics: Metrics = field(default_factory=Metrics)
    streams: set[object] = field(default_factory=set)
    bodies: Bodies = field(init=False)
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    asked_at: float = -_ASK_S
    said: str = ""

    def __post_init__(self) -> None:
        self.bodies = Bodies(self.max_bytes, self.metrics)

    async def problem(self) -> str:
        """Return why the broker cannot be used, or nothing; it is asked now and then, however many ask us."""
        now = time.monotonic()
        if now - self.asked_at >= _ASK_S:
            self.asked_at = now
            try:
                async with asyncio.timeout(_ASK_S):
                    await self.broker.describe()
                self.said = ""
            except (BrokerError, TimeoutError) as error:
                self.said = str(error) or f"the broker does not answer within {_ASK_S:g} s"
        return self.said

    async def accepted(self, ids: list[str]) -> dict[str, Entry]:
        """Return those of these images that were, or may have been, stored here."""
        async with self.turn:  # a ledger is for one thread at a time
            entries = await asyncio.to_thread(self.ledger.find, ids)
        place = (self.broker.address, self.topic)
        return {
            each: entry
            for each, entry in entries.items()
            if entry.state != "refused" and (entry.broker, entry.topic) == place
        }
