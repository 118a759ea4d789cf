"""Errors of Pub/Sub by cause: every one of Google's libraries is mapped, on every call."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import grpc
import pytest
from google.api_core import exceptions as api
from google.auth import exceptions as auth

from broker import (
    Broker,
    BrokerError,
    DeadlineExceeded,
    Message,
    NotFound,
    PermissionDenied,
    PublishError,
    Subscription,
    Unavailable,
    connect,
)
from broker.conformance import member_of
from broker.drivers.google_pubsub import PubsubDriver
from broker.drivers.google_pubsub_errors import kind_of, mapped
from tests.services.fake_pubsub import FakePubSub

pytestmark = pytest.mark.anyio

# What may succeed later, unchanged.
RETRYABLE = {
    "Aborted", "BadGateway", "Cancelled", "DeadlineExceeded", "GatewayTimeout", "InternalServerError",
    "ResourceExhausted", "ResponseError", "ResumeIncomplete", "RetryError", "ServiceUnavailable",
    "TemporaryRedirect", "TimeoutError", "TooManyRequests", "TransferStalledError", "TransportError",
    "Unknown",
}  # fmt: skip
DENIED = {"DuplicateCredentialArgs", "Forbidden", "PermissionDenied", "Unauthenticated", "Unauthorized"}
# Bases that nothing raises.
BASES = {"ClientError", "GoogleAPICallError", "GoogleAPIError", "Redirection", "ServerError"}
RETRYABLE_CODES = {
    "ABORTED", "CANCELLED", "DEADLINE_EXCEEDED", "INTERNAL", "RESOURCE_EXHAUSTED", "UNAVAILABLE", "UNKNOWN",
}  # fmt: skip
DENIED_CODES = {"PERMISSION_DENIED", "UNAUTHENTICATED"}
CODES = sorted(code.name for code in grpc.StatusCode if code is not grpc.StatusCode.OK)
# These two have tests of their own.
NO_ERRORS = {("receive", "DEADLINE_EXCEEDED"), ("nack", "INVALID_ARGUMENT")}


def library_errors() -> list[type[Exception]]:
    """Return every exception of google.api_core and google.auth."""
    found: dict[str, type[Exception]] = {}
    for module in (api, auth):
        for each in vars(module).values():
            if isinstance(each, type) and issubclass(each, Exception) and each.__module__ == module.__name__:
                found[f"{module.__name__}.{each.__name__}"] = each
    return list(found.values())


def an(error: type[Exception]) -> Exception:
    """Return an error as the library raises it."""
    return error("it failed", None) if error is api.RetryError else error("it failed")


def test_every_error_of_the_libraries_is_mapped() -> None:
    """Each has a cause of ours that was thought of, and says whether to try again."""
    kinds = library_errors()
    assert len(kinds) >= 50
    for each in kinds:
        error, name = an(each), each.__name__
        assert isinstance(mapped(error, "trying"), BrokerError), name
        kind = kind_of(error)
        assert (kind is None) is (name in BASES), name
        if kind is not None:
            assert kind.retryable is (name in RETRYABLE), name
            refused = issubclass(each, auth.GoogleAuthError) and name not in RETRYABLE
            assert (kind is PermissionDenied) is (refused or name in DENIED), name


@pytest.fixture
def fake() -> Iterator[FakePubSub]:
    with FakePubSub() as fake:
        yield fake


Call = Callable[[Broker, Subscription, Any], Awaitable[object]]


async def browse(broker: Broker, *_: object) -> None:
    """Browse to the end."""
    async for _each in broker.browse("images", "workers"):
        pass


# What the application does, and the RPC that fails meanwhile.
CALLS: dict[str, tuple[str, Call]] = {
    "ensure": ("Seek", lambda broker, *_: broker.ensure("others", group="workers")),
    "publish": ("Publish", lambda broker, *_: broker.publish("images", [Message(data=b"x")])),
    "stats": ("CreateSnapshot", lambda broker, *_: broker.stats("images", "workers")),
    "browse": ("CreateSnapshot", browse),
    "topics": ("ListTopics", lambda broker, *_: broker.topics()),
    "describe": ("ListTopics", lambda broker, *_: broker.describe()),
    "subscribe": (
        "GetSubscription",
        lambda broker, *_: broker.subscribe("images", group="workers").__aenter__(),
    ),
    "receive": ("Pull", lambda _, subscription, __: subscription.receive(timeout=5.0)),
    "ack": ("Acknowledge", lambda _, subscription, held: subscription.ack(held)),
    "nack": ("Publish", lambda _, subscription, held: subscription.nack(held, delay=1.0)),
    "release": ("ModifyAckDeadline", lambda _, subscription, held: subscription.release(held)),
    "forward": ("Publish", lambda _, subscription, held: subscription.forward(held, "images", {"a": "b"})),
    "extend": ("ModifyAckDeadline", lambda _, subscription, held: member_of(subscription).extend([held])),
}


@pytest.mark.parametrize("code", CODES)
async def test_no_status_escapes(fake: FakePubSub, code: str) -> None:
    """Whatever the service answers, to whichever call, the caller sees a ``BrokerError``; nothing is lost."""
    async with Broker(PubsubDriver("proj-test", fake.host)) as broker:
        await broker.ensure("images", group="workers")
        await broker.publish("images", [Message(data=b"x")])
        async with broker.subscribe("images", group="workers") as subscription:
            (held,) = await subscription.receive(timeout=10.0)
            for name, (rpc, call) in CALLS.items():
                if (name, code) in NO_ERRORS:
                    continue
                fake.deny(rpc, grpc.StatusCode[code])
                with pytest.raises(BrokerError) as error:
                    await call(broker, subscription, held)
                fake.allow(rpc)
                _check(name, code, error.value)
            await subscription.ack(held)
        assert (await broker.stats("images", "workers")).unsettled == 0


def _check(name: str, code: str, error: BrokerError) -> None:
    """Hold an error against what was answered."""
    assert error.retryable is (code in RETRYABLE_CODES), name
    (cause,) = error.failed.values() if isinstance(error, PublishError) else (error,)
    assert isinstance(cause, PermissionDenied) is (code in DENIED_CODES), name
    assert isinstance(cause, NotFound) is (code == "NOT_FOUND"), name
    assert isinstance(cause, DeadlineExceeded) is (code == "DEADLINE_EXCEEDED"), name
    unavailable = code in RETRYABLE_CODES - {"DEADLINE_EXCEEDED"}
    assert isinstance(cause, Unavailable) is unavailable, name
    assert isinstance(cause.__cause__, grpc.RpcError), name


async def test_deadlines_of_pulls_are_no_errors_and_no_busy_loop(fake: FakePubSub) -> None:
    """A pull that says DEADLINE_EXCEEDED brought nothing; said at once, it is not asked again at once."""
    async with Broker(PubsubDriver("proj-test", fake.host)) as broker:
        await broker.ensure("images", group="workers")
        async with broker.subscribe("images", group="workers") as subscription:
            fake.deny("Pull", grpc.StatusCode.DEADLINE_EXCEEDED)
            before = fake.calls["Pull"]
            assert await subscription.receive(timeout=1.0) == []
            assert 2 <= fake.calls["Pull"] - before <= 60
            fake.allow("Pull")
            await broker.publish("images", [Message(data=b"x")])
            (held,) = await subscription.receive(timeout=10.0)
            await subscription.ack(held)


async def test_a_failure_that_cannot_be_recorded_loses_nothing(fake: FakePubSub) -> None:
    """A message whose copy the service will never take comes again uncounted, after its delay."""
    async with Broker(PubsubDriver("proj-test", fake.host)) as broker:
        await broker.ensure("images", group="workers")
        await broker.publish("images", [Message(data=b"x")])
        async with broker.subscribe("images", group="workers") as subscription:
            (held,) = await subscription.receive(timeout=10.0)
            fake.fail_next("Publish", grpc.StatusCode.INVALID_ARGUMENT)
            await subscription.nack(held, delay=60.0)
            assert await subscription.receive(timeout=0.2) == []
            fake.advance(61.0)
            (again,) = await subscription.receive(timeout=10.0)
            assert again.attempt == 1
            await subscription.nack(again)
            (counted,) = await subscription.receive(timeout=10.0)
            assert counted.attempt == 2
            await subscription.ack(counted)


async def test_bad_credentials_are_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a usable key nothing is sent, and the text says how to get one."""
    monkeypatch.delenv("PUBSUB_EMULATOR_HOST", raising=False)
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", "/nonexistent/key.json")
    with pytest.raises(PermissionDenied, match="gcloud auth application-default login"):
        async with connect("pubsub://proj-test"):
            pass


async def test_nobody_there_is_unavailable(fake: FakePubSub, monkeypatch: pytest.MonkeyPatch) -> None:
    """An address where nothing answers is an error within seconds, when the broker is opened."""
    fake.stop()
    monkeypatch.setenv("PUBSUB_EMULATOR_HOST", fake.host)
    with pytest.raises(Unavailable, match="no answer"):
        async with connect("pubsub://proj-test"):
            pass


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("pubsub://user:secret@proj-test", "credentials do not belong in a URL"),
        ("pubsub:proj-test", "two slashes"),
        ("pubsub://", "GOOGLE_CLOUD_PROJECT"),
        ("pubsub://proj test", "named by its id alone"),
        ("pubsub://proj-test/topic", "a project is all there is to name"),
        ("pubsub://proj-test?lease=0", "lease"),
        ("pubsub://proj-test?lease=601", "lease=601"),
        ("pubsub://proj-test?retention=60", "retention=60"),
        ("pubsub://proj-test?exactly_once=maybe", "must be true or false"),
        ("pubsub://proj-test?batch=1", "unknown option 'batch'"),
    ],
)
def test_a_url_that_cannot_work_is_refused(url: str, says: str) -> None:
    """Before anything is opened, saying what is wrong and repeating no password."""
    with pytest.raises(ValueError, match=says) as error:
        connect(url)
    assert "secret" not in str(error.value)
