"""The engine's process, with images that hurt it: ``marked(picture, "decode:SIGSEGV")``.

The real classifier, which first obeys what is written behind an image: at which stage, and what to do.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from classifier import Classifier, InvalidImage, Prediction
from worker import engine_child

MARK = b"\0odd:"
COMMAND = (sys.executable, str(Path(__file__)))


def marked(picture: bytes, fault: str) -> bytes:
    """The picture with a fault: ``stage:what``, where stage is ``decode`` or ``predict``.

    ``what`` is the name of a signal, ``exit``, ``abort``, ``hang``, ``memory``, ``arena``, ``raise``,
    ``sleep=SECONDS``, ``wait=PATH``, for that file, or ``once=PATH``: SIGKILL, unless that file is there.
    """
    return picture + MARK + fault.encode()


class Odd(Classifier):
    """Obeys the marks."""

    def predict(self, images: Sequence[bytes]) -> list[Prediction | InvalidImage]:
        clean, later = [], []
        for image in images:
            picture, _, fault = image.partition(MARK)
            stage, _, what = fault.decode().partition(":")
            if stage == "decode":
                obey(what)
            later.append(what if stage == "predict" else "")
            clean.append(picture)
        for what in later:
            obey(what)
        return super().predict(clean)


def obey(what: str) -> None:
    """Do what is written behind an image."""
    what, _, detail = what.partition("=")
    if what.startswith("SIG"):
        os.kill(os.getpid(), signal.Signals[what])
    elif what == "abort":
        os.abort()
    elif what == "exit":
        os._exit(3)
    elif what == "hang":
        while True:
            time.sleep(1)
    elif what == "memory":
        hoard = []
        while True:
            hoard.append(bytearray(16 * 1024 * 1024))
    elif what == "raise":
        raise RuntimeError("the engine failed")
    elif what == "arena":
        raise RuntimeError("AllocateRawInternal Failed to allocate memory for requested buffer of size 1")
    elif what == "sleep":
        time.sleep(float(detail))
    elif what == "wait":
        while not Path(detail).exists():
            time.sleep(0.01)
    elif what == "once" and not Path(detail).exists():
        Path(detail).touch()
        os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    engine_child.main(Odd.load)
