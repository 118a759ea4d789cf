"""The dead letters of images that somebody asks for."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable
from typing import Literal

from pydantic import BaseModel, ConfigDict

from broker import Broker, BrokerError

from ..dlq_letter import Letter, letters

log = logging.getLogger("client.gateway")

# To look takes at most this share of the time, whatever it costs.
_SHARE = 0.05
# Most images are rows long before: only for those that are not the dead letters are read.
_PATIENCE_S = 1.0
_LOOK_S = 2.0
# Ids whose letters are looked for; the oldest go.
_ASKED = 10_000


class Failure(BaseModel):
    """An image that could not be classified: a dead letter, as `couturier dlq list` shows it.

    An operator may send it through again; then it becomes a row after all.
    """

    model_config = ConfigDict(frozen=True)

    message_id: str
    status: Literal["failed"] = "failed"
    reason: str
    stage: str
    attempts: int
    error: str
    failed_at: str


class Letters:
    """Finds the letters of images that stay without a row.

    A look reads all letters, which can cost much: it is taken only when it can tell something new, and never
    for more than a small share of the time. So a letter is seen seconds after it was written.
    """

    def __init__(self, broker: Broker, topic: str, group: str) -> None:
        self._broker = broker
        self._place = (topic, group)
        self._asked: dict[str, float] = {}
        self._found: dict[str, Failure] = {}
        self._wake = asyncio.Event()
        self._told = ""

    def of(self, ids: Iterable[str]) -> dict[str, Failure]:
        """Return the letters of these images that are known; the others are looked for from now on."""
        found = {}
        for each in ids:
            self._asked.setdefault(each, time.monotonic())
            if each in self._found:
                found[each] = self._found[each]
        while len(self._asked) > _ASKED:
            self._found.pop(oldest := next(iter(self._asked)), None)
            del self._asked[oldest]
        if self._asked:
            self._wake.set()
        return found

    def forget(self, ids: Iterable[str]) -> None:
        """These have rows."""
        for each in ids:
            self._asked.pop(each, None)
            self._found.pop(each, None)

    async def run(self) -> None:
        """Look for what was asked for."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            begin = time.monotonic()
            waiting = (asked for each, asked in self._asked.items() if each not in self._found)
            if (left := next(waiting, -_PATIENCE_S) + _PATIENCE_S - begin) > 0:
                await asyncio.sleep(left)
                self._wake.set()
                continue
            await self._look()
            await asyncio.sleep(max(_LOOK_S, (time.monotonic() - begin) / _SHARE))

    async def _look(self) -> None:
        found: dict[str, Failure] = {}
        try:
            async for letter in letters(self._broker, *self._place):
                if letter.message_id in self._asked:
                    found[letter.message_id] = _failure(letter)
        except BrokerError as error:
            if str(error) != self._told:
                log.warning("the dead letters cannot be read, who asks is told `pending`: %s", error)
            self._told = str(error)
            return
        self._found, self._told = found, ""
        self._asked = {each: asked for each, asked in self._asked.items() if each in found}


def _failure(letter: Letter) -> Failure:
    return Failure(
        message_id=letter.message_id,
        reason=letter.reason,
        stage=letter.stage,
        attempts=letter.attempts,
        error=letter.error,
        failed_at=letter.failed_at,
    )
