"""Large bodies travel apart from their messages, and nobody who receives them notices."""

# ruff: noqa: ASYNC240, F401, F811 - a test may block its own event loop; fixtures are imported

from __future__ import annotations

import asyncio
import os
import sys
import time
from contextlib import suppress
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from claim_bench import (
    GROUP,
    LARGE,
    LETTERS,
    LIMIT,
    TOPIC,
    Handler,
    backend,
    bodies,
    folder,
    limited,
    opened,
    processing,
    quick_outages,
    received,
    settled,
    small,
    take,
)
from faulty import FaultyDriver, until
from hypothesis import given
from hypothesis import strategies as st

from broker import (
    Broker,
    InvalidMessage,
    ManualClock,
    Message,
    MessageTooLarge,
    PublishError,
    connect,
    connect_blocking,
)
from broker.claims import CLAIM, ERROR, SIZE, ClaimStore
from broker.conformance import Conformance, Harness
from broker.drivers.memory import MemoryDriver, MemoryStore
from broker.drivers.sqlite import SqliteDriver

pytestmark = pytest.mark.anyio

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
