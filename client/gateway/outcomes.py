"""What became of images: their rows, or their dead letters. One look serves all who wait."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self, TypeVar

from broker import Broker

from ..errors import ClientError, StoreUnavailable
from ..results import Results, ResultsMissing, open_results
from ..schema import ClassifyResult, ResultRow
from .letters import Failure, Letters

T = TypeVar("T")

log = logging.getLogger("client.gateway")

_LOOK_S = 0.1
# To look takes at most this share of the time, whatever it costs.
_LOOK_SHARE = 0.1
_AFTER_OUTAGE_S = 1.0


Outcome = ClassifyResult | Failure


@dataclass(slots=True, eq=False)
class _Waiter:
    """Someone who waits for the first of some outcomes."""

    ids: frozenset[str]
    found: dict[str, Outcome] = field(default_factory=dict)
    called: asyncio.Event = field(default_factory=asyncio.Event)


class Outcomes:
    """Finds outcomes, and waits for them. Open it with ``async with``.

    Args:
        broker: open.
        topic: that the workers read.
        group: theirs.
        url: of the results.
    """

    def __init__(self, broker: Broker, topic: str, group: str, url: str) -> None:
        self._rows = _Rows(url)
        self._letters = Letters(broker, topic, group)
        self._waiters: set[_Waiter] = set()
        self._wake = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self.hurried = False

    async def __aenter__(self) -> Self:
        """Begin.

        Raises:
            ValueError: nobody can log in to where the results are.
            StoreError: there is something else.
        """
        try:
            await self._rows.open()
        except StoreUnavailable as error:
            log.warning("%s; images are taken meanwhile", error)
        self._tasks = [asyncio.create_task(self._run()), asyncio.create_task(self._letters.run())]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._rows.close()

    def hurry(self) -> None:
        """End all waiting, now and from now on: this process is about to stop."""
        self.hurried = True
        for waiter in self._waiters:
            waiter.called.set()

    async def now(self, ids: Collection[str]) -> dict[str, Outcome]:
        """Return the outcomes that there are, by id. A row counts more than a letter.

        Raises:
            StoreError: the results cannot be read.
        """
        rows = await self._rows.find(ids)
        self._letters.forget(rows)
        return {**self._letters.of([each for each in ids if each not in rows]), **rows}

    async def first(self, ids: Collection[str], timeout: float) -> dict[str, Outcome]:
        """Return some outcomes of these images as soon as there are any; none after ``timeout`` seconds.

        Raises:
            StoreError: the results cannot be read now; an outage later on is borne until the timeout.
        """
        found = await self.now(ids)
        if found or timeout <= 0 or self.hurried:
            return found
        waiter = _Waiter(frozenset(ids))
        self._waiters.add(waiter)
        self._wake.set()
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(timeout):
                    await waiter.called.wait()
        finally:
            self._waiters.discard(waiter)
        return waiter.found

    async def _run(self) -> None:
        """Look again and again, for as long as somebody waits."""
        told = False
        while True:
            await self._wake.wait()
            if not self._waiters:
                self._wake.clear()
                continue
            begin = time.monotonic()
            try:
                found = await self.now({each for waiter in self._waiters for each in waiter.ids})
                told = False
            except ClientError as error:
                if not told:
                    log.warning("the results cannot be read: %s", error)
                told = True
                await asyncio.sleep(_AFTER_OUTAGE_S)
                continue
            for waiter in self._waiters:
                if hits := waiter.ids & found.keys():
                    waiter.found = {each: found[each] for each in hits}
                    waiter.called.set()
            await asyncio.sleep(max(_LOOK_S, (time.monotonic() - begin) / _LOOK_SHARE))


class _Rows:
    """Reads the results, in a thread of its own: a database that hangs holds up nothing else.

    An outage is told to all who ask at that time, and then it is tried again.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._thread = ThreadPoolExecutor(1, "results")
        self._results: Results | None = None
        self._outage = (0.0, "")

    async def open(self) -> None:
        """Open the table, if there is one yet; errors as in ``open_results``."""
        with suppress(ResultsMissing):
            self._results = await self._call(open_results, self._url)

    async def find(self, ids: Iterable[str]) -> dict[str, ClassifyResult]:
        """Return the rows of these messages, by id.

        Raises:
            StoreError: they cannot be read.
        """
        return dict(_read(await self._call(self._find, ids)))

    async def close(self) -> None:
        """Release file or connection."""
        await self._call(self._close)
        self._thread.shutdown(wait=False)

    async def _call(self, call: Callable[..., T], *given: object) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, call, *given)

    def _find(self, ids: Iterable[str]) -> list[ResultRow]:
        until, what = self._outage
        if time.monotonic() < until:
            raise StoreUnavailable(what)
        try:
            if self._results is None:
                self._results = open_results(self._url)
            return list(self._results.find(ids))
        except ResultsMissing:
            return []  # a worker makes the table when it starts
        except (StoreUnavailable, ValueError) as error:  # it could log in before
            self._close()
            self._outage = (time.monotonic() + _AFTER_OUTAGE_S, str(error))
            raise StoreUnavailable(str(error)) from error

    def _close(self) -> None:
        if self._results is not None:
            self._results.close()
            self._results = None


def _read(rows: Iterable[ResultRow]) -> Iterator[tuple[str, ClassifyResult]]:
    """Yield the rows by id; one that cannot be understood is nobody else's concern."""
    for row in rows:
        try:
            yield row.message_id, row.result()
        except ValueError as error:
            log.warning("the row of %s cannot be read, is its worker newer? %s", row.message_id, error)
