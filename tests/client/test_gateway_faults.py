"""A gateway that is killed, stopped, started wrongly, or left alone by broker and worker loses nothing."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from http.client import HTTPException
from pathlib import Path
from uuid import uuid4

import pytest
from gateways import PATIENCE_S, PNG, Gateway, Reply, clean, running, runs, until

from broker import InvalidMessage, connect
from client import ClassifyRequest, Ledger
from client.gateway.intake import Intake
from client.sources.fashion_mnist import FashionMnist
from tests.commands import Run
from tests.services import KafkaService

IMAGE = next(iter(FashionMnist(1))).request.image
TOKEN = "0123456789abcdef"


def audit(env: dict[str, str]) -> dict[str, object]:
    """Balance the books; they must balance."""
    command = [sys.executable, "-m", "couturier", "audit", "--json"]
    done = subprocess.run(command, env=env, capture_output=True, check=False)
    assert done.returncode == 0, done.stdout
    found: dict[str, object] = json.loads(done.stdout)
    return found


def tried(gateway: Gateway, key: str) -> Reply | None:
    """Send an image; None when the gateway died over it."""
    with suppress(OSError, HTTPException):
        return gateway.post(IMAGE, once=key)
    return None


def test_what_was_accepted_outlives_a_kill(tmp_path: Path) -> None:
    """Killed while 200 images come in: each 202 has a row in the end, and a repeat makes no second one."""
    env = clean(tmp_path)
    keys = [f"order-{number}" for number in range(200)]
    first: dict[str, Reply] = {}
    with running(env) as gateway, ThreadPoolExecutor(8) as pool:

        def send(key: str) -> None:
            if (reply := tried(gateway, key)) is not None:
                first[key] = reply
                if len(first) >= 60:
                    gateway.process.kill()

        list(pool.map(send, keys))
        gateway.process.wait(PATIENCE_S)
    assert 60 <= len(first) < len(keys)
    assert {reply.code for reply in first.values()} == {202}

    with running(env, "--with-worker") as gateway:
        pending = gateway.result(first[keys[0]].json["id"], wait=0)
        assert pending.code in (200, 202)
        with ThreadPoolExecutor(8) as pool:
            again = dict(zip(keys, pool.map(lambda key: gateway.post(IMAGE, once=key), keys), strict=True))
        for key, reply in again.items():
            assert reply.code == 202
            if key in first:
                assert reply.json["id"] == first[key].json["id"]
                assert reply.headers["idempotent-replayed"] == "true"
        ids = {reply.json["id"] for reply in again.values()}
        assert len(ids) == len(keys)
        for each in ids:
            assert gateway.until(each).json["status"] == "ok"
        assert gateway.post(IMAGE + b"other", once=keys[0]).code == 422
    books = audit(env)
    assert (books["stored"], books["duplicate_rows"], books["lost"]) == (len(keys), 0, 0)


def closed(gateway: Gateway) -> bool:
    """Whether nobody new comes in."""
    try:
        gateway.ask("GET", "/livez")
    except OSError:
        return True
    return False


def test_a_stop_lets_requests_end_and_takes_no_new_ones(tmp_path: Path) -> None:
    """Who waits is told at once that there is nothing yet; a half-sent image is taken; exit code 0."""
    with running(clean(tmp_path)) as gateway:
        message_id = gateway.post(IMAGE).json["id"]
        half = gateway.connection()
        half.putrequest("POST", "/v1/images")
        for name, value in {**PNG, "Content-Length": str(len(IMAGE))}.items():
            half.putheader(name, value)
        half.endheaders()
        half.send(IMAGE[:10])
        with ThreadPoolExecutor(2) as pool:
            waiting = pool.submit(gateway.result, message_id, 30)
            streaming = pool.submit(gateway.events, message_id)
            until(lambda: b"couturier_gateway_streams 1.0" in gateway.ask("GET", "/metrics").body)
            begin = time.monotonic()
            gateway.process.send_signal(signal.SIGTERM)
            assert waiting.result().code == 202
            assert streaming.result() == []
            until(lambda: closed(gateway))
            half.send(IMAGE[10:])
            answer = half.getresponse()
            assert answer.status == 202
            answer.read()
            half.close()
        assert gateway.process.wait(PATIENCE_S) == 0
        assert time.monotonic() - begin < 20


def test_what_is_away_is_waited_for_by_the_client(tmp_path: Path) -> None:
    """503, with a time to come again: no results without their database, no image without the broker.

    An image that was refused so is taken later, once. Other pages are served meanwhile.
    """
    silent = socket.create_server(("127.0.0.1", 0))
    where = f"127.0.0.1:{silent.getsockname()[1]}"
    env = clean(tmp_path, SINK_URL=f"postgresql://user:hush@{where}/results?connect_timeout=2")
    with silent, running(env) as gateway:
        reply = gateway.post(IMAGE, once="before")
        assert reply.code == 202
        with ThreadPoolExecutor(21) as pool:
            asked = [pool.submit(gateway.result, reply.json["id"]) for _ in range(20)]
            assert gateway.post(IMAGE, once="meanwhile").code == 202
            assert not all(each.done() for each in asked)
        unanswered = asked[0].result()
        assert {each.result().code for each in asked} == {503}
        assert unanswered.headers["retry-after"] == "5"
        with closing(sqlite3.connect(tmp_path / "queue.db", isolation_level=None)) as db:
            db.execute("BEGIN EXCLUSIVE")
            with ThreadPoolExecutor(4) as pool:
                replies = list(pool.map(lambda number: gateway.post(IMAGE, once=f"k-{number}"), range(4)))
            assert gateway.ask("GET", "/livez").code == 200
            db.execute("ROLLBACK")
        assert {each.code for each in replies} == {503}
        assert {each.headers["retry-after"] for each in replies} == {"5"}
        assert "Idempotency-Key" in replies[0].json["detail"]
        repeated = [gateway.post(IMAGE, once=f"k-{number % 4}") for number in range(8)]
        assert {each.code for each in repeated} == {202}
        assert len({each.json["id"] for each in repeated}) == 4
    with closing(sqlite3.connect(tmp_path / "queue.db")) as db:
        assert db.execute("SELECT count(*) FROM messages").fetchone() == (6,)
    assert "hush" not in "".join(gateway.said) + unanswered.body.decode()


def test_a_worker_that_dies_is_started_again(tmp_path: Path) -> None:
    """What it held comes again; when the gateway is killed it ends, too."""
    with running(clean(tmp_path), "--with-worker") as gateway:
        gateway.until(gateway.post(IMAGE).json["id"])
        (worker,) = children(gateway.process.pid)
        os.kill(worker, signal.SIGKILL)
        assert gateway.until(gateway.post(IMAGE).json["id"]).json["status"] == "ok"
        (other,) = children(gateway.process.pid)
        assert other != worker
        gateway.process.kill()
        gateway.process.wait()
        until(lambda: not runs(other))  # it ends with the standard input that the gateway held


def children(pid: int) -> list[int]:
    """The processes that a process started."""
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_others_need_a_token(tmp_path: Path) -> None:
    """Whatever they ask for, but for probes and the description; guesses tell nothing."""
    env = clean(tmp_path, COUTURIER_GATEWAY_TOKEN=TOKEN, COUTURIER_GATEWAY_HOST="0.0.0.0")
    with running(env) as gateway:
        wrong = ("", "Basic x", "Bearer", f"Bearer {TOKEN}x", f"Bearer {TOKEN[:-1]}", "Bearer \xe9")
        for method, path in (
            ("POST", "/v1/images"),
            ("GET", "/v1/results/x"),
            ("GET", "/metrics"),
            ("GET", "/x"),
        ):
            for given in wrong:
                reply = gateway.ask(method, path, headers={**PNG, "Authorization": given})
                assert (reply.code, reply.headers["www-authenticate"]) == (401, "Bearer"), given
        for path in ("/livez", "/readyz", "/openapi.json", "/docs"):
            assert gateway.ask("GET", path).code == 200
        right = {**PNG, "Authorization": f"bearer {TOKEN}", "Host": "images.example"}
        assert gateway.ask("POST", "/v1/images", IMAGE, right).code == 202
    assert TOKEN not in "".join(gateway.said)


@pytest.mark.parametrize(
    ("options", "more", "names"),
    [
        (["--host", "0.0.0.0"], {}, "COUTURIER_GATEWAY_TOKEN"),
        (["--host", "::"], {}, "COUTURIER_GATEWAY_TOKEN"),
        (["--host", "192.0.2.1"], {"COUTURIER_GATEWAY_TOKEN": TOKEN}, "COUTURIER_GATEWAY_HOST"),
        (["--host", "nowhere.invalid"], {"COUTURIER_GATEWAY_TOKEN": TOKEN}, "COUTURIER_GATEWAY_HOST"),
        ([], {"COUTURIER_GATEWAY_TOKEN": TOKEN[:-1]}, "16 characters"),
        ([], {"COUTURIER_GATEWAY_TOKEN": TOKEN + " x"}, "blank"),
        ([], {"BROKER_URL": "memory://"}, "one process"),
        ([], {"SINK_URL": "console:"}, "SINK_URL"),
    ],
)
def test_what_is_set_wrongly_ends_it_at_start(
    run: Run, options: list[str], more: dict[str, str], names: str
) -> None:
    """Exit code 78, and the name of what is to be mended; no secret."""
    done = run("gateway", "--port", "0", *options, **more)
    assert done.returncode == 78, done.stderr
    assert names in done.stderr
    assert TOKEN[:-1] not in done.stderr


def test_a_port_that_is_taken_is_named(run: Run) -> None:
    """With what to do."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = run("gateway", COUTURIER_GATEWAY_PORT=str(taken.getsockname()[1]))
    assert done.returncode == 78
    assert "COUTURIER_GATEWAY_PORT" in done.stderr


def test_a_worker_that_cannot_start_ends_the_gateway(tmp_path: Path) -> None:
    """One command fails as one; what the worker says is seen."""
    env = clean(tmp_path, COUTURIER_MODEL=str(tmp_path / "nothing"))
    command = [sys.executable, "-m", "couturier", "gateway", "--port", "0", "--with-worker"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert done.returncode == 78
    assert "--with-worker" in done.stderr
    assert "nothing" in done.stderr


@pytest.mark.parametrize("missing", ["fastapi", "uvicorn", "python_multipart"])
def test_the_extra_is_named_where_it_is_missing(
    run: Run, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    """All else of the command line works without it."""
    for name in [each for each in sys.modules if each.startswith("client.gateway.")]:
        if name not in ("client.gateway.cli", "client.gateway.settings"):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, missing, None)
    monkeypatch.setitem(sys.modules, "multipart", None)  # its other name
    done = run("gateway")
    assert done.returncode == 78
    assert "--extra gateway" in done.stderr
    assert missing in done.stderr


@pytest.mark.anyio
async def test_a_bad_image_takes_no_neighbour_with_it(tmp_path: Path) -> None:
    """Of images that are stored in one go each gets its own answer."""
    good = [ClassifyRequest(image=b"x", id=f"good-{number}") for number in range(3)]
    with Ledger(tmp_path / "ledger.db") as ledger:
        async with connect("memory://gateway-faults") as broker:
            await broker.ensure("images", "classifiers")
            too_many = {str(number): "" for number in range(broker.capabilities.max_attributes + 1)}
            bad = ClassifyRequest(image=b"x", id="bad", attributes=too_many)
            async with Intake(broker, "images", ledger) as intake:
                answers = await asyncio.gather(
                    *(intake.accept(each) for each in [*good[:2], bad, good[2], bad, good[0]]),
                    return_exceptions=True,
                )
            stats = await broker.stats("images", "classifiers")
    assert [type(each) for each in answers[2:5:2]] == [InvalidMessage, InvalidMessage]
    assert answers[:2] + answers[3:4] == [None, None, None]
    assert answers[5] == good[0].time
    assert stats.published == 3


@pytest.mark.kafka
def test_the_same_on_kafka(kafka_service: KafkaService, tmp_path: Path) -> None:
    """Row, dead letter, repeated key and balanced books."""
    env = clean(
        tmp_path,
        BROKER_URL=f"kafka://{kafka_service.bootstrap}",
        COUTURIER_TOPIC=f"images-{uuid4().hex}",
    )
    with running(env, "--with-worker") as gateway:
        sent = [gateway.post(IMAGE, once="one", key="cam-1") for _ in range(3)]
        (message_id,) = {each.json["id"] for each in sent}
        bad = gateway.post(b"no image").json["id"]
        assert gateway.until(message_id).json["key"] == "cam-1"
        assert gateway.until(bad).json["reason"] == "invalid-image"
        assert [each["event"] for each in gateway.events(message_id, bad)] == ["result", "failed", "end"]
        assert gateway.ask("GET", "/readyz").code == 200
    books = audit(env)
    assert (books["stored"], books["dead_lettered"], books["lost"]) == (1, 1, 0)
