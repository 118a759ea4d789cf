"""Brings ``docker-compose.yml`` up with a real Docker Engine: ``python -m tests.containers.trial``.

Four workers, 10,000 images, then some more while the database hangs and a worker that holds work is killed.
Prints what was found as JSON. ``--stand-ins`` first builds the public images, for where there is no registry.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from . import compose, stand_ins

ROOT = Path(__file__).resolve().parent.parent.parent
BACKENDS = ("kafka", "pubsub")
WORKERS, IMAGES, MORE = 4, 10_000, 3_000
_RATE = 1_000
_BUILD_S, _UP_S, _SETTLE_S, _COMMAND_S = 3_600, 600, 300, 300
_LOOK_S = 1.0
# Where our reading of the files, which the tests go by, must be that of Compose.
_READ_ALIKE = ("image", "cap_drop", "read_only", "security_opt", "tmpfs", "user", "init", "stop_grace_period")
_STATUS = (
    "from http.client import HTTPConnection as C; c = C('127.0.0.1', 9464, timeout=5);"
    " c.request('GET', '/status'); print(c.getresponse().read().decode())"
)


class Stack:
    """The compose project of one trial.

    Args:
        backend: what ``BROKER_BACKEND`` says; kafka: nothing, because that is what it is without.
    """

    def __init__(self, backend: str) -> None:
        self.env = {name: value for name, value in os.environ.items() if not name.startswith("BROKER_")}
        self.env["COMPOSE_PROJECT_NAME"] = "couturier-trial"
        self.env["CLIENT_SEND"] = f"--images {IMAGES} --rate {_RATE}"
        if backend != "kafka":
            self.env["BROKER_BACKEND"] = backend

    def docker(self, *arguments: str, limit_s: float = _COMMAND_S, code: int | None = 0) -> str:
        """Run docker; return what it printed.

        Raises:
            AssertionError: it ended with another code; None allows any.
        """
        done = subprocess.run(
            ["docker", *arguments],
            cwd=ROOT,
            env=self.env,
            capture_output=True,
            text=True,
            timeout=limit_s,
            check=False,
        )
        said = (done.stdout + done.stderr)[-4000:]
        assert code in (None, done.returncode), f"docker {' '.join(arguments)}: {done.returncode}\n{said}"
        return done.stdout

    def compose(self, *arguments: str, limit_s: float = _COMMAND_S, code: int | None = 0) -> str:
        """Run docker compose; return what it printed."""
        return self.docker("compose", *arguments, limit_s=limit_s, code=code)

    def client(self, *arguments: str, code: int | None = 0) -> Any:
        """Run a command of couturier where the ledger is; return the JSON that it printed."""
        return json.loads(
            self.compose("run", "--rm", "-T", "--no-deps", "client", *arguments, "--json", code=code)
        )

    def query(self, sql: str) -> list[list[str]]:
        """Ask the database."""
        psql = ("psql", "-U", "couturier", "-At", "-F", "|", "-c", sql)
        return [
            line.split("|") for line in self.compose("exec", "-T", "postgres", *psql).splitlines() if line
        ]

    def rows(self) -> int:
        """Return how many results there are."""
        return int(self.query("SELECT count(*) FROM results")[0][0])

    def workers(self) -> list[str]:
        """Return the containers of the workers, stopped ones too."""
        return self.compose("ps", "--all", "--quiet", "worker").split()

    def held(self, container: str) -> int:
        """Return how many messages a worker holds."""
        return int(json.loads(self.docker("exec", container, "python", "-IS", "-c", _STATUS))["held"])

    def inspect(self, container: str) -> Any:
        """Return what the engine knows of a container."""
        return json.loads(self.docker("inspect", container))[0]


def run(backend: str) -> dict[str, Any]:
    """Run the trial on one backend; leave nothing behind.

    Raises:
        AssertionError: something is not as it has to be.
    """
    stack = Stack(backend)
    stack.docker("build", "--target", "worker", "--tag", "couturier:latest", ".", limit_s=_BUILD_S)
    stack.compose("--profile", "*", "down", "--volumes")
    try:
        return {
            "backend": backend,
            **_started(stack),
            **_all_stored(stack),
            **_killed(stack),
            **_ended(stack),
        }
    finally:
        stack.compose("--profile", "*", "down", "--volumes", code=None)


def _started(stack: Stack) -> dict[str, Any]:
    """Bring it up, see that it is as the file says."""
    resolved = json.loads(stack.compose("--profile", "*", "config", "--format", "json"))["services"]
    for name, service in compose.services(stack.env).items():
        for key in _READ_ALIKE:
            assert resolved[name].get(key) == service.get(key), (name, key)
    begin = time.monotonic()
    scale = f"worker={WORKERS}"
    stack.compose(
        *("up", "--detach", "--no-build", "--wait", "--scale", scale, "worker", "prometheus"), limit_s=_UP_S
    )
    up_s = time.monotonic() - begin
    for container in stack.compose("ps", "--quiet").split():
        found = stack.inspect(container)
        host = found["HostConfig"]
        assert host["ReadonlyRootfs"], found["Name"]
        assert host["CapDrop"] == ["ALL"], found["Name"]
        assert "no-new-privileges:true" in host["SecurityOpt"], found["Name"]
        assert host["Memory"] > 0, found["Name"]
        assert host["PidsLimit"] > 0, found["Name"]
        assert stack.docker("exec", container, "id", "-u").strip() != "0", found["Name"]
        stack.docker("exec", container, "touch", "/written", code=1)
        bound = [each["HostIp"] for ports in host["PortBindings"].values() for each in ports]
        assert set(bound) <= {"127.0.0.1"}, found["Name"]
    _until(lambda: _scraped(stack) == WORKERS, "Prometheus sees every worker")
    return {
        "engine": stack.docker("version", "--format", "{{.Server.Version}}").strip(),
        "compose": stack.compose("version", "--short").strip(),
        "workers": len(stack.workers()),
        "up_s": round(up_s, 1),
    }


def _scraped(stack: Stack) -> int:
    """Return how many workers Prometheus has reached."""
    text = stack.compose(
        *("exec", "-T", "prometheus", "wget", "-q", "-O", "-"), "http://localhost:9090/api/v1/targets"
    )
    targets = json.loads(text)["data"]["activeTargets"]
    return sum(each["labels"]["job"] == "couturier" and each["health"] == "up" for each in targets)


def _all_stored(stack: Stack) -> dict[str, Any]:
    """Start the client, and see that every image became a row and that every worker wrote some."""
    stack.compose("up", "--detach", "--no-build", "--no-deps", "client")
    stack.compose("wait", "client")
    _until(lambda: stack.rows() == IMAGES, f"{IMAGES:,} rows")
    balance = stack.client("audit")
    assert balance["balanced"], balance
    assert (balance["published"], balance["stored"], balance["lost"]) == (IMAGES, IMAGES, 0), balance
    shares = sorted(int(count) for _, count in stack.query("SELECT worker, count(*) FROM results GROUP BY 1"))
    assert len(shares) == WORKERS, shares
    return {"sent": balance["published"], "rows": sum(shares), "rows_of_each_worker": shares}


def _killed(stack: Stack) -> dict[str, Any]:
    """Kill a worker while nothing that it holds can be finished, because the database hangs."""
    database = stack.compose("ps", "--quiet", "postgres").strip()
    stack.docker("pause", database)
    try:
        stack.client("client", "send", "--images", str(MORE), "--seed", "1")
        holding: dict[str, int] = {}

        def look() -> bool:
            holding.update({each: stack.held(each) for each in stack.workers()})
            return any(holding.values())

        _until(look, "a worker holds work")
        victim = max(holding, key=lambda each: holding[each])
        held = stack.held(victim)
        assert held > 0, holding
        stack.docker("kill", victim)
    finally:
        stack.docker("unpause", database)
    begin = time.monotonic()
    total = IMAGES + MORE
    _until(lambda: stack.rows() == total, f"{total:,} rows")
    taken_s = time.monotonic() - begin
    balance = stack.client("audit")
    assert balance["balanced"], balance
    assert (balance["published"], balance["stored"], balance["duplicate_rows"]) == (total, total, 0), balance
    ((attempts,),) = stack.query("SELECT max(attempt) FROM results")
    assert attempts == "1", f"a crash was counted as an attempt: {attempts}"
    return {
        "held_when_killed": held,
        "rows_after_kill": total,
        "lost": balance["lost"],
        "duplicate_rows": balance["duplicate_rows"],
        "settled_after_kill_s": round(taken_s, 1),
    }


def _ended(stack: Stack) -> dict[str, Any]:
    """Stop the workers: those that were left drain and exit 0."""
    begin = time.monotonic()
    stack.compose("stop", "worker")
    taken_s = time.monotonic() - begin
    codes = sorted(stack.inspect(each)["State"]["ExitCode"] for each in stack.workers())
    assert codes == [0] * (WORKERS - 1) + [137], codes
    return {"exit_codes": codes, "stopped_in_s": round(taken_s, 1)}


def _until(done: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + _SETTLE_S
    while not done():
        assert time.monotonic() < deadline, f"after {_SETTLE_S} s there is not yet: {what}"
        time.sleep(_LOOK_S)


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backend", choices=BACKENDS, help="this one alone")
    parser.add_argument("--stand-ins", action="store_true", help="build the public images here")
    asked = parser.parse_args()
    if asked.stand_ins:
        stand_ins.build_all()
    json.dump([run(each) for each in BACKENDS if asked.backend in (None, each)], sys.stdout, indent=2)


if __name__ == "__main__":
    main()
