"""What is needed and does not work is waited for, for as long as that takes; no message is to blame."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from ..errors import BrokerError, Closed, InvalidMessage, LeaseLost, Unavailable
from ..logs import log
from .outcomes import RetryPolicy, describe
from .watch import Held, Watch

T = TypeVar("T")
Test = Callable[[BrokerError], bool]

# How soon what is away is tried again.
PACE = RetryPolicy(attempts=1, base=0.1, cap=5.0, breaker=None)


def of_handler(error: BrokerError) -> bool:
    """Whether an error that a handler raised means that something it needs is away."""
    return isinstance(error, Unavailable)


def of_broker(error: BrokerError) -> bool:
    """Whether an error of a subscription goes away by itself."""
    return error.retryable


def of_dead_letters(error: BrokerError) -> bool:
    """Whether dead letters can be stored later, if only with an operator's help."""
    return not isinstance(error, LeaseLost | InvalidMessage | Closed)


class Outages:
    """Those that are going on in one ``process`` call.

    Args:
        watch: is told.

    Attributes:
        count: how many are waited out at the moment; meanwhile nothing more is taken in.
        text: of the newest one of them, for a person.
    """

    def __init__(self, watch: Watch) -> None:
        self.count = 0
        self.text: str | None = None
        self._watch = watch

    async def outlast(self, is_outage: Test, call: Callable[[], Awaitable[T]], held: Held | None = None) -> T:
        """Repeat ``call`` until it raises nothing that ``is_outage``; return or raise what it does then.

        Args:
            is_outage: which errors to wait out.
            call: to be repeated as it is.
            held: what waits for it.
        """
        failures = 0
        stage = held.stage if held is not None else "waiting"
        try:
            while True:
                try:
                    return await call()
                except BrokerError as error:
                    if not is_outage(error):
                        raise
                    self._note(describe(error), failures)
                failures += 1
                if held is not None and failures == 1:
                    held.enter("outage")
                await asyncio.sleep(PACE.delay(failures))
        finally:
            if failures:
                self.count -= 1
                if not self.count:
                    self.text = None
                if held is not None:
                    held.enter(stage)

    def _note(self, text: str, failures: int) -> None:
        if not failures:
            self.count += 1
            self._watch.totals.outages += 1
        self.text = text
        log.warning("outage, blaming no message (try %d): %s", failures + 1, text)
