"""When to take in, when to drain and when to give up: a pure state machine without clock or I/O."""

from __future__ import annotations

import math
from typing import Literal

from .watch import State

End = Literal["go on", "finished", "too late"]


class Lifecycle:
    """One ``process`` call from start to end.

    Args:
        drain_timeout: seconds that a drain may take.
    """

    def __init__(self, drain_timeout: float) -> None:
        self._drain_timeout = drain_timeout
        self._deadline = math.inf
        self._draining = False

    @property
    def draining(self) -> bool:
        """Whether it was asked to end."""
        return self._draining

    @property
    def deadline(self) -> float:
        """When the drain must have ended, seconds; infinite before it began."""
        return self._deadline

    def stop(self, now: float) -> None:
        """Begin to drain at ``now``, seconds; a second call changes nothing."""
        if not self._draining:
            self._draining = True
            self._deadline = now + self._drain_timeout

    def may_take_in(self, outages: int) -> bool:
        """Return whether more may be received, while ``outages`` things do not work that are needed."""
        return not self._draining and not outages

    def state(self, outages: int) -> State:
        """Return one word for an operator."""
        if self._draining:
            return "draining"
        return "paused" if outages else "running"

    def end(self, now: float, held: int) -> End:
        """Return whether to go on, with ``held`` deliveries that are not settled."""
        if not self._draining:
            return "go on"
        if not held:
            return "finished"
        return "too late" if now >= self._deadline else "go on"
