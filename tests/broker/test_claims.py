"""Large bodies travel apart from their messages; nothing that happens to the store loses or blames one."""

# ruff: noqa: ASYNC221, ASYNC240 - a test may block its own event loop

from __future__ import annotations

import asyncio
import errno
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from faulty import FaultyDriver, until
from fsspec.implementations.local import LocalFileSystem
from hypothesis import given
from hypothesis import strategies as st

from broker import (
    Batching,
    Broker,
    Delivery,
    Done,
    InvalidMessage,
    LeaseLost,
    ManualClock,
    Message,
    MessageTooLarge,
    Outcome,
    PermissionDenied,
    PublishError,
    RetryPolicy,
    Subscription,
    Unavailable,
    connect,
    connect_blocking,
    dead_letter_topic,
)
from broker import claims as claims_module
from broker.claim_sweep import SWEEP_INTERVAL_S
from broker.claims import CLAIM, ERROR, SIZE, ClaimStore
from broker.conformance import Conformance, Harness
from broker.drivers.memory import MemoryDriver, MemoryStore
from broker.drivers.sqlite import SqliteDriver
from broker.processing import loop

pytestmark = pytest.mark.anyio

TOPIC, GROUP = "images", "workers"
LETTERS = dead_letter_topic(TOPIC, GROUP)
LIMIT = 100
LARGE = b"large" * 100
DAY = 86_400.0


@pytest.fixture(autouse=True)
def quick_outages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Outages are waited out in small steps."""
    monkeypatch.setattr(loop, "_OUTAGE", RetryPolicy(attempts=1, base=0.002, cap=0.01))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "claims"


@pytest.fixture(params=["memory", "sqlite"])
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], Any]:
    """Return what makes one more client of one backend whose largest body has 100 bytes."""
    store = MemoryStore()

    def client() -> Any:
        driver = MemoryDriver(store) if request.param == "memory" else SqliteDriver(tmp_path / "queue.db")
        return small(driver)

    return client


def small(driver: Any) -> Any:
    """Return ``driver`` with a limit that a test can reach."""
    driver.capabilities = replace(driver.capabilities, max_message_bytes=LIMIT)
    return driver


@asynccontextmanager
async def opened(driver: Any, store: ClaimStore | Path | str | None) -> Any:
    """Open a broker with topic, group and the group of its dead letters."""
    claims = ClaimStore(str(store)) if isinstance(store, Path | str) else store
    async with Broker(driver, claims) as broker:
        await broker.ensure(TOPIC, group=GROUP)
        await broker.ensure(LETTERS, group="operators")
        yield broker


async def take(subscription: Subscription, count: int) -> list[Delivery]:
    """Receive exactly ``count`` deliveries."""
    taken: list[Delivery] = []
    async with asyncio.timeout(10.0):
        while len(taken) < count:
            taken += await subscription.receive(max_messages=count - len(taken), timeout=0.2)
    return taken


async def received(broker: Broker, count: int) -> list[Message]:
    """Receive ``count`` messages and finish them."""
    async with broker.subscribe(TOPIC, group=GROUP) as subscription:
        deliveries = await take(subscription, count)
        await subscription.ack(deliveries)
    return [each.message for each in deliveries]


def bodies(folder: Path) -> list[Path]:
    """Return the bodies that a store holds, oldest name first."""
    return sorted(folder.glob("[0-9a-f][0-9a-f]/*"))


class Handler:
    """A handler that is content with everything.

    Attributes:
        seen: the bodies that it got.
    """

    def __init__(self) -> None:
        self.seen: list[bytes] = []

    async def __call__(self, deliveries: Sequence[Delivery]) -> list[Outcome]:
        self.seen += [each.message.data for each in deliveries]
        return [Done() for _ in deliveries]


@asynccontextmanager
async def processing(broker: Broker, handler: Handler) -> Any:
    """Process until the block ends; yield the task."""
    stop = asyncio.Event()
    call = broker.process(TOPIC, group=GROUP, handler=handler, stop=stop, batch=Batching(max_wait=0.0))
    task = asyncio.create_task(call)
    try:
        yield task
        stop.set()
        await task
    finally:
        task.cancel()


def settled(broker: Broker, count: int) -> Callable[[], Awaitable[bool]]:
    """Return the condition that ``count`` messages are settled."""

    async def condition() -> bool:
        return (await broker.stats(TOPIC, GROUP)).settled == count

    return condition


# Round trips.


async def test_a_large_message_arrives_as_it_was_published(backend: Any, folder: Path) -> None:
    """Body, key, attributes and every field are the same; the broker held a reference, the store the body."""
    sent = [
        Message(LARGE, key="cam-7", attributes={"site": "7", "couturier-note": "x"}, subject="s", type="t"),
        Message(b"small"),
        Message(b""),
    ]
    async with opened(backend(), folder) as broker, opened(backend(), folder) as other:
        receipts = await broker.publish(TOPIC, sent)
        assert [each.message_id for each in receipts] == [each.id for each in sent]
        shown = [each.message async for each in other.browse(TOPIC, GROUP)]
        assert shown == sent
        got = await received(other, 3)
        assert sorted(got, key=lambda each: each.id) == sorted(sent, key=lambda each: each.id)
    (body,) = bodies(folder)
    assert body.read_bytes() == LARGE
    assert body.name == sha256(LARGE).hexdigest()
    async with opened(backend(), None) as without:
        await without.ensure(TOPIC, group="others")
        native = next(iter([each.message async for each in without.browse(TOPIC, "others")]))
        assert native.data == b""
        assert native.attributes[CLAIM] == body.name
        assert native.attributes[SIZE] == str(len(LARGE))
        assert native.attributes["site"] == "7"


@given(
    sizes=st.lists(
        st.sampled_from([0, 1, LIMIT - 1, LIMIT, LIMIT + 1, 2 * LIMIT]) | st.integers(0, 400), max_size=12
    ),
    byte=st.binary(min_size=1, max_size=1),
)
def test_any_size_around_the_limit_arrives(sizes: list[int], byte: bytes) -> None:
    """On either side of the limit, and on it, bodies are the same; equal bodies are no obstacle."""

    async def check() -> None:
        async with opened(small(MemoryDriver(MemoryStore())), "memory://sizes") as broker:
            sent = [Message(byte * size) for size in sizes]
            await broker.publish(TOPIC, sent)
            got = await received(broker, len(sent))
            assert {each.id: each.data for each in got} == {each.id: each.data for each in sent}

    asyncio.run(check())


async def test_only_what_is_too_large_goes_to_the_store(folder: Path) -> None:
    """A body on the limit travels with its message, one byte more does not; the cap holds in any case."""
    store = ClaimStore(str(folder), max_bytes=1000)
    async with opened(small(FaultyDriver()), store) as broker:
        assert broker.capabilities.max_message_bytes == 1000
        await broker.publish(TOPIC, [Message(b"x" * LIMIT)])
        assert not folder.exists()
        await broker.publish(TOPIC, [Message(b"x" * (LIMIT + 1)), Message(b"x" * 1000)])
        assert [each.stat().st_size for each in bodies(folder)] in ([LIMIT + 1, 1000], [1000, LIMIT + 1])
        with pytest.raises(PublishError) as error:
            await broker.publish(TOPIC, [Message(b"x" * 1001, id="over")])
        assert isinstance(error.value.failed["over"], MessageTooLarge)
        assert len(bodies(folder)) == 2


async def test_without_a_store_a_large_body_is_refused_before_sending() -> None:
    """As ever: ``MessageTooLarge``, the neighbours are stored."""
    driver = small(FaultyDriver())
    async with opened(driver, None) as broker:
        with pytest.raises(PublishError) as error:
            await broker.publish(TOPIC, [Message(LARGE, id="large")])
        assert isinstance(error.value.failed["large"], MessageTooLarge)
        assert driver.faults.calls["send"] == 0


async def test_one_body_is_kept_once_and_its_retention_begins_again(folder: Path) -> None:
    """A body that is published again is as young as its youngest message."""
    async with opened(small(FaultyDriver()), folder) as broker:
        await broker.publish(TOPIC, [Message(LARGE), Message(LARGE)])
        (body,) = bodies(folder)
        os.utime(body, (0, 0))
        await broker.publish(TOPIC, [Message(LARGE)])
        assert [each.stat().st_mtime > time.time() - 60 for each in bodies(folder)] == [True]
        assert [each.data for each in await received(broker, 3)] == [LARGE] * 3


async def test_all_verdicts_work_and_count_as_for_any_message(backend: Any, folder: Path) -> None:
    """``nack`` records an attempt, ``release`` none, and each time the body comes along."""
    async with opened(backend(), folder) as broker:
        await broker.publish(TOPIC, [Message(LARGE)])
        async with broker.subscribe(TOPIC, group=GROUP) as subscription:
            for verdict, attempt in (("release", 1), ("nack", 1), ("nack", 2), ("ack", 3)):
                (delivery,) = await take(subscription, 1)
                assert (delivery.message.data, delivery.attempt) == (LARGE, attempt)
                await getattr(subscription, verdict)(delivery)
            assert await subscription.receive(timeout=0.05) == []


async def test_the_order_of_a_key_is_kept(backend: Any, folder: Path) -> None:
    """Small and large bodies of one key come in the order in which they were published."""
    sent = [Message(b"%d" % number * (200 if number % 3 else 1), key="k") for number in range(9)]
    async with opened(backend(), folder) as broker:
        await broker.publish(TOPIC, sent)
        got = []
        async with broker.subscribe(TOPIC, group=GROUP, order="key") as subscription:
            while len(got) < len(sent):
                for delivery in await take(subscription, 1):
                    got.append(delivery.message)
                    await subscription.ack(delivery)
    assert got == sent


def test_the_blocking_form_has_it_too(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same argument, the same variable, the same result."""
    monkeypatch.setattr("broker.drivers.sqlite.SqliteDriver.__init__", limited(SqliteDriver.__init__))
    url = f"sqlite:///{tmp_path}/queue.db"
    with connect_blocking(url, claim_check=str(folder)) as broker:
        broker.ensure(TOPIC, group=GROUP)
        broker.publish(TOPIC, [Message(LARGE)])
    assert len(bodies(folder)) == 1
    monkeypatch.setenv("BROKER_CLAIM_CHECK_URL", folder.as_uri())
    with connect_blocking(url) as broker, broker.subscribe(TOPIC, group=GROUP) as subscription:
        (delivery,) = subscription.receive(timeout=10.0)
        assert delivery.message.data == LARGE
        subscription.ack(delivery)


def limited(init: Callable[..., None]) -> Callable[..., None]:
    """Return the constructor of a driver, for clients that ``connect`` makes, with the small limit."""

    def wrapped(self: Any, *args: Any, **options: Any) -> None:
        init(self, *args, **options)
        small(self)

    return wrapped


# Configuration.


async def test_the_environment_names_the_store(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``BROKER_CLAIM_CHECK_URL`` and ``BROKER_CLAIM_CHECK_RETENTION`` are read by ``connect``."""
    monkeypatch.setattr("broker.drivers.sqlite.SqliteDriver.__init__", limited(SqliteDriver.__init__))
    monkeypatch.setenv("BROKER_CLAIM_CHECK_URL", str(folder))
    monkeypatch.setenv("BROKER_CLAIM_CHECK_RETENTION", "60")
    async with connect(f"sqlite:///{tmp_path}/queue.db") as broker:
        store = broker._driver._store
        assert store is not None
        assert store.retention == 60.0
        await broker.ensure(TOPIC, group=GROUP)
        await broker.publish(TOPIC, [Message(LARGE)])
        assert len(bodies(folder)) == 1
        assert [each.data for each in await received(broker, 1)] == [LARGE]


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("", "directory"),
        ("ftp://host/claims", "ftp"),
        ("file://relative/claims", "three slashes"),
        ("file:///", "three slashes"),
        ("s3:///prefix", "no bucket"),
        ("memory://", "no bucket"),
        ("https://user:secret@host/claims", "https"),
    ],
)
def test_a_bad_store_is_named_at_start(url: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A ``ValueError`` says where the URL came from and what would work; it shows no password."""
    with pytest.raises(ValueError, match="claim_check") as error:
        connect("memory://", claim_check=url)
    assert said in str(error.value)
    assert "secret" not in str(error.value)
    if url:
        monkeypatch.setenv("BROKER_CLAIM_CHECK_URL", url)
        with pytest.raises(ValueError, match="BROKER_CLAIM_CHECK_URL"):
            connect("memory://")


@pytest.mark.parametrize(
    ("url", "package"), [("s3://bucket/claims", "s3fs"), ("gs://bucket/claims", "gcsfs")]
)
def test_a_missing_package_is_named(url: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which package a bucket needs is said at start, not at the first large message."""
    monkeypatch.setitem(sys.modules, package, None)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=package):
        connect("memory://", claim_check=url)


@pytest.mark.parametrize("retention", [0.0, -1.0, float("nan"), float("inf")])
def test_a_retention_has_an_end(retention: float) -> None:
    """What is kept for ever is no retention."""
    with pytest.raises(ValueError, match="retention"):
        ClaimStore("claims", retention)


@pytest.mark.parametrize("name", ["plain", "a b", "100%25", "a::b", "[x]*", "é", "#q?x=1"])
async def test_any_directory_works(name: str, tmp_path: Path) -> None:
    """Whatever characters it has, and whether it is written as a path or as a URL."""
    async with opened(small(FaultyDriver()), tmp_path / name) as broker:
        await broker.publish(TOPIC, [Message(LARGE)])
        assert len(bodies(tmp_path / name)) == 1
        assert (await received(broker, 1))[0].data == LARGE
    store = ClaimStore((tmp_path / name).as_uri())
    assert await store.get(await store.put(LARGE)) == LARGE
    assert {each.name for each in tmp_path.iterdir()} == {name}


async def test_a_store_can_be_in_memory() -> None:
    """For tests: everyone in this process who names it shares it."""
    one, other = ClaimStore("memory://shared"), ClaimStore("memory://shared")
    assert await other.get(await one.put(LARGE)) == LARGE


async def test_a_consumer_without_a_store_says_so_and_settles_nothing(backend: Any, folder: Path) -> None:
    """Its own configuration is to blame, so the message waits for a consumer that can read it."""
    async with opened(backend(), folder) as broker, opened(backend(), None) as without:
        await broker.publish(TOPIC, [Message(b"one"), Message(LARGE), Message(b"two")])
        async with without.subscribe(TOPIC, group=GROUP) as subscription:
            neighbours = []
            while len(neighbours) < 2:
                with suppress(ValueError):
                    neighbours += await subscription.receive(timeout=0.2)
            assert {each.message.data for each in neighbours} == {b"one", b"two"}
            with pytest.raises(ValueError, match="BROKER_CLAIM_CHECK_URL"):
                await take(subscription, 1)
            await subscription.ack(neighbours)
        with pytest.raises(ValueError, match="BROKER_CLAIM_CHECK_URL"):
            await without.process(TOPIC, group=GROUP, handler=Handler())
        (left,) = [each async for each in without.browse(TOPIC, GROUP)]
        assert "BROKER_CLAIM_CHECK_URL" in left.message.attributes[ERROR]
        assert [(each.data) for each in await received(broker, 1)] == [LARGE]
        assert (await broker.stats(LETTERS, "operators")).unsettled == 0


async def test_the_attributes_of_a_claim_are_ours() -> None:
    """Nobody can publish what would make consumers look for a body that never was."""
    async with opened(FaultyDriver(), None) as broker:
        with pytest.raises(PublishError) as error:
            await broker.publish(
                TOPIC, [Message(b"", id="forged", attributes={CLAIM: "0" * 64}), Message(b"x")]
            )
        assert isinstance(error.value.failed["forged"], InvalidMessage)
        assert [each.data for each in await received(broker, 1)] == [b"x"]


# The store fails while publishing.


async def test_a_store_that_is_down_fails_the_large_messages_alone(backend: Any, folder: Path) -> None:
    """``PublishError`` names them and may be tried again; all others are stored, and so are they later."""
    async with opened(backend(), folder) as broker:
        await broker.publish(TOPIC, [Message(LARGE)])
        away = folder.rename(folder.with_name("away"))
        for remount in (lambda: None, folder.mkdir):
            remount()
            with pytest.raises(PublishError) as error:
                await broker.publish(TOPIC, [Message(b"x"), Message(LARGE, id="large"), Message(b"y")])
            assert list(error.value.failed) == ["large"]
            assert isinstance(error.value.failed["large"], Unavailable)
            assert error.value.retryable
        assert list(folder.iterdir()) == []
        folder.rmdir()
        away.rename(folder)
        await broker.publish(TOPIC, [Message(LARGE)])
        assert sorted(each.data for each in await received(broker, 6)) == sorted(
            [LARGE, LARGE, *[b"x", b"y"] * 2]
        )


async def test_a_full_disk_leaves_nothing_behind(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The half of a body that was written is removed, and the publish may be tried again."""

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    async with opened(small(FaultyDriver()), folder) as broker:
        await broker.publish(TOPIC, [Message(LARGE)])
        with monkeypatch.context() as patch:
            patch.setattr("broker.claims.os.fsync", full)
            with pytest.raises(PublishError, match="No space left") as error:
                await broker.publish(TOPIC, [Message(LARGE + b"2")])
            assert error.value.retryable
        assert (len(bodies(folder)), list((folder / "tmp").iterdir())) == (1, [])


async def test_a_store_that_refuses_us_is_not_worth_another_try(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Credentials and file permissions need a person: ``PermissionDenied``, on both ends; nothing is lost."""

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    async with opened(small(FaultyDriver()), folder) as broker:
        await broker.publish(TOPIC, [Message(LARGE)])
        with monkeypatch.context() as patch:
            patch.setattr(LocalFileSystem, "info", refuse)
            with pytest.raises(PermissionDenied, match="claims"):
                await broker.process(TOPIC, group=GROUP, handler=Handler())
            patch.setattr("broker.claims.os.fsync", refuse)
            patch.setattr(LocalFileSystem, "exists", lambda *_, **__: True)
            with pytest.raises(PublishError) as error:
                await broker.publish(TOPIC, [Message(LARGE)])
            assert not error.value.retryable
        assert [each.data for each in await received(broker, 1)] == [LARGE]


KILLED = """
import asyncio, os, signal, sys
from dataclasses import replace
from pathlib import Path
from broker import Broker, Message
from broker.claims import ClaimStore
from broker.drivers.sqlite import SqliteDriver

def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)

async def main():
    driver = SqliteDriver(Path("queue.db"))
    driver.capabilities = replace(driver.capabilities, max_message_bytes=100)
    async with Broker(driver, ClaimStore("claims")) as broker:
        await broker.ensure("images", group="workers")
        if sys.argv[1] == "publishing":
            driver.send = die
        else:
            await broker.publish("images", [Message(b"first" * 100)])
            os.fsync = die
        await broker.publish("images", [Message(b"large" * 100)])

asyncio.run(main())
"""


@pytest.mark.parametrize(("while_", "stored"), [("publishing", 0), ("writing", 1)])
async def test_a_publisher_that_is_killed_leaves_an_orphan_at_most(
    while_: str, stored: int, tmp_path: Path
) -> None:
    """Killed before the message is stored: no message, and a file that goes with its retention."""
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", KILLED, while_],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(root)},
        check=False,
    )
    assert done.returncode == -signal.SIGKILL
    files = [each for each in (tmp_path / "claims").rglob("*") if each.is_file() and each.name[0] != "."]
    assert len(files) == 1 + stored
    store = ClaimStore(str(tmp_path / "claims"), retention=DAY)
    async with opened(small(SqliteDriver(tmp_path / "queue.db")), store) as broker:
        assert len([each async for each in broker.browse(TOPIC, GROUP)]) == stored
        for each in files:
            os.utime(each, (0, 0))
        for _ in range(2):
            swept(store)
        assert not any(each.exists() for each in files)
        await broker.publish(TOPIC, [Message(LARGE)])
        assert LARGE in [each.data for each in await received(broker, 1 + stored)]


# The store fails while receiving.


async def test_a_store_that_is_down_loses_and_blames_nothing(backend: Any, folder: Path) -> None:
    """Neighbours come first; then ``receive`` fails, the message is handed back and no attempt is counted."""
    async with opened(backend(), folder) as broker, opened(backend(), folder) as other:
        await broker.publish(TOPIC, [Message(b"one"), Message(LARGE), Message(b"two")])
        away = folder.rename(folder.with_name("away"))
        async with broker.subscribe(TOPIC, group=GROUP) as subscription:
            neighbours = []
            while len(neighbours) < 2:
                with suppress(Unavailable):
                    neighbours += await subscription.receive(timeout=0.2)
            assert {each.message.data for each in neighbours} == {b"one", b"two"}
            for _ in range(3):
                with pytest.raises(Unavailable) as error:
                    await take(subscription, 1)
                assert error.value.retryable
            await subscription.ack(neighbours)
            assert (await broker.stats(TOPIC, GROUP)).in_flight == 0
            (shown,) = [each.message async for each in broker.browse(TOPIC, GROUP)]
            assert (shown.data, "not fetched" in shown.attributes[ERROR]) == (b"", True)
            away.rename(folder)
            async with other.subscribe(TOPIC, group=GROUP) as rival:
                (delivery,) = await take(rival, 1)
                assert (delivery.message.data, delivery.attempt) == (LARGE, 1)


async def test_an_unmounted_volume_is_an_outage_and_no_loss(folder: Path) -> None:
    """The directory is there and empty, as under a mount point: the body may still be on the volume."""
    async with opened(small(FaultyDriver()), folder) as broker:
        await broker.publish(TOPIC, [Message(LARGE)])
        away = folder.rename(folder.with_name("away"))
        folder.mkdir()
        async with broker.subscribe(TOPIC, group=GROUP) as subscription:
            with pytest.raises(Unavailable, match="mounted"):
                await take(subscription, 1)
            folder.rmdir()
            away.rename(folder)
            assert (await take(subscription, 1))[0].message.data == LARGE


async def test_process_waits_until_the_store_is_back(backend: Any, folder: Path) -> None:
    """No attempt is counted, nothing is dead-lettered, and what needs no store goes on."""
    handler = Handler()
    async with opened(backend(), folder) as broker:
        await broker.publish(TOPIC, [Message(LARGE), Message(LARGE + b"2")])
        away = folder.rename(folder.with_name("away"))
        async with processing(broker, handler) as task:
            await broker.publish(TOPIC, [Message(b"%d" % number) for number in range(20)])
            await until(settled(broker, 20))
            await asyncio.sleep(0.05)
            assert sorted(handler.seen) == sorted(b"%d" % number for number in range(20))
            away.rename(folder)
            await until(settled(broker, 22))
        totals = task.result()
        assert (totals.done, totals.retried, totals.dead_lettered) == (22, 0, 0)
        assert set(handler.seen) >= {LARGE, LARGE + b"2"}


def truncate(body: Path) -> None:
    """Cut a body."""
    body.write_bytes(body.read_bytes()[:-1])


def empty(body: Path) -> None:
    """Cut all of a body."""
    body.write_bytes(b"")


def flip(body: Path) -> None:
    """Change one byte of a body."""
    body.write_bytes(b"L" + body.read_bytes()[1:])


def lengthen(body: Path) -> None:
    """Add to a body."""
    body.write_bytes(body.read_bytes() * 3)


@pytest.mark.parametrize("damage", [Path.unlink, truncate, empty, flip, lengthen])
async def test_a_body_that_is_gone_becomes_a_dead_letter(
    damage: Callable[[Path], None], backend: Any, folder: Path
) -> None:
    """No retry helps, so the handler never sees it; the letter keeps the reference, the neighbours go on."""
    handler = Handler()
    async with opened(backend(), folder) as broker:
        await broker.publish(TOPIC, [Message(b"x"), Message(LARGE, key="k", attributes={"site": "7"})])
        (body,) = bodies(folder)
        damage(body)
        async with processing(broker, handler) as task:
            await until(settled(broker, 2))
        assert handler.seen == [b"x"]
        assert (task.result().done, task.result().dead_lettered) == (1, 1)
        (letter,) = [each.message async for each in broker.browse(LETTERS, "operators")]
        assert (letter.data, letter.key, letter.attributes["site"]) == (b"", "k", "7")
        assert letter.attributes[CLAIM] == body.name
        assert letter.attributes["couturier-reason"] == "claim-lost"
        assert letter.attributes["couturier-stage"] == "claim-check"
        assert body.name in letter.attributes["couturier-error"]
        # An operator finds the file in a backup and replays the letter.
        body.write_bytes(LARGE)
        (letter,) = [each.message async for each in broker.browse(LETTERS, "operators")]
        assert (letter.data, ERROR in letter.attributes) == (LARGE, False)
        async with broker.subscribe(LETTERS, group="operators") as letters:
            (delivery,) = await take(letters, 1)
            await letters.forward(delivery, TOPIC, {"couturier-replayed": "1"})
            await letters.ack(delivery)
        (again,) = await received(broker, 1)
        assert (again.data, again.key, again.attributes["couturier-replayed"]) == (LARGE, "k", "1")


@pytest.mark.parametrize(
    ("claim", "size"),
    [
        ("../../../etc/passwd", "10"),
        ("0" * 63, "10"),
        ("A" * 64, "10"),
        ("0" * 64 + "\n", "10"),
        ("", "10"),
        ("0" * 64, ""),
        ("0" * 64, "-1"),
        ("0" * 64, "١"),
        ("0" * 64, "1e3"),
        ("0" * 64, "9" * 400),
    ],
)
@pytest.mark.parametrize("known", [True, False])
async def test_a_forged_claim_is_a_bad_message_and_no_path(
    claim: str, size: str, known: bool, folder: Path
) -> None:
    """What a foreign producer may write is looked at before it is used; its neighbours arrive."""
    handler, driver = Handler(), small(FaultyDriver())
    async with opened(driver, folder if known else None) as broker:
        if known:
            await broker.publish(TOPIC, [Message(LARGE)])
        forged = Message(b"", attributes={CLAIM: claim, SIZE: size})
        await driver.send(TOPIC, [forged, Message(b"x")])
        async with processing(broker, handler) as task:
            await until(settled(broker, 2 + known))
        assert sorted(handler.seen) == sorted([b"x", *[LARGE] * known])
        assert task.result().dead_lettered == 1


async def test_a_claim_for_more_than_the_cap_is_not_fetched(folder: Path) -> None:
    """A gigantic size is refused before a byte is read, and holds no neighbour up for longer."""
    handler, driver = Handler(), small(FaultyDriver())
    async with opened(driver, folder) as broker:
        forged = Message(b"", attributes={CLAIM: "0" * 64, SIZE: str(10**12)})
        await driver.send(TOPIC, [forged, Message(b"x")])
        async with processing(broker, handler) as task:
            await until(settled(broker, 2))
        assert (handler.seen, task.result().dead_lettered) == ([b"x"], 1)


class Particular(FaultyDriver):
    """A backend that knows its own deliveries only, and copies a record from what it handed over."""

    async def subscribe(self, topic: str, group: str, order: Any) -> Any:
        member = await super().subscribe(topic, group, order)
        own: set[Delivery] = set()
        receive, settle, extend, forward = member.receive, member.settle, member.extend, member.forward

        async def received(limit: Any, timeout: float) -> list[Delivery]:
            deliveries = await receive(limit, timeout)
            own.update(deliveries)
            return deliveries

        async def settled(acks: Any, releases: Any, retries: Any) -> list[Delivery]:
            assert own.issuperset([*acks, *releases, *(each.delivery for each in retries)])
            return await settle(acks, releases, retries)

        async def extended(deliveries: Any) -> list[Delivery]:
            assert own.issuperset(deliveries)
            return await extend(deliveries)

        async def forwarded(delivery: Delivery, topic: str, extra: Any) -> None:
            assert delivery in own
            await forward(delivery, topic, extra)

        member.receive, member.settle, member.extend, member.forward = received, settled, extended, forwarded
        return member


async def test_a_driver_gets_back_what_it_handed_over(folder: Path) -> None:
    """Whatever it keeps with its deliveries, or copies from them, is that of the native record."""
    clock = ManualClock()
    async with opened(small(Particular(clock=clock)), folder) as broker:
        await broker.publish(TOPIC, [Message(LARGE + b"%d" % number) for number in range(3)])
        async with broker.subscribe(TOPIC, group=GROUP) as subscription:
            one, two, three = await take(subscription, 3)
            await clock.advance(100.0)
            await subscription.forward(one, LETTERS, {})
            await subscription.settle(acks=[one], releases=[two])
            await subscription.nack(three)
            again = await take(subscription, 2)
            assert sorted(each.attempt for each in again) == [1, 2]
            await subscription.ack(again)
        assert (await broker.stats(TOPIC, GROUP)).settled == 3


async def test_a_body_beside_a_claim_is_left_alone() -> None:
    """A message that has a body is no claimed message, whatever its attributes say."""
    driver = FaultyDriver()
    async with opened(driver, None) as broker:
        foreign = Message(b"x", attributes={CLAIM: "0" * 64, SIZE: "1", ERROR: "no"})
        await driver.send(TOPIC, [foreign])
        handler = Handler()
        async with processing(broker, handler):
            await until(settled(broker, 1))
        assert handler.seen == [b"x"]


# Bounds, leases and closing.


async def test_what_is_fetched_stays_within_the_bounds(backend: Any, folder: Path) -> None:
    """``max_bytes`` counts real sizes: what does not fit waits for its turn, and none is passed over."""
    sent = [Message(b"%02d" % number * 500) for number in range(12)]
    async with opened(backend(), folder) as broker:
        await broker.publish(TOPIC, sent)
        got: list[bytes] = []
        async with broker.subscribe(TOPIC, group=GROUP, max_bytes=2500) as subscription:
            while len(got) < len(sent):
                held = await take(subscription, 1)
                held += await subscription.receive(timeout=0.1)
                assert subscription.in_flight == len(held) <= 2
                got += [each.message.data for each in held]
                await subscription.ack(held)
    assert sorted(got) == [each.data for each in sent]


async def test_a_body_over_the_bounds_comes_alone(folder: Path) -> None:
    """One larger message still comes, when nothing else is held."""
    async with opened(small(FaultyDriver()), folder) as broker:
        await broker.publish(TOPIC, [Message(b"x"), Message(LARGE), Message(b"y"), Message(LARGE)])
        async with broker.subscribe(TOPIC, group=GROUP, max_bytes=200) as subscription:
            got = []
            while len(got) < 4:
                held = await take(subscription, 1)
                held += await subscription.receive(timeout=0.05)
                if LARGE in [each.message.data for each in held]:
                    assert len(held) == 1
                got += held
                await subscription.ack(held)


class Gate:
    """Holds every read of a body until it is opened.

    Attributes:
        opened: set it to let all go on.
        busy: how many wait now.
        most: how many waited at one time.
    """

    def __init__(self) -> None:
        self.opened = threading.Event()
        self.busy = self.most = 0
        self._lock = threading.Lock()
        self._read = LocalFileSystem.cat_file

    def cat_file(self, *args: Any) -> bytes:
        with self._lock:
            self.busy += 1
            self.most = max(self.most, self.busy)
        self.opened.wait(20.0)
        with self._lock:
            self.busy -= 1
        data: bytes = self._read(*args)
        return data

    async def is_busy(self) -> bool:
        return self.busy > 0


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    gate = Gate()
    monkeypatch.setattr(LocalFileSystem, "cat_file", lambda *args: gate.cat_file(*args))  # noqa: PLW0108 - binds
    yield gate
    gate.opened.set()


async def test_a_slow_store_delays_no_neighbour_and_loses_no_lease(folder: Path, gate: Gate) -> None:
    """While a body is on its way small messages come, and its lease is renewed however long it takes."""
    clock, store = ManualClock(), MemoryStore()
    one, other = (small(FaultyDriver(store, clock)) for _ in range(2))
    async with opened(one, folder) as broker, opened(other, folder) as rival:
        await broker.publish(TOPIC, [Message(LARGE), Message(b"x")])
        async with (
            broker.subscribe(TOPIC, group=GROUP) as subscription,
            rival.subscribe(TOPIC, group=GROUP) as waiting,
        ):
            (small_one,) = await subscription.receive(timeout=5.0)
            assert small_one.message.data == b"x"
            await until(gate.is_busy)
            for _ in range(20):
                await clock.advance(10.0)
                assert await subscription.receive(timeout=0.0) == []
                assert await waiting.receive(timeout=0.0) == []
            gate.opened.set()
            (large,) = await take(subscription, 1)
            assert (large.message.data, large.attempt) == (LARGE, 1)
            await subscription.ack([large, small_one])
        assert (await broker.stats(TOPIC, GROUP)).settled == 2


async def test_closing_does_not_wait_for_the_store(folder: Path, gate: Gate) -> None:
    """What is on its way is handed back at once, and comes to another member."""
    store = MemoryStore()
    one, other = (small(FaultyDriver(store)) for _ in range(2))
    async with opened(one, folder) as broker, opened(other, folder) as rival:
        await broker.publish(TOPIC, [Message(LARGE), Message(LARGE + b"2")])
        async with broker.subscribe(TOPIC, group=GROUP, max_bytes=600) as subscription:
            assert await subscription.receive(timeout=0.3) == []
            await until(gate.is_busy)
            started = time.monotonic()
        assert time.monotonic() - started < 5.0
        gate.opened.set()
        got = await received(rival, 2)
        assert {each.data for each in got} == {LARGE, LARGE + b"2"}


async def test_a_drain_hands_back_what_is_on_its_way(folder: Path, gate: Gate) -> None:
    """Nobody took it yet, so a drain does not wait for it."""
    async with opened(small(FaultyDriver()), folder) as broker:
        await broker.publish(TOPIC, [Message(LARGE)])
        async with broker.subscribe(TOPIC, group=GROUP) as subscription:
            assert await subscription.receive(timeout=0.3) == []
            assert await subscription.drain(5.0) is True
            assert (await broker.stats(TOPIC, GROUP)).ready == 1


async def test_few_bodies_are_on_their_way_at_a_time(folder: Path, gate: Gate) -> None:
    """However many there are, a few threads fetch them, and all arrive."""
    sent = [Message(b"%02d" % number * 100) for number in range(30)]
    async with opened(small(FaultyDriver()), folder) as broker:
        await broker.publish(TOPIC, sent)
        async with broker.subscribe(TOPIC, group=GROUP) as subscription:
            assert await subscription.receive(timeout=0.3) == []
            assert gate.most == claims_module.TRANSFERS
            gate.opened.set()
            got = await take(subscription, 30)
            assert {each.message.data for each in got} == {each.data for each in sent}
            await subscription.ack(got)


async def test_a_store_that_hangs_is_an_outage(
    folder: Path, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every transfer has a deadline, which grows with the body; nothing else waits for the threads."""
    monkeypatch.setattr(claims_module, "_PATIENCE_S", 0.05)
    async with opened(small(FaultyDriver()), folder) as broker:
        await broker.publish(TOPIC, [Message(LARGE), Message(b"x")])
        async with broker.subscribe(TOPIC, group=GROUP) as subscription:
            assert [each.message.data for each in await subscription.receive(timeout=5.0)] == [b"x"]
            with pytest.raises(Unavailable, match="TimeoutError"):
                await take(subscription, 1)
            gate.opened.set()
            monkeypatch.setattr(claims_module, "_PATIENCE_S", 10.0)
            (delivery,) = await take(subscription, 1)
            assert (delivery.message.data, delivery.attempt) == (LARGE, 1)


async def test_a_lease_that_is_lost_on_the_way_is_dropped(folder: Path, gate: Gate) -> None:
    """Its body is not handed over here any more: another member has it."""
    clock, store = ManualClock(), MemoryStore()
    one, other = (small(FaultyDriver(store, clock)) for _ in range(2))
    async with opened(one, folder) as broker, opened(other, folder) as rival:
        await broker.publish(TOPIC, [Message(LARGE), Message(LARGE + b"2")])
        async with (
            broker.subscribe(TOPIC, group=GROUP, max_bytes=600) as subscription,
            rival.subscribe(TOPIC, group=GROUP) as taking,
        ):
            assert await subscription.receive(timeout=0.1) == []
            one.faults.errors["extend"] = [Unavailable("away")] * 3
            await clock.advance(35.0)
            gate.opened.set()
            got = await take(taking, 2)
            await clock.advance(10.0)
            assert await subscription.receive(timeout=0.2) == []
            await taking.ack(got)
        assert (await broker.stats(TOPIC, GROUP)).settled == 2


async def test_a_lease_that_is_lost_after_delivery_is_told(folder: Path) -> None:
    """``LeaseLost`` names the message, as for a small one."""
    clock, store = ManualClock(), MemoryStore()
    one, other = (small(FaultyDriver(store, clock)) for _ in range(2))
    async with opened(one, folder) as broker, opened(other, folder) as rival:
        await broker.publish(TOPIC, [Message(LARGE, id="large"), Message(b"x", id="small")])
        async with (
            broker.subscribe(TOPIC, group=GROUP) as subscription,
            rival.subscribe(TOPIC, group=GROUP) as taking,
        ):
            held = await take(subscription, 2)
            one.faults.errors["extend"] = [Unavailable("away")] * 4
            await clock.advance(31.0)
            (await take(taking, 2))
            for verdict in (subscription.ack, subscription.nack):
                with pytest.raises(LeaseLost) as error:
                    await verdict(held)
                assert set(error.value.ids) == {"large", "small"}
            large = next(each for each in held if each.message.id == "large")
            with pytest.raises(LeaseLost):
                await subscription.forward(large, LETTERS, {})


async def test_a_failed_hand_back_is_tried_again(folder: Path) -> None:
    """Store and broker down together: nothing is lost, and both errors are told."""
    driver = small(FaultyDriver())
    async with opened(driver, folder) as broker:
        await broker.publish(TOPIC, [Message(LARGE)])
        away = folder.rename(folder.with_name("away"))
        driver.faults.errors["settle"] = [Unavailable("the broker is away")]
        async with broker.subscribe(TOPIC, group=GROUP) as subscription:
            seen = set()
            for _ in range(3):
                with pytest.raises(Unavailable) as error:
                    await take(subscription, 1)
                seen.add(str(error.value).split(" ")[1])
            assert seen == {"broker", "claim"} or len(seen) == 2
            away.rename(folder)
            assert (await take(subscription, 1))[0].message.data == LARGE


# Retention.


def swept(store: ClaimStore) -> None:
    """Sweep now, whenever the last time was."""
    marker = Path(store.address) / ".couturier-swept"
    if marker.exists():
        os.utime(marker, (0, 0))
    store._sweep()


async def test_a_body_past_its_retention_goes_in_two_steps(folder: Path) -> None:
    """The first sweep moves it out of the way, where it is still found; the next one deletes it."""
    store = ClaimStore(str(folder), retention=DAY)
    old, young = await store.put(b"old"), await store.put(b"young")
    os.utime(folder / old.sha256[:2] / old.sha256, (time.time() - DAY - 60,) * 2)
    (folder / "notes.txt").write_text("not ours")
    os.utime(folder / "notes.txt", (0, 0))
    swept(store)
    assert [each.name for each in bodies(folder)] == [young.sha256]
    assert await store.get(old) == b"old"
    swept(store)
    with pytest.raises(claims_module.ClaimLost, match="retention"):
        await store.get(old)
    assert await store.get(young) == b"young"
    assert (folder / "notes.txt").read_text() == "not ours"


async def test_a_body_that_is_published_again_survives_its_removal(folder: Path) -> None:
    """Between the two steps of its removal it is stored anew, and stays for a whole retention."""
    store = ClaimStore(str(folder), retention=DAY)
    claim = await store.put(LARGE)
    os.utime(folder / claim.sha256[:2] / claim.sha256, (0, 0))
    swept(store)
    await store.put(LARGE)
    for _ in range(3):
        swept(store)
    assert await store.get(claim) == LARGE
    assert not list((folder / "expired").iterdir())


@pytest.mark.parametrize("kind", ["memory", "directory"])
async def test_a_sweep_happens_once_an_hour_for_all(kind: str, folder: Path) -> None:
    """A marker in the store says when it was; a publisher starts it in the background, a consumer never."""
    url = str(folder) if kind == "directory" else f"memory://{folder.name}-{time.monotonic_ns()}"
    first, second = ClaimStore(url, retention=1e-9), ClaimStore(url, retention=1e-9)
    claim = await first.put(LARGE)
    files, root = first._open()
    body = f"{root}/{claim.sha256[:2]}/{claim.sha256}"
    first._sweep()
    assert not files.exists(body)
    assert await second.get(claim) == LARGE
    await first.put(LARGE)
    second._sweep()
    assert files.exists(body)
    assert SWEEP_INTERVAL_S == 3600.0


async def test_publishing_sweeps_in_the_background(folder: Path) -> None:
    """The first publish of a process starts it; small messages do, too."""
    await ClaimStore(str(folder)).put(LARGE)
    (body,) = bodies(folder)
    os.utime(body, (0, 0))

    async def is_swept() -> bool:
        return not body.exists()

    async with opened(small(FaultyDriver()), folder) as broker:
        async with broker.subscribe(TOPIC, group=GROUP) as subscription:
            assert await subscription.receive(timeout=0.0) == []
        assert body.exists()
        await broker.publish(TOPIC, [Message(b"x")])
        await until(is_swept)


async def test_a_sweep_that_fails_fails_no_publish(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It is logged, and tried again later."""
    store = ClaimStore(str(folder))
    await store.put(LARGE)
    (folder / ".couturier-swept").mkdir()
    os.utime(folder / ".couturier-swept", (0, 0))
    store._sweep()
    assert "could not sweep" in caplog.text
    shutil.rmtree(folder)
    store._sweep()


async def test_a_store_is_closed_with_its_broker_and_can_be_opened_again(folder: Path) -> None:
    """No thread is left, and the next ``async with`` works."""
    before = {each for each in threading.enumerate() if each.name.startswith("claims")}
    store, driver = ClaimStore(str(folder)), small(FaultyDriver())
    for _ in range(2):
        async with opened(driver, store) as broker:
            await broker.publish(TOPIC, [Message(LARGE)])
            assert [each.data for each in await received(broker, 1)] == [LARGE]

    async def is_quiet() -> bool:
        return {each for each in threading.enumerate() if each.name.startswith("claims")} <= before

    await until(is_quiet)


# The whole contract, with every body apart from its message.


class ClaimingHarness(Harness):
    """A backend that can carry one byte."""

    lease = 30.0
    quiet = 0.02
    impossible = dict.fromkeys(
        ("messages_survive_a_restart", "verdicts_survive_a_restart", "a_restart_in_mid_run_loses_nothing"),
        "the queue is memory of one process and ends with it",
    )

    def __init__(self, folder: Path) -> None:
        self.store, self.clock, self.folder = MemoryStore(), ManualClock(), folder

    def connect(self) -> Broker:
        driver = MemoryDriver(self.store, lease=self.lease, clock=self.clock)
        driver.capabilities = replace(driver.capabilities, max_message_bytes=1)
        return Broker(driver, ClaimStore(str(self.folder), max_bytes=64 * 1024 * 1024))

    async def advance(self, seconds: float) -> None:
        await self.clock.advance(seconds)


@pytest.mark.campaign
class TestEveryBodyByReference(Conformance):
    """Every check of the suite; under a minute, most of it for thousands of tiny files."""

    @pytest.fixture
    async def harness(self, folder: Path) -> ClaimingHarness:
        return ClaimingHarness(folder)
