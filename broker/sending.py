"""Messages on their way to a backend, in portions that it and this process can hold."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from .claim_check import ClaimCheck
from .errors import BrokerError
from .message import Message, Receipt

# A backend gets so much in one call: more is stored in one go, and held in memory until it is.
_SEND_MESSAGES = 10_000
_SEND_BYTES = 16 * 1024 * 1024


async def store(
    driver: ClaimCheck, topic: str, messages: Sequence[Message], failed: dict[str, BrokerError]
) -> list[Receipt]:
    """Store messages, chunk by chunk; note in ``failed`` which are not stored, and why."""
    receipts: list[Receipt] = []
    for first, chunk in _chunks(messages):
        try:
            answers = await driver.send(topic, chunk)
        except BrokerError as error:
            if not receipts:
                raise
            failed.update((message.id, error) for message in messages[first:])
            break
        for message, answer in zip(chunk, answers, strict=True):
            if isinstance(answer, Receipt):
                receipts.append(answer)
            else:
                failed[message.id] = answer
    return receipts


def _chunks(messages: Sequence[Message]) -> Iterator[tuple[int, Sequence[Message]]]:
    """Yield what one call of a backend takes, with the index of its first message."""
    first = size = 0
    for index, message in enumerate(messages):
        size += len(message.data)
        if index > first and (size > _SEND_BYTES or index - first == _SEND_MESSAGES):
            yield first, messages[first:index]
            first, size = index, len(message.data)
    if messages:
        yield first, messages[first:]
