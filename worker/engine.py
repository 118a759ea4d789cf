"""Decode and predict in a process of their own, so that an image that kills it kills nothing else."""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

import structlog

from broker import Histogram, Unavailable
from classifier import errors
from classifier.reference import Reference

from .blame import Trial
from .engine_process import COMMAND, EngineOptions, EngineProcess, ProcessDied

log = structlog.stdlib.get_logger("worker.engine")

# Ids of messages that killed the process lately.
_REMEMBERED = 10_000
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.05, 5.0
# One image in a batch of 4,096 makes 13 of its parts fail in a row; more, and it is the engine.
_FAILURES = 20
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_KINDS = {
    each.__name__: each for each in (errors.ModelError, errors.MissingExtra, errors.DataError, ValueError)
}


class EngineError(Exception):
    """What the engine raised over a batch; it lives on, and one of the images is to blame."""


class Answer(NamedTuple):
    """The columns ``status`` to ``tags`` of a result row, and what is counted beside them.

    ``why``, ``brightness`` and ``blank`` are those of ``classifier.Prediction``.
    """

    status: str
    label: str
    label_index: int
    confidence: float
    runner_up: str
    runner_up_confidence: float
    group_label: str
    tags: str
    why: str
    brightness: float
    blank: bool

    @property
    def columns(self) -> tuple[str | float, ...]:
        """Those of a row."""
        return self[:8]


class Refused(NamedTuple):
    """An image that cannot be decoded: ``reason`` and ``detail`` of ``classifier.InvalidImage``."""

    reason: str
    detail: str


class Crashed(NamedTuple):
    """An image that killed the process too often.

    Attributes:
        stage: what the process was at: ``decode`` or ``predict``.
        error: how it died, and how often.
    """

    stage: str
    error: str


class Engine:
    """Keeps one process that decodes and predicts, and starts it again whenever it dies.

    Args:
        options: how the process works.
        crashes: so many deaths of it condemn an image.
        command: what is started instead of our own process.

    Attributes:
        model: name, version, hash and engine.
        reference: what the model's answers should look like; None if its bundle does not say.
        restarts: processes started after the first one.
        deaths: processes that died, by how.
        seconds: of decoding and predicting a batch.
    """

    def __init__(
        self, options: EngineOptions | None = None, crashes: int = 3, command: Sequence[str] = COMMAND
    ) -> None:
        self._options = options or EngineOptions()
        self._limit = crashes
        self._command = command
        self._process: EngineProcess | None = None
        self._fault = ""
        self._news = asyncio.Event()
        self._blamed: OrderedDict[str, int] = OrderedDict()
        self._failures = 0
        self.model: tuple[str, str, str, str] = ("", "", "", "")
        self.reference: Reference | None = None
        self.restarts = 0
        self.deaths: Counter[str] = Counter()
        self.seconds = Histogram(_SECONDS)

    @property
    def crashes(self) -> int:
        """How many processes died."""
        return sum(self.deaths.values())

    @property
    def alive(self) -> bool:
        """Whether the process is there and has loaded its model."""
        return self._process is not None and not self._process.how

    async def __aenter__(self) -> Engine:
        """Start the process; return once its model is loaded and checked.

        Raises:
            classifier.ClassifierError: the model cannot be used, or the process died.
            ValueError: an option does not work.
        """
        self._process = await self._start()
        self._keeper = asyncio.create_task(self._keep(self._process))
        return self

    async def __aexit__(self, *_: object) -> None:
        """End the process, at once if it is at work."""
        self._keeper.cancel()
        await asyncio.wait({self._keeper})
        if self._process is not None:
            self._process.on_death = None
            await self._process.aclose()

    async def predict(
        self, images: Sequence[bytes], ids: Sequence[str] | None = None
    ) -> list[Answer | Refused | Crashed]:
        """Return one answer per image, in order, whatever happens to the process.

        Args:
            images: encoded.
            ids: by which an image is known again when it comes another time; None forgets it.

        Raises:
            EngineError: the engine raised; one of the images is to blame.
            Unavailable: the process cannot be started; none of them is.
        """
        ids = ids or [""] * len(images)
        trial = Trial([self._blamed.get(each, 0) for each in ids], self._limit)
        answers: dict[int, Answer | Refused | Crashed] = {}
        while places := trial.next():
            try:
                found = await self._ask([images[place] for place in places])
            except ProcessDied as death:
                if death.begun:
                    condemned = trial.died(death.index)
                    self._remember(ids, places, trial)
                    if condemned is not None:
                        answers[condemned] = _crashed(death, trial.crashes[condemned])
                    _tell(death, [(ids[place], trial.crashes[place]) for place in places])
            else:
                answers.update(zip(places, found, strict=True))
                trial.answered()
                self._remember(ids, places, trial)
        return [answers[place] for place in range(len(images))]

    async def _ask(self, images: Sequence[bytes]) -> list[Answer | Refused]:
        process = await self._up()
        said = await process.ask(images)
        if "error" in said:
            self._failures += 1
            if self._failures >= _FAILURES:
                process.kill(f"failed {_FAILURES} times in a row, in the end: {said['error']}"[:200])
            raise EngineError(f"{said['kind']}: {said['error']}")
        self._failures = 0
        self.seconds.observe(sum(said["seconds"]))
        return [Answer(*each) if len(each) > 2 else Refused(*each) for each in said["answers"]]

    async def _up(self) -> EngineProcess:
        """Return the process as soon as there is one."""
        while self._process is None or self._process.how:
            if self._fault:
                raise Unavailable(self._fault)
            self._news.clear()
            await self._news.wait()
        return self._process

    async def _keep(self, process: EngineProcess) -> None:
        """Start the process again whenever it dies."""
        while True:
            await asyncio.shield(process.ended)
            self._failures = 0
            process = await self._restart(not process.answered)
            self._process, self._fault = process, ""
            self.restarts += 1
            self._news.set()

    async def _restart(self, failures: int) -> EngineProcess:
        """Start it, however often that takes.

        Args:
            failures: in a row, so far; nobody waits after the first death of one that worked.
        """
        while True:
            if failures:
                await asyncio.sleep(min(_LONGEST_WAIT_S, _FIRST_WAIT_S * 2.0 ** min(failures, 20)))
            try:
                return await self._start()
            except Exception as error:
                failures += 1
                self._fault = f"the engine does not start: {error}"
                log.error("the engine does not start", error=str(error))
                self._news.set()

    async def _start(self) -> EngineProcess:
        process = EngineProcess(self._command, self._options)
        try:
            await process.start()
        except ProcessDied as death:
            memory = self._options.memory_mb
            hint = f"; is COUTURIER_MEMORY_MB={memory} enough for the model?" if memory else ""
            raise errors.ClassifierError(f"the engine died while it started: {death}{hint}") from None
        if "error" in process.hello:
            await process.aclose()
            kind, text = _KINDS.get(process.hello["kind"], errors.ClassifierError), process.hello["error"]
            raise kind.__new__(kind, text)  # what it says is complete; MissingExtra would say it twice
        name, version, digest, engine = process.hello["model"]
        self.model = (name, version, digest, engine)
        reference = process.hello.get("reference")
        self.reference = None if reference is None else Reference.from_dict(reference)
        process.on_death = self._mourn
        return process

    def _mourn(self, how: str) -> None:
        self.deaths[how] += 1
        log.warning("the engine died", how=how)

    def _remember(self, ids: Sequence[str], places: Sequence[int], trial: Trial) -> None:
        """Keep what messages have to answer for, should they come again."""
        for place in places:
            name, crashes = ids[place], trial.crashes[place]
            if not crashes:
                if self._blamed:
                    self._blamed.pop(name, None)
            elif name:
                # Once condemned, one more death is enough.
                self._blamed[name] = min(crashes, self._limit - 1)
                self._blamed.move_to_end(name)
        while len(self._blamed) > _REMEMBERED:
            self._blamed.popitem(last=False)


def _stage(death: ProcessDied) -> str:
    return "predict" if death.index is None else "decode"


def _crashed(death: ProcessDied, crashes: int) -> Crashed:
    times = "once" if crashes == 1 else f"{crashes} times"
    return Crashed(_stage(death), f"the engine died of it {times}, in the end: {death}")


def _tell(death: ProcessDied, suspects: Sequence[tuple[str, int]]) -> None:
    blamed = {name: crashes for name, crashes in suspects if crashes}
    stage = _stage(death)
    log.warning("an image killed the engine", how=str(death), stage=stage, of=len(suspects), blamed=blamed)
