"""Publishing: in the ledger before it is sent, through outages, past what the broker refuses."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from uuid import uuid4

import pytest

from broker import Broker, Message, NotFound, PublishError, Receipt, Unavailable, connect
from broker.message import GroupStats
from client import ClassifyRequest, Client, Ledger, SendReport, Submission
from client.results import ResultsWriter
from client.schema import ResultRow

pytestmark = pytest.mark.anyio

TOPIC, GROUP = "images", "classifiers"
TOO_BIG = bytes(64 * 1024 * 1024 + 1)


def memory() -> Broker:
    """A broker of this test alone."""
    return connect(f"memory://{uuid4()}")


class Flaky(Broker):
    """A memory broker that is away for the first ``outages`` sends."""

    def __init__(self, outages: int, before: Callable[[], None] = lambda: None) -> None:
        super().__init__(memory()._driver)
        self.outages = outages
        self.before = before

    async def publish(self, topic: str, messages: Sequence[Message]) -> list[Receipt]:
        self.before()
        if self.outages:
            self.outages -= 1
            raise Unavailable("away")
        return await super().publish(topic, messages)


async def stats(broker: Broker) -> GroupStats:
    return await broker.stats(TOPIC, GROUP)


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger(tmp_path / "ledger.db") as ledger:
        yield ledger


async def test_everything_is_published_confirmed_and_counted(ledger: Ledger) -> None:
    """The report, the ledger and the broker agree."""
    async with memory() as broker:
        await broker.ensure(TOPIC, GROUP)
        seen: list[int] = []
        report = await Client(broker, TOPIC, ledger).publish(
            [b"x"] * 1234, progress=lambda report: seen.append(report.published)
        )
        assert (await stats(broker)).published == 1234
    assert report.published == report.size_bytes == 1234
    assert seen == sorted(seen)
    assert seen[-1] == 1234
    assert len(ledger.ids(TOPIC, "confirmed")) == 1234
    assert {each.run_id for each in ledger.entries()} == {report.run_id}


async def test_a_message_is_in_the_ledger_before_it_is_sent(ledger: Ledger) -> None:
    """A crash between the two leaves an entry that may appear, never a message that nobody knows."""
    states: list[list[str]] = []
    broker = Flaky(1, before=lambda: states.append([each.state for each in ledger.entries()]))
    async with broker:
        await broker.ensure(TOPIC, GROUP)
        await Client(broker, TOPIC, ledger).publish([b"x"])
    assert states == [["sent"], ["sent"]]
    assert [each.state for each in ledger.entries()] == ["confirmed"]


async def test_a_broker_that_stays_away_is_an_error_and_the_ledger_says_how_far_it_came(
    ledger: Ledger,
) -> None:
    """The batch at hand, the small first one, may or may not have been stored."""
    async with Flaky(10**9) as broker:
        await broker.ensure(TOPIC, GROUP)
        with pytest.raises(Unavailable, match="away"):
            await Client(broker, TOPIC, ledger, outage_s=0.0).publish([b"x"] * 600)
    assert len(ledger.ids(TOPIC, "sent")) == 64
    assert not ledger.ids(TOPIC, "confirmed")


async def test_what_the_broker_refuses_is_reported_and_the_rest_goes_on(ledger: Ledger) -> None:
    """One message over the limit keeps no other one back."""
    async with memory() as broker:
        await broker.ensure(TOPIC, GROUP)
        images = [
            Submission(ClassifyRequest(image=data, id=data[:1].hex())) for data in (b"a", TOO_BIG, b"b")
        ]
        report = await Client(broker, TOPIC, ledger).publish(images)
        assert (await stats(broker)).published == 2
    assert list(report.refused) == ["00"]
    assert "67,108,865 bytes" in report.refused["00"]
    assert ledger.ids(TOPIC, "refused") == {"00"}
    assert ledger.ids(TOPIC, "confirmed") == {"61", "62"}


async def test_giving_up_never_says_that_the_others_are_stored() -> None:
    """A refusal in the first round and an outage to the end: an outage, not a list of the few that failed."""

    class Splitting(Broker):
        async def publish(self, topic: str, messages: Sequence[Message]) -> list[Receipt]:
            why = {each.id: Unavailable("away") for each in messages}
            why[messages[0].id] = NotFound("never")
            raise PublishError(why)

    async with Splitting(memory()._driver) as broker:
        await broker.ensure(TOPIC, GROUP)
        with pytest.raises(Unavailable, match="away"):
            await Client(broker, TOPIC, outage_s=0.0).submit([b"x", b"y", b"z"])


async def test_an_unknown_topic_is_an_error_at_once() -> None:
    """Nothing is retried that cannot work."""
    async with memory() as broker:
        with pytest.raises(NotFound):
            await Client(broker, "nowhere").publish([b"x"])


async def test_an_endless_source_is_read_batch_by_batch_until_stopped(ledger: Ledger) -> None:
    """Memory stays bounded: batches double to 500 and no further; the one at hand is finished."""
    stop = asyncio.Event()
    taken = 0

    def source() -> Iterator[bytes]:
        nonlocal taken
        while True:
            taken += 1
            yield b"x"

    async with memory() as broker:
        await broker.ensure(TOPIC, GROUP)
        report = await Client(broker, TOPIC, ledger).publish(
            source(), stop=stop, progress=lambda report: stop.set() if report.published >= 1400 else None
        )
    assert report.stopped
    assert report.published == taken == len(ledger.ids(TOPIC, "confirmed")) == 64 + 128 + 256 + 500 + 500


async def test_big_images_make_small_batches() -> None:
    """What is held at once is bounded in bytes too."""
    batches: list[int] = []
    async with memory() as broker:
        await broker.ensure(TOPIC, GROUP)
        await Client(broker).publish(
            [bytes(3 * 1024 * 1024)] * 7, progress=lambda report: batches.append(report.published)
        )
    assert batches == [3, 6, 7]


async def test_a_rate_is_kept() -> None:
    """Never faster than asked for, and evenly: in ticks, not all at once."""
    batches: list[int] = []
    async with memory() as broker:
        await broker.ensure(TOPIC, GROUP)
        report = await Client(broker).publish(
            [b"x"] * 60, rate=200, progress=lambda report: batches.append(report.published)
        )
    assert batches == [20, 40, 60]
    # The third batch is due after 40 images at 200 a second.
    assert report.elapsed_s >= 0.2


async def test_a_send_that_waits_for_its_rate_stops_at_once() -> None:
    """Nobody waits for the next tick of a slow send."""
    stop = asyncio.Event()
    async with memory() as broker:
        await broker.ensure(TOPIC, GROUP)
        report = await Client(broker).publish(
            [b"x"] * 10, rate=0.001, stop=stop, progress=lambda _: stop.set()
        )
    assert report.published == 1
    assert report.stopped


@pytest.mark.parametrize("rate", [0, -1, float("nan")])
async def test_a_rate_that_is_none_is_refused(rate: float) -> None:
    """Before anything is sent."""
    async with memory() as broker:
        with pytest.raises(ValueError, match="rate"):
            await Client(broker).publish([b"x"], rate=rate)


async def test_images_are_submitted_and_their_results_collected(
    tmp_path: Path, row: Callable[..., ResultRow]
) -> None:
    """The short form for other teams: bytes in, results out, in order."""
    path = tmp_path / "results.db"
    async with memory() as broker:
        await broker.ensure(TOPIC, GROUP)
        client = Client(broker, results_url=f"sqlite:///{path}")
        ids = await client.submit([b"x", ClassifyRequest(image=b"y")])
        writer = await asyncio.to_thread(ResultsWriter, path)
        await asyncio.to_thread(writer.write, [row(each) for each in reversed(ids)])
        assert [each.message_id for each in await client.results(ids, 5)] == ids
        await asyncio.to_thread(writer.close)
        with pytest.raises(PublishError) as caught:
            await client.submit([b"x", TOO_BIG])
        assert len(caught.value.failed) == 1
        assert (await stats(broker)).published == 3


async def test_a_report_can_be_read_while_the_send_goes_on() -> None:
    """Whoever cancels a send knows how far it came."""
    report = SendReport()
    async with Flaky(0) as broker:
        await broker.ensure(TOPIC, GROUP)

        def fail(_: SendReport) -> None:
            raise RuntimeError("the caller's own")

        with pytest.raises(RuntimeError):
            await Client(broker).publish([b"x"] * 1000, report=report, progress=fail)
    assert report.published == 64
