"""One StreamingPull of the fake Pub/Sub service: its flow control and its requests. Pure, as the store."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Sequence
from typing import Any

from google.pubsub_v1 import types
from grpc import StatusCode

from .fake_pubsub_limits import Refused, need
from .fake_pubsub_store import Store

MAX_MESSAGES_PER_RESPONSE = 1_000
UNLIMITED = 2**62


class Stream:
    """A stream from its first request on.

    What it delivered stays leased when it ends: another subscriber gets it when the lease does.
    """

    def __init__(self, store: Store, first: Any) -> None:
        """Open.

        Raises:
            Refused: the first request names no subscription, one that is missing, or no lease of 10 to 600 s.
        """
        need(first.subscription, "The first request of a stream must name the subscription")
        self._store, self._name = store, first.subscription
        self._backlog = store.subscription(self._name)
        self._lease_s = 0
        self._set_lease(first.stream_ack_deadline_seconds)
        self._max_messages = (
            first.max_outstanding_messages if first.max_outstanding_messages > 0 else UNLIMITED
        )
        self._max_bytes = first.max_outstanding_bytes if first.max_outstanding_bytes > 0 else UNLIMITED
        self._is_limited = min(self._max_messages, self._max_bytes) < UNLIMITED
        self._held: dict[str, int] = {}  # what counts against the limits; empty without them
        self._confirmations: deque[Any] = deque()
        self._error: Refused | None = None
        self._ended = False
        self._settle(first)

    def apply(self, request: Any) -> None:
        """Take a later request; what is wrong with it ends the stream at its next response."""
        try:
            need(not request.subscription, "subscription may only be set in first message")
            limits = request.max_outstanding_messages or request.max_outstanding_bytes
            need(not limits, "max_outstanding_* may only be set in first message")
            if request.stream_ack_deadline_seconds:
                self._set_lease(request.stream_ack_deadline_seconds)
            self._settle(request)
        except Refused as error:
            self._error = error

    def end(self) -> None:
        """Note that the client sends no more: the stream ends with OK."""
        self._ended = True

    @property
    def ended(self) -> bool:
        """Whether the client has ended it."""
        return self._ended

    def response(self) -> Any:
        """Return what can be sent now, None for nothing.

        Raises:
            Refused: the subscription is gone (NOT_FOUND), or a request was wrong.
        """
        if self._error:
            raise self._error
        same = self._store.subscription(self._name) is self._backlog
        need(same, f"Resource not found (resource={self._name}).", StatusCode.NOT_FOUND)
        if self._confirmations:
            return self._confirmations.popleft()
        sizes = {ack_id: self._backlog.held_bytes(ack_id) for ack_id in self._held}
        self._held = {ack_id: size for ack_id, size in sizes.items() if size is not None}
        messages = min(self._max_messages - len(self._held), MAX_MESSAGES_PER_RESPONSE)
        room = self._max_bytes - sum(self._held.values())
        received = self._backlog.take(self, messages, room, self._lease_s)
        if self._is_limited:
            self._held |= {each.ack_id: each.message.ByteSize() for each in received}
        return self._with_properties(received) if received else None

    def next_due(self) -> float:
        """Return when something may change by itself, in the service's time."""
        return self._backlog.next_due()

    def _with_properties(self, received: list[Any]) -> Any:
        response = types.StreamingPullResponse.pb()(received_messages=received)
        pb = self._backlog.pb
        response.subscription_properties.exactly_once_delivery_enabled = pb.enable_exactly_once_delivery
        response.subscription_properties.message_ordering_enabled = pb.enable_message_ordering
        return response

    def _set_lease(self, seconds: int) -> None:
        need(10 <= seconds <= 600, "stream_ack_deadline_seconds must be between 10 and 600 seconds")
        self._lease_s = seconds

    def _settle(self, request: Any) -> None:
        by_seconds: defaultdict[int, list[str]] = defaultdict(list)
        same = len(request.modify_deadline_ack_ids) == len(request.modify_deadline_seconds)
        need(same, "ack IDs and deadlines must have the same size")
        for ack_id, seconds in zip(
            request.modify_deadline_ack_ids, request.modify_deadline_seconds, strict=True
        ):
            by_seconds[seconds].append(ack_id)
        if request.ack_ids:
            self._confirm("acknowledge_confirmation", request.ack_ids, self._backlog.ack(request.ack_ids))
        for seconds, ack_ids in by_seconds.items():
            refused = self._backlog.modify(ack_ids, seconds)
            self._confirm("modify_ack_deadline_confirmation", ack_ids, refused)

    def _confirm(self, name: str, ack_ids: Sequence[str], refused: list[str]) -> None:
        """Say on the stream what became of the ids, as exactly-once subscriptions do."""
        if self._backlog.pb.enable_exactly_once_delivery:
            response = types.StreamingPullResponse.pb()()
            confirmation = getattr(response, name)
            confirmation.ack_ids.extend(each for each in ack_ids if each not in set(refused))
            confirmation.invalid_ack_ids.extend(refused)
            self._confirmations.append(response)
