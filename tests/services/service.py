"""The test's side of a service: the run it belongs to, how it is reached, taken down and brought up again."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Client
from pathlib import Path
from typing import Any, ClassVar, NoReturn

import pytest

from .errors import NotInstalledError, ServiceError

ROOT = Path(__file__).resolve().parents[2]
PREFIX = "couturier-services-"
# A first start may download Kafka (50 MB) or pull an image (400 MB).
START_LIMIT_S = 600.0


def give_up(reason: str) -> NoReturn:
    """End a test that has no service: a skip, or with ``REQUIRE_SERVICES=1`` a failure."""
    if os.environ.get("REQUIRE_SERVICES", "0") not in {"", "0"}:
        pytest.fail(f"REQUIRE_SERVICES is set: {reason}", pytrace=False)
    pytest.skip(reason)


@dataclass(frozen=True)
class Run:
    """One pytest run, which shares each service.

    Attributes:
        directory: what its services write; short, since Unix sockets in it may have 104 bytes at most.
        owner: the process whose end ends the services.
        shared: several processes use them, so none may stop them: they end with ``owner``.
    """

    directory: Path
    owner: int
    shared: bool = False

    @classmethod
    def of(cls, config: pytest.Config) -> Run:
        """Return the run of this process: its own, or under pytest-xdist the controller's."""
        worker = getattr(config, "workerinput", None)
        if worker is None:
            return cls.alone()
        directory = Path(tempfile.gettempdir()) / f"{PREFIX}{worker['testrunuid'][:16]}"
        directory.mkdir(mode=0o711, exist_ok=True)
        return cls(directory, owner=os.getppid(), shared=True)

    @classmethod
    def alone(cls) -> Run:
        """Return a run of this process alone."""
        directory = Path(tempfile.mkdtemp(prefix=PREFIX))
        directory.chmod(0o711)  # PostgreSQL runs as another user and must reach its data
        return cls(directory, owner=os.getpid())

    def remove(self) -> None:
        """Remove the directory, unless others use it."""
        if not self.shared:
            shutil.rmtree(self.directory, ignore_errors=True)


class Keeper:
    """The handle of a keeper process (``keeper.py``)."""

    def __init__(self, name: str, run: Run, facts: dict[str, Any]) -> None:
        """Use ``Keeper.start``."""
        self.name = name
        self.facts = facts
        self._run = run
        self._socket = str(run.directory / name / "keeper.sock")

    @classmethod
    def start(cls, name: str, run: Run, env: Mapping[str, str] | None = None) -> Keeper:
        """Start the run's keeper of a service, or join the one that runs.

        Args:
            name: ``kafka``, ``pubsub`` or ``postgres``.
            run: who shares it.
            env: replaces the environment of the keeper, for tests of the ladder.

        Raises:
            NotInstalledError: neither Docker nor this machine has what it takes.
            ServiceError: it did not start; the text ends with its log.
        """
        verdict_file = run.directory / f"{name}.json"
        with (run.directory / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not verdict_file.exists():
                verdict_file.write_text(cls._spawn(name, run, env))
            verdict = json.loads(verdict_file.read_text())
        if "missing" in verdict:
            raise NotInstalledError(verdict["missing"])
        if "error" in verdict:
            raise ServiceError(verdict["error"])
        return cls(name, run, verdict["facts"])

    @staticmethod
    def _spawn(name: str, run: Run, env: Mapping[str, str] | None) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "tests.services.keeper", name, str(run.directory), str(run.owner)],
            cwd=ROOT,
            env=None if env is None else dict(env),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=START_LIMIT_S,
            check=False,
        )
        return done.stdout or json.dumps({"error": f"the keeper of {name} did not start:\n{done.stderr}"})

    def call(self, method: str, *args: object) -> Any:
        """Have the keeper do something and wait for its answer.

        Raises:
            ServiceError: the keeper is gone, or what it did failed.
        """
        try:
            with Client(self._socket, "AF_UNIX") as connection:
                connection.send((method, args))
                done, value = connection.recv()
        except (EOFError, OSError) as error:
            raise ServiceError(f"the keeper of {self.name} is gone ({error!r})") from error
        if not done:
            raise ServiceError(value)
        return value

    def stop(self) -> None:
        """End server and keeper, unless others use them (then they end with the run's owner)."""
        if not self._run.shared:
            self.call("stop")


class Service:
    """What all services have in common.

    Attributes:
        how: the rung that holds: ``environment``, ``container`` or ``native``.
        can_restart: false for an address from the environment, which is somebody else's.
        address_variable: the variable of that address.
    """

    address_variable: ClassVar[str]

    def __init__(self, how: str, keeper: Keeper | None = None) -> None:
        """Wrap a keeper, or an address alone."""
        self.how = how
        self.can_restart = keeper is not None
        self._keeper = keeper

    @property
    def keeper(self) -> Keeper:
        """The process that holds the server; ends the test where there is only an address."""
        if self._keeper is None:
            give_up(f"{type(self).__name__} is an address from the environment: unset it for this test")
        return self._keeper

    @property
    def facts(self) -> dict[str, Any]:
        """What the keeper says of itself: at least ``how`` and ``keeper_pid``."""
        return self.keeper.facts

    def server_pid(self) -> int | None:
        """Return the process id of the native server, None in a container or while it is down."""
        pid = self.keeper.call("server_pid")
        assert pid is None or isinstance(pid, int)
        return pid

    @contextmanager
    def outage(self, kill: bool = False) -> Iterator[None]:
        """Take the server down for the length of the block; it keeps data and ports.

        Args:
            kill: with SIGKILL, as in a crash, instead of a clean stop.
        """
        self.keeper.call("down", kill)
        try:
            yield
        finally:
            self.keeper.call("up")

    def restart(self, kill: bool = False) -> None:
        """Stop the server, start it again with the same ports, and return when it serves.

        Args:
            kill: with SIGKILL, as in a crash, instead of a clean stop.
        """
        with self.outage(kill):
            pass

    def stop(self) -> None:
        """End the service at the end of the run; an address from the environment stays as it is."""
        if self._keeper is not None:
            self._keeper.stop()
