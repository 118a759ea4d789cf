"""The engine's process: how it starts, what keeps it alive, and that it ends with its parent."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from odd_engine import COMMAND, marked
from rig import runs
from test_engine import check, child_of, until

import classifier as package
from broker import Unavailable
from classifier import Classifier, ClassifierError, ModelError
from worker.engine import Crashed, Engine, EngineError
from worker.engine_process import EngineOptions, EngineProcess

pytestmark = [pytest.mark.anyio, pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")]

SHIPPED = Path(package.__file__).parent / "assets" / "student"


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
async def engine() -> AsyncIterator[Engine]:
    """One for all tests that leave it alive."""
    async with Engine() as engine:
        yield engine


def oom_score_adj(pid: int) -> int:
    return int(Path(f"/proc/{pid}/oom_score_adj").read_text())


BROKEN = {
    "no model": (EngineOptions(model="/nowhere"), ModelError, "manifest"),
    "no such engine": (EngineOptions(engine="gpu"), ValueError, "unknown engine"),
    "too little memory": (EngineOptions(memory_mb=16), ClassifierError, "COUTURIER_MEMORY_MB=16"),
}


@pytest.mark.parametrize("name", BROKEN)
async def test_what_keeps_it_from_starting_is_said_in_its_own_words(name: str) -> None:
    """As if the model were loaded here: the class decides the exit code."""
    options, kind, text = BROKEN[name]
    with pytest.raises(kind, match=text):
        async with Engine(options):
            pass


async def test_a_process_that_dies_while_it_starts_is_an_error() -> None:
    """And no endless loop."""
    with pytest.raises(ClassifierError, match=r"died while it started: exit code 1$"):
        async with Engine(command=[sys.executable, "-c", "raise SystemExit(1)"]):
            pass


async def test_an_engine_that_cannot_start_again_blames_nobody(
    classifier: Classifier, pictures: list[bytes], tmp_path: Path
) -> None:
    """Its model is gone for a while: an outage, which ends by itself."""
    bundle = tmp_path / "bundle"
    shutil.copytree(SHIPPED, bundle)
    async with Engine(EngineOptions(model=str(bundle))) as engine:
        bundle.rename(tmp_path / "away")
        os.kill(child_of(engine), signal.SIGKILL)
        await until(lambda: not engine.alive)
        with pytest.raises(Unavailable, match=r"does not start: .*manifest"):
            await engine.predict(pictures[:2])
        (tmp_path / "away").rename(bundle)
        await until(lambda: engine.alive)
        check(await engine.predict(pictures[:2]), classifier.predict(pictures[:2]))
        assert engine.restarts == 1


async def test_an_engine_that_gets_no_memory_is_started_afresh(
    classifier: Classifier, pictures: list[bytes]
) -> None:
    """It may be full of what others left behind: the image is tried again, not blamed for an error."""
    async with Engine(crashes=2, command=COMMAND) as engine:
        answers = await engine.predict([pictures[0], marked(pictures[1], "predict:arena"), pictures[2]])
        crashed = answers.pop(1)
        assert isinstance(crashed, Crashed)
        assert "out of memory" in crashed.error
        assert engine.crashes == 2
        check(answers, classifier.predict([pictures[0], pictures[2]]))


async def test_an_engine_that_does_nothing_but_fail_is_started_afresh(
    classifier: Classifier, pictures: list[bytes]
) -> None:
    """Some errors stay until the process ends."""
    async with Engine(command=COMMAND) as engine:
        for _ in range(20):
            assert engine.crashes == 0
            with pytest.raises(EngineError, match="the engine failed"):
                await engine.predict([marked(pictures[0], "predict:raise")])
        await until(lambda: engine.restarts == 1)
        assert "failed 20 times in a row" in next(iter(engine.deaths))
        check(await engine.predict(pictures[:2]), classifier.predict(pictures[:2]))


NONSENSE = """
from worker import engine_child

def send(channel, number, answer, honest=engine_child._send):
    if not number:
        return honest(channel, number, answer)
    body = b"[" * 100_000
    channel.sendall(engine_child.ANSWER.pack(number, len(body)) + body)

engine_child._send = send
engine_child.main()
"""


async def test_a_process_that_talks_nonsense_is_killed(pictures: list[bytes]) -> None:
    """A hostile image may have taken it over."""
    async with Engine(crashes=1, command=(sys.executable, "-c", NONSENSE)) as engine:
        (crashed,) = await engine.predict(pictures[:1])
        assert isinstance(crashed, Crashed)
        assert "makes no sense" in crashed.error


async def test_an_idle_process_that_is_killed_is_replaced(
    engine: Engine, classifier: Classifier, pictures: list[bytes]
) -> None:
    """Before anyone asks."""
    before, victim = engine.restarts, child_of(engine)
    os.kill(victim, signal.SIGKILL)
    await until(lambda: engine.restarts > before)
    assert engine.alive
    assert child_of(engine) != victim
    check(await engine.predict(pictures[:3]), classifier.predict(pictures[:3]))


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP"])
async def test_signals_to_a_whole_group_of_processes_leave_it_alone(
    engine: Engine, classifier: Classifier, pictures: list[bytes], name: str
) -> None:
    """The parent drains, and needs it for that."""
    before = engine.crashes
    os.kill(child_of(engine), signal.Signals[name])
    check(await engine.predict(pictures[:3]), classifier.predict(pictures[:3]))
    assert engine.crashes == before
    assert os.getpgid(child_of(engine)) != os.getpgid(0)


async def test_the_kernel_is_told_whom_to_take(engine: Engine) -> None:
    """When memory runs out, the process that holds no message goes first."""
    assert oom_score_adj(child_of(engine)) == 1000


PARENT = """
import asyncio, sys
from odd_engine import COMMAND, marked
from client.sources.fashion_mnist import FashionMnist
from worker.engine import Crashed, Engine, EngineError
from worker.engine_process import EngineOptions

async def main():
    picture = next(iter(FashionMnist(1))).request.image
    async with Engine(EngineOptions(timeout_s=float(sys.argv[2])), command=COMMAND) as engine:
        running = asyncio.create_task(engine.predict([marked(picture, sys.argv[1])]))
        while engine._process._cell.read()[1] == 0:
            await asyncio.sleep(0.01)
        print(engine._process._process.pid, flush=True)
        print((await running)[0].status, engine.crashes, flush=True)

asyncio.run(main())
"""


def parent(fault: str, timeout_s: float) -> tuple[subprocess.Popen[str], int]:
    """Start a process with an engine that is at work; return it, and the engine's process."""
    process = subprocess.Popen(
        [sys.executable, "-c", PARENT, fault, str(timeout_s)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)},
    )
    assert process.stdout is not None
    return process, int(process.stdout.readline())


async def test_it_does_not_outlive_its_parent() -> None:
    """Not even while it hangs, where it cannot see that its parent is gone."""
    process, child = parent("predict:hang", 600.0)
    with process:
        assert runs(child)
        process.kill()
        begin = time.monotonic()
        await until(lambda: not runs(child))
        assert time.monotonic() - begin < 5.0  # a second, were this machine idle


async def test_a_frozen_machine_is_no_hanging_process() -> None:
    """Both were stopped for longer than the watchdog waits; nothing is killed."""
    process, child = parent("predict:sleep=1", 2.0)
    with process:
        for pid in (process.pid, child):
            os.kill(pid, signal.SIGSTOP)
        await asyncio.sleep(3.0)
        for pid in (child, process.pid):
            os.kill(pid, signal.SIGCONT)
        assert process.stdout is not None
        assert await asyncio.to_thread(process.stdout.readline) == "ok 0\n"


async def test_a_start_that_is_cancelled_leaves_no_process() -> None:
    """It is killed and reaped before the cancellation goes on."""
    silent = EngineProcess([sys.executable, "-c", "import time; time.sleep(600)"], EngineOptions())
    starting = asyncio.create_task(silent.start())
    while not hasattr(silent, "ended"):
        await asyncio.sleep(0.01)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert silent.ended.done()
    assert "SIGKILL" in silent.how
