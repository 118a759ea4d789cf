"""The proxy alone, before a server that sends back what it gets."""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Iterator

import pytest

from . import KafkaProxy

PATIENCE_S = 10.0


def hello(client_id: str | None) -> bytes:
    """Return the start of a Kafka request: header up to the client id."""
    name = (client_id or "").encode()
    length = -1 if client_id is None else len(name)
    return struct.pack("!ihhih", 100, 18, 4, 1, length) + name


@pytest.fixture
def upstream() -> Iterator[tuple[str, int]]:
    """A server that echoes."""
    ended = threading.Event()

    def echo(connection: socket.socket) -> None:
        with connection:
            connection.settimeout(0.1)
            while not ended.is_set():
                try:
                    chunk = connection.recv(1 << 18)
                except TimeoutError:
                    continue
                except OSError:
                    return
                if not chunk:
                    return
                connection.settimeout(PATIENCE_S)
                connection.sendall(chunk)
                connection.settimeout(0.1)

    def accept() -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            threads.append(threading.Thread(target=echo, args=(connection,)))
            threads[-1].start()

    threads = [threading.Thread(target=accept)]
    with socket.create_server(("127.0.0.1", 0)) as server:
        threads[0].start()
        yield server.getsockname()
        ended.set()
        server.shutdown(socket.SHUT_RDWR)
    for thread in threads:
        thread.join(PATIENCE_S)


@pytest.fixture
def proxy(upstream: tuple[str, int]) -> Iterator[KafkaProxy]:
    proxy = KafkaProxy(upstream)
    yield proxy
    proxy.close()


def connect(proxy: KafkaProxy, client_id: str | None) -> socket.socket:
    """Return a connection that has named itself, without waiting for an answer."""
    connection = socket.create_connection(("127.0.0.1", proxy.port), timeout=PATIENCE_S)
    connection.sendall(hello(client_id))
    return connection


def receive(connection: socket.socket, count: int) -> bytes:
    """Return exactly ``count`` bytes, fewer if the peer closes."""
    found = b""
    while len(found) < count:
        try:
            chunk = connection.recv(count - len(found))
        except ConnectionResetError:
            break
        if not chunk:
            break
        found += chunk
    return found


def is_silent(connection: socket.socket) -> bool:
    """Tell whether nothing arrives for 0.3 s."""
    connection.settimeout(0.3)
    try:
        connection.recv(1)
    except TimeoutError:
        return True
    finally:
        connection.settimeout(PATIENCE_S)
    return False


@pytest.mark.parametrize("client_id", ["worker-1", "", None, "größe"])
def test_bytes_pass_unchanged_whatever_the_client_is_called(proxy: KafkaProxy, client_id: str | None) -> None:
    """The header reaches the broker too."""
    with connect(proxy, client_id) as connection:
        connection.sendall(b"body")

        assert receive(connection, len(hello(client_id)) + 4) == hello(client_id) + b"body"


def test_a_header_may_come_byte_by_byte(proxy: KafkaProxy) -> None:
    """TCP promises no packets."""
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=PATIENCE_S) as connection:
        for index in range(len(hello("slow"))):
            connection.sendall(hello("slow")[index : index + 1])

        assert receive(connection, len(hello("slow"))) == hello("slow")
        assert proxy.clients() == ["slow"]


def test_large_bodies_pass_fast(proxy: KafkaProxy) -> None:
    """64 MiB there and back in far less than 10 s."""
    body = bytes(range(256)) * (256 * 1024)
    with connect(proxy, "bulk") as connection:
        receive(connection, len(hello("bulk")))
        sender = threading.Thread(target=connection.sendall, args=(body,))
        started = time.monotonic()
        sender.start()
        parts, size = [], 0
        while size < len(body):
            parts.append(connection.recv(1 << 18))
            size += len(parts[-1])
        sender.join()

    assert b"".join(parts) == body
    assert time.monotonic() - started < 10


def test_cut_closes_and_refuses_until_healed(proxy: KafkaProxy) -> None:
    """By prefix; others go on."""
    with connect(proxy, "worker-1") as first, connect(proxy, "client") as other:
        receive(first, len(hello("worker-1")))
        receive(other, len(hello("client")))

        proxy.cut("worker")

        assert receive(first, 1) == b""
        with connect(proxy, "worker-2") as second:
            assert receive(second, 1) == b""
        other.sendall(b"on")
        assert receive(other, 2) == b"on"
        assert proxy.clients() == ["client"]

        proxy.heal("worker")
        with connect(proxy, "worker-2") as second:
            assert receive(second, len(hello("worker-2"))) == hello("worker-2")


def test_hold_stops_both_ways_and_closes_nothing(proxy: KafkaProxy) -> None:
    """What was sent meanwhile arrives after heal, in order, on old and new connections."""
    with connect(proxy, "worker-1") as old:
        receive(old, len(hello("worker-1")))
        proxy.hold("worker")

        old.sendall(b"held")
        with connect(proxy, "worker-2") as new:
            assert is_silent(old)
            assert is_silent(new)

            proxy.heal_all()

            assert receive(old, 4) == b"held"
            assert receive(new, len(hello("worker-2"))) == hello("worker-2")


def test_cut_ends_what_was_held(proxy: KafkaProxy) -> None:
    """A suspended process can be killed."""
    with connect(proxy, "worker-1") as connection:
        receive(connection, len(hello("worker-1")))
        proxy.hold("worker-1")
        proxy.cut("work")

        assert receive(connection, 1) == b""
        assert proxy.clients() == []


def test_cut_all_closes_nameless_connections_too(proxy: KafkaProxy) -> None:
    """Also those that have not sent a request yet."""
    with (
        socket.create_connection(("127.0.0.1", proxy.port), timeout=PATIENCE_S) as nameless,
        connect(proxy, "named") as named,
    ):
        receive(named, len(hello("named")))

        proxy.cut_all()

        assert receive(nameless, 1) == b""
        assert receive(named, 1) == b""


def test_a_broker_that_is_down_looks_down() -> None:
    """The proxy closes what it cannot forward, and serves again once the broker does."""
    with socket.create_server(("127.0.0.1", 0)) as placeholder:
        address = placeholder.getsockname()
    proxy = KafkaProxy(address)
    try:
        with connect(proxy, "worker") as connection:
            assert receive(connection, 1) == b""
    finally:
        proxy.close()
        proxy.close()
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", proxy.port), timeout=1).close()
