"""The ladder, and the end of services whose run ends badly: real processes, real signals."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from . import KafkaService, NotInstalledError, PostgresService, PubSubService, Run, ServiceError, give_up
from .engines import ProcessEngine, Server, climb
from .postgres_server import find_binaries
from .service import ROOT

GONE_S = 10.0
KINDS = [KafkaService, PubSubService, PostgresService]
# What a test in another pytest does: say who serves, then wait to be killed.
SLEEPER = """
import json, time
from pathlib import Path

def test_it({fixture}, tmp_path_factory):
    service = {fixture}
    told = {{"keeper": service.facts["keeper_pid"], "server": service.server_pid()}}
    told["home"] = str(service.keeper._run.directory)
    target = Path({out!r})
    target.with_suffix(".part").write_text(json.dumps(told))
    target.with_suffix(".part").rename(target)
    time.sleep(120)
"""
SHARERS = """
import pytest
from pathlib import Path

@pytest.mark.parametrize("index", range(4))
def test_it(postgres_service, index, worker_id):
    assert postgres_service.sql("SELECT 1") == "1"
    Path({out!r}, f"{{worker_id}}-{{index}}").write_text(str(postgres_service.facts["keeper_pid"]))
"""


@pytest.fixture
def run() -> Iterator[Run]:
    run = Run.alone()
    yield run
    run.remove()


@pytest.fixture
def bare(tmp_path: Path) -> dict[str, str]:
    """The environment of a machine with nothing installed and no Docker."""
    empty = tmp_path / "empty"
    empty.mkdir()
    nowhere = f"unix://{tmp_path}/docker.sock"
    return {"PATH": str(empty), "HOME": str(empty), "XDG_CACHE_HOME": str(empty), "DOCKER_HOST": nowhere}


def inner_pytest(file: Path, *options: str, env: dict[str, str] | None = None) -> subprocess.Popen[str]:
    """Start another pytest on a file, with our fixtures."""
    own = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "TEST_"))}
    command = [sys.executable, "-m", "pytest", "-p", "tests.services.fixtures", "-p", "no:cacheprovider"]
    return subprocess.Popen(
        [*command, "-q", "-rs", f"--rootdir={file.parent}", *options, str(file)],
        cwd=ROOT,
        env={**own, **(env or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def eventually(holds: Callable[[], bool], limit_s: float) -> bool:
    """Tell whether it comes to hold in time."""
    deadline = time.monotonic() + limit_s
    while not holds():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def is_gone(pid: int) -> bool:
    """Tell whether a process has ended; a zombie has."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


@pytest.mark.parametrize("kind", KINDS)
def test_an_address_in_the_environment_comes_first(
    run: Run, kind: type[KafkaService | PubSubService | PostgresService]
) -> None:
    """It is taken as it stands, nothing is started, and nothing of it can be restarted."""
    service = kind.start(run, env={kind.address_variable: "somewhere:1"})

    assert service.how == "environment"
    assert "somewhere:1" in vars(service).values()
    assert not service.can_restart
    assert list(run.directory.iterdir()) == []
    service.stop()


def test_what_an_address_alone_cannot_do_ends_the_test(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fault test is skipped, or fails where services are required."""
    service = KafkaService.start(run, env={"TEST_KAFKA_BOOTSTRAP": "somewhere:1"})
    monkeypatch.delenv("REQUIRE_SERVICES", raising=False)
    with pytest.raises(pytest.skip.Exception, match="address from the environment"):
        service.restart()
    monkeypatch.setenv("REQUIRE_SERVICES", "1")
    with pytest.raises(pytest.fail.Exception, match="address from the environment"):
        _ = service.proxy


@pytest.mark.parametrize("kind", [KafkaService, PubSubService])
def test_a_bare_machine_learns_in_seconds_what_to_install(
    run: Run, bare: dict[str, str], kind: type[KafkaService | PubSubService]
) -> None:
    """No Docker, no programs: the text names both ways."""
    started = time.monotonic()

    with pytest.raises(NotInstalledError, match=r"Docker Engine.*default-jre-headless"):
        kind.start(run, env=bare)

    assert time.monotonic() - started < 10


def test_postgres_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Neither pg_config nor Debian's directory."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("tests.services.postgres_server.DEBIAN", tmp_path)

    with pytest.raises(NotInstalledError, match="Debian: postgresql"):
        find_binaries()


@pytest.mark.parametrize(("required", "outcome"), [("0", "1 skipped"), ("1", "1 error")])
def test_a_test_without_its_service_is_skipped_or_fails(
    tmp_path: Path, bare: dict[str, str], required: str, outcome: str
) -> None:
    """REQUIRE_SERVICES decides; the text names what to install either way."""
    file = tmp_path / "test_inner.py"
    file.write_text("def test_it(kafka_service): pass\n")

    with inner_pytest(file, env={**bare, "REQUIRE_SERVICES": required}) as child:
        out, _ = child.communicate(timeout=60)

    assert outcome in out
    assert "TEST_KAFKA_BOOTSTRAP" in out
    assert "default-jre-headless" in out


@pytest.mark.parametrize(("value", "kind"), [("1", pytest.fail.Exception), ("", pytest.skip.Exception)])
def test_require_services_turns_a_skip_into_a_failure(
    monkeypatch: pytest.MonkeyPatch, value: str, kind: type[BaseException]
) -> None:
    """Empty counts as unset."""
    monkeypatch.setenv("REQUIRE_SERVICES", value)

    with pytest.raises(kind, match="install me"):
        give_up("install me")


def test_a_rung_that_breaks_is_an_error_with_its_log(tmp_path: Path) -> None:
    """A missing rung is passed over; a broken service is never a skip."""

    def absent() -> Server:
        raise NotInstalledError("absent")

    def broken() -> Server:
        engine = ProcessEngine(["sh", "-c", "echo because; exit 3"], tmp_path / "log")
        return Server(engine, lambda: False, {})

    with pytest.raises(ServiceError, match=r"(?s)exit status 3.*because"):
        climb([absent, broken])
    with pytest.raises(NotInstalledError, match="absent; absent"):
        climb([absent, absent])


@pytest.mark.parametrize(
    ("fixture", "end"),
    [
        ("kafka_service", signal.SIGKILL),
        ("pubsub_service", signal.SIGKILL),
        ("postgres_service", signal.SIGKILL),
        ("postgres_service", signal.SIGTERM),
        ("postgres_service", signal.SIGINT),
    ],
)
def test_no_service_outlives_a_pytest_that_was_killed(
    tmp_path: Path, fixture: str, end: signal.Signals
) -> None:
    """Keeper, server and directory are gone within 10 s."""
    file, out = tmp_path / "test_inner.py", tmp_path / "told.json"
    file.write_text(SLEEPER.format(fixture=fixture, out=str(out)))
    with inner_pytest(file) as child:
        try:
            assert eventually(lambda: out.exists() or child.poll() is not None, 120)
            told = json.loads(out.read_text())
            assert not is_gone(told["server"])
        finally:
            child.send_signal(end)
            child.communicate(timeout=GONE_S)

    assert eventually(lambda: is_gone(told["server"]) and is_gone(told["keeper"]), GONE_S)
    assert eventually(lambda: not Path(told["home"]).exists(), GONE_S)


def test_no_server_outlives_its_keeper(run: Run) -> None:
    """The kernel kills it, and the handle says what happened."""
    service = PostgresService.start(run)
    server = service.server_pid()
    assert server is not None

    os.kill(service.facts["keeper_pid"], signal.SIGKILL)

    assert eventually(lambda: is_gone(server), GONE_S)
    with pytest.raises(ServiceError, match="keeper of postgres is gone"):
        service.restart()


def test_workers_of_one_run_share_a_service_that_ends_with_it(tmp_path: Path) -> None:
    """Two pytest-xdist workers, one server, none left afterwards."""
    file, out = tmp_path / "test_inner.py", tmp_path / "told"
    out.mkdir()
    file.write_text(SHARERS.format(out=str(out)))

    with inner_pytest(file, "-n", "2") as child:
        printed, _ = child.communicate(timeout=120)

    assert "4 passed" in printed
    told = list(out.iterdir())
    assert {path.name.split("-")[0] for path in told} == {"gw0", "gw1"}
    (keeper,) = {int(path.read_text()) for path in told}
    assert eventually(lambda: is_gone(keeper), GONE_S)
