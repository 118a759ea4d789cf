"""Calls to the Pub/Sub service, without a thread for each: raw protobuf over gRPC, awaited in asyncio.

Messages, methods and the authorised channel are those of Google's client library; its Python wrappers are
left out. They copy every message twice, and they take attributes as keyword arguments, so that one called
``timeout`` changes the call. A call here is a future of gRPC, which costs no thread while a pull waits.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any
from urllib.parse import quote

import grpc  # type: ignore[import-untyped]
from google.pubsub_v1 import types
from google.pubsub_v1.services.subscriber.transports import SubscriberGrpcTransport

from ..errors import BrokerError, Closed, PermissionDenied, Unavailable
from .google_pubsub_errors import LOGIN, details_of, kind_of, mapped, status_of

ENDPOINT = "pubsub.googleapis.com:443"
# Of every call that does not wait for messages.
CALL_S = 10.0
_CONNECT_S = 5.0
_CREDENTIALS_S = 20.0
_FENCE_S = 1.0
# Between two tries of a call within its deadline.
_PAUSE_S = 0.1
_SCOPES = ("https://www.googleapis.com/auth/cloud-platform", "https://www.googleapis.com/auth/pubsub")
# Bodies of 10 MB come and go; gRPC's own limit is 4 MB.
_SIZES = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
# A pull that waits must notice a dead connection. Not for the emulator, which hangs up on such pings.
# Source: google.pubsub_v1.services.subscriber.client.
_ALIVE = [("grpc.keepalive_time_ms", 30_000), ("grpc.max_metadata_size", 4 * 1024 * 1024)]
# Its own connection: a connection carries some hundred calls at a time, and waiting pulls must not fill it.
_APART = [("grpc.use_local_subchannel_pool", 1)]

# Method to service, request, response, and the field that routes it.
_METHODS: dict[str, tuple[str, Any, Any, str]] = {
    "CreateTopic": ("Publisher", types.Topic.pb(), types.Topic.pb(), "name"),
    "DeleteTopic": ("Publisher", types.DeleteTopicRequest.pb(), None, "topic"),
    "GetTopic": ("Publisher", types.GetTopicRequest.pb(), types.Topic.pb(), "topic"),
    "ListTopics": ("Publisher", types.ListTopicsRequest.pb(), types.ListTopicsResponse.pb(), "project"),
    "Publish": ("Publisher", types.PublishRequest.pb(), types.PublishResponse.pb(), "topic"),
    "CreateSubscription": ("Subscriber", types.Subscription.pb(), types.Subscription.pb(), "name"),
    "GetSubscription": (
        "Subscriber",
        types.GetSubscriptionRequest.pb(),
        types.Subscription.pb(),
        "subscription",
    ),
    "ListSubscriptions": (
        "Subscriber",
        types.ListSubscriptionsRequest.pb(),
        types.ListSubscriptionsResponse.pb(),
        "project",
    ),
    "DeleteSubscription": ("Subscriber", types.DeleteSubscriptionRequest.pb(), None, "subscription"),
    "Pull": ("Subscriber", types.PullRequest.pb(), types.PullResponse.pb(), "subscription"),
    "Acknowledge": ("Subscriber", types.AcknowledgeRequest.pb(), None, "subscription"),
    "ModifyAckDeadline": ("Subscriber", types.ModifyAckDeadlineRequest.pb(), None, "subscription"),
    "CreateSnapshot": ("Subscriber", types.CreateSnapshotRequest.pb(), types.Snapshot.pb(), "name"),
    "DeleteSnapshot": ("Subscriber", types.DeleteSnapshotRequest.pb(), None, "snapshot"),
    "Seek": ("Subscriber", types.SeekRequest.pb(), types.SeekResponse.pb(), "subscription"),
}


def request(method: str, **fields: Any) -> Any:
    """Return the request of ``method``, a protobuf message."""
    return _METHODS[method][1](**fields)


class Call:
    """An RPC under way.

    Attributes:
        ended: done, without a result, once there is an answer or an error.
    """

    def __init__(self, future: Any) -> None:
        self._future = future
        self._loop = asyncio.get_running_loop()
        self.ended: asyncio.Future[None] = self._loop.create_future()
        future.add_done_callback(self._end)

    def cancel(self) -> None:
        """Give it up; ``ended`` comes all the same, and the answer too if it was there already."""
        self._future.cancel()

    def answer(self) -> Any:
        """Return the answer of a call that has ended.

        Raises:
            grpc.RpcError: the service refused it.
            grpc.FutureCancelledError: it was cancelled.
        """
        return self._future.result()

    def _end(self, _: object) -> None:
        """Called in a thread of gRPC; by then the loop may be closed."""
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._wake)

    def _wake(self) -> None:
        if not self.ended.done():
            self.ended.set_result(None)


class Rpc:
    """Connections to one service: one for pulls, which wait, and one for everything else.

    Args:
        emulator: ``host:port`` of the emulator; None for Google's service.
    """

    def __init__(self, emulator: str | None) -> None:
        self.emulator = emulator
        self.target = emulator or ENDPOINT
        self._channels: list[Any] = []
        # By method, for each channel.
        self._stubs: list[dict[str, Any]] = []
        self._greeting = ""

    async def open(self, project: str) -> None:
        """Connect.

        Raises:
            PermissionDenied: no credentials, or refused ones; the text says how to get some.
            Unavailable: the service does not answer.
        """
        credentials = None if self.emulator else await _credentials()
        self._channels = [self._channel(credentials, extra) for extra in ([], _APART)]
        self._stubs = [_stubs(channel) for channel in self._channels]
        # A topic that nobody has: asking for it needs no permission that a mere publisher lacks.
        self._greeting = f"projects/{project}/topics/couturier-greeting"
        try:
            await self._greet()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Disconnect; calls under way end as cancelled. A second call does nothing."""
        self._stubs = []
        while self._channels:
            self._channels.pop().close()

    async def fence(self) -> None:
        """Return once the service knows of the pulls that were cancelled before, if it answers soon.

        It takes what comes over one connection in order. Otherwise it may lease to a pull that is cancelled
        here already.
        """
        with contextlib.suppress(Closed):
            asked = request("GetTopic", topic=self._greeting)
            await self.begin(asked, "GetTopic", _FENCE_S, beside_pulls=True).ended

    def begin(
        self,
        asked: Any,
        method: str,
        timeout: float,
        *,
        wait_for_ready: bool = False,
        beside_pulls: bool = False,
    ) -> Call:
        """Start a call that ends after ``timeout`` seconds at the latest.

        Raises:
            Closed: the connection is closed.
        """
        if not self._stubs:
            raise Closed("the broker is not open")
        stub = self._stubs[beside_pulls or method == "Pull"][method]
        field = _METHODS[method][3]
        metadata = [("x-goog-request-params", f"{field}={quote(getattr(asked, field), safe='/')}")]
        try:
            future = stub.future(asked, timeout=timeout, metadata=metadata, wait_for_ready=wait_for_ready)
        except ValueError as error:
            raise Closed("the broker is closed") from error
        return Call(future)

    async def call(
        self,
        method: str,
        asked: Any,
        doing: str,
        *,
        timeout: float = CALL_S,
        tries: int = 1,
        missing: str = "",
    ) -> Any:
        """Make a call and return its answer.

        Args:
            method: of the service.
            asked: from ``request``.
            doing: what this is for, in the text of errors.
            timeout: seconds for all tries together.
            tries: how often, while the service is UNAVAILABLE; for what may be done twice.
            missing: the text of ``NotFound``.

        Raises:
            BrokerError: mapped; ``__cause__`` is gRPC's.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        for left in reversed(range(tries)):
            try:
                return await self._once(method, asked, deadline - loop.time())
            except (grpc.RpcError, grpc.FutureCancelledError) as error:
                if not self._channels:
                    raise Closed("the broker was closed meanwhile") from error
                again = left and status_of(error) == "UNAVAILABLE" and kind_of(error) is Unavailable
                if not again or loop.time() + _PAUSE_S >= deadline:
                    raise mapped(error, doing, missing=missing, publishing=method == "Publish") from error
            await asyncio.sleep(_PAUSE_S * (tries - left))
        raise AssertionError("tries is at least 1")

    async def _once(self, method: str, asked: Any, timeout: float) -> Any:
        call = self.begin(asked, method, timeout)
        try:
            await call.ended
        except asyncio.CancelledError:
            call.cancel()
            raise
        return call.answer()

    async def _greet(self) -> None:
        """Ask something: any answer but silence or a refused identity will do."""
        asked = request("GetTopic", topic=self._greeting)
        call = self.begin(asked, "GetTopic", _CONNECT_S, wait_for_ready=True)
        await call.ended
        try:
            call.answer()
        except (grpc.RpcError, grpc.FutureCancelledError) as error:
            doing = f"connecting to Pub/Sub at {self.target}"
            if status_of(error) in ("DEADLINE_EXCEEDED", "UNAVAILABLE", "CANCELLED", None):
                cause = kind_of(error)
                if cause is PermissionDenied:
                    raise PermissionDenied(f"{doing}: {details_of(error)}; {LOGIN}") from error
                raise Unavailable(f"{doing}: no answer within {_CONNECT_S:g} s") from error
            if status_of(error) == "UNAUTHENTICATED":
                raise mapped(error, doing) from error

    def _channel(self, credentials: Any, extra: list[tuple[str, int]]) -> Any:
        if self.emulator:
            return grpc.insecure_channel(self.emulator, options=[*_SIZES, *extra])
        return SubscriberGrpcTransport.create_channel(
            ENDPOINT, credentials=credentials, options=[*_SIZES, *_ALIVE, *extra]
        )


def _stubs(channel: Any) -> dict[str, Any]:
    return {
        name: channel.unary_unary(
            f"/google.pubsub.v1.{service}/{name}",
            request_serializer=asked.SerializeToString,
            # An empty answer is no bytes, which is no error as None would be.
            response_deserializer=answered.FromString if answered else bytes,
        )
        for name, (service, asked, answered, _) in _METHODS.items()
    }


async def _credentials() -> Any:
    """Return application-default credentials that work; looking for them may ask the network."""
    try:
        async with asyncio.timeout(_CREDENTIALS_S):
            return await asyncio.to_thread(_find_credentials)
    except TimeoutError as error:
        raise Unavailable(f"credentials for Pub/Sub: none within {_CREDENTIALS_S:g} s; {LOGIN}") from error


def _find_credentials() -> Any:
    import google.auth
    from google.auth.exceptions import GoogleAuthError
    from google.auth.transport.requests import Request
    from google.oauth2 import service_account

    try:
        found, _ = google.auth.default(scopes=_SCOPES)
        # A service account signs its own tokens and needs no server for it.
        if not isinstance(found, service_account.Credentials):
            found.refresh(Request())  # type: ignore[no-untyped-call]
    except GoogleAuthError as error:
        kind: type[BrokerError] = kind_of(error) or PermissionDenied
        raise kind(f"credentials for Pub/Sub: {error}; {LOGIN}") from error
    return found
