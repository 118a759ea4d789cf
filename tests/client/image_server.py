"""A web server for the tests of those who fetch images: well-behaved, slow, lying or hostile by path."""

from __future__ import annotations

import ssl
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Thread

Answer = Callable[[BaseHTTPRequestHandler], None]


@dataclass
class ImageServer:
    """What a test knows of it.

    Attributes:
        port: where it listens, on 127.0.0.1.
        asked: requests by path.
        heads: the headers of the last request.
        over: the test has ended; who waits goes on.
    """

    port: int = 0
    asked: Counter[str] = field(default_factory=Counter)
    heads: Mapping[str, str] = field(default_factory=dict)
    over: Event = field(default_factory=Event)

    def url(self, path: str, scheme: str = "http", host: str = "127.0.0.1") -> str:
        """The URL of a path."""
        return f"{scheme}://{host}:{self.port}{path}"


def says(body: bytes, status: int = 200, length: int | None = -1, **headers: str) -> Answer:
    """An answer; a length that is not the body's is a lie, None is silence."""

    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        if length is not None:
            handler.send_header("Content-Length", str(len(body) if length == -1 else length))
        handler.end_headers()
        handler.wfile.write(body)

    return answer


@contextmanager
def image_server(answers: Mapping[str, Answer], tls: ssl.SSLContext | None = None) -> Iterator[ImageServer]:
    """Serve these paths; any other is 404."""
    facts = ImageServer()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            facts.asked[self.path] += 1
            facts.heads = dict(self.headers)
            with suppress(OSError):  # the client left
                answers.get(self.path, says(b"no", 404))(self)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.handle_error = lambda *_: None  # type: ignore[method-assign]  # a client that refuses our certificate
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    facts.port = server.server_port
    thread = Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield facts
    finally:
        facts.over.set()
        server.shutdown()
        server.server_close()
        thread.join()
