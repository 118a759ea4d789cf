"""The worker's HTTP server against clients that mean no good, and against a port that is taken."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from client.workers import ask
from worker.http import Server

PATIENCE_S = 30.0


@pytest.fixture
def server() -> Iterator[Server]:
    """Serves one page, and one that fails."""

    def broken(_: object) -> tuple[int, str, bytes]:
        raise RuntimeError("not today")

    made = Server("127.0.0.1", None, {"/page": lambda _: (200, "text/plain", b"here\n"), "/broken": broken})
    yield made
    made.close()


def talk(server: Server, sent: bytes) -> bytes:
    """Send bytes; return all that comes back."""
    with socket.create_connection(("127.0.0.1", server.server_address[1]), timeout=PATIENCE_S) as line:
        received = b""
        with contextlib.suppress(OSError):  # it may hang up before it has read everything
            line.sendall(sent)
            line.shutdown(socket.SHUT_WR)
        with contextlib.suppress(ConnectionResetError):
            while more := line.recv(4096):
                received += more
        return received


def test_a_page_is_served_by_get_and_head_alone(server: Server) -> None:
    """With its length and type, and never from a cache."""
    assert ask(server.url, "/page").text == "here"
    head, _, body = talk(server, b"HEAD /page HTTP/1.1\r\nHost: x\r\n\r\n").partition(b"\r\n\r\n")
    assert b" 200 " in head
    assert b"Content-Length: 5" in head
    assert b"no-store" in head
    assert body == b""
    assert b" 501 " in talk(server, b"POST /page HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc")
    missing = ask(server.url, "/other")
    assert (missing.code, missing.text) == (404, "there are /broken, /page")


@pytest.mark.parametrize(
    "garbage",
    [
        b"",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" * 50,
        b"GET\r\n\r\n",
        b"GET /page HTTP/9.9\r\n\r\n",
        b"GET " + b"/" * 100_000 + b" HTTP/1.1\r\n\r\n",
        b"GET /page HTTP/1.1\r\n" + b"".join(b"X-%d: y\r\n" % each for each in range(5000)) + b"\r\n",
        b"GET /page?" + b"&".join(b"a=%d" % each for each in range(500)) + b" HTTP/1.1\r\n\r\n",
        b"GET http://[bad/page HTTP/1.1\r\n\r\n",
        b"\xff\xfe\x00" * 1000 + b"\r\n\r\n",
        b"GET /broken HTTP/1.1\r\n\r\n",
    ],
    ids=[
        "nothing",
        "TLS",
        "no path",
        "version",
        "long",
        "headers",
        "fields",
        "address",
        "bytes",
        "broken page",
    ],
)
def test_garbage_hurts_nobody(server: Server, garbage: bytes) -> None:
    """It is refused or hung up on, and the next client is served."""
    assert b" 200 " not in talk(server, garbage).partition(b"\r\n")[0]
    assert ask(server.url, "/page").text == "here"


def test_clients_that_drip_or_sleep_cost_a_few_threads_and_no_probe(server: Server) -> None:
    """With more of them than are answered at a time, a probe still gets through at once."""
    with ExitStack() as stack:
        lines = []
        for _ in range(100):
            line = socket.create_connection(("127.0.0.1", server.server_address[1]), timeout=PATIENCE_S)
            stack.callback(line.close)
            line.sendall(b"GET /page HT")
            lines.append(line)
            if len(lines) % 20 == 0:
                begin = time.monotonic()
                assert ask(server.url, "/page").text == "here"
                assert time.monotonic() - begin < 2.0
        assert sum(each.name.startswith("Thread-") for each in threading.enumerate()) <= 40
        assert drip(lines[-1]) < PATIENCE_S


def drip(line: socket.socket) -> float:
    """Send byte after byte until the other side has enough; return how long that took, seconds."""
    begin = time.monotonic()
    while time.monotonic() - begin < PATIENCE_S:
        try:
            line.sendall(b"T")
        except OSError:
            break
        time.sleep(0.05)
    return time.monotonic() - begin


def test_a_taken_port_is_a_clear_error(server: Server) -> None:
    """It names the address and the variables."""
    port = server.server_address[1]
    with pytest.raises(ValueError, match=rf"127\.0\.0\.1:{port}: .*in use; set COUTURIER_HTTP_PORT"):
        Server("127.0.0.1", port, {})
    with pytest.raises(ValueError, match="COUTURIER_HTTP_HOST"):
        Server("no-such-host.invalid", None, {})


def speaks_ipv6() -> bool:
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET6) as probe:
        probe.bind(("::1", 0))
        return True
    return False


@pytest.mark.parametrize(
    ("host", "asked"),
    [("0.0.0.0", "http://127.0.0.1:"), ("::", "http://[::1]:"), ("::1", "http://[::1]:")],
)
def test_whoever_listens_everywhere_is_asked_on_this_machine(host: str, asked: str) -> None:
    """The URL is one that can be asked."""
    if ":" in host and not speaks_ipv6():
        pytest.skip("this machine has no IPv6")
    server = Server(host, 0, {"/page": lambda _: (200, "text/plain", b"here")})
    try:
        assert server.url.startswith(asked)
        assert ask(server.url, "/page").text == "here"
    finally:
        server.close()
    assert ask(server.url, "/page").code == 0
