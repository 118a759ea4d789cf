"""What is in the messages: matrix rows 26 to 29, 31 to 39 and 44, in one run on each backend."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from itertools import islice
from pathlib import Path

import pytest

from broker import PublishError

from .conftest import Stage
from .fleet import ROOT, until
from .kafka_place import KafkaPlace
from .ledger import Entry, digest
from .odd_pictures import INJECTED, bombs, headers, liars, shapes, sizes
from .odd_worker import COMMAND, marked
from .pictures import Item, garments, judged, mutants, stream
from .pubsub_place import PubsubPlace
from .scene import Scene

# What classifiers and databases take in one piece; SQLite would take a gigabyte.
MOST_BYTES = 10_000_000
ALWAYS_FAILS = "attempts-exhausted"


def test_every_message_ends_as_it_must(stage: Stage, directory: Path) -> None:
    """Duplicates, conflicts, poison, failures, crashes, mutants, bombs, shapes, liars, headers, redrive."""
    options = {"COUTURIER_ATTEMPTS": "3", "COUTURIER_CRASHES": "2"}
    with stage(**options) as scene:
        worker = scene.fleet.start(command=COMMAND)
        twice = list(duplicates(scene))
        failing = list(failures(directory))
        scene.send(failing)
        scene.send(mutants(1000, 10))
        scene.send([*bombs(), *shapes(), *liars(), *headers()])
        oversized(scene)
        foreign(scene)
        scene.send(islice(stream(28, poison=0.1), 300))
        scene.send(Item(data, None, "invalid-image", "poison") for data, _ in poison_only(60))
        scene.settle()
        conflicts = contradictions(scene, twice)
        until(lambda: worker.status()["rows"]["conflicts"] >= conflicts, "the conflicts are counted")
        scene.settle()
        attempts = {row.message_id: row.attempt for row in scene.table.rows()}
        assert [attempts[each.id] for each in failing if each.kind == "fails twice"] == [3, 3, 3]
        tell_tales = [line for line in worker.text.splitlines() if line.startswith(INJECTED)]
        assert not tell_tales, "a header wrote a line of its own into the log"
        engine = worker.status()["engine"]
        # One image that is alone dies twice; at first it was in company, and nobody could be named.
        assert 0 < engine["crashes"] <= 3 * 2
        assert scene.fleet.stop() == [0]
        counted = worker.events("rows")[-1]
        assert (counted["conflicts"], counted["crashed"]) == (conflicts, 2)
        redrive(scene, [each for each in failing if each.reason == ALWAYS_FAILS])
        report = scene.check()
        assert report.dead.keys() == {"invalid-image", "crashed", ALWAYS_FAILS}
        assert report.peak_rss_bytes < 600 * 1024**2


def duplicates(scene: Scene) -> list[Item]:
    """Row 26: every tenth id is sent again, at once and later."""
    items = list(islice(stream(26), 300))
    again = items[::10]
    scene.send([each for item in items for each in ([item, item] if item in again else [item])])
    scene.settle()
    scene.send(again)
    return again


def contradictions(scene: Scene, known: list[Item]) -> int:
    """Row 27: ids that have a row come again with another picture; return how many."""
    others = {label: data for data, label in garments(50)}
    wrong = []
    for item in known[:5]:
        label = next(each for each in others if each != item.label)
        wrong.append(Item(others[label], label, None, "conflict", item.id))
    scene.send(wrong)
    return len(wrong)


def failures(directory: Path) -> list[Item]:
    """Rows 29 and 31: images that fail twice, that fail always, and that kill the engine."""
    (data, label), *_ = garments(10)
    fails = [f"fail=2={directory / f'count-{number}'}" for number in range(3)]
    return [
        *(Item(marked(data, order), label, None, "fails twice") for order in fails),
        *(Item(marked(data, "raise"), None, ALWAYS_FAILS, "fails always") for _ in range(3)),
        *(Item(marked(data, "abort"), None, "crashed", "kills the engine") for _ in range(2)),
    ]


def poison_only(count: int) -> list[tuple[bytes, str]]:
    """Row 28, all of it: more in a row than a batch takes."""
    return [(b"poison %d" % number, "") for number in range(count)]


def oversized(scene: Scene) -> None:
    """Row 32: up to the limit a message is classified, above it refused at once, its neighbours stored."""
    most = scene.client.capabilities.max_message_bytes
    scene.send(sizes(min(most, MOST_BYTES)))
    if most <= MOST_BYTES:
        data, label = garments(10)[6]
        neighbours = [Item(data, label, None, "neighbour") for _ in range(2)]
        giant = Item(bytes(most + 1), None, None, "giant")
        scene.plan(neighbours)
        batch = [each.message() for each in (neighbours[0], giant, neighbours[1])]
        with pytest.raises(PublishError) as caught:
            scene.client.publish(scene.place.topic, batch)
        assert set(caught.value.failed) == {giant.id}
        scene.ledger.confirm(each.id for each in neighbours)
        scene.did("oversized")


def foreign(scene: Scene) -> None:
    """Rows 38 and 39: records as only another program writes them."""
    place = scene.place
    good = garments(10)[7][0]
    if isinstance(place, KafkaPlace):
        wild: list[tuple[str, bytes | None]] = [(f"h{number}", b"x") for number in range(10_000)]
        wild += [("twice", b"1"), ("twice", b"2"), ("raw", b"\xff\xfe\r\n\0"), ("null", None)]
        wild += [("couturier-retry-attempt", b"99"), ("couturier-retry-due", b"inf")]
        big: list[tuple[str, bytes | None]] = [("big", b"x" * 500_000)]
        records = [
            (good, None, wild),
            (b"poison", b"\xff\xfe", wild),
            (good, b"k", big),
            (b"poison", b"k", big),
            (None, b"tombstone", []),
            (b"", None, []),
            (good, b"k" * 900_000, []),
        ]
        for number, (value, key, more) in enumerate(records):
            item = judged(value or b"", "foreign", id=f"foreign-{number}-{place.topic}")
            scene.plan([item])
            place.produce(value, key, [*more, ("ce_id", item.id.encode())])
            scene.ledger.confirm([item.id])
    if isinstance(place, PubsubPlace):
        forged = {"couturier-retry-attempt": "99", "couturier-retry-due": "inf", "couturier-reason": "forged"}
        for number, data in enumerate((good, b"poison", b"\0")):
            item = judged(data, "foreign", id=f"foreign-{number}-{place.topic}")
            scene.plan([item])
            place.produce(data, {**forged, "ce-id": item.id})
            scene.ledger.confirm([item.id])


def redrive(scene: Scene, items: list[Item]) -> None:
    """Row 44: once the fault is mended the letters go through again; a second replay has nothing to do."""
    scene.fleet.start()
    label = garments(10)[0][1]
    scene.ledger.redrive(Entry(e.id, digest(e.data), label, e.reason, "redriven") for e in items)
    assert replayed(scene) == len(items)
    scene.settle()
    assert replayed(scene) == 0
    assert scene.fleet.stop() == [0]
    scene.did("redriven", len(items))


def replayed(scene: Scene) -> int:
    """Replay what always failed, by command; return how many letters went."""
    command = [sys.executable, "-m", "couturier", "dlq", "replay", "--reason", ALWAYS_FAILS, "--json"]
    env = {
        **os.environ,
        **scene.env,
        "COUTURIER_HOME": str(scene.directory / "home"),
        "PYTHONPATH": str(ROOT),
    }
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=90, check=False)
    assert done.returncode == 0, done.stderr
    return len(json.loads(done.stdout)["replayed"])
