"""``couturier status``: what is stuck, why, and what it says when the broker or the workers say nothing."""

from __future__ import annotations

import asyncio
import json
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit
from uuid import uuid4

import pytest

from broker import GroupStats, Lag, Message, connect, dead_letter_topic
from client.status import Oldest, Queue, Report, report
from client.workers import Answer, Listed
from tests.client.saying import serving
from tests.commands import Run
from tests.services import KafkaService, PubSubService

TOPIC, GROUP = "images", "classifiers"
OLDEST = Oldest("m-1", "a coat", 300.0, 1)
STATS = GroupStats(100, 90, 0, 0, 10)
LISTED = Listed("host-7", socket.gethostname(), "http://127.0.0.1:1", 7, 0.0, TOPIC, GROUP)


def body(**fields: object) -> dict[str, Any]:
    """What a worker at work says of itself."""
    usual = {
        "worker": "host-7",
        "pid": 7,
        "topic": TOPIC,
        "group": GROUP,
        "state": "running",
        "reason": "",
        "beat_s": 0.1,
        "idle_s": 0.5,
        "held": 3,
        "message": None,
        "failures": [],
        "engine": {"alive": True, "restarts": 2, "crashes": 2},
        "drain_s": 12.0,
        "lag": [],
    }
    return {**usual, **fields}


def judged(queue: Queue | Exception, *bodies: dict[str, Any], old_s: float = 60.0) -> Report:
    answers = [Answer("http://127.0.0.1:1", 200, each) for each in bodies]
    return report(TOPIC, GROUP, queue, answers, old_s)


def reasons(found: Report) -> list[str]:
    return [each.reason for each in found.stuck]


QUEUE = Queue("here", STATS, [Lag(0, 10, "90", "100")], 2, OLDEST)


def test_work_in_progress_is_not_stuck_however_old_it_is() -> None:
    """A long backlog has an old head; somebody is at it."""
    assert reasons(judged(QUEUE, body())) == []


def test_a_message_that_nobody_holds_while_all_are_idle_is_stuck() -> None:
    """With its failures, as far as a worker remembers them."""
    failed = {"message_id": "m-1", "attempt": 1, "stage": "handle", "error": "boom", "at": 5.0}
    found = judged(replace(QUEUE, oldest=replace(OLDEST, attempt=2)), body(idle_s=90.0, failures=[failed]))
    assert reasons(found) == ["unclaimed"]
    assert "it failed 1 time(s) (boom)" in found.stuck[0].detail
    assert found.queue is not None
    assert found.queue.oldest is not None
    assert found.queue.oldest.last_error == "boom"
    assert reasons(judged(QUEUE, body(idle_s=90.0), old_s=301.0)) == []


def test_a_message_that_is_held_too_long_is_stuck_in_its_stage() -> None:
    """The worker that holds it says where."""
    held = {"message_id": "m-1", "attempt": 3, "stage": "handling", "held_s": 70.0}
    found = judged(QUEUE, body(worker="a"), body(worker="b", message=held))
    assert reasons(found) == ["held-long"]
    assert "stage 'handling' of worker b" in found.stuck[0].detail
    assert found.queue is not None
    assert found.queue.oldest == Oldest("m-1", "a coat", 300.0, 3, "handling", "b", 70.0, None)
    assert reasons(judged(QUEUE, body(message={**held, "held_s": 5.0}))) == []


def test_an_outage_a_frozen_loop_and_silence_are_causes_and_come_first() -> None:
    """What follows from them is not told as well."""
    held = {"message_id": "m-1", "attempt": 1, "stage": "outage", "held_s": 200.0}
    found = judged(
        QUEUE,
        body(state="paused", outage="the results are locked", message=held, idle_s=200.0),
        body(worker="cold", beat_s=33.0),
        body(worker="well"),
    )
    assert reasons(found) == ["worker-frozen", "worker-paused"]
    assert "33 s" in found.stuck[0].detail
    assert "the results are locked" in found.stuck[1].detail
    away = [body(worker=each, state="paused", outage="the same", held=4) for each in "abc"]
    (all_three,) = judged(QUEUE, *away).stuck
    assert all_three.detail == "3 workers wait, with 12 message(s), for an outage to end: the same"
    silent = report(TOPIC, GROUP, QUEUE, [Answer("http://h:1", error="refused", listed=LISTED)], 60.0)
    assert reasons(silent) == ["worker-silent", "no-worker"]
    assert "kill -KILL 7" in silent.stuck[0].next
    far = Answer("http://far:1", error="refused", listed=replace(LISTED, host="far"))
    assert report(TOPIC, GROUP, QUEUE, [far], 60.0).workers[0].pid is None
    text = Answer("http://h:1", 200, text="<html>")
    assert report(TOPIC, GROUP, QUEUE, [text], 60.0).workers[0].state == "silent"
    named = report(TOPIC, GROUP, QUEUE, [Answer("http://h:1", error="refused")], 60.0)
    assert "COUTURIER_HTTP_HOST" in named.stuck[0].next


def test_a_partition_that_a_worker_watched_stand_still_is_stuck() -> None:
    """Only if it has not changed since."""
    still = [{"partition": 0, "unsettled": 10, "stalled_s": 80.0}]
    assert reasons(judged(QUEUE, body(lag=still))) == ["partition-stalled"]
    moved = replace(QUEUE, lag=[Lag(0, 9, "91", "100")])
    assert reasons(judged(moved, body(lag=still))) == []


def test_work_without_any_worker_is_stuck_and_no_work_is_not() -> None:
    """The next step says how to name workers of other machines."""
    found = judged(QUEUE)
    assert reasons(found) == ["no-worker"]
    assert "COUTURIER_WORKERS" in found.stuck[0].next
    assert reasons(judged(Queue("here", GroupStats(5, 5, 0, 0, 0), [], 0, None))) == []


def test_workers_of_other_topics_are_counted_and_not_shown() -> None:
    """One state directory may serve several."""
    found = judged(QUEUE, body(), body(topic="others"))
    assert (len(found.workers), found.others) == (1, 1)


def test_when_the_broker_is_down_the_workers_still_speak() -> None:
    """Their states, without a judgement on messages."""
    found = judged(ConnectionError("gone"), body(state="paused", outage="no broker"))
    assert (found.queue, found.error, reasons(found)) == (None, "gone", ["worker-paused"])
    assert found.to_dict()["broker"] is None


async def fill(url: str) -> None:
    """Two messages to do, one dead letter."""
    async with connect(url) as broker:
        await broker.ensure(TOPIC, GROUP, partitions=2)
        await broker.ensure(dead_letter_topic(TOPIC, GROUP), "operators")
        await broker.publish(TOPIC, [Message(b"x", id="m-1", subject="\x1b[31mred"), Message(b"y", id="m-2")])
        await broker.publish(dead_letter_topic(TOPIC, GROUP), [Message(b"z")])


def test_the_queue_and_a_named_worker(run: Run, tmp_path: Path) -> None:
    """The worker is asked for the oldest message; exit 0 also when something is stuck."""
    url = f"sqlite:///{tmp_path}/q.db"
    asyncio.run(fill(url))
    held = {"message_id": "m-1", "attempt": 4, "stage": "outage", "held_s": 99.0}
    said = body(state="paused", outage="the sink is locked", message=held, held=2)
    seen: list[str] = []
    with serving(json.dumps(said).encode(), seen) as where:
        done = run("status", "--json", BROKER_URL=url, COUTURIER_WORKERS=f" {where},")
        shown = run("status", "--worker", where, BROKER_URL=url)
    assert done.returncode == shown.returncode == 0, done.stderr
    assert parse_qs(urlsplit(seen[0]).query) == {"message": ["m-1"]}
    found = json.loads(done.stdout)
    assert found["queue"]["unsettled"] == 2
    assert found["dead_letters"] == 1
    assert found["lag"] == [{"partition": None, "unsettled": 2, "position": "0", "end": "2"}]
    oldest = found["oldest"]
    assert (oldest["message_id"], oldest["attempt"], oldest["stage"], oldest["worker"]) == (
        "m-1",
        4,
        "outage",
        "host-7",
    )
    assert [each["reason"] for each in found["stuck"]] == ["worker-paused"]
    first, *_ = shown.stdout.splitlines()
    assert first.startswith("STUCK: worker host-7 waits, with 2 message(s), for an outage to end")
    assert "the sink is locked" in first
    assert "`couturier dlq list`" in shown.stdout
    assert "\x1b[31m" not in shown.stdout
    assert "nothing yet" in shown.stdout  # it has run for half a second, and settled nothing


def test_without_workers_the_first_line_says_so(run: Run, tmp_path: Path) -> None:
    """A queue with work, and nobody to do it."""
    url = f"sqlite:///{tmp_path}/q.db"
    asyncio.run(fill(url))
    shown = run("status", BROKER_URL=url)
    assert shown.returncode == 0
    assert shown.stdout.startswith("STUCK: 2 message(s), and no worker that is known here")
    assert "couturier worker" in shown.stdout.splitlines()[1]


def test_a_broker_that_is_down_does_not_silence_the_workers(run: Run, tmp_path: Path) -> None:
    """At 3 a.m.: exit 69, and what the workers say is still printed."""
    (tmp_path / "q.db").write_bytes(b"no queue" * 1000)
    url = f"sqlite:///{tmp_path}/q.db"
    with serving(json.dumps(body(state="paused", outage="broker away")).encode(), []) as where:
        shown = run("status", "--worker", where, BROKER_URL=url)
        told = run("status", "--worker", where, "--json", BROKER_URL=url)
    assert (shown.returncode, told.returncode) == (69, 69)
    assert "host-7" in shown.stdout
    assert "broker away" in shown.stdout
    assert "q.db" in shown.stderr
    found = json.loads(told.stdout)
    assert "q.db" in found["error"]
    assert found["workers"][0]["state"] == "paused"


def test_wrong_use_and_wrong_configuration(run: Run) -> None:
    """A queue that lives in one process has no status; a worker must be one."""
    assert run("status", BROKER_URL="memory://").returncode == 78
    wrong = run("status", "--worker", "ftp://h")
    assert (wrong.returncode, "worker 'ftp://h'" in wrong.stderr) == (78, True)


def test_a_topic_that_nobody_made(run: Run) -> None:
    """The error names the command that makes it."""
    shown = run("status")
    assert shown.returncode == 69
    assert "couturier topics ensure images" in shown.stderr


@pytest.mark.kafka
def test_on_kafka_it_names_the_partitions(run: Run, kafka_service: KafkaService) -> None:
    """What waits in each of them, and the message that has waited longest, without joining the group."""
    topic = f"status-{uuid4().hex[:8]}"
    url = f"kafka://{kafka_service.bootstrap}"

    async def prepare() -> list[str]:
        async with connect(url) as broker:
            await broker.ensure(topic, GROUP, partitions=3)
            sent = [Message(b"x", key=str(each)) for each in range(30)]
            await broker.publish(topic, sent)
            async with broker.subscribe(topic, group=GROUP) as member:
                taken = await member.receive(max_messages=1, timeout=30.0)
                await member.nack(taken, delay=600.0)
            return [each.message.id for each in taken]

    failed = asyncio.run(prepare())
    done = run("status", "--json", BROKER_URL=url, COUTURIER_TOPIC=topic)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["queue"]["unsettled"], found["queue"]["delayed"]) == (30, 1)
    assert [each["partition"] for each in found["lag"]] == [0, 1, 2]
    assert sum(each["unsettled"] for each in found["lag"]) == 30
    assert found["dead_letters"] == 0
    assert found["oldest"]["attempt"] == (2 if found["oldest"]["message_id"] in failed else 1)
    assert [each["reason"] for each in found["stuck"]] == ["no-worker"]
    shown = run("status", BROKER_URL=url, COUTURIER_TOPIC=topic).stdout
    assert "30 of 30 to do" in shown
    assert "partition" in shown


@pytest.mark.pubsub
def test_on_pubsub_what_takes_too_long_is_said_and_not_waited_for(
    run: Run, pubsub_service: PubSubService
) -> None:
    """A copy of everything must be received: all of it in time, and nothing in no time."""
    where = {"BROKER_URL": f"pubsub://p-{uuid4().hex[:8]}", "PUBSUB_EMULATOR_HOST": pubsub_service.host}

    async def prepare() -> str:
        async with connect(where["BROKER_URL"]) as broker:
            await broker.ensure(TOPIC, GROUP)
            sent = [Message(b"x") for _ in range(5)]
            await broker.publish(TOPIC, sent)
            return sent[0].id

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PUBSUB_EMULATOR_HOST", pubsub_service.host)
        oldest = asyncio.run(prepare())
    found = json.loads(run("status", "--json", "--timeout", "60", **where).stdout)
    assert found["queue"]["unsettled"] == 5
    assert [each["unsettled"] for each in found["lag"]] == [5]
    assert found["oldest"]["message_id"] == oldest
    assert found["notes"] == []
    done = run("status", "--json", "--timeout", "0.001", **where)
    assert done.returncode == 0, done.stderr
    hurried = json.loads(done.stdout)
    assert "oldest message: not known within 0.001 s; ask with a longer --timeout" in hurried["notes"]
    assert hurried["oldest"] is None
