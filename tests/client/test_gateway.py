"""``couturier gateway --with-worker`` on the embedded default, as clients of it see it."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
from gateways import PNG, Gateway, clean, running, until

from client.gateway.stream import MOST_STREAMS
from client.sources.fashion_mnist import FashionMnist

NOT_AN_IMAGE = b"hello"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def gateway(home: Path) -> Iterator[Gateway]:
    with running(clean(home), "--with-worker") as found:
        yield found


@pytest.fixture(scope="module")
def pictures() -> list[bytes]:
    return [each.request.image for each in FashionMnist(20)]


def rows(home: Path, message_id: str) -> int:
    with closing(sqlite3.connect(home / "results.db")) as db:
        query = "SELECT count(*) FROM results WHERE message_id = ?"
        return int(db.execute(query, (message_id,)).fetchone()[0])


def test_an_image_goes_in_and_its_row_comes_out(gateway: Gateway, pictures: list[bytes]) -> None:
    """One command, no broker; what was said with the image stands in the row."""
    said = {"subject": "Mantel für Ä", "key": "cam-7", "title": "A coat", "description": "warm"}
    sent = gateway.post(pictures[0], **said)
    assert sent.code == 202
    message_id = sent.json["id"]
    assert sent.headers["location"] == f"/v1/results/{message_id}"
    found = gateway.until(message_id)
    row = found.json
    assert (row["message_id"], row["status"]) == (message_id, "ok")
    assert row["label"] is not None
    assert (row["subject"], row["key"]) == (said["subject"], said["key"])
    assert row["context"] == {"title": said["title"], "description": said["description"]}
    assert row["source"] == "/couturier/gateway"


def test_a_form_is_taken_as_browsers_and_curl_send_it(gateway: Gateway, pictures: list[bytes]) -> None:
    """One file; all else stands in the address."""
    head = b'--b\r\nContent-Disposition: form-data; name="%s"; filename="a.png"\r\nContent-Type: %s\r\n\r\n'
    form = {"Content-Type": "multipart/form-data; boundary=b"}

    def send(name: bytes, kind: bytes, end: bytes = b"\r\n--b--\r\n") -> int:
        body = head % (name, kind) + pictures[1] + end
        reply = gateway.ask("POST", "/v1/images", body, form, subject="a form")
        if reply.code == 202:
            assert gateway.until(reply.json["id"]).json["subject"] == "a form"
        return reply.code

    assert send(b"image", b"image/png") == 202
    assert send(b"picture", b"image/png") == 400
    assert send(b"image", b"image/gif") == 415
    assert send(b"image", b"image/png", end=b"") == 400
    assert gateway.ask("POST", "/v1/images", b"x", {"Content-Type": "multipart/form-data"}).code == 400


def test_what_is_no_image_is_answered_as_failed(gateway: Gateway) -> None:
    """The dead letter's reason, to who waits and to who asks later."""
    message_id = gateway.post(NOT_AN_IMAGE).json["id"]
    found = gateway.until(message_id).json
    assert (found["status"], found["reason"], found["attempts"]) == ("failed", "invalid-image", 1)
    assert found["message_id"] == message_id
    assert gateway.result(message_id, wait=0).json == found


def test_a_deadline_that_has_passed_ends_as_a_row(gateway: Gateway, pictures: list[bytes]) -> None:
    """Nobody classifies what nobody wants any more."""
    sent = gateway.post(pictures[2], deadline="2020-01-01T00:00:00Z")
    assert gateway.until(sent.json["id"]).json["status"] == "expired"


def test_a_key_has_one_id_and_one_row(gateway: Gateway, home: Path, pictures: list[bytes]) -> None:
    """However often, and by however many at once, the same image is sent with it."""
    with ThreadPoolExecutor(16) as pool:
        replies = list(pool.map(lambda _: gateway.post(pictures[3], once="k-1"), range(32)))
    assert {each.code for each in replies} == {202}
    (message_id,) = {each.json["id"] for each in replies}
    assert sum("idempotent-replayed" not in each.headers for each in replies) == 1
    gateway.until(message_id)
    again = gateway.post(pictures[3], once="k-1")
    assert (again.code, again.json["id"], again.headers["idempotent-replayed"]) == (202, message_id, "true")
    assert again.json["accepted_at"] == gateway.post(pictures[3], once="k-1").json["accepted_at"]
    assert rows(home, message_id) == 1


def test_a_key_is_for_one_image(gateway: Gateway, pictures: list[bytes]) -> None:
    """Of several images that are sent at once with a new key exactly one is taken."""
    with ThreadPoolExecutor(8) as pool:
        replies = list(pool.map(lambda image: gateway.post(image, once="k-2"), pictures[4:12]))
    assert sorted(each.code for each in replies) == [202] + 7 * [422]
    refused = next(each for each in replies if each.code == 422)
    assert refused.headers["content-type"] == "application/problem+json"
    assert "Idempotency-Key" in refused.json["detail"]


@pytest.mark.parametrize(
    ("headers", "body", "code"),
    [
        ({}, b"x", 415),
        ({"Content-Type": "image/gif"}, b"GIF89a", 415),
        ({**PNG, "Content-Encoding": "gzip"}, b"x", 415),
        (PNG, b"", 400),
        ({**PNG, "Content-Length": str(10**12)}, None, 413),
        ({**PNG, "Idempotency-Key": "k" * 256}, b"x", 422),
    ],
)
def test_what_cannot_be_taken_is_refused(
    gateway: Gateway, headers: dict[str, str], body: bytes | None, code: int
) -> None:
    """At once, with a text that says what would be taken."""
    reply = gateway.ask("POST", "/v1/images", body, headers)
    assert reply.code == code
    assert reply.json["status"] == code
    assert reply.json["detail"]


def test_a_body_without_a_length_is_cut_off_at_the_limit(gateway: Gateway) -> None:
    """The answer does not wait for its end, which may never come."""
    connection = gateway.connection()
    try:
        connection.putrequest("POST", "/v1/images")
        connection.putheader("Content-Type", "image/png")
        connection.putheader("Transfer-Encoding", "chunked")
        connection.endheaders()
        block = b"100000\r\n" + bytes(0x100000) + b"\r\n"
        for _ in range(17):
            connection.send(block)
        assert connection.getresponse().status == 413
    finally:
        connection.close()
    assert gateway.ask("GET", "/livez").code == 200


@pytest.mark.parametrize(
    ("path", "query", "code"),
    [
        ("/v1/results/unknown", {}, 404),
        ("/v1/results/unknown", {"wait": 31}, 422),
        ("/v1/results/unknown", {"wait": -1}, 422),
        ("/v1/results/unknown", {"wait": "nan"}, 422),
        ("/v1/results/stream", {}, 422),
        ("/v1/results/stream", {"id": "unknown"}, 404),
        ("/v1/results/stream", {"id": [str(each) for each in range(101)]}, 422),
        ("/v1/images", {}, 405),
        ("/elsewhere", {}, 404),
    ],
)
def test_what_cannot_be_answered_is_a_problem(
    gateway: Gateway, path: str, query: dict[str, object], code: int
) -> None:
    """In the form of RFC 9457, whoever found it."""
    reply = gateway.ask("GET", path, **query)
    assert (reply.code, reply.headers["content-type"]) == (code, "application/problem+json")
    assert reply.json["status"] == code


@pytest.mark.parametrize(
    "query", [{"subject": "a\0b"}, {"key": "k" * 1025}, {"deadline": "2026-01-01"}, {"deadline": "soon"}]
)
def test_what_is_said_with_an_image_is_checked_first(gateway: Gateway, query: dict[str, str]) -> None:
    """Nothing is stored that would end as a dead letter for its subject's sake."""
    assert gateway.post(NOT_AN_IMAGE, **query).code == 422


def test_a_stream_tells_each_answer_once(gateway: Gateway, pictures: list[bytes]) -> None:
    """Who connects again says what came last, and gets the rest, then nothing more."""
    ids = [gateway.post(each).json["id"] for each in [*pictures[12:15], NOT_AN_IMAGE]]
    events = gateway.events(*ids)
    assert [each["event"] for each in events] == ["result", "result", "result", "failed", "end"]
    told = [json.loads(each["data"])["message_id"] for each in events[:-1]]
    assert sorted(told) == sorted(ids)
    for place, event in enumerate(events[:-1]):
        rest = gateway.events(*ids, after=event["id"])[:-1] if place < 3 else []
        left = [json.loads(each["data"])["message_id"] for each in rest]
        assert sorted(left) == sorted(told[place + 1 :])
    assert gateway.ask(
        "GET", "/v1/results/stream", headers={"Last-Event-ID": events[-1]["id"]}, id=ids
    ).code == (204)
    assert len(gateway.events(*ids, after="no id of ours")) == len(events)


def test_streams_that_nobody_reads_cost_little(gateway: Gateway, home: Path) -> None:
    """So many and no more; all else is served meanwhile, and who leaves makes room."""
    with closing(sqlite3.connect(home / "ledger.db")) as db, db:
        db.execute(
            "INSERT INTO ledger SELECT 'waits for ever', sha256, broker, topic, run_id, subject, label, kind,"
            " sent_at, 'sent' FROM ledger LIMIT 1"
        )
    address = "/v1/results/stream?id=waits%20for%20ever"
    idle = []
    try:
        for _ in range(MOST_STREAMS):
            connection = gateway.connection()
            connection.request("GET", address)
            idle.append(connection)
            assert connection.getresponse().status == 200
        refused = gateway.ask("GET", address)
        assert (refused.code, refused.headers["retry-after"]) == (503, "1")
        assert f"couturier_gateway_streams {MOST_STREAMS}.0" in gateway.ask("GET", "/metrics").body.decode()
        assert gateway.post(NOT_AN_IMAGE).code == 202
    finally:
        for connection in idle:
            connection.close()
    until(lambda: b"couturier_gateway_streams 0.0" in gateway.ask("GET", "/metrics").body)


def test_bodies_that_do_not_come_take_no_memory_from_others(gateway: Gateway) -> None:
    """Room is kept for what is announced: 256 MiB in all."""
    slow = []
    try:
        for _ in range(16):
            connection = gateway.connection()
            connection.putrequest("POST", "/v1/images")
            connection.putheader("Content-Type", "image/png")
            connection.putheader("Content-Length", str(16 * 1024 * 1024))
            connection.endheaders()
            slow.append(connection)
        until(lambda: gateway.post(NOT_AN_IMAGE).code != 202)
        reply = gateway.post(NOT_AN_IMAGE)
        assert (reply.code, reply.headers["retry-after"]) == (503, "1")
    finally:
        for connection in slow:
            connection.close()
    until(lambda: gateway.post(NOT_AN_IMAGE).code == 202)


@pytest.mark.parametrize(
    "headers", [{"Host": "evil.example"}, {"Origin": "http://evil.example"}, {"Origin": "null"}]
)
def test_a_web_page_cannot_send_images_through_a_browser(gateway: Gateway, headers: dict[str, str]) -> None:
    """Neither by a name that leads here, nor across origins; its own origin may."""
    assert gateway.ask("POST", "/v1/images", NOT_AN_IMAGE, {**PNG, **headers}).code == 403
    own = {"Origin": f"http://127.0.0.1:{gateway.port}"}
    assert gateway.ask("POST", "/v1/images", NOT_AN_IMAGE, {**PNG, **own}).code == 202


def test_the_door_is_watched(gateway: Gateway) -> None:
    """Probes and figures; no figure has a label that a request could choose."""
    assert gateway.ask("GET", "/livez").body == b"ok\n"
    assert gateway.ask("GET", "/readyz").body == b"ok\n"
    gateway.ask("GET", "/v1/results/some-id")
    gateway.ask("SOME-ID", "/v1/some-id")
    figures = gateway.ask("GET", "/metrics").body.decode()
    assert 'route="/v1/results/{message_id}"' in figures
    assert "some-id" not in figures.lower()


def test_openapi_describes_what_is_served(gateway: Gateway) -> None:
    """The running gateway and the command say the same; every answer of these tests is described."""
    served = gateway.ask("GET", "/openapi.json").json
    command = [sys.executable, "-m", "couturier", "gateway", "--openapi"]
    printed = subprocess.run(command, capture_output=True, check=True).stdout
    assert json.loads(printed) == served
    assert set(served["paths"]) == {"/v1/images", "/v1/results/{message_id}", "/v1/results/stream"}
    post = served["paths"]["/v1/images"]["post"]
    assert set(post["requestBody"]["content"]) == {"image/png", "image/jpeg", "multipart/form-data"}
    assert {"202", "400", "401", "403", "408", "413", "415", "422", "503"} == set(post["responses"])
    assert {each["name"] for each in post["parameters"]} == {
        *("key", "subject", "title", "description", "deadline", "idempotency-key")
    }
    assert gateway.ask("GET", "/docs").code == 200


def test_the_benchmark_measures_both_ways(tmp_path: Path) -> None:
    """Through the door and without it, as often as each other."""
    command = [
        sys.executable,
        "-m",
        "benchmarks.gateway",
        "--images",
        "16",
        "--callers",
        "2",
        "--rounds",
        "1",
    ]
    report = tmp_path / "report.json"
    done = subprocess.run(
        [*command, "--json", str(report)], env=clean(tmp_path), check=True, capture_output=True
    )
    found = json.loads(report.read_text())
    assert found == json.loads(done.stdout)
    assert [(each["how"], each["callers"]) for each in found["measurements"]] == [("http", 2), ("without", 2)]
    assert found["summary"][0]["ratio"] > 0
