"""Workers that are asked to stop, join and leave under load, freeze and wake: matrix rows 2 to 5, 24."""

from __future__ import annotations

import random
import signal
import time
from itertools import islice

import pytest

from .conftest import Stage
from .fleet import Worker, until
from .kafka_place import KafkaPlace
from .pictures import stream

# What docker grants before it kills.
GRACE_S = 10.0


def test_workers_join_and_leave_under_load(stage: Stage) -> None:
    """Rows 2 and 24: one worker, three, and by SIGTERM two and one; nothing is done twice."""
    with stage(partitions=8) as scene:
        scene.fleet.start("--batch-size", "16")
        with scene.load(stream(24, poison=0.01), rate=200):
            until(lambda: scene.table.count() > 0, "work is under way")
            scene.fleet.start_all(2, "--batch-size", "16")
            scene.did("scaled up")
            scene.all_work()
            if isinstance(scene.place, KafkaPlace):
                at_rest(scene.place)  # what joining costs is not to be counted for leaving
            before = sum(each.status()["rows"]["replays"] for each in scene.fleet.workers)
            for victim in scene.fleet.alive[:2]:
                begin = time.monotonic()
                victim.kill(signal.SIGTERM)
                assert victim.ended() == 0, victim.text
                assert scene.timed("exit", time.monotonic() - begin) <= GRACE_S
                scene.did("SIGTERM")
                scene.timed("to_first_progress", scene.progress())
        scene.settle()
        assert scene.fleet.stop() == [0]
        report = scene.check()
        assert before <= report.sent / 100
        assert scene.fleet.total("replays") == before
        assert report.redelivered == before


def test_workers_that_cannot_write_are_frozen_or_stopped(stage: Stage) -> None:
    """Rows 5, 3 and 4: what a zombie does late changes nothing; a drain is given up; nothing is settled."""
    with stage() as scene:
        zombie, other = scene.fleet.start_all(2, "--batch-size", "16", "--drain-timeout", "1")
        scene.send(islice(stream(5), 50))
        scene.settle()
        with scene.table.blocked():
            scene.send(islice(stream(6), 400))
            until(lambda: zombie.status()["held"], "the zombie holds work")
            zombie.freeze()
        scene.did("SIGSTOP")
        scene.timed("takeover", until(lambda: scene.table.count() == 450, "the other one took over"))
        zombie.thaw()
        scene.settle()
        until(lambda: late_verdicts(zombie), "the zombie did something late")
        scene.did("late verdicts", late_verdicts(zombie))
        with scene.table.blocked():
            scene.send(islice(stream(4), 400))
            until(lambda: zombie.status()["held"] and other.status()["held"], "both hold work")
            begin = time.monotonic()
            zombie.kill(signal.SIGTERM)
            other.kill(signal.SIGTERM)
            until(lambda: "draining" in other.text, "the other one drains")
            other.kill(signal.SIGINT)
            assert zombie.ended() == 75, zombie.text
            assert other.ended() in (75, 130), other.text
            assert scene.timed("exit", time.monotonic() - begin) <= GRACE_S
        scene.did("SIGTERM with the sink away", 2)
        scene.fleet.start()
        scene.settle()
        assert scene.fleet.stop() == [0]
        report = scene.check()
        assert report.dead == {}
        assert {each.attempt for each in scene.table.rows()} == {1}


def at_rest(place: KafkaPlace) -> None:
    """Wait until nobody's partitions have changed for two seconds."""
    seen, since = place.members(), time.monotonic()

    def look() -> bool:
        nonlocal seen, since
        if (now := place.members()) != seen:
            seen, since = now, time.monotonic()
        return time.monotonic() - since > 2.0

    until(look, "the group is at rest", pause_s=0.2)


def late_verdicts(worker: Worker) -> int:
    """Return how many messages a worker finished that were no longer its own."""
    status = worker.status()
    return int(status["totals"]["lost_leases"] + status["rows"]["replays"])


@pytest.mark.campaign
@pytest.mark.parametrize("seed", [1])
def test_a_storm_of_kills(stage: Stage, seed: int) -> None:
    """Workers killed at random moments under load, one after the other, with poison and duplicates."""
    chance = random.Random(seed)
    with stage(seed=seed) as scene:
        scene.fleet.start_all(2, "--batch-size", "16")
        with scene.load(stream(seed, poison=0.02, duplicates=0.05), rate=200):
            for _ in range(10):
                goal = scene.table.count() + chance.randrange(50, 150)
                until(lambda goal=goal: scene.table.count() > goal, "work goes on")  # type: ignore[misc]
                chance.choice(scene.fleet.alive).kill()
                scene.did("SIGKILL")
                scene.timed("to_first_progress", scene.progress())
                scene.fleet.start("--batch-size", "16")
        scene.settle()
        assert set(scene.fleet.stop()) == {0}
        scene.check()
