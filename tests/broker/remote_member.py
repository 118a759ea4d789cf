"""A member of a group in a process of its own, driven by one JSON line per command, to be killed at will."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import select
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, Self

GROUP = "workers"
TOPIC = "images"


class RemoteMember:
    """The parent's end: start, ask, freeze, kill.

    Args:
        path: the queue file.
        lease: seconds.
    """

    def __init__(self, path: Path, lease: float) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__, f"sqlite:///{path}?lease={lease}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    @property
    def pid(self) -> int:
        return self._process.pid

    def tell(self, command: str, **arguments: Any) -> None:
        """Send a command without waiting for its answer."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"command": command, **arguments}) + "\n")
        self._process.stdin.flush()

    def answer(self, timeout: float = 30.0) -> Any:
        """Return the next line that the member prints, or fail."""
        assert self._process.stdout is not None
        readable, _, _ = select.select([self._process.stdout], [], [], timeout)
        assert readable, f"no answer within {timeout:g} s"
        line = self._process.stdout.readline()
        assert line, f"the member ended with {self._process.wait()}"
        return json.loads(line)

    def ask(self, command: str, **arguments: Any) -> Any:
        """Send a command and return its answer."""
        self.tell(command, **arguments)
        return self.answer()

    def stop(self) -> None:
        """Freeze the whole process."""
        self._process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WNOWAIT)

    def go_on(self) -> None:
        """Thaw it."""
        self._process.send_signal(signal.SIGCONT)

    def kill(self) -> list[Any]:
        """End it with SIGKILL; return what it had printed and nobody read."""
        self._process.kill()
        self._process.wait()
        lines: list[Any] = []
        if self._process.stdout is not None and not self._process.stdout.closed:
            for line in self._process.stdout:
                # The last line may be cut short by the kill.
                with contextlib.suppress(ValueError):
                    lines.append(json.loads(line))
            self._process.stdout.close()
        if self._process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()
        return lines


class _Commands:
    """The child's end: every method is a command."""

    def __init__(self, broker: Any, subscription: Any) -> None:
        self._broker = broker
        self._subscription = subscription
        self._held: dict[str, Any] = {}

    async def receive(self, count: int) -> list[list[Any]]:
        """Take exactly ``count`` deliveries and hold them."""
        taken: list[Any] = []
        while len(taken) < count:
            taken += await self._subscription.receive(max_messages=count - len(taken), timeout=1.0)
        self._held |= {each.message.data.decode(): each for each in taken}
        return [[each.message.data.decode(), each.attempt] for each in taken]

    async def settle(self, verb: str, bodies: list[str], **options: float) -> Any:
        """Give a verdict on held deliveries."""
        from broker import BrokerError, LeaseLost

        try:
            await getattr(self._subscription, verb)([self._held[body] for body in bodies], **options)
        except LeaseLost as lost:
            return {"lost": sorted(lost.ids)}
        except BrokerError as error:
            return {"error": type(error).__name__}
        return "settled"

    async def flush(self) -> str:
        """Make verdicts durable."""
        await self._subscription.flush()
        return "flushed"

    async def work(self) -> None:
        """Receive, announce, ack, flush, announce, for ever."""
        while True:
            held = await self._subscription.receive(max_messages=5, timeout=1.0)
            _say({"received": [[each.message.data.decode(), each.attempt] for each in held]})
            await self._subscription.ack(held)
            await self._subscription.flush()
            _say({"acked": [each.message.data.decode() for each in held]})

    async def publish(self, batches: int, size: int, count: int) -> None:
        """Publish numbered batches and announce each one that is stored."""
        from broker import Message

        for batch in range(batches):
            messages = [Message(data=b"%d:%d:" % (batch, n) + b"x" * size) for n in range(count)]
            await self._broker.publish(TOPIC, messages)
            _say({"stored": batch})


def _say(answer: Any) -> None:
    print(json.dumps(answer), flush=True)


async def _serve(url: str) -> None:
    from broker import connect

    loop = asyncio.get_running_loop()
    async with connect(url) as broker, broker.subscribe(TOPIC, group=GROUP) as subscription:
        commands = _Commands(broker, subscription)
        while line := await loop.run_in_executor(None, sys.stdin.readline):
            asked = json.loads(line)
            _say(await getattr(commands, asked.pop("command"))(**asked))


if __name__ == "__main__":
    asyncio.run(_serve(sys.argv[1]))
