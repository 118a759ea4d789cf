"""A Google Pub/Sub service inside the test process, for the real client over real gRPC.

For machines without Java, and for what Google's emulator lacks: delivery attempts, exactly-once acks,
limits, refused access, broken streams, lost responses and a clock that a test moves.
``test_fake_pubsub.py`` holds it to the emulator wherever that can do the same. State is in memory and ends
with the object.

Where it follows Google's documents and not the emulator (0.8.20): limits are enforced; a new subscription
sees what its topic retains only after a seek; a snapshot serves other subscriptions of its topic; a nacked
message of an ordering key comes back at once with its successors; a stream keeps to its
``max_outstanding_messages``; a pull that its client gives up takes no message.
"""

from __future__ import annotations

import random
import re
import threading
import time
from collections import Counter, defaultdict, deque
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Self

import grpc
from google.pubsub_v1 import types

from .fake_pubsub_limits import Refused, need, refuse
from .fake_pubsub_store import Store
from .fake_pubsub_streams import UNLIMITED, Stream

PULL_WAIT_S = 10.0  # the real service's is not documented
ANSWER_EARLY_S = 1.0  # so much before its deadline a pull gets an empty answer, as on the emulator
MAX_PULL = 1_000
MAX_WAIT_S = 3_600.0  # of one wait; Python refuses an infinite number
STOP_LIMIT_S = 0.5
# Below the ports that Linux gives to outgoing connections: nobody takes the port of a server that is down.
PORTS = range(20_000, 32_000)
OPTIONS = [
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.so_reuseport", 0),
]
RPCS = {
    "Publisher": "CreateTopic GetTopic ListTopics UpdateTopic DeleteTopic ListTopicSubscriptions Publish",
    "Subscriber": "CreateSubscription GetSubscription ListSubscriptions UpdateSubscription DeleteSubscription"
    " Pull Acknowledge ModifyAckDeadline CreateSnapshot GetSnapshot ListSnapshots DeleteSnapshot Seek",
}
REQUESTS = {"CreateTopic": types.Topic, "CreateSubscription": types.Subscription}


@dataclass
class Fault:
    """A scripted error; ``applied`` means after the call took effect, as when its response is lost."""

    error: Refused
    applied: bool


@dataclass(frozen=True)
class Call:
    """A running RPC and what it has seen of drops; it ends when there is a newer one."""

    context: grpc.ServicerContext
    drops: tuple[int, ...]


@dataclass
class Script:
    """What a test has ordered for one RPC."""

    faults: deque[Fault] = field(default_factory=deque)
    delays_s: deque[float] = field(default_factory=deque)
    denied: grpc.StatusCode | None = None


class FakePubSub:
    """The service, started and stopped as a context manager; ``stop`` and ``start`` make an outage between.

    RPCs are named as on the wire: ``Publish``, ``Pull``, ``StreamingPull``. Any thread may call any method.

    Attributes:
        host: ``127.0.0.1:PORT``, for ``PUBSUB_EMULATOR_HOST`` or an insecure channel; kept over an outage.
        calls: how often each RPC was called, failures included; a stream counts once.
    """

    def __init__(self) -> None:
        """Take a port with ``start``; the resources live as long as this object."""
        self.host = ""
        self.calls: Counter[str] = Counter()
        self._changed = threading.Condition()
        self._started_at = time.time() - time.monotonic()
        self._store = Store(self.now)
        self._scripts: defaultdict[str, Script] = defaultdict(Script)
        self._drops = [0, 0]  # of all RPCs, of streams
        self._server: grpc.Server | None = None
        self._pool: ThreadPoolExecutor | None = None
        self._readers: list[threading.Thread] = []

    def __enter__(self) -> Self:
        """Start."""
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop."""
        self.stop()

    def start(self) -> None:
        """Serve; after ``stop`` on the same port with the same state."""
        self._pool = ThreadPoolExecutor(max_workers=256, thread_name_prefix="fake-pubsub")
        self._server = grpc.server(self._pool, options=OPTIONS)
        for service, names in RPCS.items():
            handlers = {name: self._handler(name) for name in names.split()}
            if service == "Subscriber":
                handlers["StreamingPull"] = grpc.stream_stream_rpc_method_handler(
                    self._streaming_pull,
                    types.StreamingPullRequest.pb().FromString,
                    types.StreamingPullResponse.pb().SerializeToString,
                )
            generic = grpc.method_handlers_generic_handler(f"google.pubsub.v1.{service}", handlers)
            self._server.add_generic_rpc_handlers((generic,))
        self._bind(self._server)
        self._server.start()

    def stop(self) -> None:
        """End all RPCs with UNAVAILABLE, close the port and join all threads, in less than a second."""
        server, pool, self._server, self._pool = self._server, self._pool, None, None
        if server is None or pool is None:
            return
        ended = server.stop(STOP_LIMIT_S)
        self.drop_connections()
        ended.wait()
        pool.shutdown(wait=True)
        while self._readers:
            self._readers.pop().join()

    def now(self) -> float:
        """Return the service's time: the real one plus all that was advanced, in seconds since 1970."""
        return self._started_at + time.monotonic()

    def advance(self, seconds: float) -> None:
        """Move the service's time forward: leases, retention, delays and waiting pulls end by it."""
        with self._changed:
            self._started_at += seconds
            self._changed.notify_all()

    def fail_next(
        self,
        rpc: str,
        code: grpc.StatusCode,
        times: int = 1,
        metadata: Mapping[str, str] | None = None,
        *,
        applied: bool = False,
    ) -> None:
        """Fail the next calls.

        Args:
            rpc: its name.
            code: the status.
            times: how many calls.
            metadata: of an ErrorInfo in the status, such as ack id -> ``TRANSIENT_FAILURE_...``.
            applied: the call takes effect first, as when the response is lost on its way.
        """
        error = Refused(code, f"{rpc} fails as scripted", metadata)
        self._scripts[rpc].faults.extend([Fault(error, applied)] * times)

    def delay_next(self, rpc: str, seconds: float) -> None:
        """Hold the next call for so long of the service's time before it takes effect."""
        self._scripts[rpc].delays_s.append(seconds)

    def deny(self, rpc: str, code: grpc.StatusCode = grpc.StatusCode.PERMISSION_DENIED) -> None:
        """Refuse an RPC until ``allow``."""
        self._scripts[rpc].denied = code

    def allow(self, rpc: str) -> None:
        """End ``deny``."""
        self._scripts[rpc].denied = None

    def reset_streams(self) -> None:
        """Abort every running StreamingPull with UNAVAILABLE; the leases stay."""
        with self._changed:
            self._drops[1] += 1
            self._changed.notify_all()

    def drop_connections(self) -> None:
        """Abort every running RPC with UNAVAILABLE: streams, waiting pulls, delayed calls."""
        with self._changed:
            self._drops[0] += 1
            self._changed.notify_all()

    def _bind(self, server: grpc.Server) -> None:
        """Listen on the port of before, at first on any free one."""
        while True:
            address = self.host or f"127.0.0.1:{random.SystemRandom().choice(PORTS)}"
            try:
                server.add_insecure_port(address)
            except RuntimeError:
                if self.host:
                    raise
            else:
                self.host = address
                return

    def _handler(self, name: str) -> grpc.RpcMethodHandler:
        request_type: Any = REQUESTS.get(name) or getattr(types, f"{name}Request")
        act = None if name == "Pull" else getattr(self._store, re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower())

        def handle(request: Any, context: grpc.ServicerContext) -> bytes:
            try:
                with self._changed:
                    call, fault = self._begin(name, context)
                    response = act(request) if act else self._pull(request, call)
                    self._changed.notify_all()
                    if fault:
                        raise fault.error
                    return bytes(response.SerializeToString())
            except Refused as error:
                refuse(context, error)

        return grpc.unary_unary_rpc_method_handler(handle, request_type.pb().FromString)

    def _begin(self, name: str, context: grpc.ServicerContext) -> tuple[Call, Fault | None]:
        """Count a call and do to it what the test has ordered; returns the fault that follows its effect."""
        self.calls[name] += 1
        context.add_callback(self._wake)
        call = Call(context, tuple(self._drops if name == "StreamingPull" else self._drops[:1]))
        script = self._scripts[name]
        if script.denied:
            raise Refused(script.denied, "User not authorized to perform this action.")
        if script.delays_s:
            until = self.now() + script.delays_s.popleft()
            while self.now() < until:
                self._pause(call, until)
        fault = script.faults.popleft() if script.faults else None
        if fault and not fault.applied:
            raise fault.error
        return call, fault

    def _pull(self, request: Any, call: Call) -> Any:
        need(request.max_messages > 0, "No max_messages specified")
        left = call.context.time_remaining()
        wait_s = PULL_WAIT_S if left is None else min(PULL_WAIT_S, left - ANSWER_EARLY_S)
        until = self.now() + (0.0 if request.return_immediately else wait_s)
        while True:
            backlog = self._store.subscription(request.subscription)
            lease_s = backlog.pb.ack_deadline_seconds
            found = backlog.take(object(), min(request.max_messages, MAX_PULL), UNLIMITED, lease_s)
            if found or self.now() >= until:
                return types.PullResponse.pb()(received_messages=found)
            self._pause(call, min(until, backlog.next_due()))

    def _streaming_pull(self, requests: Iterator[Any], context: grpc.ServicerContext) -> Iterator[Any]:
        try:
            with self._changed:
                call, fault = self._begin("StreamingPull", context)
            if fault:
                raise fault.error
            first = next(requests, None)
            if first is None:
                return
            with self._changed:
                stream = Stream(self._store, first)
                self._read(requests, stream)
            while (response := self._next_response(stream, call)) is not None:
                yield response
        except Refused as error:
            refuse(context, error)

    def _next_response(self, stream: Stream, call: Call) -> Any:
        with self._changed:
            while not stream.ended:
                self._check(call)
                if (response := stream.response()) is not None:
                    return response
                self._pause(call, stream.next_due())
        return None

    def _read(self, requests: Iterator[Any], stream: Stream) -> None:
        """Apply what the client sends on a stream, in a thread that ends with the RPC."""

        def read() -> None:
            with suppress(grpc.RpcError):  # the client is gone
                for request in requests:
                    with self._changed:
                        stream.apply(request)
                        self._changed.notify_all()
            with self._changed:
                stream.end()
                self._changed.notify_all()

        self._readers = [each for each in self._readers if each.is_alive()]
        self._readers.append(threading.Thread(target=read, name="fake-pubsub-reader", daemon=True))
        self._readers[-1].start()

    def _pause(self, call: Call, until: float) -> None:
        """Wait for a change, at most until then; the lock is free meanwhile."""
        self._check(call)
        self._changed.wait(max(0.0, min(until - self.now(), MAX_WAIT_S)))
        self._check(call)

    def _check(self, call: Call) -> None:
        if call.drops != tuple(self._drops[: len(call.drops)]):
            raise Refused(grpc.StatusCode.UNAVAILABLE, "The service was unable to fulfill your request.")
        if not call.context.is_active():
            raise Refused(grpc.StatusCode.CANCELLED, "The client is gone")

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()
