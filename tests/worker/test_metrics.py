"""Metrics: parsed as Prometheus does, and equal to the books of the run."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from broker import (
    Batching,
    Broker,
    Delivery,
    Outcome,
    Processor,
    Retry,
    RetryPolicy,
    connect,
    dead_letter_topic,
)
from broker.message import utc_now
from client.results import open_results
from client.schema import ClassifyRequest
from client.workers import ask, listed
from worker.engine import Engine
from worker.handler import ImageHandler
from worker.http import observed
from worker.settings import WorkerSettings
from worker.sinks import open_sink

pytestmark = pytest.mark.anyio

TOPIC, GROUP = "images", "classifiers"
PATIENCE_S = 60.0
Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def parsed(text: str) -> Samples:
    """Every sample, by name and labels; none may be there twice."""
    found: Samples = {}
    for family in text_string_to_metric_families(text):
        assert family.documentation, family.name
        for sample in family.samples:
            key = (sample.name, frozenset(sample.labels.items()))
            assert key not in found
            found[key] = sample.value
    return found


def value(samples: Samples, name: str, **labels: str) -> float:
    return samples.get((name, frozenset(labels.items())), 0.0)


class Flaky:
    """The worker's handler, which fails first over some messages, and always over others."""

    def __init__(self, handler: ImageHandler, once: set[str], always: set[str]) -> None:
        self._handler = handler
        self._once = once
        self._always = always
        self.calls: Counter[str] = Counter()

    async def __call__(self, deliveries: Sequence[Delivery]) -> list[Outcome]:
        self.calls.update(each.message.id for each in deliveries)
        fails = [
            each.message.id in self._always or (each.message.id in self._once and each.attempt == 1)
            for each in deliveries
        ]
        good = [each for each, fail in zip(deliveries, fails, strict=True) if not fail]
        outcomes = iter(await self._handler(good) if good else [])
        return [Retry("as planned") if fail else next(outcomes) for fail in fails]


@asynccontextmanager
async def worker(
    broker: Broker, results: Path, **settings: Any
) -> AsyncIterator[tuple[ImageHandler, str, Any]]:
    """What a worker process holds, with its metrics served."""
    wanted = WorkerSettings(**settings)
    sink = open_sink(f"sqlite:///{results}")
    await sink.open()
    async with Engine() as engine:
        handler = ImageHandler(engine, sink, wanted.worker_id)

        async def process(handle: Any, stop: asyncio.Event) -> None:
            made = Processor(
                broker, TOPIC, GROUP, handle, Batching(max_messages=16), RetryPolicy(attempts=3, base=0.01)
            )
            async with observed(wanted, made.watch, handler, engine, broker) as url:
                urls.put_nowait(url)
                await made.run(stop=stop)

        urls: asyncio.Queue[str] = asyncio.Queue()
        yield handler, process, urls
    await sink.aclose()


async def settled(broker: Broker) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while (await broker.stats(TOPIC, GROUP)).unsettled:
            await asyncio.sleep(0.01)


async def test_counters_equal_the_books(
    tmp_path: Path, pictures: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Good, corrupt, expired, doubled, failing once, failing for ever: each is counted where it ended."""
    monkeypatch.setenv("COUTURIER_HOME", str(tmp_path))
    good = [ClassifyRequest(image=each).to_message() for each in pictures[:60]]
    corrupt = [ClassifyRequest(image=b"not an image").to_message() for _ in range(5)]
    late = [
        ClassifyRequest(image=each, expires=utc_now() - timedelta(seconds=5)).to_message()
        for each in pictures[:4]
    ]
    once, always = {each.id for each in good[:7]}, {each.id for each in good[7:10]}
    async with (
        connect("memory://counters") as broker,
        worker(broker, tmp_path / "r.db", lag_interval_s=0.05) as held,
    ):
        handler, process, urls = held
        await broker.ensure(TOPIC, GROUP)
        sent = [*good, *corrupt, *late]
        await broker.publish(TOPIC, sent)
        flaky, stop = Flaky(handler, once, always), asyncio.Event()
        running = asyncio.create_task(process(flaky, stop))
        url = await urls.get()
        await settled(broker)
        await broker.publish(TOPIC, good[10:16])  # the same ids again
        await settled(broker)
        async with asyncio.timeout(PATIENCE_S):
            while (
                value(now := parsed(await page(url, "/metrics")), "couturier_estimated_drain_seconds")
                or value(now, "couturier_consumer_lag_messages", topic=TOPIC, group=GROUP, partition="")
                or ("couturier_estimated_drain_seconds", frozenset()) not in now
            ):
                await asyncio.sleep(0.02)
        assert [each.url for each in listed()] == [url]
        stop.set()
        await running
        assert listed() == []
        letters = Counter(
            [
                each.message.attributes["couturier-reason"]
                async for each in broker.browse(dead_letter_topic(TOPIC, GROUP), "operators")
            ]
        )
    with open_results(f"sqlite:///{tmp_path}/r.db") as results:
        rows, statuses = results.count(), results.statuses()
        labels = Counter(row.label for row in results.rows() if row.label is not None)

    def consumed(outcome: str) -> float:
        return value(now, "couturier_messages_consumed_total", backend="memory", topic=TOPIC, outcome=outcome)

    def stored(outcome: str) -> float:
        return value(now, "couturier_rows_total", outcome=outcome)

    assert letters == {"invalid-image": 5, "attempts-exhausted": 3}
    for reason, count in letters.items():
        assert value(now, "couturier_dead_letters_total", reason=reason) == count
    assert consumed("dead") == 8
    assert consumed("retry") == 7 + 3 * 2
    assert consumed("ok") == len(sent) - 8 + 6
    assert consumed("dropped") == consumed("lost_lease") == 0
    assert sum(flaky.calls.values()) == consumed("ok") + consumed("dead") + consumed("retry")
    assert stored("new") == rows == 60 - 3 + 4
    assert stored("replay") + stored("conflict") == 6
    assert stored("expired") == statuses["expired"] == 4
    # Predicted again for those that came again.
    again = Counter({name: int(count) for name, count in predicted(now).items()})
    assert sum((again - labels).values()) == 6
    assert not labels - again
    for name in ("confidence", "brightness"):
        assert value(now, f"couturier_{name}_count") == sum(again.values())
    assert value(now, "couturier_window_images") == sum(again.values())
    abstained = sum(value(now, "couturier_abstentions_total", why=why) for why in ("outlier", "unsure"))
    assert abstained - statuses.get("abstained", 0) in range(7)  # of those that came again
    assert value(now, "couturier_sink_write_duration_seconds_count") > 0
    assert value(now, "couturier_sink_errors_total") == 0
    assert value(now, "couturier_batch_size_sum") == sum(flaky.calls.values())
    assert value(now, "couturier_in_flight_messages") == 0
    assert value(now, "couturier_outage") == 0
    assert value(now, "couturier_engine_restarts_total") == 0
    assert value(now, "process_resident_memory_bytes") > 0
    assert not any(each.id in str(now) for each in sent), "an id became a label"


def predicted(samples: Samples) -> dict[str, float]:
    return {
        dict(labels)["class_name"]: count
        for (name, labels), count in samples.items()
        if name == "couturier_predictions_total"
    }


async def page(url: str, path: str) -> str:
    """Return a page, asked from another thread as any client does."""
    from urllib.request import urlopen

    def get() -> str:
        with urlopen(url + path, timeout=PATIENCE_S) as reply:
            return str(reply.read().decode())

    return await asyncio.to_thread(get)


async def test_histograms_and_facts_read_as_prometheus_expects(
    tmp_path: Path, pictures: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Buckets add up, the model is named, and the oldest message has an age."""
    monkeypatch.setenv("COUTURIER_HOME", str(tmp_path))
    async with (
        connect("memory://no-lag") as broker,
        worker(broker, tmp_path / "r.db", lag_interval_s=0) as held,
    ):
        handler, process, urls = held
        await broker.ensure(TOPIC, GROUP)
        await broker.publish(TOPIC, [ClassifyRequest(image=each).to_message() for each in pictures[:40]])
        gate, entered, stop = asyncio.Event(), asyncio.Event(), asyncio.Event()

        async def slow(deliveries: Sequence[Delivery]) -> list[Outcome]:
            entered.set()
            await gate.wait()
            return await handler(deliveries)

        running = asyncio.create_task(process(slow, stop))
        url = await urls.get()
        await entered.wait()
        before = parsed(await page(url, "/metrics"))
        status = (await asyncio.to_thread(ask, url, "/status")).body
        gate.set()
        await settled(broker)
        after = parsed(await page(url, "/metrics"))
        stop.set()
        await running
    assert value(before, "couturier_in_flight_messages") >= 16
    assert value(before, "couturier_oldest_message_age_seconds") > 0
    assert status["oldest_held"]["stage"] == "handling"
    assert status["held"] >= 16
    assert (status["drift"]["images"], status["drift"]["psi"]) == (0, {})
    assert status["drift"]["why_not"]
    assert ("couturier_estimated_drain_seconds", frozenset()) not in before
    for name in ("process_duration_seconds", "inference_duration_seconds", "batch_size"):
        full = f"couturier_{name}"
        count = value(after, f"{full}_count")
        assert count >= 3
        assert value(after, f"{full}_bucket", le="+Inf") == count
        buckets = sorted(
            (float(dict(labels)["le"]), number)
            for (each, labels), number in after.items()
            if each == f"{full}_bucket"
        )
        assert [number for _, number in buckets] == sorted(number for _, number in buckets)
    assert value(after, "couturier_end_to_end_latency_seconds_count") >= 3
    model = next(dict(labels) for (name, labels) in after if name == "couturier_model_info")
    assert (model["name"], model["version"], model["sha256"], model["engine"]) == handler.model
    assert any(name == "couturier_build_info" for name, _ in after)
