"""The processing loop over a backend that fails: an outage blames no message, a bug stops nothing good."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace

import pytest
from faulty import FaultyDriver, until
from process_run import GROUP, LETTERS, TOPIC, Run, publish

from broker import (
    Batching,
    Broker,
    Delivery,
    Done,
    NotFound,
    Outcome,
    PermissionDenied,
    Reject,
    Retry,
    RetryPolicy,
    Unavailable,
)
from broker.errors import BrokerError, DeadlineExceeded
from broker.processing import outages

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def quick_outages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Outages are waited out in small steps."""
    monkeypatch.setattr(outages, "PACE", RetryPolicy(attempts=1, base=0.002, cap=0.01))


@pytest.fixture
async def driver() -> FaultyDriver:
    return FaultyDriver()


@pytest.fixture
async def broker(driver: FaultyDriver) -> AsyncIterator[Broker]:
    async with Broker(driver) as broker:
        await broker.ensure(TOPIC, group=GROUP)
        yield broker


def reject_first(each: Delivery) -> Outcome:
    """Reject message 0, accept the others."""
    return Reject("bad") if each.message.data == b"0" else Done()


AWAY: tuple[BrokerError, ...] = (
    Unavailable("away"),
    DeadlineExceeded("too slow"),
    NotFound("the topic is gone"),
    PermissionDenied("not today"),
)


@pytest.mark.parametrize("error", AWAY, ids=lambda error: type(error).__name__)
async def test_while_dead_letters_cannot_be_stored_nothing_is_acked(
    broker: Broker, driver: FaultyDriver, error: BrokerError
) -> None:
    """Whatever keeps the dead letter out, the message waits for it, uncounted, and dies exactly once."""
    await publish(broker, 4)
    driver.faults.errors["forward"] = [error] * 4
    run = Run(broker, reject_first)
    totals = await run.until_settled(4)
    assert (totals.done, totals.dead_lettered, totals.retried) == (3, 1, 0)
    assert run.seen == [(b"0", 1), (b"1", 1), (b"2", 1), (b"3", 1)]
    letters = [each async for each in broker.browse(LETTERS, "operators")]
    assert [each.message.data for each in letters] == [b"0"]
    assert letters[0].message.attributes["couturier-attempts"] == "1"


async def test_a_drain_during_an_outage_of_dead_letters_hands_back(
    broker: Broker, driver: FaultyDriver
) -> None:
    """If the dead letter cannot be stored in time, the message comes again as it was; nothing is dropped."""
    await publish(broker, 1)
    driver.faults.errors["forward"] = [Unavailable("away")] * 100_000
    stop = asyncio.Event()

    async def handler(deliveries: Sequence[Delivery]) -> list[Outcome]:
        stop.set()
        return [Reject("bad")] * len(deliveries)

    with pytest.raises(DeadlineExceeded):
        await broker.process(TOPIC, group=GROUP, handler=handler, stop=stop, drain_timeout=0.1)
    stats = await broker.stats(TOPIC, GROUP)
    assert (stats.settled, stats.ready) == (0, 1)
    assert [each.attempt async for each in broker.browse(TOPIC, GROUP)] == [1]
    assert (await broker.stats(LETTERS, "operators")).published == 0


@pytest.mark.parametrize("error", AWAY[:2], ids=lambda error: type(error).__name__)
async def test_an_outage_while_settling_is_waited_out(
    broker: Broker, driver: FaultyDriver, error: BrokerError
) -> None:
    """Verdicts that cannot be stored now are stored later; the handler is not called again for them."""
    await publish(broker, 3)
    driver.faults.errors["settle"] = [error] * 5
    run = Run(broker, lambda each: Retry("once") if each.attempt == 1 else Done())
    totals = await run.until_settled(3)
    assert sorted(run.seen) == [(b"%d" % n, attempt) for n in range(3) for attempt in (1, 2)]
    assert (totals.done, totals.retried, totals.lost_leases) == (3, 3, 0)


@pytest.mark.parametrize("error", AWAY[:2], ids=lambda error: type(error).__name__)
async def test_an_outage_while_receiving_is_waited_out(
    broker: Broker, driver: FaultyDriver, error: BrokerError
) -> None:
    """A broker that is away for a while ends nothing."""
    await publish(broker, 3)
    driver.faults.errors["receive"] = [error] * 5
    totals = await Run(broker, lambda _: Done()).until_settled(3)
    assert totals.done == 3


@pytest.mark.parametrize("method", ["receive", "settle"])
async def test_what_waiting_does_not_mend_ends_the_call(
    broker: Broker, driver: FaultyDriver, method: str
) -> None:
    """An error that is not retryable, such as a deleted topic, is raised; what was held comes again."""
    await publish(broker, 2)
    driver.faults.errors[method] = [PermissionDenied("no longer yours")]
    with pytest.raises(PermissionDenied):
        await Run(broker, lambda _: Done()).until_settled(2)
    stats = await broker.stats(TOPIC, GROUP)
    assert (stats.settled, stats.in_flight, stats.ready) == (0, 0, 2)


async def test_a_drain_during_an_outage_of_the_handler_hands_back(broker: Broker) -> None:
    """A sink that stays away does not keep a process from ending; all it held comes again, uncounted."""
    await publish(broker, 5)
    stop = asyncio.Event()

    async def handler(_: Sequence[Delivery]) -> list[Outcome]:
        stop.set()
        raise Unavailable("the database is away")

    with pytest.raises(DeadlineExceeded):
        await broker.process(TOPIC, group=GROUP, handler=handler, stop=stop, drain_timeout=0.1)
    stats = await broker.stats(TOPIC, GROUP)
    assert (stats.settled, stats.delayed, stats.ready) == (0, 0, 5)
    assert {each.attempt async for each in broker.browse(TOPIC, GROUP)} == {1}


async def test_nobody_waits_for_company_while_idle(broker: Broker) -> None:
    """With nothing running a single message is handled at once, however long a batch may wait."""
    await publish(broker, 1)
    async with asyncio.timeout(5):
        run = Run(broker, lambda _: Done(), batch=Batching(max_messages=64, max_wait=3600.0))
        assert (await run.until_settled(1)).done == 1


async def test_a_delay_never_exceeds_what_the_backend_takes(broker: Broker, driver: FaultyDriver) -> None:
    """A backoff longer than ``max_delay`` is cut to it instead of failing."""
    driver.capabilities = replace(driver.capabilities, max_delay=100.0)
    await publish(broker, 1)
    policy = RetryPolicy(attempts=5, base=9999.0, cap=9999.0)
    run = Run(broker, lambda each: Retry("later") if each.attempt == 1 else Done(), retry=policy)
    finished = asyncio.create_task(run.until_settled(1))

    async def delayed() -> bool:
        return (await broker.stats(TOPIC, GROUP)).delayed == 1

    await until(delayed)
    await driver.manual.advance(101.0)
    assert (await finished).done == 1
