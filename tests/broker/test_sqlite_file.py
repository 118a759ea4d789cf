"""The queue file: opened by many at once, refused when it is something else, full, locked or damaged."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
import subprocess
import sys
import threading
import tracemalloc
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from broker import (
    Broker,
    BrokerError,
    ManualClock,
    Message,
    NotFound,
    PermissionDenied,
    Unavailable,
    connect,
)
from broker.drivers import sqlite_file
from broker.drivers.sqlite import SqliteDriver
from broker.drivers.sqlite_store import SqliteStore

pytestmark = pytest.mark.anyio


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "queue.db"


@pytest.fixture
async def driver(path: Path) -> AsyncIterator[SqliteDriver]:
    driver = SqliteDriver(path)
    async with Broker(driver) as broker:
        await broker.ensure("images", group="workers")
        yield driver


def open_and_use(path: Path) -> None:
    """Open a queue file, store one message in it and receive it."""

    async def use() -> None:
        async with connect(f"sqlite:///{path}") as broker:
            await broker.ensure("images", group="workers")
            await broker.publish("images", [Message(data=b"x")])
            async with broker.subscribe("images", group="workers") as subscription:
                await subscription.ack(await subscription.receive(timeout=5.0))

    asyncio.run(use())


def test_many_may_open_a_new_file_at_once(tmp_path: Path) -> None:
    """However many open a file that does not exist yet, one creates it and all can use it."""
    members = 8
    for number in range(25):
        path = tmp_path / f"{number}.db"
        gate = threading.Barrier(members)

        def open_it(path: Path = path, gate: threading.Barrier = gate) -> None:
            gate.wait()
            store = SqliteStore(path, forget_before=0.0)
            store.ensure("images", "workers", 1, earliest=True)
            store.append("images", [Message(data=b"x")], now=0.0)
            store.close()

        with ThreadPoolExecutor(members) as threads:
            for done in [threads.submit(open_it) for _ in range(members)]:
                done.result()
        with contextlib.closing(sqlite3.connect(path)) as db:
            assert db.execute("SELECT count(*) FROM messages").fetchone() == (members,)


def test_missing_directories_are_made(tmp_path: Path) -> None:
    """A path below directories that do not exist yet works."""
    open_and_use(tmp_path / "a" / "b" / "queue.db")


@pytest.mark.parametrize("name", ["with space.db", "per%25cent.db", "kläid.db", "quote'.db", "a;b.db"])
def test_any_file_name_works(tmp_path: Path, name: str) -> None:
    """Spaces, percent signs, Unicode and punctuation in a path reach the file system as meant."""
    open_and_use(tmp_path / name)
    assert (tmp_path / name.replace("%25", "%")).exists()


@pytest.mark.parametrize(
    "content", [b"not a database\n" * 100, b"\0" * 4096, b"buy milk\n"], ids=["text", "zeros", "short"]
)
def test_a_file_that_is_no_database_is_refused(path: Path, content: bytes) -> None:
    """Any other file is a clear error that names it, and is left as it was."""
    path.write_bytes(content)
    with pytest.raises(BrokerError, match=r"queue\.db") as error:
        open_and_use(path)
    assert not error.value.retryable
    assert path.read_bytes() == content


def test_a_database_of_another_program_is_refused(path: Path) -> None:
    """Somebody else's SQLite file is never written to."""
    with contextlib.closing(sqlite3.connect(path)) as db, db:
        db.execute("CREATE TABLE topics (mine)")
    before = path.read_bytes()
    with pytest.raises(BrokerError, match="another program") as error:
        open_and_use(path)
    assert not error.value.retryable
    assert path.read_bytes() == before


def test_a_file_of_a_newer_version_is_refused(path: Path) -> None:
    """A schema that this version does not know is refused with what to do."""
    open_and_use(path)
    with contextlib.closing(sqlite3.connect(path)) as db, db:
        db.execute("PRAGMA user_version = 99")
    with pytest.raises(BrokerError, match="newer"):
        open_and_use(path)


def test_a_directory_in_place_of_the_file_is_refused(path: Path) -> None:
    """A directory, or a path through a file, is a clear error that names it."""
    path.mkdir()
    with pytest.raises(PermissionDenied, match=r"queue\.db"):
        open_and_use(path)
    (path / "file").write_text("")
    with pytest.raises(PermissionDenied, match="file/below"):
        open_and_use(path / "file" / "below.db")


def test_a_place_without_write_permission_is_refused(tmp_path: Path) -> None:
    """A read-only file, or a directory that takes no file, is ``PermissionDenied`` with what to do."""
    open_and_use(tmp_path / "mine.db")
    for each in tmp_path.iterdir():
        each.chmod(0o444)
    tmp_path.chmod(0o555)
    program = """if True:
        import asyncio, os, sys
        from broker import PermissionDenied, connect

        async def main():
            for name in ("mine.db", "new.db", "below/new.db"):
                try:
                    async with connect(f"sqlite:///{sys.argv[1]}/{name}") as broker:
                        await broker.ensure("images")
                except PermissionDenied as error:
                    print(f"refused: {error}")

        # What is imported on use is imported now: the other user may not read where Python's packages are.
        import sqlite3, broker.drivers.sqlite
        asyncio.run(connect("memory://").aclose())
        if os.geteuid() == 0:
            os.seteuid(65534)
        asyncio.run(main())
    """
    # Every parent must be open to a user who is not root.
    parents = [each for each in tmp_path.parents if each.owner() == tmp_path.owner() and each != Path("/")]
    modes = {each: each.stat().st_mode for each in parents if each.is_relative_to(tmp_path.parents[2])}
    try:
        for each, mode in modes.items():
            each.chmod(mode | 0o055)
        done = subprocess.run(
            [sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=True
        )
    finally:
        for each, mode in modes.items():
            each.chmod(mode)
        tmp_path.chmod(0o755)
    assert done.stdout.count("refused:") == 3, done.stdout + done.stderr
    assert "BROKER_URL" in done.stdout


async def test_a_full_disk_is_unavailable_and_can_be_waited_out(driver: SqliteDriver) -> None:
    """Where nothing more can be written a publish stores nothing, and works once there is room."""
    broker = Broker(driver)
    broker._opened = True
    big = [Message(data=b"x" * 100_000) for _ in range(20)]
    pages = await driver.run(lambda store: store.db.execute("PRAGMA page_count").fetchone()[0])
    await driver.run(lambda store: store.db.execute(f"PRAGMA max_page_count = {pages + 20}").fetchone())
    for _ in range(3):
        with pytest.raises(Unavailable) as error:
            await broker.publish("images", big)
        assert error.value.retryable
    assert (await broker.stats("images", "workers")).published == 0
    await driver.run(lambda store: store.db.execute("PRAGMA max_page_count = 1000000").fetchone())
    await broker.publish("images", big)
    assert (await broker.stats("images", "workers")).published == 20


async def test_a_file_that_is_locked_for_long_is_unavailable(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Held by another process for longer than the time-out, the file is ``Unavailable``, then works again."""
    monkeypatch.setattr(sqlite_file, "_BUSY_TIMEOUT_S", 0.05)
    async with connect(f"sqlite:///{path}") as broker:
        await broker.ensure("images", group="workers")
        await broker.publish("images", [Message(data=b"1")])
        async with broker.subscribe("images", group="workers") as subscription:
            (held,) = await subscription.receive(timeout=5.0)
            with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
                other.execute("BEGIN IMMEDIATE")
                for call in (
                    lambda: broker.publish("images", [Message(data=b"2")]),
                    lambda: broker.ensure("others"),
                    lambda: subscription.ack(held),
                    lambda: subscription.nack(held),
                    lambda: subscription.forward(held, "images", {}),
                ):
                    with pytest.raises(Unavailable) as error:
                        await call()
                    assert error.value.retryable
                other.execute("ROLLBACK")
            await subscription.ack(held)
            await broker.publish("images", [Message(data=b"2")])
        stats = await broker.stats("images", "workers")
        assert (stats.published, stats.settled) == (2, 1)


def overwrite(path: Path) -> None:
    """Replace all but the first quarter page of a file by noise."""
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(1024)
        file.write(os.urandom(size - 1024))


async def test_damage_to_an_open_file_is_an_error_of_ours(path: Path) -> None:
    """Overwritten while it is open, the file gives ``BrokerError``, never an error of sqlite3."""
    async with connect(f"sqlite:///{path}") as broker:
        await broker.ensure("images", group="workers")
        await broker.publish("images", [Message(data=b"x" * 500_000) for _ in range(5)])
    async with connect(f"sqlite:///{path}") as broker:
        overwrite(path)
        with pytest.raises(BrokerError) as error:
            async with broker.subscribe("images", group="workers") as subscription:
                await subscription.receive(timeout=5.0)
        assert not error.value.retryable


async def test_forwarding_twice_stores_one_copy(driver: SqliteDriver) -> None:
    """A member that dies between ``forward`` and ``ack`` leaves one copy, whoever forwards again."""
    broker = Broker(driver)
    broker._opened = True
    await broker.ensure("copies", group="workers")
    await broker.publish("images", [Message(data=b"x")])
    for _ in range(2):
        async with broker.subscribe("images", group="workers") as subscription:
            (delivery,) = await subscription.receive(timeout=5.0)
            await subscription.forward(delivery, "copies", {})
            await subscription.forward(delivery, "copies", {})
    assert (await broker.stats("copies", "workers")).published == 1


async def test_old_messages_are_forgotten_and_open_ones_are_kept(path: Path) -> None:
    """Past the retention, opening the file deletes what every group settled, and nothing else."""
    clock = ManualClock()

    def client() -> Broker:
        return Broker(SqliteDriver(path, retention=100.0, clock=clock))

    async with client() as broker:
        for group in ("one", "two"):
            await broker.ensure("images", group=group)
        await broker.publish("images", [Message(data=b"%d" % n) for n in range(4)])
        for group, acked in (("one", 4), ("two", 3)):
            async with broker.subscribe("images", group=group) as subscription:
                await subscription.ack((await subscription.receive(timeout=5.0))[:acked])
    await clock.advance(50.0)
    async with client() as broker:
        await broker.ensure("images", group="early")
        assert (await broker.stats("images", "early")).ready == 4
        async with broker.subscribe("images", group="early") as subscription:
            await subscription.ack(await subscription.receive(timeout=5.0))
        await broker.publish("images", [Message(data=b"new")])
    await clock.advance(60.0)
    async with client() as broker:
        kept = [each.message.data async for each in broker.browse("images", "two")]
        assert kept == [b"3", b"new"]
        assert (await broker.stats("images", "one")).ready == 1
        await broker.ensure("images", group="later")
        assert (await broker.stats("images", "later")).ready == 2


async def test_a_queue_that_was_never_made_knows_nothing(path: Path) -> None:
    """A new file has no topics; the error says how to make one and where it looked."""
    async with connect(f"sqlite:///{path}") as broker:
        with pytest.raises(NotFound, match=r"ensure\('images'\)") as error:
            await broker.publish("images", [Message(data=b"x")])
        assert str(path) in str(error.value)


@pytest.fixture(autouse=True)
def no_thread_left() -> Iterator[None]:
    """Closing a client ends its thread."""
    before = threading.active_count()
    yield
    assert threading.active_count() <= before


async def test_only_what_fits_is_read(path: Path) -> None:
    """Bodies over the byte cap stay in the file; they do not pass through memory to be thrown away."""
    async with Broker(SqliteDriver(path)) as broker:
        await broker.ensure("images", group="workers")
        for _ in range(20):
            await broker.publish("images", [Message(data=bytes(2_000_000))])
        async with broker.subscribe("images", group="workers", max_bytes=5_000_000) as subscription:
            tracemalloc.start()
            held = await subscription.receive(timeout=5.0)
            assert await subscription.receive(timeout=0.3) == []
            _, peak = tracemalloc.get_traced_memory()
            tracemalloc.stop()
            assert len(held) == 2
            assert peak < 12_000_000


async def test_verdicts_reach_the_disk_without_further_calls(
    driver: SqliteDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The settle interval holds even if nobody receives or settles any more."""
    broker = Broker(driver)
    broker._opened = True
    await broker.publish("images", [Message(data=b"x")])
    async with broker.subscribe("images", group="workers") as subscription:
        await subscription.ack(await subscription.receive(timeout=5.0))
        store = driver._store
        assert store is not None
        assert store._unsynced
        async with asyncio.timeout(5.0):
            while store._unsynced:
                await asyncio.sleep(0.01)
