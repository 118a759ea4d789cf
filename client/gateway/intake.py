"""What comes in by POST, stored in batches: one writer, which tells repeats from new images for sure."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from types import TracebackType
from typing import Self
from uuid import UUID, uuid5

from broker import Broker, BrokerError, PublishError

from ..client import Client
from ..errors import ClientError
from ..ledger import Entry, Ledger
from ..schema import ClassifyRequest

_KEYED_IDS = UUID("9a1c7f46-52f5-5c1e-8f0b-7f1d3c0f9a2e")
# A request waits no longer than this for a broker that is away, beside what the backend itself takes.
_OUTAGE_S = 2.0
# Stored in one go.
_BATCH_MESSAGES = 256
_BATCH_BYTES = 8 * 1024 * 1024


class KeyReused(ClientError):  # noqa: N818 - reads as the state it names
    """An idempotency key came before, with another image."""


def id_of_key(topic: str, key: str) -> str:
    """Return the message id that an idempotency key stands for: the same in every process, at any time."""
    return str(uuid5(_KEYED_IDS, f"{topic}/{key}"))


@dataclass(slots=True, eq=False)
class _Post:
    """An image that waits to be stored; ``answer`` is since when it is there, if it was there before."""

    request: ClassifyRequest
    digest: str
    answer: asyncio.Future[datetime | None]


class Intake:
    """Stores images and writes them down in the ledger. Open it with ``async with``.

    Args:
        broker: open.
        topic: ensured before.
        ledger: used by nobody else while this is open.
    """

    def __init__(self, broker: Broker, topic: str, ledger: Ledger) -> None:
        self._place = (broker.address, topic)
        self._client = Client(broker, topic, ledger, outage_s=_OUTAGE_S)
        self._ledger = ledger
        self._queue: deque[_Post] = deque()
        self._arrived = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._run())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def accept(self, request: ClassifyRequest) -> datetime | None:
        """Return once the broker has stored an image: None, or since when it was there already, aware.

        Raises:
            KeyReused: its id came before with another image.
            InvalidMessage: the broker can never store it.
            BrokerError: the broker does not answer; it may have stored it, so the next try needs the same id.
            StoreError: the ledger cannot be written; nothing was sent.
        """
        digest = hashlib.sha256(request.image).hexdigest()
        post = _Post(request, digest, asyncio.get_running_loop().create_future())
        self._queue.append(post)
        self._arrived.set()
        try:
            return await post.answer
        finally:
            if not post.answer.done() or post.answer.cancelled():
                with contextlib.suppress(ValueError):
                    self._queue.remove(post)

    async def _run(self) -> None:
        while True:
            await self._arrived.wait()
            if not (batch := self._take()):
                self._arrived.clear()
                continue
            try:
                await self._store(batch)
            except Exception as error:  # who waits is told, and the next batch is tried
                _refuse(batch, error)

    def _take(self) -> list[_Post]:
        batch: list[_Post] = []
        size_bytes = 0
        while self._queue and len(batch) < _BATCH_MESSAGES and size_bytes < _BATCH_BYTES:
            batch.append(self._queue.popleft())
            size_bytes += len(batch[-1].request.image)
        return batch

    async def _store(self, batch: Sequence[_Post]) -> None:
        entries = await asyncio.to_thread(self._ledger.find, [post.request.id for post in batch])
        new: dict[str, _Post] = {}
        repeats: list[_Post] = []
        for post in batch:
            first, entry = new.get(post.request.id), entries.get(post.request.id)
            digest = first.digest if first else entry.sha256 if entry else post.digest
            if digest != post.digest:
                _refuse([post], KeyReused("this Idempotency-Key came before, with another image"))
            elif first:
                repeats.append(post)
            elif entry and self._is_stored(entry):
                _tell(post, datetime.fromisoformat(entry.sent_at))
            else:
                new[post.request.id] = post
        failed = await self._publish(new) if new else {}
        for post in (*new.values(), *repeats):
            if error := failed.get(post.request.id):
                _refuse([post], error)
        for post in new.values():
            _tell(post, None)
        for post in repeats:
            _tell(post, new[post.request.id].request.time)

    async def _publish(self, new: Mapping[str, _Post]) -> dict[str, Exception]:
        """Store images; return why some are not stored, or not for sure."""
        try:
            await self._client.submit([post.request for post in new.values()])
        except (BrokerError, ClientError) as error:
            # What is stored for sure is confirmed in the ledger: the error may tell of a part of the batch.
            entries = await asyncio.to_thread(self._ledger.find, new)
            why = error.failed if isinstance(error, PublishError) else {}
            return {
                each: why.get(each, error)
                for each in new
                if each not in entries or not self._is_stored(entries[each])
            }
        return {}

    def _is_stored(self, entry: Entry) -> bool:
        return entry.state == "confirmed" and (entry.broker, entry.topic) == self._place


def _tell(post: _Post, since: datetime | None) -> None:
    if not post.answer.done():
        post.answer.set_result(since)


def _refuse(posts: Iterable[_Post], error: Exception) -> None:
    for post in posts:
        if not post.answer.done():
            post.answer.set_exception(error)
