"""``--with-worker``: a worker beside the gateway, started again when it dies."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from broker import RetryPolicy

log = logging.getLogger("client.gateway")

_RESTARTS = RetryPolicy(base=0.5, cap=30.0)
# Who ran for so long starts again at once.
_STEADY_S = 60.0
# So many ends before it was ready, and there is no point in going on.
_TRIES = 3
_WRONG = (2, 78)


class Companion:
    """One ``couturier worker`` command, which may run several processes: ``COUTURIER_PROCESSES``.

    Args:
        environment: of the command; says the same as the settings of the gateway.
    """

    def __init__(self, environment: dict[str, str]) -> None:
        self._environment = {**environment, "COUTURIER_UNTIL_STDIN_CLOSES": "true"}
        self._process: asyncio.subprocess.Process | None = None
        self._stopping = asyncio.Event()

    async def run(self) -> None:
        """Keep it running until ``stop``.

        Raises:
            ValueError: its settings do not work; it has said which.
            OSError: it does not get ready.
        """
        failures, ever_ready = 0, False
        with tempfile.TemporaryDirectory(prefix="couturier-") as directory:
            ready = Path(directory) / "ready"
            while not self._stopping.is_set():
                began = time.monotonic()
                code = await self._run_once(ready)
                if self._stopping.is_set():
                    return
                ever_ready = ever_ready or ready.exists()
                failures = 1 if time.monotonic() - began > _STEADY_S else failures + 1
                if not ever_ready and code in _WRONG:
                    raise ValueError("the worker that --with-worker asks for cannot start; see what it says")
                if not ever_ready and failures >= _TRIES:
                    raise OSError(f"the worker ended {failures} times before it was ready; see what it says")
                delay_s = _RESTARTS.delay(failures)
                log.error("the worker ended with code %s; another one starts in %.1f s", code, delay_s)
                with suppress(TimeoutError):
                    async with asyncio.timeout(delay_s):
                        await self._stopping.wait()

    async def _run_once(self, ready: Path) -> int:
        # A session of its own keeps Ctrl-C for us; its standard input ends when we end.
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "couturier", "worker", "--ready-file", str(ready)),
            env=self._environment,
            stdin=asyncio.subprocess.PIPE,
            stdout=sys.stderr,
            start_new_session=True,
        )
        if self._stopping.is_set():
            self._send(signal.SIGTERM)
        return await self._process.wait()

    async def stop(self) -> None:
        """Have it finish what it holds, for which it has a deadline of its own; return when it has ended."""
        self._stopping.set()
        self._send(signal.SIGTERM)
        if self._process is not None:
            await self._process.wait()

    def kill(self) -> None:
        """End it at once; what it held comes again."""
        self._stopping.set()
        self._send(signal.SIGKILL)

    def _send(self, number: signal.Signals) -> None:
        if self._process is not None:
            with suppress(ProcessLookupError):
                self._process.send_signal(number)


def environment(**said: str) -> dict[str, str]:
    """Return our environment with what was said on the command line written into it."""
    return {**os.environ, **said}
