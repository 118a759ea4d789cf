"""How fast the HTTP door takes images: ``python -m benchmarks.gateway --json FILE``.

Beside each figure stands the same work without HTTP, measured in the same round: as many callers at a time,
each of whom waits until ledger and broker have its image (``client.gateway.intake``). The broker is the one
that the environment names; without one, an embedded queue in a directory of its own. Load, gateway and the
rest share this machine.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.client import HTTPConnection
from typing import Any

from broker import connect
from client import ClassifyRequest, Ledger
from client.gateway.intake import Intake
from client.settings import load
from client.sources.fashion_mnist import FashionMnist

from .report import add_outputs, facts, keep

_HEADERS = {"Content-Type": "image/png"}


def main() -> None:
    """Print what was measured as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--images", type=int, default=2000, help="of one measurement")
    parser.add_argument("--callers", type=int, nargs="*", default=[1, 8, 32])
    parser.add_argument("--rounds", type=int, default=3)
    add_outputs(parser, page=False)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        os.environ["COUTURIER_HOME"] = home
        found = asyncio.run(_rounds(options))
    report = {**facts("gateway"), "images": options.images, "measurements": found, "summary": _summary(found)}
    print(json.dumps(report, indent=1))
    keep(report, options)


async def _rounds(options: argparse.Namespace) -> list[dict[str, Any]]:
    images = [each.request.image for each in FashionMnist(min(options.images, 1000))]
    settings = load()
    found = []
    async with connect() as broker:
        await settings.ensure(broker)
        with Ledger() as ledger, _gateway() as port:
            async with Intake(broker, settings.topic, ledger) as intake:
                for number in range(options.rounds):
                    for callers in options.callers:
                        count = max(callers, options.images * min(callers, 8) // 8)
                        for name, caller in (("http", _poster(port)), ("without", _accepter(intake))):
                            times = await _measure(caller, images, callers, count)
                            found.append({"round": number, "how": name, "callers": callers, **times})
                            print(found[-1], file=sys.stderr)
    return found


async def _measure(
    caller: Callable[[], Callable[[bytes], Awaitable[None]]], images: list[bytes], callers: int, count: int
) -> dict[str, float]:
    """Have so many callers send so many images, each one after the other."""
    seconds: list[float] = []

    async def call(send: Callable[[bytes], Awaitable[None]], share: int) -> None:
        for number in range(share):
            begin = time.perf_counter()
            await send(images[number % len(images)])
            seconds.append(time.perf_counter() - begin)

    begin = time.perf_counter()
    await asyncio.gather(*(call(caller(), count // callers) for _ in range(callers)))
    elapsed_s = time.perf_counter() - begin
    p50, p99 = (1000 * statistics.quantiles(seconds, n=100)[each - 1] for each in (50, 99))
    return {"images_per_second": len(seconds) / elapsed_s, "p50_ms": p50, "p99_ms": p99}


def _poster(port: int) -> Callable[[], Callable[[bytes], Awaitable[None]]]:
    def caller() -> Callable[[bytes], Awaitable[None]]:
        connection = HTTPConnection("127.0.0.1", port)

        def post(image: bytes) -> None:
            connection.request("POST", "/v1/images", image, _HEADERS)
            answer = connection.getresponse()
            if answer.status != 202:
                raise RuntimeError(answer.read().decode())
            answer.read()

        # A thread each: the loop's own pool has fewer than there may be callers.
        thread = ThreadPoolExecutor(1)
        return lambda image: asyncio.get_running_loop().run_in_executor(thread, post, image)

    return caller


def _accepter(intake: Intake) -> Callable[[], Callable[[bytes], Awaitable[None]]]:
    async def accept(image: bytes) -> None:
        await intake.accept(ClassifyRequest(image=image))

    return lambda: accept


@contextmanager
def _gateway() -> Iterator[int]:
    """Run a gateway; yield its port."""
    command = [sys.executable, "-m", "couturier", "gateway", "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            for line in process.stderr:
                if found := re.match(r"serving http://\S+:(\d+)", line):
                    yield int(found[1])
                    break
            else:
                raise RuntimeError("the gateway did not start")
        finally:
            process.terminate()


def _summary(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return medians over the rounds, and the ratio within each round."""
    summary = []
    for callers in dict.fromkeys(each["callers"] for each in found):
        sides = [
            {each["round"]: each for each in found if each["callers"] == callers and each["how"] == how}
            for how in ("http", "without")
        ]
        ratios = [
            http["images_per_second"] / sides[1][each]["images_per_second"] for each, http in sides[0].items()
        ]
        summary.append(
            {
                "callers": callers,
                **{
                    f"{how}_{name}": statistics.median(each[name] for each in side.values())
                    for how, side in zip(("http", "without"), sides, strict=True)
                    for name in ("images_per_second", "p50_ms", "p99_ms")
                },
                "ratio": statistics.median(ratios),
            }
        )
    return summary


if __name__ == "__main__":
    main()
