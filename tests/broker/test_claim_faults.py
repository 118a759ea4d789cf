"""A claim store that fails loses no message and blames none; what nobody can have becomes a dead letter."""

# ruff: noqa: ASYNC221, ASYNC240, F401, F811 - a test may block its own event loop; fixtures are imported

from __future__ import annotations

import asyncio
import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from claim_bench import (
    DAY,
    GROUP,
    LARGE,
    LETTERS,
    TOPIC,
    Handler,
    backend,
    bodies,
    folder,
    opened,
    processing,
    quick_outages,
    received,
    settled,
    small,
    swept,
    take,
)
from faulty import FaultyDriver, until
from fsspec.implementations.local import LocalFileSystem

from broker import (
    Message,
    PermissionDenied,
    PublishError,
    Unavailable,
)
from broker.claims import CLAIM, ERROR, SIZE, ClaimStore
from broker.drivers.sqlite import SqliteDriver

pytestmark = pytest.mark.anyio

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
