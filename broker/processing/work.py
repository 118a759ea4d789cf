"""What happens to one batch: handle, judge, decide, settle."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial

from .. import tracing
from ..logs import log
from ..message import Capabilities, Delivery
from ..subscription import Subscription
from .breaker import Breaker
from .estimator import Estimator
from .handling import Handler, handle
from .outages import of_handler
from .outcomes import Outcome, Reject, Retry, RetryPolicy, describe
from .settler import Settler
from .verdicts import Handled, Verdicts, decide
from .watch import Failure, Held, Watch

# Leases are not renewed oftener than that: what waited for less is still ours, as far as anybody knows.
_FRESH_S = 1.0
_NO_SPAN = nullcontext()


class Work:
    """Carries batches out, as many at once as it is asked to.

    Args:
        subscription: open; where the deliveries are from.
        settler: of the same subscription.
        handler: the application's.
        retry: how often and how soon a failed message comes again.
        capabilities: of the backend.
        watch: what it does is written there.

    Attributes:
        estimator: learns from each batch what batches take.
        breaker: learns from each batch whether everything fails.
        outages: what is waited for at the moment.
    """

    def __init__(
        self,
        subscription: Subscription,
        settler: Settler,
        handler: Handler,
        retry: RetryPolicy,
        capabilities: Capabilities,
        watch: Watch,
    ) -> None:
        self.estimator = Estimator()
        self.breaker = Breaker(retry.breaker)
        self.outages = settler.outages
        self._subscription = subscription
        self._settler = settler
        self._handler = handler
        self._retry = retry
        self._capabilities = capabilities
        self._watch = watch

    @property
    def trouble(self) -> str | None:
        """What stands in the way, for a person."""
        if not self.breaker.is_open:
            return self.outages.text
        last = self._watch.failures[-1]
        return (
            "different messages failed one after the other and hardly any succeeded, so none is blamed and a"
            f" few are tried every {self.breaker.wait:g} s; the last error: {last.stage}: {last.error}"
        )

    async def run(self, batch: list[Delivery]) -> None:
        """Carry one batch out, to the end."""
        began, outages = _now(), self._watch.totals.outages
        waiting = self._watch.held[batch[0]]
        held = self._watch.enter(batch, "handling")
        try:
            kept = batch if held.since - waiting.since < _FRESH_S else self._kept(batch)
            if kept:
                spans = tracing.spans()
                where = (self._capabilities.backend, self._subscription.topic, self._subscription.group)
                with spans.process(*where, kept) if spans else _NO_SPAN:
                    handled = await self._handle(kept, held)
                    verdicts = self._decide(handled)
                    held.enter("settling")
                    with spans.settle(*where, handled) if spans else _NO_SPAN:
                        await self._settler.settle(verdicts, held)
                if len(verdicts.acks) == len(kept) and outages == self._watch.totals.outages:
                    self.estimator.record(len(kept), _now() - began)
        finally:
            self._watch.leave(batch)

    async def hand_back(self, deliveries: list[Delivery]) -> None:
        """Release what was not tried."""
        held = self._watch.enter(deliveries, "settling")
        try:
            await self._settler.settle(Verdicts(releases=deliveries), held)
        finally:
            self._watch.leave(deliveries)

    async def _handle(self, batch: list[Delivery], held: Held) -> Handled:
        self._watch.batch_size.observe(len(batch))
        handled = await handle(partial(self._call, held), batch, self.breaker.limit)
        self._watch.totals.batches += 1
        return handled

    async def _call(self, held: Held, part: Sequence[Delivery]) -> Sequence[Outcome]:
        """Call the handler once what it needs is there."""

        async def once() -> Sequence[Outcome]:
            began = _now()
            outcomes = await self._handler(part)
            self._watch.handler_seconds.observe(_now() - began)
            return outcomes

        return await self.outages.outlast(of_handler, once, held)

    def _decide(self, handled: Handled) -> Verdicts:
        """Say whose fault it is, and what becomes of each delivery."""
        breaker, was_open = self.breaker, self.breaker.is_open
        failed = len(handled.failed)
        if failed or handled.rejected:
            self._remember(handled)
        fresh = [delivery.message.id for delivery, _ in handled.failed if delivery.attempt == 1]
        now = _now()
        blame = breaker.judge(now, len(handled.done), failed, fresh)
        if blame != "counted":
            self._watch.totals.unblamed += failed
        if breaker.is_open and not was_open:
            self._watch.totals.outages += 1
            log.warning("the breaker opens: %s", self.trouble)
        elif was_open and not breaker.is_open:
            log.warning("the breaker closes: messages succeed again")
        return decide(handled, self._retry, blame, breaker.delay(now), self._capabilities.max_delay)

    def _remember(self, handled: Handled) -> None:
        failures, at = self._watch.failures, time.time()
        bad: list[tuple[Delivery, Retry | Reject]] = [*handled.rejected, *handled.failed]
        for delivery, outcome in bad[-(failures.maxlen or 0) :]:
            text = describe(outcome.error)
            failures.append(Failure(delivery.message.id, delivery.attempt, outcome.stage, text, at))

    def _kept(self, batch: list[Delivery]) -> list[Delivery]:
        """Return what is still ours; whoever has the rest by now handles it."""
        kept = [each for each in batch if self._subscription.holds(each)]
        self._watch.totals.lost_leases += len(batch) - len(kept)
        return kept


def _now() -> float:
    return asyncio.get_running_loop().time()
