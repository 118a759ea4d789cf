"""Gateways as they are run, and what a client of theirs sees."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

PATIENCE_S = 60.0
PNG = {"Content-Type": "image/png"}


@dataclass(frozen=True)
class Reply:
    """What came back."""

    code: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The body."""
        return json.loads(self.body)


class Gateway:
    """A ``couturier gateway`` on any free port."""

    def __init__(self, env: dict[str, str], *options: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "couturier", "gateway", "--port", "0", *options],
            env=env,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.said: list[str] = []
        self._serving = threading.Event()
        self.port = 0
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        assert self._serving.wait(PATIENCE_S), self.said
        assert self.port, self.said

    def _read(self) -> None:
        assert self.process.stderr is not None
        with self.process.stderr:
            for line in self.process.stderr:
                self.said.append(line)
                if found := re.match(r"serving http://\S+:(\d+)", line):
                    self.port = int(found[1])
                    self._serving.set()
        self._serving.set()

    def connection(self) -> HTTPConnection:
        """Open one."""
        return HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_S)

    def ask(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None, **query: Any
    ) -> Reply:
        """Send a request; return the answer."""
        connection = self.connection()
        try:
            address = f"{path}?{urlencode(query, doseq=True)}" if query else path
            connection.request(method, address, body=body, headers=headers or {})
            answer = connection.getresponse()
            return Reply(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())
        finally:
            connection.close()

    def post(self, image: bytes, once: str | None = None, **query: Any) -> Reply:
        """Send an image; ``once`` is an idempotency key."""
        headers = PNG if once is None else {**PNG, "Idempotency-Key": once}
        return self.ask("POST", "/v1/images", image, headers, **query)

    def result(self, message_id: str, wait: float = 30) -> Reply:
        """Ask what became of it."""
        return self.ask("GET", f"/v1/results/{message_id}", wait=wait)

    def until(self, message_id: str, code: int = 200) -> Reply:
        """Ask until the answer has this code."""
        for _ in range(4):
            reply = self.result(message_id)
            if reply.code == code:
                return reply
        raise AssertionError(reply)

    def events(self, *ids: str, after: str | None = None) -> list[dict[str, str]]:
        """Read a stream to its end."""
        headers = {} if after is None else {"Last-Event-ID": after}
        reply = self.ask("GET", "/v1/results/stream", headers=headers, id=ids)
        assert (reply.code, reply.headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
        found = []
        for block in reply.body.decode().split("\n\n"):
            fields = dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith(":"))
            if "event" in fields:
                found.append(fields)
        return found

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal; return the exit code."""
        self.process.send_signal(number)
        code = self.process.wait(PATIENCE_S)
        self._reader.join()
        return code


@contextmanager
def running(env: dict[str, str], *options: str) -> Iterator[Gateway]:
    """A gateway that does not outlive the block."""
    gateway = Gateway(env, *options)
    try:
        yield gateway
    finally:
        if gateway.process.poll() is None:
            gateway.end()


def until(met: Callable[[], bool]) -> None:
    """Return when something has become true."""
    deadline = time.monotonic() + PATIENCE_S
    while not met():
        assert time.monotonic() < deadline


def runs(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except OSError:
        return False


def clean(home: Path, **more: str) -> dict[str, str]:
    """Nothing configured but the state directory."""
    ours = ("BROKER_", "SINK_", "COUTURIER_", "KAFKA_", "PUBSUB_", "GOOGLE_")
    found = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    return {**found, "COUTURIER_HOME": str(home), **more}
