"""``couturier worker --processes N``: N workers that end together, and come back when they die."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sqlite3
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import cast
from urllib.request import urlopen

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rig import Rig, children, expected, runs

from classifier import Classifier
from client.sources.fashion_mnist import FashionMnist
from worker.launch import Stop
from worker.supervisor import Restarts, Supervisor, worst

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
anyio = pytest.mark.anyio

SUPERVISE = ("--processes", "2")


def lines(rig: Rig, process: int, event: str) -> list[dict[str, object]]:
    """What a supervisor logged, of one event."""
    log = rig.log_of(rig.started[process])
    found = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
    return [each for each in found if each["event"] == event]


def alive(port: int) -> int:
    with urlopen(f"http://127.0.0.1:{port}/livez", timeout=30) as answer:
        return int(answer.status)


def family(pid: int) -> list[int]:
    """Workers and their engines."""
    workers = children(pid)
    return [*workers, *(engine for worker in workers for engine in children(worker))]


@anyio
async def test_several_workers_share_the_work_and_end_together(rig: Rig, classifier: Classifier) -> None:
    """Ready when all are; exit 0 under load with nothing redelivered; no process is left."""
    sent = list(FashionMnist(4_000, bad_ratio=0.01))
    ids = await rig.publish(sent)
    port = free_ports()
    supervisor = await rig.worker(*SUPERVISE, "--batch-size", "16", COUTURIER_HTTP_PORT=str(port))
    processes = family(supervisor.pid)
    assert len(processes) == 4
    assert [alive(port), alive(port + 1)] == [200, 200]
    await rig.until(lambda: rig.count() > 200)
    supervisor.send_signal(signal.SIGTERM)
    assert await rig.ended(supervisor) == 0, rig.log_of(supervisor)
    assert not [each for each in processes if runs(each)]
    stats = await rig.stats()
    assert stats.in_flight == stats.delayed == 0
    assert stats.settled == rig.count() + len(await rig.letters())
    second = await rig.worker()
    await rig.until(rig.settled)
    second.send_signal(signal.SIGTERM)
    assert await rig.ended(second) == 0
    assert rig.events(second)["rows"]["replays"] == 0
    rows = rig.rows()
    assert {each: row.label for each, row in rows.items()} == expected(classifier, ids, sent)
    assert len({row.worker for row in rows.values()}) == 3


@anyio
async def test_a_worker_that_dies_is_started_again(rig: Rig) -> None:
    """With a pause that grows, and the other one goes on."""
    supervisor = await rig.worker(*SUPERVISE)
    for _ in range(2):
        workers = children(supervisor.pid)
        assert len(workers) == 2
        os.kill(workers[0], signal.SIGKILL)
        await rig.until(lambda old=workers: len(set(children(supervisor.pid)) - set(old)) == 1)  # type: ignore[misc]
    ids = await rig.publish(list(FashionMnist(50)))
    await rig.until(rig.settled)
    assert set(rig.rows()) == set(ids)
    supervisor.send_signal(signal.SIGTERM)
    assert await rig.ended(supervisor) == 0, rig.log_of(supervisor)
    ended = lines(rig, 0, "worker ended")
    assert [each["how"] for each in ended] == ["SIGKILL, as when memory runs out"] * 2
    assert len(lines(rig, 0, "worker started")) == 4


@anyio
async def test_workers_do_not_outlive_their_supervisor(rig: Rig) -> None:
    """It was killed without a word; they drain, and their engines go with them."""
    supervisor = await rig.worker(*SUPERVISE)
    processes = family(supervisor.pid)
    assert len(processes) == 4
    supervisor.kill()
    await rig.until(lambda: not [each for each in processes if runs(each)])


@anyio
async def test_a_second_signal_ends_all_at_once(rig: Rig) -> None:
    """Exit 130, although the results file is locked."""
    supervisor = await rig.worker(*SUPERVISE, "--drain-timeout", "600")
    processes = family(supervisor.pid)
    with closing(sqlite3.connect(rig.results, isolation_level=None)) as blocker:
        blocker.execute("BEGIN IMMEDIATE")
        await rig.publish(list(FashionMnist(32)))
        await rig.until(lambda: _in_flight(rig))
        supervisor.send_signal(signal.SIGTERM)
        await rig.until(lambda: rig.log_of(supervisor).count("draining") >= 3)
        supervisor.send_signal(signal.SIGTERM)
        assert await rig.ended(supervisor) == 130, rig.log_of(supervisor)
        blocker.execute("ROLLBACK")
    assert not [each for each in processes if runs(each)]
    assert (await rig.stats()).unsettled == 32


@anyio
async def test_a_drain_that_takes_too_long_is_the_exit_code_of_all(rig: Rig) -> None:
    """75, as of a single worker."""
    supervisor = await rig.worker(*SUPERVISE, "--drain-timeout", "0.2")
    with closing(sqlite3.connect(rig.results, isolation_level=None)) as blocker:
        blocker.execute("BEGIN IMMEDIATE")
        await rig.publish(list(FashionMnist(8)))
        await rig.until(lambda: _in_flight(rig))
        supervisor.send_signal(signal.SIGTERM)
        assert await rig.ended(supervisor) == 75, rig.log_of(supervisor)
        blocker.execute("ROLLBACK")


@anyio
@pytest.mark.parametrize(
    ("env", "code", "starts"),
    [({"COUTURIER_MODEL": "/nowhere"}, 78, 1), ({"COUTURIER_CREATE": "false"}, 69, 3)],
    ids=["wrong configuration", "away"],
)
async def test_workers_that_cannot_start_end_the_whole(
    rig: Rig, env: dict[str, str], code: int, starts: int
) -> None:
    """With their code: at once where trying again is no use, after three tries elsewhere."""
    supervisor = rig.start("-m", "couturier", "worker", *SUPERVISE, **env)
    begin = time.monotonic()
    assert await rig.ended(supervisor) == code, rig.log_of(supervisor)
    assert time.monotonic() - begin < 60
    assert starts <= len(lines(rig, 0, "worker started")) <= 2 * starts
    assert not lines(rig, 0, "ready")


async def until(met: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not met():
            await asyncio.sleep(0.02)


_SLOW_TO_END = """#!/bin/sh
touch "$5"
trap 'sleep 0.7; exit 0' TERM
while :; do sleep 0.05; done
"""


@anyio
async def test_a_machine_out_of_processes_costs_no_worker_that_runs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The lacking one is tried again later; a drain meanwhile waits without turning in circles."""
    program = tmp_path / "python"
    program.write_text(_SLOW_TO_END)
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    both = Supervisor(2, dict(os.environ), 25.0, tmp_path)
    try:
        assert both.look() is None
        await until(lambda: both.ready)
        assert both.look() is None
        other = both._workers[1]
        assert other is not None
        program.chmod(0o644)  # what cannot be executed fails as what cannot be forked
        other.kill()
        assert both.look() is None
        await until(lambda: both._due[1] < time.monotonic())
        assert both.look() is None
        assert not both.ready
        cpu, wall = time.process_time(), time.monotonic()
        assert await both.drain(cast("Stop", SimpleNamespace(at_once=False))) == 0
        assert time.process_time() - cpu < (time.monotonic() - wall) / 2
    finally:
        both.kill()


@given(st.lists(st.floats(0, 59.0), min_size=1, max_size=30))
def test_the_pause_before_a_restart_grows_up_to_a_cap(runs: list[float]) -> None:
    """And is short again for a worker that ran for a minute."""
    restarts = Restarts()
    waits = [restarts.wait_s(each) for each in runs]
    assert waits[0] == 0.5
    assert all(later == min(30.0, 2 * earlier) for earlier, later in pairwise(waits))
    assert restarts.wait_s(60.0) == 0.5
    assert restarts.ends == len(runs) + 1


@given(st.lists(st.sampled_from([0, 1, 2, 69, 75, 78, 130, -9, -15, 3])))
def test_the_worst_exit_code_counts(codes: list[int]) -> None:
    """A failure, then what is to be configured, then what is away, then a drain; a signal is a failure."""
    code = worst(codes)
    assert code >= 0
    if any(each < 0 or each == 1 for each in codes):
        assert code in (1, 3)
    elif codes and 3 not in codes:
        assert code == min(codes, key=[2, 78, 69, 75, 130, 0].index)
    elif not codes:
        assert code == 0


async def _in_flight(rig: Rig) -> bool:
    return (await rig.stats()).in_flight > 0


def free_ports() -> int:
    """The first of two ports in a row that are free."""
    for port in _ports():
        try:
            with socket.create_server(("127.0.0.1", port)), socket.create_server(("127.0.0.1", port + 1)):
                return port
        except OSError:
            continue
    raise AssertionError("no ports")


def _ports() -> Iterator[int]:
    for _ in range(100):
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = int(server.getsockname()[1])
        yield port
