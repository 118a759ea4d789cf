"""The process that decodes and predicts; it may die of an image, and its parent goes on.

``python -m worker.engine_child SOCKET CELL OPTIONS``: two inherited descriptors and a JSON object.

On the socket (little-endian): a request is ``number, images, bytes``, the length of every image, then their
bytes; an answer is ``number, bytes`` and a JSON object. Number 0 is what is said at the start: the facts of
the model, or why there is none. Where the work stands is written into a page of shared memory (``Cell``),
which a parent can still read when this process is gone.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import mmap
import os
import signal
import socket
import struct
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from classifier.images import InvalidImage
    from classifier.predict import Prediction

REQUEST = struct.Struct("<IIQ")
ANSWER = struct.Struct("<IQ")
CELL_BYTES = 4096
IDLE, READING, DECODING, PREDICTING = range(4)
# sysexits.h calls it EX_OSERR, and Python never ends with it.
OUT_OF_MEMORY = 71
_PR_SET_PDEATHSIG = 1
# How ONNX Runtime and torch say that they got no memory, which is no image's fault for sure.
_NO_MEMORY = ("Failed to allocate memory", "can't allocate memory", "bad_alloc", "bad allocation")


class Predictor(Protocol):
    """What is served: a ``classifier.Classifier``."""

    @property
    def manifest(self) -> Any: ...

    @property
    def engine(self) -> str: ...

    def predict(self, images: Sequence[bytes]) -> list[Prediction | InvalidImage]: ...

    def self_test(self) -> None: ...


class Cell:
    """Where the work stands: number of the request, stage, index of the image. Outlives its writer."""

    def __init__(self, descriptor: int) -> None:
        self._words = memoryview(mmap.mmap(descriptor, CELL_BYTES)).cast("I")

    def put(self, number: int, stage: int, index: int = 0) -> None:
        """Note it; costs well under a microsecond."""
        words = self._words
        words[0], words[1], words[2] = number, stage, index

    def at(self, index: int) -> None:
        """Note the image that is decoded now."""
        self._words[2] = index

    def stage(self, stage: int) -> None:
        """Note the stage that begins."""
        self._words[1] = stage

    def read(self) -> tuple[int, int, int]:
        """Return number, stage and index."""
        return self._words[0], self._words[1], self._words[2]


class _Watched(list[bytes]):
    """The images of a request; whoever goes through them, decoding, leaves a trace in the cell."""

    def __init__(self, images: Sequence[bytes], cell: Cell) -> None:
        super().__init__(images)
        self._cell = cell
        self.decoded_at = time.perf_counter()

    def __iter__(self) -> Iterator[bytes]:
        self._cell.stage(DECODING)
        for index, image in enumerate(super().__iter__()):
            self._cell.at(index)
            yield image
        self._cell.stage(PREDICTING)
        self.decoded_at = time.perf_counter()


Load = Callable[[str | None, str, int], Predictor]


def main(load: Load | None = None) -> None:
    """Serve the parent until it hangs up.

    Args:
        load: called with directory, engine and threads, returns what predicts; None for ``Classifier.load``.
    """
    channel, cell = socket.socket(fileno=int(sys.argv[1])), Cell(int(sys.argv[2]))
    options = json.loads(sys.argv[3])
    _settle_in(options["parent"], options["memory_mb"])
    try:
        classifier = _start(channel, load, options)
        if classifier is not None:
            _serve(channel, cell, classifier, options["abstain"])
    except MemoryError:
        os._exit(OUT_OF_MEMORY)
    except (EOFError, ConnectionError):
        pass  # the parent is gone, or wants us to go
    # Not through the interpreter's end: there is nothing to save, and native threads can hold that up.
    os._exit(0)


def _settle_in(parent: int, memory_mb: int | None) -> None:
    faulthandler.enable()
    # Whoever stops a whole group of processes stops the parent, which finishes its work first.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        # When memory runs out the kernel shall take us, not the process that holds the messages.
        with contextlib.suppress(OSError):
            Path("/proc/self/oom_score_adj").write_text("1000")
    if os.getppid() != parent:
        os._exit(0)
    if memory_mb is not None:
        import resource

        limit = memory_mb * 1024 * 1024
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


def _start(channel: socket.socket, load: Load | None, options: Mapping[str, Any]) -> Predictor | None:
    """Load and check the model; tell the parent which one it is, or what is wrong with it."""
    from classifier.errors import ClassifierError

    try:
        if load is None:
            from classifier.predict import Classifier

            load = Classifier.load
        classifier = load(options["model"], options["engine"], options["threads"])
        # A machine that decodes or computes differently is found now; nor need the first image warm us up.
        classifier.self_test()
    except (ClassifierError, ValueError) as error:
        _send(channel, 0, {"error": str(error), "kind": type(error).__name__})
        return None
    about = classifier.manifest
    reference = None if about.reference is None else asdict(about.reference)
    model = [about.name, about.version, about.hash, classifier.engine]
    _send(channel, 0, {"model": model, "reference": reference})
    return classifier


def _serve(channel: socket.socket, cell: Cell, classifier: Predictor, abstain: bool) -> None:
    while True:
        number, count, size = REQUEST.unpack(_read(channel, REQUEST.size))
        cell.put(number, READING)
        lengths = struct.unpack(f"<{count}I", _read(channel, 4 * count))
        body, start, images = memoryview(_read(channel, size)), 0, []
        for length in lengths:
            images.append(bytes(body[start : start + length]))
            start += length
        answer = _answer(number, images, cell, classifier, abstain)
        cell.put(number, IDLE)
        _send(channel, number, answer)


def _answer(
    number: int, images: Sequence[bytes], cell: Cell, classifier: Predictor, abstain: bool
) -> dict[str, object]:
    begin = time.perf_counter()
    cell.put(number, PREDICTING)
    watched = _Watched(images, cell)
    try:
        found = classifier.predict(watched)
        end = time.perf_counter()
        answers = [_columns(each, abstain) for each in found]
    except Exception as error:
        if isinstance(error, MemoryError) or any(sign in str(error) for sign in _NO_MEMORY):
            raise MemoryError from error
        return {"error": str(error), "kind": type(error).__name__}
    for index, each in enumerate(answers):
        if len(each) == 2 and str(each[1]).startswith("MemoryError"):
            # A decoder that got no memory says nothing about the image: to be tried again, afresh.
            cell.put(number, DECODING, index)
            raise MemoryError
    return {"answers": answers, "seconds": [watched.decoded_at - begin, end - watched.decoded_at]}


def _columns(found: Prediction | InvalidImage, abstain: bool) -> tuple[str | float | int, ...]:
    """The fields of ``worker.engine.Answer``, or reason and detail of an image that is refused."""
    from classifier.images import InvalidImage

    if isinstance(found, InvalidImage):
        return found.reason, found.detail
    return (
        "abstained" if abstain and found.abstained else "ok",
        found.label,
        found.label_index,
        found.confidence,
        found.runner_up,
        found.runner_up_confidence,
        found.group_label,
        json.dumps(found.tags, ensure_ascii=False) if found.tags else "[]",
        found.why,
        round(found.brightness, 1),
        found.blank,
    )


def _read(channel: socket.socket, size: int) -> bytearray:
    """Return exactly ``size`` bytes; ``EOFError`` when the parent has hung up."""
    data = bytearray(size)
    view, got = memoryview(data), 0
    while got < size:
        count = channel.recv_into(view[got:])
        if not count:
            raise EOFError
        got += count
    return data


def _send(channel: socket.socket, number: int, answer: dict[str, object]) -> None:
    body = json.dumps(answer).encode()
    channel.sendall(ANSWER.pack(number, len(body)) + body)


if __name__ == "__main__":
    main()
