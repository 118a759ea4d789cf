"""Answers as server-sent events, each as soon as it is there.

The id of an event says which of the asked images have been answered up to it: one bit each, in the order in
which they were asked for, hexadecimal. A browser sends the last one back when it connects again
(``Last-Event-ID``), to whichever gateway, and none of them has to remember anything.

Source: WHATWG HTML, "Server-sent events".
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Sequence

from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from ..errors import ClientError
from .letters import Failure
from .metrics import Metrics
from .outcomes import Outcome, Outcomes
from .problems import busy, problem

log = logging.getLogger("client.gateway")

# Of one stream: as many as an address of 4 KiB names.
MOST_IDS = 100
# A stream costs a connection and at most MOST_IDS answers.
MOST_STREAMS = 64
# Something is said so often, so that who sits in between does not take the line for dead.
_HEARTBEAT_S = 15.0
# Then the client connects again: a line that one side has forgotten lives no longer.
_STREAM_S = 300.0
_RECONNECT_MS = 1000


def answered(last_event_id: str | None, count: int) -> int:
    """Return which images were answered before; what is no id of ours stands for none."""
    try:
        mask = int(last_event_id or "0", 16)
    except ValueError:
        return 0
    return mask if 0 <= mask < 1 << count else 0


async def events(outcomes: Outcomes, ids: Sequence[str], mask: int) -> AsyncIterator[str]:
    """Yield an event for every image that is not answered yet, then ``end``.

    Args:
        outcomes: open.
        ids: of the images.
        mask: which of them were answered before.
    """
    clock = asyncio.get_running_loop().time
    end = clock() + _STREAM_S
    yield f"retry: {_RECONNECT_MS}\n\n"
    places = {each: place for place, each in enumerate(ids) if not mask >> place & 1}
    while places and not outcomes.hurried and clock() < end:
        try:
            found = await outcomes.first(places, min(_HEARTBEAT_S, end - clock()))
        except ClientError as error:
            log.warning("a stream ends, its client will come again: %s", error)
            return
        for each in sorted(found, key=places.__getitem__):
            mask |= 1 << places.pop(each)
            yield _event(mask, found[each])
        if not found:
            yield ": waiting\n\n"
    if not places:
        yield f"event: end\nid: {mask:x}\ndata: {{}}\n\n"


def _event(mask: int, outcome: Outcome) -> str:
    kind = "failed" if isinstance(outcome, Failure) else "result"
    # As JSON without line breaks, which would end the field.
    return f"event: {kind}\nid: {mask:x}\ndata: {json.dumps(outcome.model_dump(mode='json'))}\n\n"


class EventStream(StreamingResponse):
    """Sends events; refused where so many streams are open already.

    Args:
        lines: of the stream.
        metrics: counts the open streams.
        open_streams: those that are open, of all clients.
    """

    media_type = "text/event-stream"

    def __init__(self, lines: AsyncIterator[str], metrics: Metrics, open_streams: set[object]) -> None:
        super().__init__(lines, headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        self._metrics = metrics
        self._open_streams = open_streams

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if len(self._open_streams) >= MOST_STREAMS:
            full = busy(f"{MOST_STREAMS} streams are open, and no more are served")
            await problem(full.status, full.detail, full.headers)(scope, receive, send)
            return
        self._open_streams.add(self)
        self._metrics.streams.set(len(self._open_streams))
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._open_streams.discard(self)
            self._metrics.streams.set(len(self._open_streams))
