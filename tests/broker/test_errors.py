"""Errors by cause: every one of sqlite3 is mapped, on every call, and each says whether to try again."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

import broker.errors
from broker import (
    Broker,
    BrokerError,
    LeaseLost,
    Message,
    MessageTooLarge,
    PermissionDenied,
    PublishError,
    Subscription,
    Unavailable,
)
from broker.drivers.sqlite import SqliteDriver
from broker.drivers.sqlite_file import map_error

pytestmark = pytest.mark.anyio

PATH = Path("/somewhere/queue.db")
# The primary result codes, from sqlite.org/rescode.html.
CODES = (
    "ABORT", "AUTH", "BUSY", "CANTOPEN", "CONSTRAINT", "CORRUPT", "EMPTY", "ERROR", "FORMAT", "FULL",
    "INTERNAL", "INTERRUPT", "IOERR", "LOCKED", "MISMATCH", "MISUSE", "NOLFS", "NOMEM", "NOTADB",
    "NOTFOUND", "PERM", "PROTOCOL", "RANGE", "READONLY", "SCHEMA", "TOOBIG",
)  # fmt: skip
RETRYABLE = {"PROTOCOL", "BUSY", "LOCKED", "FULL", "IOERR", "NOMEM"}
DENIED = {"CANTOPEN", "READONLY", "PERM", "AUTH"}


def subclasses(kind: type[BaseException]) -> set[type[BaseException]]:
    """Return every class below ``kind``, itself included."""
    return {kind}.union(*(subclasses(each) for each in kind.__subclasses__()))


def failure(kind: type[BaseException], code: int | None) -> Any:
    """Return an error as sqlite3 raises it."""
    error: Any = kind("it failed")
    if code is not None:
        error.sqlite_errorcode = code
    return error


@pytest.mark.parametrize("name", CODES)
def test_every_result_code_is_mapped(name: str) -> None:
    """Each code, and each extended form of it, becomes one of ours that names the file."""
    primary = getattr(sqlite3, f"SQLITE_{name}")
    for code in (primary, primary | 3 << 8):
        error = map_error(failure(sqlite3.OperationalError, code), PATH)
        assert isinstance(error, BrokerError)
        assert str(PATH) in str(error)
        assert error.retryable is (name in RETRYABLE)
        assert isinstance(error, Unavailable) is (name in RETRYABLE)
        assert isinstance(error, PermissionDenied) is (name in DENIED)


def test_every_class_of_sqlite_errors_is_mapped() -> None:
    """Also those that carry no code."""
    kinds = subclasses(sqlite3.Error)
    assert len(kinds) >= 9
    for kind in kinds:
        assert isinstance(map_error(failure(kind, None), PATH), BrokerError)


def test_the_tree_is_the_one_that_is_drawn() -> None:
    """Every class is in the drawing of its module, with its ``retryable``."""
    drawing = (broker.errors.__doc__ or "").splitlines()
    ours = {kind for kind in subclasses(BrokerError) if kind.__module__ == broker.errors.__name__}
    for kind in ours - {BrokerError}:
        (line,) = [line for line in drawing if kind.__name__ in line.split()]
        assert ("yes" in line.split()) is kind.retryable


def test_errors_carry_their_data() -> None:
    """Fields, not text, are for programs."""
    large = MessageTooLarge(11, 10)
    some = PublishError({"a": large, "b": Unavailable("away")})
    assert (large.size_bytes, large.limit_bytes) == (11, 10)
    assert list(some.failed) == ["a", "b"]
    assert (some.retryable, PublishError({"b": Unavailable("away")}).retryable) == (False, True)
    assert LeaseLost(each for each in ("x", "y")).ids == ("x", "y")


class Broken:
    """A connection on which every statement fails."""

    in_transaction = False

    def __init__(self, error: BaseException) -> None:
        self._error = error

    def execute(self, *_: object) -> None:
        raise self._error

    executemany = execute

    def close(self) -> None:
        return


@contextlib.asynccontextmanager
async def broken(driver: SqliteDriver, error: BaseException) -> AsyncIterator[None]:
    """Let every statement of a client fail while the context lasts."""
    store: Any = driver._store
    working, store.db = store.db, Broken(error)
    try:
        yield
    finally:
        store.db = working


Call = Callable[[Broker, Subscription, Any], Awaitable[object]]


async def browse(broker: Broker, *_: object) -> None:
    """Browse to the end."""
    async for _each in broker.browse("images", "workers"):
        pass


CALLS: dict[str, Call] = {
    "ensure": lambda broker, *_: broker.ensure("others", group="workers"),
    "publish": lambda broker, *_: broker.publish("images", [Message(data=b"x")]),
    "stats": lambda broker, *_: broker.stats("images", "workers"),
    "browse": browse,
    "subscribe": lambda broker, *_: broker.subscribe("images", group="workers").__aenter__(),
    "receive": lambda _, subscription, __: subscription.receive(timeout=1.0),
    "ack": lambda _, subscription, held: subscription.ack(held),
    "nack": lambda _, subscription, held: subscription.nack(held, delay=1.0),
    "release": lambda _, subscription, held: subscription.release(held),
    "forward": lambda _, subscription, held: subscription.forward(held, "images", {"a": "b"}),
    "flush": lambda _, subscription, __: subscription.flush(),
    "extend": lambda _, subscription, held: subscription._member.extend([held]),  # type: ignore[union-attr]
}


@pytest.mark.parametrize("kind", sorted(subclasses(sqlite3.Error), key=lambda kind: kind.__name__))
async def test_no_error_of_sqlite_escapes(tmp_path: Path, kind: type[BaseException]) -> None:
    """Whatever sqlite3 raises, and on whichever call, the caller sees a ``BrokerError`` with its cause."""
    driver = SqliteDriver(tmp_path / "queue.db")
    async with Broker(driver) as broker:
        await broker.ensure("images", group="workers")
        await broker.publish("images", [Message(data=b"x"), Message(data=b"y")])
        async with broker.subscribe("images", group="workers") as subscription:
            held, done = await subscription.receive(timeout=5.0)
            await subscription.ack(done)
            for name, call in CALLS.items():
                async with broken(driver, failure(kind, sqlite3.SQLITE_BUSY)):
                    with pytest.raises(BrokerError) as error:
                        await call(broker, subscription, held)
                assert isinstance(error.value, Unavailable), name
                assert isinstance(error.value.__cause__, kind), name
            await subscription.ack(held)
        assert (await broker.stats("images", "workers")).settled == 2


@pytest.mark.parametrize("kind", sorted(subclasses(sqlite3.Error), key=lambda kind: kind.__name__))
async def test_opening_maps_its_errors(
    tmp_path: Path, kind: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where not even a connection can be had."""

    def fail(*_: object, **__: object) -> None:
        raise failure(kind, sqlite3.SQLITE_CANTOPEN)

    monkeypatch.setattr(sqlite3, "connect", fail)
    with pytest.raises(PermissionDenied, match=r"queue\.db"):
        async with Broker(SqliteDriver(tmp_path / "queue.db")):
            pass
