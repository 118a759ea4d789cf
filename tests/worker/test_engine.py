"""The engine's process dies of images, and no other image notices."""

from __future__ import annotations

import asyncio
import io
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

import pytest
from odd_engine import COMMAND, marked
from PIL import Image
from rig import PATIENCE_S, runs

from classifier import Classifier, InvalidImage, Prediction
from worker.engine import Answer, Crashed, Engine, EngineError, Refused
from worker.engine_process import EngineOptions

pytestmark = [pytest.mark.anyio, pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")]

LIMIT = 2


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
async def engine() -> AsyncIterator[Engine]:
    """One that obeys marks, for tests that bring it back to life."""
    async with Engine(crashes=LIMIT, command=COMMAND) as engine:
        yield engine


async def until(met: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not met():
            await asyncio.sleep(0.01)


def child_of(engine: Engine) -> int:
    assert engine._process is not None
    return engine._process._process.pid


def check(answers: Sequence[Answer | Refused | Crashed], truth: Sequence[Prediction | InvalidImage]) -> None:
    """Same labels, same probabilities, same refusals, in the same places."""
    assert len(answers) == len(truth)
    for answer, expected in zip(answers, truth, strict=True):
        if isinstance(expected, InvalidImage):
            assert answer == Refused(expected.reason, expected.detail)
        else:
            assert isinstance(answer, Answer)
            assert (answer.status, answer.label, answer.label_index) == (
                "abstained" if expected.abstained else "ok",
                expected.label,
                expected.label_index,
            )
            assert (answer.runner_up, answer.group_label) == (expected.runner_up, expected.group_label)
            assert answer.confidence == pytest.approx(expected.confidence, abs=1e-5)
            assert answer.runner_up_confidence == pytest.approx(expected.runner_up_confidence, abs=1e-5)


async def test_answers_are_those_of_the_classifier(classifier: Classifier, pictures: list[bytes]) -> None:
    """Through the process as through a call: good and bad, small and large, in order."""
    large = io.BytesIO()
    Image.effect_noise((2000, 2000), 50).save(large, "PNG")
    images = [pictures[0], b"", large.getvalue(), *pictures[1:100], b"GIF89a"]
    async with Engine() as engine:
        check(await engine.predict(images), classifier.predict(images))
        assert await engine.predict([]) == []
        both = await asyncio.gather(engine.predict(pictures[:100]), engine.predict(pictures[100:]))
        check([*both[0], *both[1]], classifier.predict(pictures))
        manifest = classifier.manifest
        assert engine.model == (manifest.name, manifest.version, manifest.hash, "onnx")
        assert (engine.alive, engine.restarts, engine.crashes) == (True, 0, 0)
        assert engine.seconds.count == 3
        child = child_of(engine)
    assert not runs(child)
    assert not engine.alive


HOWS = {
    "SIGSEGV": "SIGSEGV",
    "abort": "SIGABRT",
    "SIGKILL": "SIGKILL, as when memory runs out",
    "exit": "exit code 3",
}


@pytest.mark.parametrize("what", HOWS)
@pytest.mark.parametrize("stage", ["decode", "predict"])
async def test_an_image_that_kills_is_condemned_and_its_neighbours_are_answered(
    engine: Engine, classifier: Classifier, pictures: list[bytes], stage: str, what: str
) -> None:
    """At the price of as many processes as it is allowed to kill, and no more."""
    before, deaths = engine.crashes, engine.deaths[HOWS[what]]
    images = [*pictures[:5], marked(pictures[5], f"{stage}:{what}"), *pictures[6:16]]
    answers = await engine.predict(images)
    found = answers.pop(5)
    assert isinstance(found, Crashed)
    assert found.stage == stage
    assert HOWS[what] in found.error
    assert f"{LIMIT} times" in found.error
    check(answers, classifier.predict([*pictures[:5], *pictures[6:16]]))
    assert engine.crashes - before == LIMIT == engine.deaths[HOWS[what]] - deaths


async def test_it_is_condemned_at_every_index_of_a_batch(
    classifier: Classifier, pictures: list[bytes]
) -> None:
    """One death is enough to know whom to blame while it is decoded."""
    truth = classifier.predict(pictures[:16])
    async with Engine(crashes=1, command=COMMAND) as engine:
        for index in range(16):
            images = list(pictures[:16])
            images[index] = marked(images[index], "decode:SIGSEGV")
            answers = await engine.predict(images)
            assert isinstance(answers.pop(index), Crashed)
            check(answers, [*truth[:index], *truth[index + 1 :]])
        assert engine.crashes == 16


async def test_several_deadly_images_in_one_batch(
    engine: Engine, classifier: Classifier, pictures: list[bytes]
) -> None:
    """First, last and in between, at either stage."""
    before, images = engine.crashes, list(pictures[:12])
    faults = {0: "predict:SIGSEGV", 5: "decode:abort", 6: "predict:exit", 11: "decode:SIGSEGV"}
    for place, fault in faults.items():
        images[place] = marked(images[place], fault)
    answers = await engine.predict(images)
    crashed = {place: each.stage for place, each in enumerate(answers) if isinstance(each, Crashed)}
    assert crashed == {place: fault.partition(":")[0] for place, fault in faults.items()}
    good = [place for place in range(12) if place not in faults]
    check([answers[place] for place in good], classifier.predict([pictures[place] for place in good]))
    assert engine.crashes - before == LIMIT * len(faults)


async def test_a_batch_that_waits_behind_a_deadly_one_is_not_suspected(
    engine: Engine, classifier: Classifier, pictures: list[bytes]
) -> None:
    """It had been sent already when the process died, and is sent again."""
    before = engine.crashes
    deadly = [marked(pictures[0], "predict:SIGSEGV")]
    first, second = await asyncio.gather(
        engine.predict(deadly, ["deadly"]), engine.predict(pictures, [f"id-{n}" for n in range(200)])
    )
    assert isinstance(first[0], Crashed)
    check(second, classifier.predict(pictures))
    assert engine.crashes - before == LIMIT
    assert set(engine._blamed) == {"deadly"}


@pytest.mark.parametrize("stage", ["decode", "predict"])
async def test_an_image_that_hangs_is_condemned_in_time(
    classifier: Classifier, pictures: list[bytes], stage: str
) -> None:
    """The watchdog waits for progress, not for the batch."""
    images = [*pictures[:3], marked(pictures[3], f"{stage}:hang")]
    async with Engine(EngineOptions(timeout_s=2.0), crashes=1, command=COMMAND) as engine:
        begin = time.monotonic()
        answers = await engine.predict(images)
        deaths = 1 if stage == "decode" else 2
        assert 2.0 * deaths < time.monotonic() - begin < PATIENCE_S
        crashed = answers.pop()
        assert isinstance(crashed, Crashed)
        assert (crashed.stage, engine.crashes) == (stage, deaths)
        assert "COUTURIER_PREDICT_TIMEOUT" in crashed.error
        check(answers, classifier.predict(pictures[:3]))
        # Longer than the limit as a whole, but every step is in time.
        slow = [marked(each, "decode:sleep=0.5") for each in pictures[:6]]
        check(await engine.predict(slow), classifier.predict(pictures[:6]))
        assert engine.crashes == deaths


async def test_an_image_that_needs_too_much_memory_is_condemned(
    classifier: Classifier, pictures: list[bytes]
) -> None:
    """Not refused as no image: another machine may have the memory."""
    options = EngineOptions(memory_mb=512)
    images = [pictures[0], marked(pictures[1], "predict:memory"), pictures[2]]
    async with Engine(options, crashes=LIMIT, command=COMMAND) as engine:
        answers = await engine.predict(images)
        crashed = answers.pop(1)
        assert isinstance(crashed, Crashed)
        assert "COUTURIER_MEMORY_MB=512" in crashed.error
        check(answers, classifier.predict([pictures[0], pictures[2]]))


async def test_a_picture_that_does_not_fit_into_memory_is_no_invalid_image(pictures: list[bytes]) -> None:
    """A real one, within all limits of size, that the decoder gets no memory for."""
    picture = io.BytesIO()
    Image.new("RGBA", (4096, 4096), (1, 2, 3, 4)).save(picture, "PNG")
    async with Engine(EngineOptions(memory_mb=160), crashes=1) as engine:
        answers = await engine.predict([pictures[0], picture.getvalue(), pictures[1]])
        assert isinstance(answers[0], Answer)
        assert isinstance(answers[1], Crashed)
        assert answers[1].stage == "decode"
        assert "COUTURIER_MEMORY_MB=160" in answers[1].error
        assert isinstance(answers[2], Answer)


async def test_a_death_that_is_no_images_fault_blames_none(
    engine: Engine, classifier: Classifier, pictures: list[bytes], tmp_path: Path
) -> None:
    """The kernel or a person killed it: the same images are answered by the next one."""
    before = engine.crashes
    images = [*pictures[:7], marked(pictures[7], f"predict:once={tmp_path / 'killed'}"), pictures[8]]
    check(
        await engine.predict(images, [f"id-{n}" for n in range(9)]),
        classifier.predict(pictures[:9]),
    )
    assert engine.crashes - before == 1
    assert not [each for each in engine._blamed if each.startswith("id-")]


async def test_a_killer_that_comes_again_is_known(
    engine: Engine, classifier: Classifier, pictures: list[bytes]
) -> None:
    """It is tried alone from the beginning, and once more is enough."""
    before, images = engine.crashes, [pictures[0], marked(pictures[1], "predict:SIGSEGV"), pictures[2]]
    ids = ["a", "again", "c"]
    running = asyncio.create_task(engine.predict(images, ids))
    await until(lambda: engine._blamed.get("again", 0) == 1 or running.done())
    if not running.done():  # it was handed back before it was condemned
        running.cancel()
        await asyncio.wait({running})
    for _ in range(2):
        answers = await engine.predict(images, ids)
        assert isinstance(answers.pop(1), Crashed)
        check(answers, classifier.predict([pictures[0], pictures[2]]))
    assert engine.crashes - before <= LIMIT + 2
    # An operator repaired the model and replayed it: it is not condemned unheard.
    check(await engine.predict([pictures[1]], ["again"]), classifier.predict([pictures[1]]))
    assert "again" not in engine._blamed


@pytest.mark.parametrize("stage", ["decode", "predict"])
async def test_what_the_engine_raises_is_raised_here(
    engine: Engine, classifier: Classifier, pictures: list[bytes], stage: str
) -> None:
    """The process goes on; who called finds out which image it was."""
    before = engine.crashes
    with pytest.raises(EngineError, match="RuntimeError: the engine failed"):
        await engine.predict([pictures[0], marked(pictures[1], f"{stage}:raise")])
    check(await engine.predict(pictures[:2]), classifier.predict(pictures[:2]))
    assert engine.crashes == before


async def test_a_caller_that_gives_up_leaves_no_confusion(
    engine: Engine, classifier: Classifier, pictures: list[bytes]
) -> None:
    """The answer that nobody waits for is not taken for the next one."""
    before = engine.crashes
    given_up = asyncio.create_task(engine.predict([marked(pictures[0], "predict:sleep=0.3"), b"", b""]))
    await asyncio.sleep(0.1)
    given_up.cancel()
    check(await engine.predict(pictures[:9]), classifier.predict(pictures[:9]))
    assert given_up.cancelled()
    assert engine.crashes == before
