"""The seam between the worker and whatever keeps the results."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from broker import Unavailable
from client.results import WriteReport
from client.schema import ResultRow

__all__ = ["Sink", "SinkUnavailable", "WriteReport", "write_patiently"]

_FIRST_WAIT_S = 0.05
_LONGEST_WAIT_S = 1.0


class SinkUnavailable(Exception):  # noqa: N818 - reads as the state it names, like broker.Unavailable
    """The sink does not take anything at the moment; what of the write was stored is not known."""


class Sink(Protocol):
    """Keeps one row per message id. Calls do not overlap with ``open`` and ``aclose``; writes may."""

    async def open(self) -> None:
        """Connect and create what is missing.

        Raises:
            ValueError: ``SINK_URL`` cannot work.
            client.StoreError: what it names cannot be used.
        """
        ...

    async def write(self, rows: Sequence[ResultRow]) -> WriteReport:
        """Store rows; when it returns they survive the death of this process.

        A row whose id is there already changes nothing. A row that is refused for what it says is named
        in the report and keeps no other row out.

        Raises:
            SinkUnavailable: an outage; the same write can be repeated.
        """
        ...

    async def aclose(self) -> None:
        """Release the connection."""
        ...


async def write_patiently(sink: Sink, rows: Sequence[ResultRow], deadline_s: float) -> WriteReport:
    """Write rows, repeating through short outages.

    Args:
        sink: open.
        rows: at least 1.
        deadline_s: for how long to repeat, seconds.

    Raises:
        Unavailable: the outage lasts; no message is to blame.
    """
    try:
        return await sink.write(rows)
    except SinkUnavailable:
        # tenacity costs a start-up import and 50 us a call, so the way without trouble does not meet it.
        from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_delay, wait_random_exponential

    again = AsyncRetrying(
        retry=retry_if_exception_type(SinkUnavailable),
        stop=stop_after_delay(deadline_s),
        wait=wait_random_exponential(multiplier=_FIRST_WAIT_S, max=_LONGEST_WAIT_S),
        reraise=True,
    )
    try:
        return await again(sink.write, rows)
    except SinkUnavailable as error:
        raise Unavailable(f"the sink does not take rows: {error}") from error
