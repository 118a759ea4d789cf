"""The breaker in the loop: an outage that comes as failures floods no dead letters, and good news ends it."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Sequence

import pytest
from faulty import FaultyDriver, until
from process_run import GROUP, LETTERS, TOPIC, Run, publish

from broker import (
    Batching,
    BreakerPolicy,
    Broker,
    Delivery,
    Done,
    Outcome,
    Processor,
    Reject,
    Retry,
    RetryPolicy,
)

pytestmark = pytest.mark.anyio

QUICK = BreakerPolicy(failures=20, base=0.02, cap=0.04, probe=4, patience=600.0)
RETRY = RetryPolicy(attempts=3, base=0.0, cap=0.0, breaker=QUICK)


@pytest.fixture
async def driver() -> FaultyDriver:
    return FaultyDriver()


@pytest.fixture
async def broker(driver: FaultyDriver) -> AsyncIterator[Broker]:
    async with Broker(driver) as broker:
        await broker.ensure(TOPIC, group=GROUP)
        yield broker


class World:
    """What a handler needs, which may be away."""

    def __init__(self, away: bool = True) -> None:
        self.away = away

    def judge(self, _: Delivery) -> Outcome:
        return Retry(OSError("no route to the model"), "predict") if self.away else Done()

    def judge_by_raising(self, each: Delivery) -> Outcome:
        if self.away:
            raise OSError("no route to the model")
        return Done()


@pytest.mark.parametrize("raising", [False, True], ids=["retries", "raises"])
@pytest.mark.parametrize("concurrency", [1, 3])
async def test_an_outage_that_comes_as_failures_blames_no_message(
    broker: Broker, driver: FaultyDriver, raising: bool, concurrency: int
) -> None:
    """Probes go on, nothing is counted or dead-lettered; when the world is back everything is done."""
    world = World()
    await publish(broker, 300)
    run = Run(
        broker,
        world.judge_by_raising if raising else world.judge,
        retry=RETRY,
        batch=Batching(max_messages=32, concurrency=concurrency),
    )
    seen: dict[str, object] = {}

    async def tried_ten_probes() -> bool:
        await driver.manual.advance(0.05)
        return run.watch.totals.unblamed >= 60

    def back() -> bool:
        seen["state"], seen["outage"] = run.watch.state, run.watch.outage
        world.away = False
        return True

    async def all_done() -> bool:
        await driver.manual.advance(0.05)
        return run.watch.totals.done == 300

    totals = await run.until(tried_ten_probes, back, all_done)
    assert seen["state"] == "paused"
    assert "no route to the model" in str(seen["outage"])
    assert {attempt for _, attempt in run.seen} == {1}
    assert (totals.done, totals.retried, totals.dead_lettered, totals.lost_leases) == (300, 0, 0, 0)
    assert totals.outages == 1
    assert (await broker.stats(LETTERS, "operators")).published == 0
    assert run.watch.outage is None
    assert run.watch.state == "stopped"


async def test_while_it_is_open_nothing_is_held_that_others_could_have(broker: Broker) -> None:
    """An open breaker hands back what waits and takes in no more, so a healthy member does the work."""
    await publish(broker, 200)
    slow = BreakerPolicy(base=3600.0, cap=3600.0)
    batch = Batching(max_messages=32)
    stop = asyncio.Event()
    sick = Run(broker, World().judge, retry=RetryPolicy(breaker=slow), batch=batch)
    well = Processor(broker, TOPIC, GROUP, handled_well, batch)

    async def paused() -> bool:
        return sick.watch.state == "paused" and not sick.watch.held

    async def others_work() -> bool:
        totals = asyncio.create_task(well.run(stop=stop))
        await until(lambda: asyncio.sleep(0, well.watch.totals.done == 200))
        stop.set()
        return (await totals).done == 200

    totals = await sick.until(paused, others_work)
    assert (totals.done, totals.retried) == (0, 0)
    assert totals.unblamed >= 20


async def handled_well(deliveries: Sequence[Delivery]) -> list[Outcome]:
    return [Done()] * len(deliveries)


async def test_a_batch_of_failures_is_not_bisected_to_the_end(broker: Broker) -> None:
    """When so many raised one by one that the breaker opens, the rest of the batch is not tried by itself."""
    await publish(broker, 256)
    run = Run(
        broker,
        World().judge_by_raising,
        retry=RetryPolicy(breaker=BreakerPolicy(failures=10, base=3600.0, cap=3600.0)),
        batch=Batching(max_messages=256),
    )
    await run.until(lambda: run.watch.state == "paused")
    alone = Counter(body for body, _ in run.seen)
    assert sum(count == max(alone.values()) for count in alone.values()) <= 12
    assert (await broker.stats(TOPIC, GROUP)).ready == 256


async def test_what_is_rejected_never_opens_it(broker: Broker) -> None:
    """A thousand images that are none die promptly, one letter each."""
    await publish(broker, 1000)
    run = Run(broker, lambda _: Reject("invalid-image"), retry=RETRY, batch=Batching(max_messages=64))
    totals = await run.until_settled(1000)
    assert (totals.dead_lettered, totals.outages, totals.retried) == (1000, 0, 0)
    assert run.watch.dead_letters == {"invalid-image": 1000}
    assert (await broker.stats(LETTERS, "operators")).published == 1000


async def test_one_poison_message_in_three_is_dead_lettered_as_always(broker: Broker) -> None:
    """A mix with much poison exhausts its attempts while the others are done; the breaker stays closed."""
    await publish(broker, 300)
    run = Run(
        broker, lambda each: Retry("poison") if int(each.message.data) % 3 == 0 else Done(), retry=RETRY
    )
    totals = await run.until_settled(300)
    assert (totals.done, totals.dead_lettered, totals.unblamed) == (200, 100, 0)


async def test_a_service_whose_every_message_fails_comes_to_an_end(
    broker: Broker, driver: FaultyDriver
) -> None:
    """Past the breaker's patience probes count, and their messages die after their attempts."""
    await publish(broker, 40)
    policy = BreakerPolicy(failures=20, base=0.002, cap=0.004, probe=4, patience=0.05)
    retry = RetryPolicy(attempts=3, base=0.0, cap=0.0, breaker=policy)
    run = Run(broker, World().judge, retry=retry, batch=Batching(max_messages=64))

    async def all_dead() -> bool:
        await driver.manual.advance(0.01)
        return run.watch.totals.dead_lettered == 40

    totals = await run.until(all_dead)
    assert (totals.done, totals.dead_lettered) == (0, 40)
    assert run.watch.dead_letters == {"attempts-exhausted": 40}


async def test_a_drain_ends_at_once_while_it_is_open(broker: Broker) -> None:
    """Nothing is held then, so there is nothing to wait for; the messages come again, uncounted."""
    await publish(broker, 100)
    slow = RetryPolicy(breaker=BreakerPolicy(base=3600.0, cap=3600.0))
    run = Run(broker, World().judge, retry=slow, drain_timeout=5.0)
    await run.until(lambda: run.watch.state == "paused")
    assert (await broker.stats(TOPIC, GROUP)).ready == 100
    assert {each.attempt async for each in broker.browse(TOPIC, GROUP)} == {1}
