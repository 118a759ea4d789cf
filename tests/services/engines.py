"""How a server runs: as a process of this machine or in a container. Used by keepers only."""

from __future__ import annotations

import os
import pwd
import random
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from .errors import NotInstalledError, ServiceError
from .kafka_proxy import KafkaProxy

HOST = "127.0.0.1"
READY_LIMIT_S = 60.0
STOP_LIMIT_S = 20.0
# Below the ports that Linux gives to outgoing connections: while a server is down, nobody takes its port.
PORTS = range(20_000, 32_000)


def free_ports(count: int) -> list[int]:
    """Return different TCP ports that nobody listens on."""
    found: list[int] = []
    for port in random.SystemRandom().sample(PORTS, len(PORTS)):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, port))
            except OSError:
                continue
        found.append(port)
        if len(found) == count:
            return found
    raise ServiceError("no free TCP port")


def tied(command: Sequence[str | Path]) -> list[str]:
    """Return the command so that the kernel kills it when the thread that starts it ends (where it can)."""
    setpriv = shutil.which("setpriv")
    prefix = [setpriv, "--pdeathsig", "KILL", "--"] if setpriv else []
    return [*prefix, *map(str, command)]


class Engine(Protocol):
    """What runs a server and can be stopped and started with the same data and ports."""

    def up(self) -> None:
        """Start it, without waiting until it serves."""

    def down(self, kill: bool) -> None:
        """Stop it and wait for its end."""

    def destroy(self) -> None:
        """Kill it and remove what it left outside its directory."""

    def failure(self) -> str | None:
        """Return the end of its log if it has ended, else None."""

    def pid(self) -> int | None:
        """Return its process id, None if it has none here."""

    def facts(self) -> dict[str, str | None]:
        """Return how it runs, and in which container."""


@dataclass
class ProcessEngine:
    """A child process.

    Attributes:
        command: what to run.
        log: where its output goes.
        stop_with: the signal for a clean stop.
        user: whom to run it as, None for ourselves.
    """

    command: Sequence[str | Path]
    log: Path
    stop_with: signal.Signals = signal.SIGTERM
    user: str | None = None
    _child: subprocess.Popen[bytes] | None = None

    def up(self) -> None:
        """Start it, without waiting until it serves."""
        if self._child is not None and self._child.poll() is None:
            return
        with self.log.open("ab") as log:
            self._child = subprocess.Popen(
                tied(self.command),
                cwd=self.log.parent,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                **as_user(self.user),
            )

    def down(self, kill: bool) -> None:
        """Signal it and wait for its end; kill its process group when it takes more than 20 s."""
        if self._child is None:
            return
        if not kill and self._child.poll() is None:
            self._child.send_signal(self.stop_with)
            try:
                self._child.wait(STOP_LIMIT_S)
            except subprocess.TimeoutExpired:
                kill = True
        if kill:
            with suppress(ProcessLookupError):
                os.killpg(self._child.pid, signal.SIGKILL)
        self._child.wait()

    def destroy(self) -> None:
        """Kill it and its process group."""
        self.down(kill=True)

    def failure(self) -> str | None:
        """Return the end of its log if it has ended, else None."""
        if self._child is None or self._child.poll() is None:
            return None
        return f"exit status {self._child.returncode}\n{self.log.read_text(errors='replace')[-4000:]}"

    def facts(self) -> dict[str, str | None]:
        """Return how it runs."""
        return {"how": "native", "container": None}

    def pid(self) -> int | None:
        """Return its process id, None while it is down."""
        return self._child.pid if self._child is not None and self._child.poll() is None else None


def as_user(user: str | None) -> dict[str, Any]:
    """Return the arguments of ``subprocess`` that run a command as another user."""
    if user is None:
        return {}
    entry = pwd.getpwnam(user)
    return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": ()}


@dataclass
class Server:
    """What a keeper keeps: an engine, how to see that it serves, and what tests are told.

    Attributes:
        engine: runs it.
        serves: true once clients are served; must return within a second or so.
        facts: what the test's handle is made of.
        proxy: stands before it, for Kafka.
    """

    engine: Engine
    serves: Callable[[], bool]
    facts: dict[str, Any]
    proxy: KafkaProxy | None = None
    _ended: bool = field(default=False, init=False)

    def up(self) -> None:
        """Start it and return when it serves.

        Raises:
            ServiceError: it ended, or does not serve after 60 s.
        """
        deadline = time.monotonic() + READY_LIMIT_S
        self.engine.up()
        while not self.serves():
            failure = self.engine.failure()
            if failure is not None:
                raise ServiceError(f"the server ended while it started: {failure}")
            if time.monotonic() > deadline:
                raise ServiceError(f"the server does not serve {READY_LIMIT_S:.0f} s after its start")
            time.sleep(0.05)

    def down(self, kill: bool) -> None:
        """Stop it, cleanly or with SIGKILL."""
        self.engine.down(kill)

    def server_pid(self) -> int | None:
        """Return the process id, None in a container."""
        return self.engine.pid()

    def through_proxy(self, method: str, *args: str) -> object:
        """Call the proxy."""
        return getattr(self.proxy, method)(*args)

    def destroy(self) -> None:
        """End it for good."""
        if self.proxy is not None:
            self.proxy.close()
        self.engine.destroy()


def climb(rungs: Sequence[Callable[[], Server]]) -> Server:
    """Return the started server of the first rung that holds.

    Raises:
        NotInstalledError: none holds; the text joins what each lacks.
        ServiceError: one that should hold broke: a broken service is a failure, not a skip.
    """
    lacks = []
    for rung in rungs:
        try:
            server = rung()
        except NotInstalledError as error:
            lacks.append(str(error))
            continue
        try:
            server.up()
            server.facts |= server.engine.facts()
        except BaseException:
            server.destroy()
            raise
        return server
    raise NotInstalledError("; ".join(lacks))
