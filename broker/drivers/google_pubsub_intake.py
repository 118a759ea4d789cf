"""One pull at a time from one subscription, waiting longer than any ``receive`` does.

A pull is not ended because a ``receive`` has returned: what the service was about to send would then be
leased to nobody until its lease ran out. It goes on for up to ``_PULL_S``; what it brings is taken by the
next ``receive``, or handed back.

The emulator never learns that a pull was cancelled: it goes on, and leases the next messages to nobody. Pulls
from it are short, therefore, and a member that leaves waits for the end of the last one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import grpc  # type: ignore[import-untyped]

from ..errors import BrokerError
from .google_pubsub_errors import mapped, status_of
from .google_pubsub_rpc import Call, Rpc, request
from .google_pubsub_wire import MAX_REQUEST_MESSAGES, Held, taken

# How long the service may wait for a first message.
_PULL_S = 25.0
# The emulator (0.8.20) gives an empty answer a second before the deadline: here after 0.3 s.
_EMULATOR_PULL_S = 1.3
# An answer without anything that could be used, sooner than this, calls for a pause before the next pull.
_TOO_SOON_S = 0.25
_PAUSE_S = 0.005
_LONGEST_PAUSE_S = 0.1
# What this member has just put back may be on its way to its own pull.
_EXPECTED_S = 0.25
# Of the newest answer in the average size of a body.
_WEIGHT = 0.3


class Intake:
    """Pulls from one subscription.

    Args:
        rpc: an open connection.
        path: of the subscription.
        retry: it is a group's retry subscription.
        missing: what to say when it does not exist.
        news: called, in the event loop, when a pull has ended.
    """

    def __init__(self, rpc: Rpc, path: str, retry: bool, missing: str, news: Callable[[], object]) -> None:
        self.path = path
        self.retry = retry
        self._rpc = rpc
        self._pull_s = _EMULATOR_PULL_S if rpc.emulator else _PULL_S
        self._missing = missing
        self._news = news
        self._call: Call | None = None
        self._began = 0.0
        self._not_before = 0.0
        self._pause = _PAUSE_S
        self._average_bytes = 1024.0
        self._expecting = False

    @property
    def has_ended(self) -> bool:
        """A pull has ended, and nobody has asked yet what it brought."""
        return self._call is not None and self._call.ended.done()

    def start(self, messages: int, size_bytes: int) -> float:
        """Start a pull for about so much, unless one is under way or a pause lasts.

        Returns:
            Seconds until it makes sense to call again; 0 while a pull is under way.
        """
        now = asyncio.get_running_loop().time()
        if self._call is not None or now < self._not_before:
            return 0.0 if self._call is not None else self._not_before - now
        count = min(messages, MAX_REQUEST_MESSAGES, max(1, int(size_bytes / self._average_bytes)))
        asked = request("Pull", subscription=self.path, max_messages=count)
        self._began = now
        self._call = self._rpc.begin(asked, "Pull", self._pull_s)
        self._call.ended.add_done_callback(lambda _: self._news())
        return 0.0

    def arrived(self) -> list[Held]:
        """Return what an ended pull has brought, once.

        Raises:
            NotFound: the subscription does not exist any more.
            BrokerError: the pull failed.
        """
        call = self._call
        if call is None or not call.ended.done():
            return []
        self._call, self._expecting = None, False
        received: Any = ()
        try:
            received = call.answer().received_messages
        except (grpc.RpcError, grpc.FutureCancelledError) as error:
            if status_of(error) != "DEADLINE_EXCEEDED":
                self._wait_longer()
                raise mapped(error, f"receiving from {self.path}", missing=self._missing) from error
        arrivals = [taken(each, self.retry) for each in received]
        if arrivals:
            mean = sum(len(held.body) for held in arrivals) / len(arrivals)
            self._average_bytes = max(1.0, (1 - _WEIGHT) * self._average_bytes + _WEIGHT * mean)
        elif asyncio.get_running_loop().time() - self._began < _TOO_SOON_S:
            self._wait_longer()
        return arrivals

    def judge(self, arrivals: list[Held], kept: list[Held]) -> None:
        """Pause before the next pull if all of what came must go back, since there is no room for it yet."""
        if any(held.retry == self.retry for held in kept):
            self._pause = _PAUSE_S
        elif any(held.retry == self.retry for held in arrivals):
            self._wait_longer()

    def expect(self, something: bool) -> None:
        """Note that this member puts something back into the subscription."""
        self._expecting |= something and self._call is not None

    async def stop(self) -> list[Held]:
        """End the pull; return what it had brought."""
        if self._call is None:
            return []
        if self._rpc.emulator:
            await asyncio.wait({self._call.ended}, timeout=_EMULATOR_PULL_S)
        elif self._expecting:
            await asyncio.wait({self._call.ended}, timeout=_EXPECTED_S)
        self._call.cancel()
        await self._call.ended
        try:
            return self.arrived()
        except BrokerError:
            return []

    def _wait_longer(self) -> None:
        self._not_before = asyncio.get_running_loop().time() + self._pause
        self._pause = min(self._pause * 2, _LONGEST_PAUSE_S)
