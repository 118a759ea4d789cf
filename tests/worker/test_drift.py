"""Drift: silent while chance could explain it, loud when the images change, and always bounded."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import pytest
from odd_engine import COMMAND, marked
from watched_model import UNSURE, watched_model

from broker import Delivery, Reject, Unavailable
from classifier.reference import BRIGHTNESS_BOUNDS, CONFIDENCE_BOUNDS, Bins, Reference
from client.schema import ResultRow
from worker.drift import MODERATE, Quality, by_chance, psi
from worker.engine import Answer, Engine
from worker.engine_process import EngineOptions
from worker.handler import ImageHandler
from worker.sinks.base import SinkUnavailable, WriteReport

LABELS = ("Coat", "Dress", "Sandal", "Bag")


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def answer(label: str = "Coat", confidence: float = 0.97, brightness: float = 70.0, why: str = "") -> Answer:
    status = "abstained" if why else "ok"
    blank = brightness == 0
    return Answer(status, label, 0, confidence, "Bag", 0.01, label, "[]", why, brightness, blank)


def ordinary(chance: random.Random, count: int) -> list[Answer]:
    """Answers of one population."""
    return [
        answer(chance.choice(LABELS), chance.triangular(0.3, 1.0, 1.0), chance.gauss(90, 30))
        for _ in range(count)
    ]


def reference(answers: Iterable[Answer]) -> Reference:
    answers = list(answers)
    classes = Counter(each.label for each in answers)
    return Reference(
        len(answers),
        "held out",
        {label: classes[label] for label in LABELS},
        Bins.of(CONFIDENCE_BOUNDS, [each.confidence for each in answers]),
        Bins.of(BRIGHTNESS_BOUNDS, [each.brightness for each in answers]),
        0,
        0,
    )


class Clock:
    """Stands still unless told."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_the_index_is_what_the_literature_computes() -> None:
    """By hand: two bins of 50:50 that become 80:20 give 0.3 ln(1.6) - 0.3 ln(0.4) = 0.41589."""
    assert psi([800_000, 200_000], [500_000, 500_000]) == pytest.approx(0.41589, abs=1e-4)
    assert psi([5, 0, 7], [5, 0, 7]) == 0
    assert psi([30, 20, 50], [50, 30, 20]) == pytest.approx(psi([50, 30, 20], [30, 20, 50]))


def test_an_empty_bin_is_finite_and_counts_less_in_a_small_sample() -> None:
    """Nobody has seen a Scarf among 10 images: that says little. Among 10,000 it says much."""
    few, many = psi([10, 0], [8, 2]), psi([10_000, 0], [8_000, 2_000])
    assert 0 < few < many < 10


@pytest.mark.parametrize("sizes", [(2000, 2000), (500, 2000), (5000, 700)])
def test_chance_is_bounded_as_promised(sizes: tuple[int, int]) -> None:
    """Samples of one population exceed the bound about once in 100 times, and come near it."""
    chance, found = random.Random(5), []
    for _ in range(400):
        samples = [Counter(chance.choices(range(10), k=size)) for size in sizes]
        rows = [[sample[place] for place in range(10)] for sample in samples]
        found.append(psi(*rows) / by_chance(*rows))
    assert sum(each > 1 for each in found) <= 12
    assert max(found) > 0.8


def test_nothing_is_said_of_few_images() -> None:
    """While chance alone could bring it to a moderate change; then it is said, and is small."""
    chance, quality = random.Random(1), Quality()
    quality.use(reference(ordinary(chance, 2000)))
    quality.count(ordinary(chance, 100))
    early = quality.drift()
    assert early.psi.keys() < {"classes", "confidence", "brightness"}
    assert "100 images, and 2000 in the reference, are too few" in early.why_not
    quality.count(ordinary(chance, 1000))
    late = quality.drift()
    assert late.psi.keys() == {"classes", "confidence", "brightness"}
    assert max(late.psi.values()) < MODERATE
    assert late.why_not == ""


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        (lambda each: each._replace(label="Coat"), "classes"),
        (lambda each: each._replace(label="Scarf"), "classes"),
        (lambda each: each._replace(confidence=0.45), "confidence"),
        (lambda each: each._replace(brightness=255 - each.brightness), "brightness"),
        (lambda each: each._replace(brightness=0.0, blank=True), "brightness"),
    ],
)
def test_a_change_is_told_where_it_is(changed: Callable[[Answer], Answer], told: str) -> None:
    """One answer for all, a class that the reference does not know, doubt, negatives, lens caps."""
    chance, quality = random.Random(2), Quality()
    quality.use(reference(ordinary(chance, 2000)))
    quality.count([changed(each) for each in ordinary(chance, 1000)])
    found = quality.drift().psi
    assert {name for name, value in found.items() if value > 2 * MODERATE} == {told}


def test_the_window_slides_and_stays_bounded() -> None:
    """An hour and 10,000 images after the change there is no trace of what was before."""
    chance, clock = random.Random(3), Clock()
    quality = Quality(clock)
    quality.use(reference(ordinary(chance, 2000)))
    for _ in range(30):
        quality.count([answer("Coat")] * 1000)
        clock.now += 360
    assert quality.drift().psi["classes"] > 1
    for _ in range(11):
        quality.count(ordinary(chance, 1000))
        clock.now += 360
    found = quality.drift()
    assert 10_000 <= found.window.images <= 11_000
    assert found.psi["classes"] < MODERATE
    assert quality.predictions["Coat"] > 30_000


def test_a_fast_worker_looks_at_an_hour_and_a_slow_one_at_ten_thousand_images() -> None:
    """Seconds of a burst, or the last three images of a night, are no basis for an alarm."""
    clock = Clock()
    fast, slow = Quality(clock), Quality(clock)
    for second in range(7200):
        clock.now = float(second)
        fast.count([answer()] * 10)
        if second % 100 == 0:
            slow.count([answer()])
    assert 36_000 <= fast.drift().window.images <= 40_000
    assert slow.drift().window.images == 72


def test_another_reference_starts_the_window_anew() -> None:
    """A new model is not judged by what the old one answered; the same one again changes nothing."""
    chance, quality = random.Random(4), Quality()
    first = reference(ordinary(chance, 1000))
    quality.use(first)
    quality.count(ordinary(chance, 700))
    quality.use(replace(first))
    assert quality.drift().window.images == 700
    quality.use(reference(ordinary(chance, 1000)))
    assert quality.drift().window.images == 0
    assert sum(quality.predictions.values()) == 700


def test_without_a_usable_reference_the_reason_is_said() -> None:
    """None in the bundle, or one that was counted in other bins."""
    quality = Quality()
    quality.count([answer()] * 1000)
    assert quality.drift().psi == {}
    assert quality.drift().why_not.startswith("the model's manifest has no reference: export the model")
    good = reference([answer()] * 1000)
    quality.use(replace(good, confidence=Bins((0.5,), (0, 1000))))
    quality.count([answer()] * 1000)
    assert quality.drift().psi == {}
    assert "other bins" in quality.drift().why_not


def test_shares_are_those_of_the_window() -> None:
    """Half unsure, a quarter blank, a tenth abstained: of the newest images, not of all."""
    quality = Quality()
    quality.count([answer()] * 100)
    quality.use(reference([answer()] * 10))
    quality.count([answer(confidence=0.5)] * 10 + [answer(brightness=0.0)] * 6 + [answer(why="outlier")] * 4)
    assert quality.drift().window.ratios() == {"low_confidence": 0.5, "blank": 0.3, "abstained": 0.2}
    assert quality.abstentions == {"outlier": 4}
    assert quality.blank == 6


class Keeping:
    """A sink that keeps rows in a list, and is away as often as it is told."""

    def __init__(self, away: int = 0) -> None:
        self.rows: list[ResultRow] = []
        self.away = away

    async def open(self) -> None: ...

    async def aclose(self) -> None: ...

    async def write(self, rows: list[ResultRow]) -> WriteReport:
        if self.away:
            self.away -= 1
            raise SinkUnavailable("away, as planned")
        self.rows.extend(rows)
        return WriteReport(len(rows))


@pytest.mark.anyio
async def test_counts_equal_the_rows_though_the_engine_dies_and_the_sink_is_away(
    tmp_path: Path, pictures: list[bytes], deliver: Callable[..., Delivery]
) -> None:
    """Counted in the process that lives on, once for each row that was stored; drift survives, too."""
    model, wanted = watched_model(tmp_path / "model", pictures, times=5)
    sink, options = Keeping(away=2), EngineOptions(model=str(model))
    async with Engine(options, crashes=1, command=COMMAND) as engine:
        handler = ImageHandler(engine, sink, "host-1", sink_deadline_s=0.0)
        assert engine.reference == wanted
        with pytest.raises(Unavailable):
            await handler([deliver(each) for each in pictures[:50]])
        assert handler.quality.confidence.count == 0
        for at in range(0, 200, 50):
            batch = [deliver(each) for each in pictures[at : at + 50]]
            poison = deliver(marked(pictures[0], "decode:SIGKILL"))
            outcomes = await handler([*batch, poison, deliver(b"no image")])
            assert [type(each) for each in outcomes[-2:]] == [Reject, Reject]
        assert engine.crashes == 4
        assert engine.reference == wanted
    quality = handler.quality
    assert len(sink.rows) == 200
    assert quality.predictions == Counter(row.label for row in sink.rows)
    statuses = Counter(row.status for row in sink.rows)
    assert quality.abstentions == {"unsure": statuses["abstained"]}
    assert statuses["abstained"] == sum(
        row.confidence is not None and row.confidence < UNSURE for row in sink.rows
    )
    assert statuses["abstained"] > 0
    assert tuple(quality.brightness.counts) == tuple(count // 5 for count in wanted.brightness.counts)
    assert tuple(quality.confidence.counts) == tuple(count // 5 for count in wanted.confidence.counts)
    assert handler.sink.errors == 2
    assert handler.sink.seconds.count == 4
    assert max(quality.drift().psi.values(), default=0.0) < 0.02
    assert quality.drift().window.images == 200


@pytest.mark.anyio
async def test_where_rows_are_never_abstained_none_is_counted(
    tmp_path: Path, pictures: list[bytes], deliver: Callable[..., Delivery]
) -> None:
    """``COUTURIER_ABSTAIN=false``: the figures say what the rows say."""
    model, _ = watched_model(tmp_path / "model", pictures)
    sink = Keeping()
    async with Engine(EngineOptions(model=str(model), abstain=False)) as engine:
        handler = ImageHandler(engine, sink, "host-1")
        await handler([deliver(each) for each in pictures])
    assert {row.status for row in sink.rows} == {"ok"}
    assert not handler.quality.abstentions
