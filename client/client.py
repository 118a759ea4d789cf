"""Publishing images and collecting their results."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from broker import Broker, BrokerError, Closed, Message, PublishError, RetryPolicy
from broker.message import uuid7

from .answers import Answers
from .ledger import Ledger
from .results import default_url, readable_url, sink_urls, topic_name, wait_for
from .schema import ClassifyRequest, ClassifyResult
from .sources.base import Submission

Image = Submission | ClassifyRequest | bytes
Progress = Callable[["SendReport"], None]

# One batch is what is held in memory and what one ledger transaction covers.
_BATCH_MESSAGES = 500
_BATCH_BYTES = 8 * 1024 * 1024
# The first batches are small, so that the workers start while the rest is still being sent.
_FIRST_BATCH_MESSAGES = 64
# At a given rate a batch is what is due in this time, so that the pace is even.
_TICK_S = 0.1
# What a slow source gives in this time is a batch: it is sent, shown, and the send can be stopped.
_PATIENCE_S = 1.0
_OUTAGE = RetryPolicy(base=0.1, cap=5.0)
_TOPIC = "topic:"
_DATABASES = ("sqlite:", "postgresql:", "postgres:")


@dataclass(slots=True)
class SendReport:
    """How far a send has come.

    Attributes:
        run_id: names this send in the ledger.
        published: the broker stored them.
        refused: message id to the reason why the broker did not store it.
        size_bytes: of the published images.
        elapsed_s: seconds since the start.
        stopped: it ended because ``stop`` was set.
    """

    run_id: str = field(default_factory=uuid7)
    published: int = 0
    refused: dict[str, str] = field(default_factory=dict)
    size_bytes: int = 0
    elapsed_s: float = 0.0
    stopped: bool = False


class Client:
    """Sends images to a topic and waits for what becomes of them.

    Results are read from the first place of ``results_url`` that can be read: a database, or a result topic
    (``topic:NAME``) on this broker. For a topic open the client with ``async with`` before the first image:
    only then are answers collected, those to what this client submits or waits for.

    Args:
        broker: open.
        topic: ensured before.
        ledger: where to write down what is sent; None keeps no books.
        results_url: where the workers write, as in ``SINK_URL``; None reads that variable, and unset means
            the default place.
        outage_s: how long an unavailable broker is waited for, seconds.
    """

    def __init__(
        self,
        broker: Broker,
        topic: str = "images",
        ledger: Ledger | None = None,
        results_url: str | None = None,
        outage_s: float = 60.0,
    ) -> None:
        self._broker = broker
        self._topic = topic
        self._ledger = ledger
        self._results_url = results_url
        self._outage_s = outage_s
        self._answers: Answers | None = None

    async def __aenter__(self) -> Self:
        """Begin to collect answers, if results come by a topic.

        Raises:
            ValueError: ``results_url`` does not work.
            BrokerError: the result topic, or a group on it, cannot be made.
        """
        place = self._results_place()
        if place.startswith(_TOPIC):
            self._answers = await Answers(self._broker, topic_name(place)).__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        answers, self._answers = self._answers, None
        if answers is not None:
            await answers.__aexit__(kind, error, trace)

    async def submit(self, images: Iterable[Image]) -> list[str]:
        """Publish a few images; return their message ids, in order, once the broker stored all of them.

        Raises:
            PublishError: some are not stored; all others are.
            BrokerError: the broker fails, or stayed away for ``outage_s``; the rest was not tried.
        """
        submissions = [_submission(each) for each in images]
        refused: dict[str, BrokerError] = {}
        if self._answers is not None:
            # Before they are sent: a worker may be quicker than this call.
            self._answers.collector.expect(each.request.id for each in submissions)
        source = iter(submissions)
        report = SendReport()
        while batch := _take(source, _BATCH_MESSAGES):
            refused.update(await self._publish_batch(batch, report))
        if refused:
            if self._answers is not None:
                self._answers.collector.forget(refused)
            raise PublishError(refused)
        return [each.request.id for each in submissions]

    async def results(self, ids: Sequence[str], timeout: float) -> list[ClassifyResult]:
        """Return the results of these messages, in order.

        Args:
            ids: what ``submit`` returned.
            timeout: seconds.

        Raises:
            ResultsTimeout: some are still missing; a dead letter never gets one.
            Closed: they come by a topic, and this client was not opened with ``async with``.
            ValueError: ``results_url`` names nothing that can be read.
        """
        place = self._results_place()
        if not place.startswith(_TOPIC):
            return await wait_for(ids, timeout, place)
        if self._answers is None:
            raise Closed(
                f"results come by {place!r}, and nobody collects them: open the client with"
                " `async with Client(...) as client` before the first image"
            )
        return await self._answers.results(ids, timeout)

    async def classify(self, images: Iterable[Image], timeout: float) -> list[ClassifyResult]:
        """Submit images and return their results, in order; errors as in ``submit`` and ``results``."""
        return await self.results(await self.submit(images), timeout)

    async def publish(
        self,
        images: Iterable[Image],
        *,
        rate: float | None = None,
        report: SendReport | None = None,
        progress: Progress | None = None,
        stop: asyncio.Event | None = None,
    ) -> SendReport:
        """Publish a stream of images, holding at most one batch of it; what the broker refuses is reported.

        Every image is in the ledger before it is sent. An unavailable broker is waited for.

        Args:
            images: may be endless; read in a thread.
            rate: images a second; None sends as fast as the broker stores.
            report: filled as the send goes on, so that it can be read if this call is cancelled.
            progress: called after every batch.
            stop: set it to end after the batch at hand.

        Raises:
            BrokerError: the broker fails, or stayed away for ``outage_s``; the ledger says how far it came.
            ClientError: the images or the ledger fail.
        """
        if rate is not None and not rate > 0:
            raise ValueError(f"rate must be above 0 images a second, not {rate}")
        report = report or SendReport()
        stop = stop or asyncio.Event()
        most = _BATCH_MESSAGES if rate is None else max(1, min(_BATCH_MESSAGES, int(rate * _TICK_S)))
        size = min(most, _FIRST_BATCH_MESSAGES)
        source = (_submission(each) for each in images)
        clock = asyncio.get_running_loop().time
        start, taken = clock(), 0
        while not stop.is_set() and (batch := await asyncio.to_thread(_take, source, size)):
            if rate is not None and await _stopped_before(stop, start + taken / rate - clock()):
                break
            taken += len(batch)
            size = min(most, 2 * size)
            refused = await self._publish_batch(batch, report)
            report.refused.update({message_id: str(error) for message_id, error in refused.items()})
            report.elapsed_s = clock() - start
            if progress is not None:
                progress(report)
        report.stopped = stop.is_set()
        return report

    def _results_place(self) -> str:
        """Return the first place of ``results_url`` that can be read."""
        text = self._results_url
        if text is None:
            from .settings import load

            text = load().sink_url
        for url in sink_urls(text or default_url()):
            if url.startswith(_TOPIC):
                topic_name(url, "results_url" if self._results_url else "SINK_URL")
                return url
            if url.startswith(_DATABASES):
                return url
        return readable_url(text)

    async def _publish_batch(self, batch: Sequence[Submission], report: SendReport) -> dict[str, BrokerError]:
        """Record, send, mark; return what the broker refused."""
        if self._ledger is not None:
            await asyncio.to_thread(
                self._ledger.record, report.run_id, self._topic, batch, self._broker.address
            )
        refused = await self._send([each.request.to_message() for each in batch])
        stored = [each.request for each in batch if each.request.id not in refused]
        report.published += len(stored)
        report.size_bytes += sum(len(request.image) for request in stored)
        if self._ledger is not None:
            await asyncio.to_thread(self._ledger.confirm, [request.id for request in stored])
            if refused:
                await asyncio.to_thread(self._ledger.refuse, list(refused))
        return refused

    async def _send(self, messages: Sequence[Message]) -> dict[str, BrokerError]:
        """Publish, however often it takes within ``outage_s``; return what can never be stored.

        Raises:
            BrokerError: what kept the first message that is left out to the end.
        """
        clock = asyncio.get_running_loop().time
        deadline = clock() + self._outage_s
        refused: dict[str, BrokerError] = {}
        failures = 0
        while True:
            try:
                await self._broker.publish(self._topic, messages)
                return refused
            except PublishError as error:
                again = {each for each, why in error.failed.items() if why.retryable}
                refused.update({each: why for each, why in error.failed.items() if not why.retryable})
                messages = [message for message in messages if message.id in again]
                if not messages:
                    return refused
                problem = error.failed[messages[0].id]  # `failed` would say that the others are stored
            except BrokerError as error:
                if not error.retryable:
                    raise
                problem = error
            failures += 1
            delay = _OUTAGE.delay(failures)
            if clock() + delay > deadline:
                raise problem
            await asyncio.sleep(delay)


def _submission(image: Image) -> Submission:
    if isinstance(image, Submission):
        return image
    return Submission(image if isinstance(image, ClassifyRequest) else ClassifyRequest(image=image))


def _take(
    source: Iterator[Submission], count: int, clock: Callable[[], float] = time.monotonic
) -> list[Submission]:
    """Take up to ``count`` images, but no more than ``_BATCH_BYTES`` and the one that goes over it.

    After ``_PATIENCE_S`` what is there is enough.
    """
    batch: list[Submission] = []
    size_bytes = 0
    end = clock() + _PATIENCE_S
    while len(batch) < count and size_bytes < _BATCH_BYTES and not (batch and clock() > end):
        try:
            batch.append(next(source))
        except StopIteration:
            break
        size_bytes += len(batch[-1].request.image)
    return batch


async def _stopped_before(stop: asyncio.Event, delay: float) -> bool:
    """Wait ``delay`` seconds, or until ``stop`` is set; return whether it is."""
    if delay > 0:
        try:
            await asyncio.wait_for(stop.wait(), delay)
        except TimeoutError:
            return False
    return stop.is_set()
