"""Results that are waited for."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Sequence

from ..errors import ResultsTimeout, StoreUnavailable
from ..schema import ClassifyResult, ResultRow
from .places import open_results, readable_url
from .table import Results, ResultsMissing

_POLL_S = 0.1


async def wait_for(ids: Sequence[str], timeout: float, url: str | None = None) -> list[ClassifyResult]:
    """Return the results of these messages, in order, as soon as all are there.

    Args:
        ids: message ids.
        timeout: seconds.
        url: where the results are; None means the default place.

    Raises:
        ResultsTimeout: some are still missing; ``missing`` names them.
        ValueError: ``url`` does not work.
        StoreError: what it names cannot be read; an outage is borne until the timeout.
    """
    place = readable_url(url)
    deadline = time.monotonic() + timeout
    missing = set(ids)
    found: dict[str, ResultRow] = {}
    results: Results | None = None
    try:
        while True:
            try:
                if results is None:
                    results = await asyncio.to_thread(open_results, place)
                found.update(await asyncio.to_thread(_find, results, missing))
            except ResultsMissing:
                pass  # a worker makes the table when it starts
            except StoreUnavailable:
                if time.monotonic() >= deadline:
                    raise
                await _close(results)
                results = None
            missing -= found.keys()
            if not missing:
                return [found[each].result() for each in ids]
            if time.monotonic() >= deadline:
                raise ResultsTimeout(sorted(missing), timeout)
            await asyncio.sleep(_POLL_S)
    finally:
        await _close(results)


def _find(results: Results, ids: Iterable[str]) -> dict[str, ResultRow]:
    return {row.message_id: row for row in results.find(ids)}


async def _close(results: Results | None) -> None:
    if results is not None:
        await asyncio.to_thread(results.close)
