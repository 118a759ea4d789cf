"""Matrix row 1: a worker killed at each stage of its work, caught there; another one takes over."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from itertools import islice
from uuid import uuid4

from .brokers import SqlitePlace
from .conftest import Stage
from .fleet import Worker, process_state, until
from .pictures import judged, large_png, stream
from .scene import Scene
from .stages import DECODING, IDLE, PREDICTING, engine_pid, freeze_at, frozen_engine, read_cell
from .tables import PostgresTable

# Of a machine that has other things to do.
SLACK_S = 5.0
# What the emulator grants before a process has asked for its own lease.
FIRST_LEASE_S = {"pubsub": 10.0}


def after_receive(scene: Scene, victim: Worker) -> None:
    """It holds messages; its engine has seen none of them."""
    with frozen_engine(victim):
        scene.send(islice(stream(1, poison=0.05), 100))
        until(lambda: victim.status()["held"], "the victim holds messages")
        victim.kill()


def while_decoding(scene: Scene, victim: Worker) -> None:
    """Its engine is in the middle of large pictures."""
    large = judged(large_png(2000), "large")
    freeze_at(victim, DECODING, lambda: scene.send(replace(large, id=uuid4().hex) for _ in range(20)))
    victim.kill()


def while_predicting(scene: Scene, victim: Worker) -> None:
    """Its engine has decoded a batch and computes."""
    freeze_at(victim, PREDICTING, lambda: scene.send(islice(stream(2), 200)))
    victim.kill()


def while_writing(scene: Scene, victim: Worker) -> None:
    """Its rows are on their way into a table that is locked."""
    with scene.table.blocked():
        engine = engine_pid(victim)
        scene.send(islice(stream(3), 100))
        until(lambda: victim.status()["held"], "the victim holds messages")
        until(lambda: read_cell(engine)[0] and read_cell(engine)[1] == IDLE, "its engine has answered")
        victim.kill()


def before_commit(scene: Scene, victim: Worker) -> None:
    """Its rows are stored; the broker has not heard of it."""
    before = scene.table.count()
    if isinstance(scene.table, PostgresTable):
        with scene.table.blocked():
            scene.send(islice(stream(4), 100))
            until(scene.table.waiting, "the victim's statement waits")
            victim.freeze()
        # The server ends the statement of a client that does not answer.
        until(lambda: scene.table.count() > before, "the rows are stored")
    else:
        assert isinstance(scene.place, SqlitePlace)
        with ExitStack() as queue:
            with frozen_engine(victim):
                scene.send(islice(stream(4), 100))
                until(lambda: victim.status()["held"], "the victim holds messages")
                queue.enter_context(scene.place.blocked())
            until(lambda: scene.table.count() > before, "the rows are stored")
            victim.freeze()
    victim.kill()


STAGES: tuple[Callable[[Scene, Worker], None], ...] = (
    after_receive,
    while_decoding,
    while_predicting,
    while_writing,
    before_commit,
)


def test_killed_at_every_stage(stage: Stage) -> None:
    """Received, decoding, predicting, writing, not yet committed: nothing is lost, doubled or counted."""
    with stage(seed=1) as scene:
        victim = scene.fleet.start("--batch-size", "64")
        # On the emulator each takes ten seconds; before it writes, a worker knows no broker.
        for kill_at in STAGES[2:] if scene.place.name == "pubsub" else STAGES:
            name, engine = kill_at.__name__, engine_pid(victim)
            kill_at(scene, victim)
            killed = time.monotonic()
            scene.did(f"SIGKILL {name}")
            victim = scene.fleet.start("--batch-size", "64")
            ready = time.monotonic() - killed
            assert process_state(engine) in "Z", "its engine lives on"
            scene.settle()
            taken = scene.timed(f"takeover {name}", time.monotonic() - killed)
            lease_s = max(scene.place.lease_s, FIRST_LEASE_S.get(scene.place.name, 0.0))
            assert taken <= max(lease_s, ready) + SLACK_S, f"{name}: {taken:.1f} s, ready after {ready:.1f} s"
        assert scene.fleet.stop() == [0]
        report = scene.check()
        assert {each.attempt for each in scene.table.rows()} == {1}
        assert report.redelivered > 0, "nothing was done twice: no worker died before its commit"
