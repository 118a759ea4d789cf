"""Dead letters where it is hard: many at once, a topic that is gone, a message that has no room."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import pytest
from faulty import FaultyDriver, FaultySubscription
from process_run import GROUP, LETTERS, TOPIC, Run, publish

from broker import (
    Batching,
    Broker,
    Delivery,
    Done,
    InvalidMessage,
    Outcome,
    PermissionDenied,
    Reject,
    RetryPolicy,
)
from broker.drivers.base import Order
from broker.errors import DeadlineExceeded
from broker.processing import outages

pytestmark = pytest.mark.anyio


class Letterbox(FaultySubscription):
    """A member whose letters may have only so many attributes of ours, and which takes a while for each."""

    async def forward(self, delivery: Delivery, topic: str, extra: Mapping[str, str]) -> None:
        driver: CrampedDriver = self._driver  # type: ignore[assignment]
        driver.storing += 1
        driver.most = max(driver.most, driver.storing)
        await asyncio.sleep(driver.seconds)
        driver.storing -= 1
        if len(extra) > driver.room:
            raise InvalidMessage(f"{len(extra)} more attributes; there is room for {driver.room}")
        await super().forward(delivery, topic, extra)


class CrampedDriver(FaultyDriver):
    """Its letters have room for ``room`` attributes of ours; less than 0: no letter can be stored."""

    def __init__(self, room: int = 100, seconds: float = 0.0) -> None:
        super().__init__()
        self.room = room
        self.seconds = seconds
        self.storing = self.most = 0

    async def subscribe(self, topic: str, group: str, order: Order) -> Letterbox:
        self.store.group(topic, group)
        return Letterbox(self, topic, group, order)


@pytest.fixture(autouse=True)
def quick_outages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Outages are waited out in small steps."""
    monkeypatch.setattr(outages, "PACE", RetryPolicy(attempts=1, base=0.002, cap=0.01))


@asynccontextmanager
async def opened(driver: FaultyDriver) -> AsyncIterator[Broker]:
    async with Broker(driver) as broker:
        await broker.ensure(TOPIC, group=GROUP)
        yield broker


def reject(_: Delivery) -> Outcome:
    return Reject("invalid-image", "no magic", "decode")


async def letters_of(broker: Broker) -> list[Mapping[str, str]]:
    return [each.message.attributes async for each in broker.browse(LETTERS, "operators")]


@pytest.mark.parametrize(("room", "kept"), [(6, 6), (5, 1), (1, 1), (0, 0)])
async def test_a_letter_says_as_much_as_there_is_room_for(
    room: int, kept: int, caplog: pytest.LogCaptureFixture
) -> None:
    """A message that is full already leaves all the same, with its reason if that fits; the log says all."""
    async with opened(CrampedDriver(room)) as broker:
        await publish(broker, 1)
        totals = await Run(broker, reject).until_settled(1)
        assert (totals.dead_lettered, totals.retried) == (1, 0)
        (attributes,) = await letters_of(broker)
        assert len(attributes) == kept
        assert attributes.get("couturier-reason") == ("invalid-image" if kept else None)
        said = [each.getMessage() for each in caplog.records if each.levelno == logging.ERROR]
        assert ["no magic" in text for text in said] == [True] * (kept < 6)


async def test_a_letter_that_no_backend_would_take_stays_and_holds_up_nothing() -> None:
    """It comes again, uncounted and later; the others are done."""
    driver = CrampedDriver(room=-1)
    async with opened(driver) as broker:
        await publish(broker, 4)
        run = Run(
            broker,
            lambda each: reject(each) if each.message.data == b"0" else Done(),
            retry=RetryPolicy(attempts=1, base=0.0, cap=9.0),
        )

        async def kept() -> bool:
            return (await broker.stats(TOPIC, GROUP)).delayed == 1

        totals = await run.until(kept)
        assert (totals.done, totals.dead_lettered, totals.retried) == (3, 0, 0)
        assert [each.attempt async for each in broker.browse(TOPIC, GROUP)] == [1]
        assert (await broker.stats(LETTERS, "operators")).published == 0


async def test_letters_of_a_batch_are_stored_at_the_same_time() -> None:
    """Sixty-four letters that take a while each take a few whiles together, and no more than 32 at once."""
    driver = CrampedDriver(seconds=0.01)
    async with opened(driver) as broker:
        await publish(broker, 64)
        totals = await Run(broker, reject, batch=Batching(max_messages=64)).until_settled(64)
        assert totals.dead_lettered == 64
        assert 16 <= driver.most <= 32


async def test_good_messages_of_a_batch_do_not_wait_for_its_letters() -> None:
    """While a letter cannot be stored, its neighbours are acked already."""
    driver = FaultyDriver()
    driver.faults.gates["forward"] = asyncio.Event()
    async with opened(driver) as broker:
        await publish(broker, 8)
        run = Run(broker, lambda each: reject(each) if each.message.data == b"5" else Done())

        async def the_others_are_acked() -> bool:
            return (await broker.stats(TOPIC, GROUP)).settled == 7

        def let_it_pass() -> bool:
            assert [held.stage for held in run.watch.held.values()] == ["settling"]
            driver.faults.gates["forward"].set()
            return True

        totals = await run.until(the_others_are_acked, let_it_pass, lambda: run.watch.totals.dead_lettered)
        assert (totals.done, totals.dead_lettered) == (7, 1)


async def test_a_letter_that_fails_does_not_store_the_others_again() -> None:
    """Of letters stored together only those are tried again that failed."""
    driver = FaultyDriver()
    driver.faults.errors["forward"] = [PermissionDenied("not today")] * 3
    async with opened(driver) as broker:
        await publish(broker, 10)
        totals = await Run(broker, reject).until_settled(10)
        assert totals.dead_lettered == 10
        assert len(await letters_of(broker)) == 10
        assert driver.faults.calls["forward"] == 13


async def test_a_dead_letter_topic_that_was_deleted_is_made_again() -> None:
    """Made by the loop at its start, it is made by it again, with the group that keeps what comes."""
    driver = FaultyDriver()
    async with opened(driver) as broker:
        run = Run(broker, reject)

        async def delete_and_publish() -> bool:
            if run.watch.state != "running":
                return False
            del driver.store.topics[LETTERS]
            await publish(broker, 3)
            return True

        totals = await run.until(delete_and_publish, lambda: run.watch.totals.dead_lettered == 3)
        assert totals.outages == 1
        assert len(await letters_of(broker)) == 3


async def test_a_drain_while_letters_are_denied_leaves_the_messages() -> None:
    """Told to end during the outage, it acks nothing and says so; the messages come again as they were."""
    driver = FaultyDriver()
    driver.faults.errors["forward"] = [PermissionDenied("not today")] * 100_000
    async with opened(driver) as broker:
        await publish(broker, 5)
        run = Run(broker, reject, drain_timeout=0.1)

        def in_outage() -> bool:
            return {held.stage for held in run.watch.held.values()} == {"outage"}

        with pytest.raises(DeadlineExceeded):
            await run.until(in_outage)
        assert driver.faults.calls["forward"] >= 5
        stats = await broker.stats(TOPIC, GROUP)
        assert (stats.settled, stats.ready) == (0, 5)
        assert {each.attempt async for each in broker.browse(TOPIC, GROUP)} == {1}


async def test_a_lease_that_is_lost_before_the_letter_leaves_it_to_its_holder() -> None:
    """No letter is written for a message that another member has by now."""
    driver = FaultyDriver()
    driver.faults.gates["extend"] = driver.faults.gates["forward"] = asyncio.Event()
    async with opened(driver) as broker:
        await publish(broker, 1)
        run = Run(broker, reject)
        took: list[Any] = []

        async def lose_it() -> bool:
            if not driver.faults.calls["forward"]:
                return False
            await driver.manual.advance(31.0)
            async with broker.subscribe(TOPIC, group=GROUP) as other:
                took.extend(await other.receive())
                driver.faults.gates["forward"].set()
                while run.watch.held:
                    await asyncio.sleep(0)
                await other.ack(took)
            return True

        totals = await run.until(lose_it)
        assert len(took) == 1
        assert (totals.dead_lettered, totals.lost_leases) == (0, 1)
        assert await letters_of(broker) == []
