"""Calling the handler, so that one bad message changes the outcome of no other."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from operator import attrgetter

from ..claims import lost_claim
from ..logs import log
from ..message import Delivery
from .outcomes import Outcome, Reject, Retry, describe
from .verdicts import Handled

_BODY = attrgetter("message.data")

Handler = Callable[[Sequence[Delivery]], Awaitable[Sequence[Outcome]]]

# Reason and stage of a dead letter whose large body is gone for good.
CLAIM_LOST, CLAIM_CHECK = "claim-lost", "claim-check"


async def handle(call: Handler, batch: Sequence[Delivery], limit: int | None) -> Handled:
    """Have a batch handled; bisect what raises, so that only the raiser is blamed.

    Args:
        call: the handler. That what it needs is away must have been waited out.
        batch: at least one.
        limit: once so many failed one by one and nothing succeeded, the rest is not tried; None tries all.
    """
    handled = Handled()
    good = _with_bodies(batch, handled)
    parts = [good] if good else []
    while parts:
        part = parts.pop()
        if limit is not None and len(handled.failed) >= limit and not handled.done:
            handled.untried.extend(part)
            continue
        try:
            handled.sort_in(part, await call(part))
        except (Exception, asyncio.CancelledError) as error:
            if isinstance(error, asyncio.CancelledError) and _is_cancelled():
                raise
            if len(part) > 1:
                middle = len(part) // 2
                parts += (part[middle:], part[:middle])
                continue
            log.warning("message %s failed: %s", part[0].message.id, describe(error))
            handled.failed.append((part[0], Retry(error)))
    return handled


def _with_bodies(batch: Sequence[Delivery], handled: Handled) -> Sequence[Delivery]:
    """Return those whose body is there; what has lost it for good is rejected."""
    # Only an empty body can be a lost one, and attributes are decoded when they are first looked at.
    if all(map(_BODY, batch)):
        return batch
    lost = {each: why for each in batch if not each.message.data and (why := lost_claim(each.message))}
    handled.rejected += [(each, Reject(CLAIM_LOST, why, CLAIM_CHECK)) for each, why in lost.items()]
    return [each for each in batch if each not in lost]


def _is_cancelled() -> bool:
    """Whether it is this task that is to end, not something of the handler's own."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
