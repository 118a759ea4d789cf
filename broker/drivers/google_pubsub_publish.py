"""Storing records: cut into requests that the service takes, each failing for itself."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

from ..errors import BrokerError
from .google_pubsub_rpc import Rpc, request
from .google_pubsub_wire import MAX_REQUEST_BYTES, MAX_REQUEST_MESSAGES, stored_size

# Of one request, which may have 10 MB.
_PUBLISH_S = 30.0
_TRIES = 3
# Of a request beside its messages: the topic's name.
_ENVELOPE_BYTES = 1024
# How many requests are under way at once: small ones, and those that hold up to 10 MB in memory.
_SMALL = 64
_LARGE = 4
_LARGE_BYTES = 256 * 1024

# Body, attributes and ordering key.
Record = tuple[bytes, Mapping[str, str], str]


class Publisher:
    """Stores records. A request that got no answer may have stored them all the same: they come twice then.

    Args:
        rpc: an open connection.
    """

    def __init__(self, rpc: Rpc) -> None:
        self._rpc = rpc
        self._small = asyncio.Semaphore(_SMALL)
        self._large = asyncio.Semaphore(_LARGE)

    async def store(
        self, path: str, records: Sequence[Record], doing: str, missing: str
    ) -> list[str | BrokerError]:
        """Return for each record its message id, or why it is not stored.

        Records with one ordering key are stored in order; a request takes only one key.

        Args:
            path: of the topic.
            records: what to store.
            doing: what this is for, in the text of errors.
            missing: the text of ``NotFound``.
        """
        answers: list[str | BrokerError] = [BrokerError(f"{doing}: not tried")] * len(records)
        lanes: dict[str, list[int]] = defaultdict(list)
        for index, (_, _, key) in enumerate(records):
            lanes[key].append(index)

        async def run(lane: list[int]) -> None:
            for part, size in _requests(records, lane):
                asked = request("Publish", topic=path)
                for index in part:
                    body, attributes, key = records[index]
                    asked.messages.add(data=body, attributes=attributes, ordering_key=key)
                async with self._large if size > _LARGE_BYTES else self._small:
                    came = await self._publish(asked, doing, missing)
                for index, answer in zip(part, came, strict=True):
                    answers[index] = answer

        if len(lanes) == 1:
            await run(next(iter(lanes.values())))
        else:
            await asyncio.gather(*(run(lane) for lane in lanes.values()))
        return answers

    async def _publish(self, asked: object, doing: str, missing: str) -> Sequence[str | BrokerError]:
        count = len(asked.messages)  # type: ignore[attr-defined]
        try:
            answer = await self._rpc.call(
                "Publish", asked, doing, timeout=_PUBLISH_S, tries=_TRIES, missing=missing
            )
        except BrokerError as error:
            return [error] * count
        ids: Sequence[str] = answer.message_ids
        if len(ids) != count:
            return [BrokerError(f"{doing}: {count} messages sent, {len(ids)} confirmed")] * count
        return ids


def _requests(records: Sequence[Record], lane: Sequence[int]) -> Iterator[tuple[list[int], int]]:
    """Cut a lane into requests; yield the indexes of each and its size, bytes."""
    part: list[int] = []
    size = _ENVELOPE_BYTES
    for index in lane:
        cost = stored_size(*records[index])
        if part and (len(part) == MAX_REQUEST_MESSAGES or size + cost > MAX_REQUEST_BYTES):
            yield part, size
            part, size = [], _ENVELOPE_BYTES
        part.append(index)
        size += cost
    if part:
        yield part, size
