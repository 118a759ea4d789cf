"""The circuit breaker, for outages that come as failures of messages: pure, without clock or I/O."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

# A success undoes so many failures: with fewer than one success in ten messages the score rises.
_SUCCESS = 9
# What failed in a probe waits until after the next probe, and for this share of the time since opening: the
# same message is tried ever more rarely, so that all others get their turn.
_LONGER, _SHARE = 1.5, 0.5

Blame = Literal["counted", "released", "postponed"]


@dataclass(frozen=True, slots=True)
class BreakerPolicy:
    """When failing messages are taken for an outage of what the handler needs, and what happens then.

    Attributes:
        failures: it opens once so many different messages failed at their first attempt with hardly a success
            among them: nine failures are undone by each success. What comes again and fails again says
            nothing new, and what is rejected for good (``Reject``) counts for nothing.
        base: seconds from opening to the first probe; each failing probe doubles it.
        cap: longest time between two probes, seconds.
        probe: most messages of a probe. It closes the breaker if at least half of them succeed.
        patience: for so many seconds from opening a probe blames nobody. After that its messages' attempts
            are counted again, so that a service whose every message fails comes to an end, probe by probe.

    Raises:
        ValueError: a field is out of its range.
    """

    failures: int = 20
    base: float = 1.0
    cap: float = 15.0
    probe: int = 8
    patience: float = 600.0

    def __post_init__(self) -> None:
        if self.failures < 2 or self.probe < 1:
            raise ValueError(
                f"failures must be at least 2, probe at least 1; not {self.failures}, {self.probe}"
            )
        if not 0 < self.base <= self.cap or not self.patience >= 0:
            raise ValueError(
                "0 < base <= cap and patience >= 0 must hold, not"
                f" base={self.base}, cap={self.cap}, patience={self.patience}"
            )


class Breaker:
    """Watches how messages fare. Open, it lets nothing through but a small probe now and then.

    The score is that of a CUSUM chart: it rises by one for each message that fails for the first time, falls
    by nine for each success, and never below zero.

    Args:
        policy: None never opens.

    Source: E. S. Page, "Continuous Inspection Schemes", Biometrika 41, 1954.
    """

    def __init__(self, policy: BreakerPolicy | None) -> None:
        self._policy = policy
        self._score = 0
        self._spell: dict[str, None] = {}
        self._opened_at = math.inf
        self._probe_at = math.inf
        self._wait = 0.0
        self._probing = False

    @property
    def is_open(self) -> bool:
        """Whether only probes pass."""
        return self._opened_at < math.inf

    @property
    def limit(self) -> int | None:
        """After how many failures one by one, without a success, the rest of a batch need not be tried."""
        return self._policy.failures if self._policy is not None else None

    @property
    def wait(self) -> float:
        """Seconds between the last probe, or opening, and the next probe."""
        return self._wait

    def delay(self, now: float) -> float:
        """Return the seconds after which a message comes again that failed in a probe at ``now``."""
        return max(self._wait * _LONGER, (now - self._opened_at) * _SHARE)

    def allowed(self, now: float, running: int) -> int | None:
        """Return how many messages may be handed to the handler now, all together; None for any number.

        Args:
            now: seconds.
            running: batches that run at the moment; a probe runs alone.
        """
        if self._policy is None or not self.is_open:
            return None
        return self._policy.probe if running == 0 and now >= self._probe_at else 0

    def wake_at(self) -> float | None:
        """Return when a probe is due, seconds; None while closed."""
        return self._probe_at if self.is_open else None

    def begin(self) -> None:
        """Note that a batch begins; while open it is a probe."""
        self._probing = self.is_open

    def judge(self, now: float, succeeded: int, failed: int, fresh: Sequence[str]) -> Blame:
        """Learn how a batch fared; return what becomes of the messages that failed in it.

        Args:
            now: seconds.
            succeeded: messages that are done.
            failed: messages that are to be tried again.
            fresh: ids of those of them that failed at their first attempt.

        Returns:
            ``counted``: the attempt counts, as always. ``released``: nobody is to blame, they come again as
            they were. ``postponed``: the same, after ``delay``.
        """
        policy = self._policy
        if policy is None:
            return "counted"
        if not self.is_open:
            return self._watch(policy, now, succeeded, fresh)
        if not self._probing:
            return "released"
        if not failed and not succeeded:
            return "counted"
        self._probing = False
        if succeeded >= failed:
            self._close()
            return "counted"
        self._wait = min(policy.cap, self._wait * 2)
        self._probe_at = now + self._wait
        return "postponed" if now < self._opened_at + policy.patience else "counted"

    def _watch(self, policy: BreakerPolicy, now: float, succeeded: int, fresh: Sequence[str]) -> Blame:
        if fresh:
            before = len(self._spell)
            self._spell.update(dict.fromkeys(fresh))
            self._score += len(self._spell) - before
        self._score = max(0, self._score - _SUCCESS * succeeded)
        if self._score == 0:
            self._spell.clear()
        elif self._score >= policy.failures:
            self._opened_at, self._wait = now, policy.base
            self._probe_at = now + policy.base
            return "released"
        return "counted"

    def _close(self) -> None:
        self._score = 0
        self._spell.clear()
        self._opened_at = self._probe_at = math.inf
