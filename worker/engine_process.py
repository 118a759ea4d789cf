"""The parent's end of one process that decodes and predicts: started, asked, watched, and autopsied."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .engine_child import ANSWER, CELL_BYTES, DECODING, OUT_OF_MEMORY, REQUEST, Cell

COMMAND = (sys.executable, "-m", "worker.engine_child")
# Importing torch on a busy machine takes that long.
_START_S = 120.0
_EXIT_S = 5.0
# The watchdog counts its own looks, so that a suspended machine is not taken for a hanging process.
_LOOKS = 10
# No honest answer is near this; a process that a hostile image took over must not fill our memory.
_MAX_ANSWER_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """How the process works.

    Attributes:
        model: a bundle's directory, or the name of a shipped one; None for the student.
        engine: one of ``classifier.ENGINES``.
        threads: of one prediction.
        timeout_s: without progress for this long it is killed, seconds.
        memory_mb: it dies rather than to allocate more, MiB; None is no limit.
        abstain: an image on which the model declines to answer is ``abstained``, not ``ok``.
    """

    model: str | None = None
    engine: str = "onnx"
    threads: int = 1
    timeout_s: float = 30.0
    memory_mb: int | None = None
    abstain: bool = True


class ProcessDied(Exception):  # noqa: N818 - says what happened, not what is wrong with us
    """The process is gone, and with it the answer.

    Attributes:
        begun: whether it had begun with this request.
        index: the image that it was decoding; None where it cannot be said.
    """

    def __init__(self, how: str, begun: bool, index: int | None) -> None:
        super().__init__(how)
        self.begun = begun
        self.index = index


class EngineProcess:
    """One process. Requests are answered in order; the next may be sent before the last is answered.

    Attributes:
        hello: what it said first: ``{"model": [...], "reference": {...}}``, or
            ``{"error": ..., "kind": ...}``.
        answered: how many requests were.
        how: how it ended; empty while it lives.
        on_death: is told how it ended, before anyone who waits for an answer.
    """

    def __init__(self, command: Sequence[str], options: EngineOptions) -> None:
        self._options = options
        self._channel, theirs = socket.socketpair()
        descriptor = _shared_page()
        wishes = json.dumps({**asdict(options), "parent": os.getpid()})
        try:
            self._process = subprocess.Popen(  # noqa: S603 - our own command
                [*command, str(theirs.fileno()), str(descriptor), wishes],
                pass_fds=(theirs.fileno(), descriptor),
                stdin=subprocess.DEVNULL,
                stdout=2,  # nothing that a library prints there may end in our own output
                process_group=0,  # Ctrl-C is for us
            )
            self._cell = Cell(descriptor)
        except BaseException:
            self._channel.close()
            raise
        finally:
            theirs.close()
            os.close(descriptor)
        self.hello: dict[str, Any] = {}
        self.answered = 0
        self.how = ""
        self.on_death: Callable[[str], None] | None = None
        self._why = ""
        self._number = 0
        self._waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}

    async def start(self) -> None:
        """Return once it said hello.

        Raises:
            ProcessDied: it ended, or was killed because it said nothing for two minutes.
        """
        hello: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._waiting[0] = hello
        try:
            reader, self._writer = await asyncio.open_connection(sock=self._channel)
        except BaseException:
            self._process.kill()
            raise
        self.ended = asyncio.create_task(self._listen(reader))
        try:
            await asyncio.wait({hello}, timeout=_START_S)
        except asyncio.CancelledError:
            hello.cancel()
            self._process.kill()
            await asyncio.wait({self.ended})
            raise
        if not hello.done():
            self._process.kill()
        self.hello = await hello
        self._watchdog = asyncio.create_task(self._watch())

    async def ask(self, images: Sequence[bytes]) -> dict[str, Any]:
        """Return its answer to a batch.

        Raises:
            ProcessDied: there will be none.
        """
        if self.how:
            raise ProcessDied(self.how, False, None)
        self._number = self._number % 0xFFFFFFFF + 1
        number, lengths = self._number, [len(each) for each in images]
        answer: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._waiting[number] = answer
        header = REQUEST.pack(number, len(images), sum(lengths))
        self._writer.writelines([header, struct.pack(f"<{len(lengths)}I", *lengths), *images])
        with contextlib.suppress(ConnectionError):
            await self._writer.drain()
        return await answer

    def kill(self, why: str) -> None:
        """End it at once; ``how`` will say why."""
        self._why = why
        self._process.kill()

    async def aclose(self) -> None:
        """Let it end, at once if it is at work; return when it is gone."""
        if self._waiting:
            self._process.kill()
        self._writer.close()
        try:
            await asyncio.shield(self.ended)
        except asyncio.CancelledError:
            self._process.kill()
            raise

    async def _listen(self, reader: asyncio.StreamReader) -> None:
        """Hand answers to those who asked; in the end say how the process died, and of what."""
        try:
            while True:
                await self._hear(reader)
        except (asyncio.IncompleteReadError, OSError):
            pass  # it hung up
        except (ValueError, KeyError, RecursionError):
            # It is not to be trusted with another image.
            self.kill("said what makes no sense, killed")
        self.how = await self._autopsy()
        if self.on_death is not None:
            self.on_death(self.how)
        number, stage, index = self._cell.read()
        for waiting, asked in self._waiting.items():
            begun = waiting == number
            if not asked.done():
                asked.set_exception(
                    ProcessDied(self.how, begun, index if begun and stage == DECODING else None)
                )
        self._waiting.clear()
        self._writer.close()

    async def _hear(self, reader: asyncio.StreamReader) -> None:
        """Take one answer; an error other than that of the connection means that it makes no sense."""
        number, size = ANSWER.unpack(await reader.readexactly(ANSWER.size))
        if size > _MAX_ANSWER_BYTES:
            raise ValueError(f"an answer of {size:,} bytes")
        answer = json.loads(await reader.readexactly(size))
        asked = self._waiting.pop(number)
        if not asked.done():
            asked.set_result(answer)
        self.answered += 1

    async def _autopsy(self) -> str:
        code = None
        with contextlib.suppress(subprocess.TimeoutExpired):
            code = await asyncio.to_thread(self._process.wait, _EXIT_S)
        if code is None:
            self._process.kill()
            code = await asyncio.to_thread(self._process.wait)
        if self._why:
            return self._why
        if code == OUT_OF_MEMORY:
            cap = self._options.memory_mb
            return f"out of memory (COUTURIER_MEMORY_MB={cap})" if cap else "out of memory"
        return how_it_ended(code)

    async def _watch(self) -> None:
        """Kill the process when a request makes no progress."""
        before, still = (0, 0, 0), 0
        while not self.ended.done():
            await asyncio.sleep(self._options.timeout_s / _LOOKS)
            now = self._cell.read()
            still = still + 1 if now == before and self._waiting else 0
            before = now
            if still >= _LOOKS:
                self.kill(
                    f"no progress for {self._options.timeout_s:g} s (COUTURIER_PREDICT_TIMEOUT), killed"
                )
                return


def how_it_ended(code: int) -> str:
    """Return what an exit code means, for a person; a negative one is a signal."""
    if code >= 0:
        return f"exit code {code}"
    if code == -signal.SIGKILL:
        return "SIGKILL, as when memory runs out"
    with contextlib.suppress(ValueError):
        return signal.Signals(-code).name
    return f"signal {-code}"


def _shared_page() -> int:
    """Return a descriptor of memory that both processes can map."""
    if sys.platform == "linux":
        descriptor = os.memfd_create("couturier-engine")
    else:
        descriptor, name = tempfile.mkstemp()
        Path(name).unlink()
    os.ftruncate(descriptor, CELL_BYTES)
    return descriptor
