"""A worker whose engine obeys what is written behind an image: ``python -m tests.faults.odd_worker``.

Everything else is the real command. ``python -m tests.faults.odd_worker engine ...`` is its engine.
"""

from __future__ import annotations

import asyncio
import os
import resource
import sys
from collections.abc import Sequence
from pathlib import Path

from classifier import Classifier, InvalidImage, Prediction

MARK = b"\0odd:"
COMMAND = ("-m", "tests.faults.odd_worker")


def marked(picture: bytes, order: str) -> bytes:
    """Return a picture with an order behind it: ``abort``, ``raise``, or ``fail=TIMES=PATH``.

    The last raises so many times for this image, and counts them in a file.
    """
    return picture + MARK + order.encode()


class Odd(Classifier):
    """Obeys, then predicts as ever."""

    def predict(self, images: Sequence[bytes]) -> list[Prediction | InvalidImage]:
        orders = [image.partition(MARK)[2].decode() for image in images]
        for order in filter(None, orders):
            obey(order, len(images) == 1)
        return super().predict([image.partition(MARK)[0] for image in images])


def obey(order: str, alone: bool) -> None:
    """Do what is written behind an image."""
    what, _, detail = order.partition("=")
    if what == "abort":
        os.abort()
    times, _, path = detail.partition("=")
    if what == "fail" and alone:
        with Path(path).open("a+") as file:
            file.write("x")
            if file.tell() > int(times):
                return
    raise RuntimeError("the engine failed")


def serve() -> None:
    """Be the engine's process."""
    from worker import engine_child

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    del sys.argv[1]
    engine_child.main(Odd.load)


def work() -> int:
    """Be the worker; its options stand in the environment."""
    from worker import Launch, run
    from worker.log import configure
    from worker.settings import load

    settings = load()
    configure(settings.log_level, settings.log_format)
    ready = Path(sys.argv[sys.argv.index("--ready-file") + 1])
    return asyncio.run(run(settings, Launch(ready, engine=(sys.executable, *COMMAND, "engine"))))


if __name__ == "__main__":
    if sys.argv[1] == "engine":
        serve()
    else:
        sys.exit(work())
