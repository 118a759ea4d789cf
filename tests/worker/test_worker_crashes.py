"""Whole workers whose engine dies, hangs, or is killed under load: nothing is lost, doubled or blamed."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import pytest
from odd_engine import marked
from rig import Rig, children, expected, runs

from broker import connect
from classifier import Classifier
from client.schema import ClassifyRequest
from client.sources.fashion_mnist import FashionMnist

pytestmark = [pytest.mark.anyio, pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")]

ODD = str(Path(__file__).with_name("odd_worker.py"))


async def send(rig: Rig, images: list[bytes]) -> list[str]:
    async with connect(rig.url) as broker:
        await broker.ensure("images", "classifiers")
        messages = [ClassifyRequest(image=each).to_message() for each in images]
        await broker.publish("images", messages)
    return [each.id for each in messages]


async def test_killer_images_are_quarantined_while_their_neighbours_finish(
    rig: Rig, pictures: list[bytes], classifier: Classifier
) -> None:
    """Two of 150: two dead letters that say why, 148 right rows, no attempt counted."""
    images = list(pictures[:150])
    images[30], images[99] = marked(images[30], "decode:SIGSEGV"), marked(images[99], "predict:abort")
    ids = await send(rig, images)
    worker = await rig.ready(ODD)
    await rig.until(rig.settled)
    worker.send_signal(signal.SIGTERM)
    assert await rig.ended(worker) == 0, rig.log_of(worker)
    assert await rig.letters() == {ids[30]: "crashed", ids[99]: "crashed"}
    rows = rig.rows()
    assert set(rows) == set(ids) - {ids[30], ids[99]}
    answers = classifier.predict(pictures[:150])
    assert [rows[each].label for each in ids if each in rows] == [
        getattr(answer, "label", None) for each, answer in zip(ids, answers, strict=True) if each in rows
    ]
    assert {row.attempt for row in rows.values()} == {1}
    assert rig.events(worker)["rows"]["crashed"] == 2
    # Two images, three deaths each.
    assert rig.log_of(worker).count('"event": "the engine died"') == 6


async def test_an_engine_that_is_killed_under_load_costs_nothing_but_time(
    rig: Rig, classifier: Classifier
) -> None:
    """Five times, as by the kernel when memory runs out; the last time right before a drain."""
    sent = list(FashionMnist(1_200, bad_ratio=0.02))
    ids = await rig.publish(sent)
    worker = await rig.worker("--batch-size", "8")
    killed: set[int] = set()
    for _ in range(5):
        done = rig.count()
        await rig.until(lambda done=done: rig.count() > done and len(children(worker.pid)) == 1)  # type: ignore[misc]
        victim = rig.engine_of(worker.pid)
        os.kill(victim, signal.SIGKILL)
        killed.add(victim)
        await rig.until(lambda victim=victim: not runs(victim))  # type: ignore[misc]
    assert len(killed) == 5
    worker.send_signal(signal.SIGTERM)
    assert await rig.ended(worker) == 0, rig.log_of(worker)
    stats = await rig.stats()
    assert stats.in_flight == stats.delayed == 0
    assert stats.settled == rig.count() + len(await rig.letters())
    second = await rig.worker()
    await rig.until(rig.settled)
    second.send_signal(signal.SIGTERM)
    assert await rig.ended(second) == 0
    rows, truth = rig.rows(), expected(classifier, ids, sent)
    assert {each: row.label for each, row in rows.items()} == truth
    assert {row.attempt for row in rows.values()} == {1}
    assert set((await rig.letters()).values()) <= {"invalid-image"}
    # Rows of the batch before may come while the next engine starts: then that is the victim.
    deaths = [rig.log_of(worker).count(f'"event": "the engine {how}"') for how in ("died", "does not start")]
    assert sum(deaths) == 5


async def test_a_hanging_engine_does_not_hold_up_the_end(rig: Rig, pictures: list[bytes]) -> None:
    """The drain is given up at its deadline; the engine goes with its worker, the message comes again."""
    (hanging,) = await send(rig, [marked(pictures[0], "predict:hang")])
    worker = await rig.ready(ODD, COUTURIER_DRAIN_TIMEOUT="1")
    await rig.until(lambda: bool(children(worker.pid)))
    engine = rig.engine_of(worker.pid)
    await rig.until(_held(rig))
    begin = time.monotonic()
    worker.send_signal(signal.SIGTERM)
    assert await rig.ended(worker) == 75, rig.log_of(worker)
    assert time.monotonic() - begin < 10
    assert not runs(engine)
    assert (await rig.stats()).unsettled == 1
    assert await rig.letters() == {}
    # Another worker finds out, and goes on.
    ids = await send(rig, pictures[:20])
    second = await rig.ready(ODD, COUTURIER_PREDICT_TIMEOUT="1", COUTURIER_CRASHES="2")
    await rig.until(rig.settled)
    second.send_signal(signal.SIGTERM)
    assert await rig.ended(second) == 0
    assert await rig.letters() == {hanging: "crashed"}
    assert set(rig.rows()) == set(ids)


async def test_a_second_signal_ends_a_hanging_engine_too(rig: Rig, pictures: list[bytes]) -> None:
    """At once, with nothing left behind."""
    await send(rig, [marked(pictures[0], "decode:hang")])
    worker = await rig.ready(ODD)
    await rig.until(_held(rig))
    engine = rig.engine_of(worker.pid)
    worker.send_signal(signal.SIGINT)
    await rig.until(lambda: any(each.startswith("draining") for each in rig.events(worker)))
    worker.send_signal(signal.SIGINT)
    assert await rig.ended(worker) == 130, rig.log_of(worker)
    assert not runs(engine)


async def test_a_worker_that_is_killed_takes_its_engine_along(rig: Rig, pictures: list[bytes]) -> None:
    """Even one that hangs."""
    await send(rig, [marked(pictures[0], "decode:hang")])
    worker = await rig.ready(ODD)
    await rig.until(_held(rig))
    engine = rig.engine_of(worker.pid)
    worker.kill()
    begin = time.monotonic()
    await rig.until(lambda: not runs(engine))
    assert time.monotonic() - begin < 5  # a second, were this machine idle


def _held(rig: Rig):  # type: ignore[no-untyped-def]
    async def held() -> bool:
        return (await rig.stats()).in_flight > 0

    return held
