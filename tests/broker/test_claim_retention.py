"""How long a body is kept, and who removes it."""

# ruff: noqa: ASYNC240, F401, F811 - a test may block its own event loop; fixtures are imported

from __future__ import annotations

import os
import shutil
import threading
import time
from pathlib import Path

import pytest
from claim_bench import (
    DAY,
    GROUP,
    LARGE,
    LETTERS,
    TOPIC,
    bodies,
    folder,
    opened,
    quick_outages,
    received,
    small,
    swept,
    take,
)
from faulty import FaultyDriver, until

from broker import Broker, Message, Unavailable
from broker import claims as claims_module
from broker.claim_sweep import SWEEP_INTERVAL_S
from broker.claims import ClaimStore

pytestmark = pytest.mark.anyio


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


async def test_a_copy_of_a_message_has_a_retention_of_its_own(folder: Path) -> None:
    """A dead letter, or a replay, can be read as long as if its message had been published then."""
    store, driver = ClaimStore(str(folder), retention=DAY), small(FaultyDriver())
    async with opened(driver, store) as broker:
        await broker.publish(TOPIC, [Message(LARGE)])
        (body,) = bodies(folder)
        for here, there in ((TOPIC, LETTERS), (LETTERS, TOPIC)):
            group = GROUP if here == TOPIC else "operators"
            async with broker.subscribe(here, group=group) as subscription:
                (delivery,) = await take(subscription, 1)
                os.utime(body, (0, 0))
                await subscription.forward(delivery, there, {})
                await subscription.ack(delivery)
            swept(store)
            swept(store)
            assert [each.data for each in await peek(broker, there)] == [LARGE]


async def test_a_copy_waits_for_the_store_but_not_for_permission(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An outage is raised before anything is copied; who may only read copies all the same, and is told."""

    def refuse(*_: object) -> None:
        raise PermissionError("read only")

    async with opened(small(FaultyDriver()), folder) as broker:
        await broker.publish(TOPIC, [Message(LARGE)])
        async with broker.subscribe(TOPIC, group=GROUP) as subscription:
            (delivery,) = await take(subscription, 1)
            away = folder.rename(folder.with_name("away"))
            with pytest.raises(Unavailable):
                await subscription.forward(delivery, LETTERS, {})
            assert await peek(broker, LETTERS) == []
            away.rename(folder)
            monkeypatch.setattr("broker.claims.os.fsync", refuse)
            await subscription.forward(delivery, LETTERS, {})
            assert "read only" in caplog.text
            assert [each.data for each in await peek(broker, LETTERS)] == [LARGE]


async def peek(broker: Broker, topic: str) -> list[Message]:
    """Return what nobody has finished."""
    group = GROUP if topic == TOPIC else "operators"
    return [each.message async for each in broker.browse(topic, group)]
