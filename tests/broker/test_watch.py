"""The figures of one ``process`` call: true at every moment, and cheap to read from another thread."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta

import pytest
from faulty import FaultyDriver
from hypothesis import given
from hypothesis import strategies as st
from process_run import GROUP, LETTERS, TOPIC, Run, publish
from test_batcher import delivery

from broker import (
    Batching,
    Broker,
    Delivery,
    Done,
    Histogram,
    Message,
    Outcome,
    Processor,
    Reject,
    Retry,
    RetryPolicy,
    Unavailable,
    Watch,
)

pytestmark = pytest.mark.anyio


@pytest.fixture
async def driver() -> FaultyDriver:
    return FaultyDriver()


@pytest.fixture
async def broker(driver: FaultyDriver) -> AsyncIterator[Broker]:
    async with Broker(driver) as broker:
        await broker.ensure(TOPIC, group=GROUP)
        yield broker


def stages(watch: Watch) -> set[str]:
    """Return where deliveries stand."""
    return {held.stage for held in watch.held.values()}


async def test_the_totals_equal_what_became_of_the_messages(broker: Broker) -> None:
    """Done, retried, dead-lettered, received, batches: as the ledger has it; nothing is held at the end."""
    await publish(broker, 100)

    def judge(each: Delivery) -> Outcome:
        number = int(each.message.data)
        if number % 10 == 0:
            return Reject("bad", stage="decode")
        return Retry("again") if number % 10 == 1 and each.attempt < 3 else Done()

    run = Run(broker, judge, batch=Batching(max_messages=7, concurrency=2))
    totals = await run.until_settled(100)
    watch, stats = run.watch, await broker.stats(TOPIC, GROUP)
    assert totals is watch.totals
    assert (totals.done, totals.retried, totals.dead_lettered) == (90, 20, 10)
    assert totals.received == len(run.seen) == 120
    assert totals.batches == watch.batch_size.count
    assert watch.batch_size.sum == 120
    assert stats.settled == totals.done + totals.dead_lettered
    assert watch.dead_letters == {"bad": (await broker.stats(LETTERS, "operators")).published}
    assert (watch.held, watch.state, watch.outage) == ({}, "stopped", None)


async def test_the_newest_failures_are_kept_with_their_reasons(broker: Broker) -> None:
    """Twenty of them, newest last: which message, which attempt, where, what and when."""
    await publish(broker, 90)

    def judge(each: Delivery) -> Outcome:
        fails = each.attempt == 1 and int(each.message.data) % 3 == 0
        return Retry(OSError("no disk"), "store") if fails else Done()

    run = Run(broker, judge)
    before = time.time()
    await run.until_settled(90)
    assert len(run.watch.failures) == 20
    newest = run.watch.failures[-1]
    assert (newest.attempt, newest.stage, newest.error) == (1, "store", "OSError: no disk")
    assert before <= newest.at <= time.time()


async def test_every_stage_of_a_delivery_can_be_seen(broker: Broker, driver: FaultyDriver) -> None:
    """Handling and waiting, then an outage of the handler, then settling; the state says so, too."""
    go_on, settle = asyncio.Event(), asyncio.Event()
    away = True
    driver.faults.gates["settle"] = settle
    await publish(broker, 8)
    watch: Watch

    async def handler(deliveries: Sequence[Delivery]) -> list[Outcome]:
        await go_on.wait()
        if away:
            raise Unavailable("the database is away")
        return [Done()] * len(deliveries)

    processor = Processor(broker, TOPIC, GROUP, handler, Batching(max_messages=4))
    watch, stop = processor.watch, asyncio.Event()
    assert watch.state == "starting"
    task = asyncio.create_task(processor.run(stop=stop))
    async with asyncio.timeout(20):
        while stages(watch) != {"handling", "waiting"} or len(watch.held) < 8:
            await asyncio.sleep(0.001)
        assert (watch.state, watch.outage) == ("running", None)
        go_on.set()
        while "outage" not in stages(watch) or watch.state != "paused":
            await asyncio.sleep(0.001)
        assert "the database is away" in str(watch.outage)
        away = False
        while "settling" not in stages(watch):
            await asyncio.sleep(0.001)
        stop.set()
        while watch.state != "draining":
            await asyncio.sleep(0.001)
        settle.set()
        totals = await task
    assert (totals.done, totals.outages) == (8, 1)
    assert (watch.held, watch.state, watch.outage) == ({}, "stopped", None)


async def test_the_loop_turns_although_nothing_happens(broker: Broker) -> None:
    """Idle, and while a handler takes its time, ``beat`` is never much older than a second."""
    await publish(broker, 3)
    go_on = asyncio.Event()

    async def handler(deliveries: Sequence[Delivery]) -> list[Outcome]:
        await go_on.wait()
        return [Done()] * len(deliveries)

    processor = Processor(broker, TOPIC, GROUP, handler, Batching(max_messages=1))
    stop = asyncio.Event()
    task = asyncio.create_task(processor.run(stop=stop))
    beats = set()
    async with asyncio.timeout(20):
        while len(beats) < 5:
            beats.add(processor.watch.beat)
            await asyncio.sleep(0.05)
        assert "handling" in stages(processor.watch)
        go_on.set()
        stop.set()
        await task


async def test_the_way_from_publisher_to_ack_is_measured(broker: Broker) -> None:
    """``end_to_end_seconds`` counts from the time that a message carries."""
    old = datetime.now(UTC) - timedelta(seconds=100)
    await broker.publish(TOPIC, [Message(data=b"1", time=old)])
    run = Run(broker, lambda _: Done())
    await run.until_settled(1)
    assert run.watch.end_to_end_seconds.count == 1
    assert 100 <= run.watch.end_to_end_seconds.sum <= 200
    assert run.watch.handler_seconds.count == 1


async def test_what_batches_take_is_learned(broker: Broker) -> None:
    """After batches of several sizes ``estimate`` says what one takes."""
    run = Run(broker, lambda _: Done(), batch=Batching(max_messages=32))
    for count in (1, 30, 2, 32, 1, 20, 5, 40):
        await publish(broker, count)
    await run.until_settled(131)
    assert run.watch.estimate is not None
    assert min(run.watch.estimate) >= 0.0
    assert 0.0 < run.watch.estimate[0] * 32 + run.watch.estimate[1] < 5.0


async def test_a_large_backlog_is_worked_off_in_bounded_memory() -> None:
    """With 100,000 messages before it, no more is held than one batch that waits beside those that run."""
    driver = FaultyDriver()
    async with Broker(driver) as broker:
        await broker.ensure(TOPIC, group=GROUP)
        await broker.publish(TOPIC, [Message(data=b"")] * 100_000)
        most = 0

        def judge(_: Delivery) -> Outcome:
            nonlocal most
            most = max(most, len(run.watch.held))
            return Done()

        run = Run(broker, judge, batch=Batching(max_messages=500, concurrency=2))
        totals = await run.until(lambda: run.watch.totals.done == 100_000)
        assert totals.received == 100_000
        assert 500 <= most <= 1500


async def test_bodies_that_are_held_are_bounded(broker: Broker) -> None:
    """However many large bodies there are, those held stay within the cap, once for each batch and one."""
    await broker.publish(TOPIC, [Message(data=bytes(10_000)) for _ in range(300)])
    most = 0

    def judge(_: Delivery) -> Outcome:
        nonlocal most
        most = max(most, sum(len(each.message.data) for each in run.watch.held))
        return Done()

    run = Run(broker, judge, batch=Batching(max_messages=64, concurrency=2, max_bytes=50_000))
    await run.until_settled(300)
    assert 50_000 <= most <= 150_000
    assert run.watch.batch_size.sum / run.watch.batch_size.count <= 5


async def test_other_threads_read_while_the_loop_writes(broker: Broker) -> None:
    """A copy of what is held can be made at any time, and the oldest be found in it."""
    await publish(broker, 5000)
    run = Run(broker, lambda _: Done(), retry=RetryPolicy(breaker=None))
    problems: list[BaseException] = []
    over = threading.Event()
    looks = 0

    def look() -> None:
        nonlocal looks
        while not over.is_set():
            try:
                oldest = run.watch.oldest()
                assert oldest is None or oldest[1].stage in ("waiting", "handling", "settling")
                looks += 1
            except BaseException as error:
                problems.append(error)
                return

    thread = threading.Thread(target=look)
    thread.start()
    try:
        await run.until_settled(5000)
    finally:
        over.set()
        thread.join()
    assert problems == []
    assert looks > 10


@given(st.lists(st.floats(0, 1e6), max_size=50))
def test_a_histogram_counts_each_value_once_where_it_belongs(values: list[float]) -> None:
    """As Prometheus has it: a value belongs to the first bound that is not below it."""
    bounds = (0.5, 1.0, 10.0)
    histogram = Histogram(bounds)
    for value in values:
        histogram.observe(value)
    assert histogram.count == len(values) == sum(histogram.counts)
    assert histogram.sum == pytest.approx(sum(values))
    for place, bound in enumerate(bounds):
        assert sum(histogram.counts[: place + 1]) == sum(value <= bound for value in values)


def test_the_oldest_is_the_one_that_stands_longest() -> None:
    """By when its stage began, not by when it came."""
    watch, one, two = Watch(), delivery(), delivery()
    assert watch.oldest() is None
    watch.enter([one], "waiting").since = 10.0
    held = watch.enter([two], "handling")
    held.since = 5.0
    assert watch.oldest() == (two, held)
    watch.leave([two, two])
    assert watch.oldest() == (one, watch.held[one])
