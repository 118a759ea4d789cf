"""What a handler answers for each delivery, and the pure decision that follows from it."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from .breaker import BreakerPolicy


@dataclass(frozen=True, slots=True)
class Done:
    """Finished; the message will not come again."""


@dataclass(frozen=True, slots=True)
class Retry:
    """Failed this time and may work later: counted as an attempt, comes again after a backoff.

    Attributes:
        error: what went wrong.
        stage: where, one word.
    """

    error: BaseException | str
    stage: str = "handler"


@dataclass(frozen=True, slots=True)
class Reject:
    """Can never succeed: dead-lettered at once.

    Attributes:
        reason: a short token that operators filter by, such as ``invalid-image``.
        error: the detail for a person.
        stage: where, one word.
    """

    reason: str
    error: BaseException | str = ""
    stage: str = "handler"


Outcome = Done | Retry | Reject


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Exponential backoff with full jitter above half of the step.

    Attributes:
        attempts: hand-overs in all, the first included; then the message is dead-lettered.
        base: delay after the first failure, seconds.
        cap: longest delay, seconds.
        breaker: when failures are taken for an outage that no message is to blame for; None for never.

    Raises:
        ValueError: a field is out of its range.

    Source: "Exponential Backoff And Jitter", AWS Architecture Blog, 2015 ("equal jitter").
    """

    attempts: int = 5
    base: float = 0.5
    cap: float = 60.0
    breaker: BreakerPolicy | None = field(default_factory=BreakerPolicy)

    def __post_init__(self) -> None:
        if self.attempts < 1:
            raise ValueError(f"attempts must be at least 1, not {self.attempts}")
        if not 0 <= self.base <= self.cap:
            raise ValueError(f"0 <= base <= cap must hold, not base={self.base}, cap={self.cap}")

    def exhausted(self, attempt: int) -> bool:
        """Whether a failure of this ``attempt`` was the last one allowed."""
        return attempt >= self.attempts

    def delay(self, attempt: int, spread: float | None = None) -> float:
        """Seconds to wait after ``attempt`` failed, between half the step and the step.

        Args:
            attempt: the attempt that failed, from 1.
            spread: 0 to 1, where in that range; random when None.
        """
        step = min(self.cap, self.base * 2.0 ** min(attempt - 1, 62))
        spread = random.random() if spread is None else spread  # noqa: S311 - jitter, not a secret
        return step * (0.5 + 0.5 * spread)


def describe(error: BaseException | str) -> str:
    """Return one line for a log or a dead letter: the class and the text of an error."""
    if isinstance(error, str):
        return error
    try:
        text = str(error)
    except Exception:
        text = ""  # An error that cannot be printed is still an error.
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
