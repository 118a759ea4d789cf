"""The workers of this machine: where they are listed, and how one is asked how it does."""

from __future__ import annotations

import fcntl
import json
import socket
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from http.client import HTTPConnection, HTTPException
from typing import Any
from urllib.parse import quote, urlsplit

from broker.settings import home

DEFAULT_PORT = 9464
# A worker's loop turns at least once a second: after so long it is frozen, seconds.
FROZEN_S = 5.0
_DIRECTORY = "workers"
_ASK_S = 3.0
_MOST_BYTES = 4 * 1024 * 1024
_AT_ONCE = 16


@dataclass(frozen=True, slots=True)
class Listed:
    """One worker process, as it lists itself in the state directory.

    Attributes:
        worker: its id.
        host: the machine, or container, that it runs on.
        url: of its HTTP server, as it is on that machine.
        pid: of its process.
        started: Unix seconds.
        topic: where its images come from.
        group: whose work it shares.
    """

    worker: str
    host: str
    url: str
    pid: int
    started: float
    topic: str
    group: str

    @property
    def here(self) -> bool:
        """Whether it runs on this machine; containers may share a state directory."""
        return self.host == socket.gethostname()

    @property
    def reached_at(self) -> str:
        """The URL as it is from here."""
        parts = urlsplit(self.url)
        if self.here or parts.hostname not in ("127.0.0.1", "::1"):
            return self.url
        return f"http://{self.host}:{parts.port}"


@dataclass(frozen=True, slots=True)
class Answer:
    """What a worker said, or why it said nothing.

    Attributes:
        url: that was asked.
        code: of HTTP; 0 when nothing came.
        body: JSON; empty when it was something else.
        text: of the body, its first line.
        error: why there is no answer; empty when there is.
        listed: the worker that listed this URL; None for one that was named.
    """

    url: str
    code: int = 0
    body: dict[str, Any] = field(default_factory=dict)
    text: str = ""
    error: str = ""
    listed: Listed | None = None


@contextmanager
def listing(entry: Listed) -> Iterator[None]:
    """List a worker while the block runs.

    The file is locked for as long as this process lives, so that a reused pid is not taken for it.

    Raises:
        OSError: the state directory cannot be written.
    """
    directory = home() / _DIRECTORY
    directory.mkdir(parents=True, exist_ok=True)
    name = quote(entry.worker, safe="")
    path, draft = directory / f"{name}.json", directory / f"{name}.draft"
    try:
        with draft.open("w", encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            json.dump(asdict(entry), file)
            file.flush()
            draft.replace(path)  # seen by others only when locked and complete
            yield
    finally:
        for each in (draft, path):
            each.unlink(missing_ok=True)


def listed() -> list[Listed]:
    """Return the workers of this machine's state directory that live; what dead ones left is removed."""
    found = []
    for path in sorted((home() / _DIRECTORY).glob("*.json")):
        with suppress(FileNotFoundError), path.open(encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                with suppress(ValueError, TypeError):
                    found.append(Listed(**json.load(file)))
            else:
                with suppress(OSError):  # of another user
                    path.unlink()
    return found


def addresses(name: str) -> list[str]:
    """Return the URLs behind ``host:port`` or ``http://host:port``: one for each address of the host.

    Raises:
        ValueError: it is neither.
    """
    text = name if "://" in name else f"http://{name}"
    try:
        parts = urlsplit(text)
        host, port = parts.hostname, parts.port or DEFAULT_PORT
    except ValueError as error:
        raise ValueError(f"worker {name!r}: {error}") from None
    if parts.scheme != "http" or not host or parts.username is not None:
        raise ValueError(f"worker {name!r}: write host:port or http://host:port")
    try:
        infos = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError:
        return [f"http://{bracketed(host)}:{port}"]  # asking it says why
    return list(dict.fromkeys(f"http://{bracketed(str(info[4][0]))}:{port}" for info in infos))


def ask_all(urls: Iterable[str], path: str = "/status", *, local: bool = True) -> list[Answer]:
    """Ask workers at once; one that does not answer is an answer with an error.

    Args:
        urls: as ``addresses`` returns them.
        path: what is asked.
        local: also those that this machine's state directory lists.
    """
    known: dict[str, Listed | None] = {each.reached_at: each for each in listed()} if local else {}
    for url in urls:
        known.setdefault(url, None)
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        return list(pool.map(lambda item: ask(item[0], path, item[1]), known.items()))


def ask(url: str, path: str, by: Listed | None = None) -> Answer:
    """Ask one worker; never raises for what the worker does."""
    parts = urlsplit(url)
    connection = HTTPConnection(parts.hostname or "", parts.port or DEFAULT_PORT, timeout=_ASK_S)
    try:
        connection.request("GET", path, headers={"Connection": "close"})
        reply = connection.getresponse()
        data = reply.read(_MOST_BYTES)
    except (OSError, HTTPException) as error:
        return Answer(url, error=str(error) or type(error).__name__, listed=by)
    finally:
        connection.close()
    text = data.decode("utf-8", "replace").partition("\n")[0]
    body: object = None
    with suppress(ValueError):
        body = json.loads(data)
    return Answer(url, reply.status, body if isinstance(body, dict) else {}, text, listed=by)


def bracketed(host: str) -> str:
    """Return a host as URLs take it: the address of IPv6 in brackets."""
    return f"[{host}]" if ":" in host else host
