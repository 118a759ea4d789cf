"""What becomes of a batch that was handled: the retry decision and the dead-letter decision, both pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from ..message import Delivery, Redelivery
from .breaker import Blame
from .dead_letter import EXHAUSTED
from .outcomes import Done, Outcome, Reject, Retry, RetryPolicy, describe


@dataclass(slots=True)
class Handled:
    """A batch by what the handler answered.

    Attributes:
        done: finished.
        failed: to be tried again, with why.
        rejected: can never succeed, with why.
        untried: not handed to the handler, or not by itself, because everything fails.
        raised: calls of the handler that raised.
    """

    done: list[Delivery] = field(default_factory=list)
    failed: list[tuple[Delivery, Retry]] = field(default_factory=list)
    rejected: list[tuple[Delivery, Reject]] = field(default_factory=list)
    untried: list[Delivery] = field(default_factory=list)
    raised: int = 0

    def sort_in(self, batch: Sequence[Delivery], outcomes: Sequence[Outcome]) -> None:
        """Take the answers for ``batch``, one for each, in order.

        Raises:
            TypeError: these are no answers; nothing was taken.
        """
        if len(outcomes) != len(batch):
            raise TypeError(f"the handler returned {len(outcomes)} outcome(s) for {len(batch)} deliveries")
        # Nearly always all is well, and looking at each answer would take as long as all the rest.
        if set(map(type, outcomes)) == {Done}:
            self.done.extend(batch)
            return
        for outcome in outcomes:
            if not isinstance(outcome, (Done, Retry, Reject)):
                raise TypeError(f"the handler returned {outcome!r}, which is no outcome")
        for delivery, outcome in zip(batch, outcomes, strict=True):
            if isinstance(outcome, Done):
                self.done.append(delivery)
            elif isinstance(outcome, Retry):
                self.failed.append((delivery, outcome))
            else:
                self.rejected.append((delivery, outcome))


@dataclass(frozen=True, slots=True)
class Letter:
    """A message that is given up.

    Attributes:
        delivery: the message.
        reason: short token that operators filter by.
        stage: where it failed, one word.
        error: for a person.
    """

    delivery: Delivery
    reason: str
    stage: str
    error: str


@dataclass(slots=True)
class Verdicts:
    """What is to be settled, and how; every delivery of a batch is in exactly one list.

    Attributes:
        acks: done.
        retries: come again after a delay.
        releases: come again at once, as they were.
        letters: are stored as dead letters, then acked.
    """

    acks: list[Delivery] = field(default_factory=list)
    retries: list[Redelivery] = field(default_factory=list)
    releases: list[Delivery] = field(default_factory=list)
    letters: list[Letter] = field(default_factory=list)


def decide(handled: Handled, policy: RetryPolicy, blame: Blame, delay: float, max_delay: float) -> Verdicts:
    """Return what becomes of each delivery of a batch.

    Args:
        handled: what the handler answered.
        policy: how often and how soon a failed message comes again.
        blame: what the breaker says of the failures.
        delay: seconds that a failure waits which counts against nobody and is postponed.
        max_delay: what the backend takes, seconds.
    """
    verdicts = Verdicts(acks=handled.done, releases=handled.untried)
    for delivery, reject in handled.rejected:
        detail = describe(reject.error) or reject.reason
        verdicts.letters.append(Letter(delivery, reject.reason, reject.stage, detail))
    for delivery, failure in handled.failed:
        attempt = delivery.attempt
        if blame == "released":
            verdicts.releases.append(delivery)
        elif blame == "postponed":
            verdicts.retries.append(Redelivery(delivery, min(delay, max_delay), attempt))
        elif policy.exhausted(attempt):
            verdicts.letters.append(Letter(delivery, EXHAUSTED, failure.stage, describe(failure.error)))
        else:
            backoff = min(policy.delay(attempt), max_delay)
            verdicts.retries.append(Redelivery(delivery, backoff, attempt + 1))
    return verdicts
