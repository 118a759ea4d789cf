"""Bytes from the web, with the standard library: only from hosts that were named.

A library such as httpx has deadlines for each step but none for the whole, and resolves names by itself. Here
the very address that is connected to is the one that was checked, and one clock bounds the exchange.
"""

from __future__ import annotations

import http.client
import ipaddress
import re
import socket
import ssl
import threading
from collections.abc import Iterable
from functools import cached_property
from importlib.metadata import version
from typing import NamedTuple, Self
from urllib.parse import SplitResult, quote, urljoin, urlsplit

_PORTS = {"http": 80, "https": 443}
_REDIRECTS = (301, 302, 303, 307, 308)
_MOST_REDIRECTS = 5
_MAYBE_LATER = (408, 425, 429)
_ENTRY = re.compile(r"(?P<name>\*|(?:\*\.)?[a-z0-9._-]+|\[[0-9a-f:.]+\])(?::(?P<port>\d{1,5}))?")
# Each holds an IPv4 address that a gateway or tunnel turns it into: 6to4, Teredo, NAT64.
# Source: IANA IPv6 Special-Purpose Address Registry.
_TRANSLATED = [ipaddress.ip_network(each) for each in ("2002::/16", "2001::/32", "64:ff9b::/96")]
_IMAGE_TYPE = re.compile(r"image/[a-z0-9.+-]{1,64}")
# What stays as it is in a path or query that people typed with blanks or letters beyond ASCII.
_SAFE = "/%:@!$&'()*+,;=~?"


class Unfetchable(Exception):  # noqa: N818 - reads as the state it names
    """An image that cannot be had.

    Attributes:
        reason: a few words, to be counted.
        transient: another try may succeed.
    """

    def __init__(self, reason: str, detail: str, transient: bool = False) -> None:
        self.reason = reason
        self.transient = transient
        super().__init__(f"{reason}: {detail}")


class _Host(NamedTuple):
    """One entry of the list of hosts."""

    name: str
    port: int | None

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read an entry.

        Raises:
            ValueError: it is none.
        """
        found = _ENTRY.fullmatch(text.strip().lower())
        if found is None:
            raise ValueError(
                f"--allow-host or CATALOGUE_ALLOW_HOSTS: {text!r} is no host; use cdn.example.com,"
                " cdn.example.com:8443, *.example.com, or * for all public ones"
            )
        return cls(found["name"].strip("[]").rstrip("."), int(found["port"]) if found["port"] else None)

    def covers(self, host: str, port: int, standard: bool) -> bool:
        """Say whether it stands for a host at a port; ``standard`` is a scheme's own port."""
        if self.port != port and not (self.port is None and standard):
            return False
        return self.name in ("*", host) or (self.name.startswith("*.") and host.endswith(self.name[1:]))


class Web:
    """Gets files by HTTP and HTTPS; any thread may use it.

    Redirects are followed, each checked like the first URL. Proxies of the environment are not used.

    Args:
        hosts: ``cdn.example.com``: this host at the port of the scheme; ``cdn.example.com:8443``: at that
            port; ``*.example.com``: hosts below; ``*``: all. Private, loopback and link-local addresses are
            connected to only for a host that is named in full.
        max_bytes: largest accepted body.
        timeout_s: for one file, redirects included; the resolver's own time comes on top.
        step_s: for connecting, and for any wait between two packets.
        trust: which certificates are accepted; None: those of the system.

    Raises:
        ValueError: a host does not work.
    """

    def __init__(
        self,
        hosts: Iterable[str],
        max_bytes: int,
        timeout_s: float = 30.0,
        step_s: float = 10.0,
        trust: ssl.SSLContext | None = None,
    ) -> None:
        self._hosts = [_Host.parse(each) for each in hosts]
        self._max_bytes = max_bytes
        self._timeout_s = timeout_s
        self._step_s = step_s
        self._given_trust = trust
        agent = f"couturier/{version('couturier')}"
        self._headers = {"User-Agent": agent, "Accept": "image/*", "Accept-Encoding": "identity"}
        self._running: set[_Deadline] = set()
        self._closed = False

    @cached_property
    def _trust(self) -> ssl.SSLContext:
        """Made on use: reading all authorities of a system takes a tenth of a second."""
        return self._given_trust or ssl.create_default_context()

    def get(self, parts: SplitResult) -> tuple[bytes, str | None]:
        """Return the body and, if the server calls it an image, its media type.

        Raises:
            Unfetchable: it cannot be had.
        """
        with _Deadline(self._timeout_s) as deadline:
            self._running.add(deadline)
            try:
                if self._closed:
                    raise Unfetchable("stopped", "the send was stopped")
                for _ in range(_MOST_REDIRECTS + 1):
                    answer = self._ask(parts, deadline)
                    if deadline.over:
                        # A body of unknown length that was cut off looks whole.
                        raise TimeoutError
                    if not isinstance(answer, SplitResult):
                        return answer
                    parts = answer
                raise Unfetchable("too many redirects", f"more than {_MOST_REDIRECTS}")
            except (OSError, http.client.HTTPException, ValueError) as error:
                if deadline.over:
                    what = f"not done after {self._timeout_s:g} s"
                    raise Unfetchable("timed out", what, transient=True) from error
                raise _problem(error, parts, self._step_s) from error
            finally:
                self._running.discard(deadline)

    def close(self) -> None:
        """End what is running, and let nothing else begin."""
        self._closed = True
        for each in list(self._running):
            each.end()

    def _ask(self, parts: SplitResult, deadline: _Deadline) -> tuple[bytes, str | None] | SplitResult:
        """Return the body, or where to look instead."""
        host, port, private = self._checked(parts)
        sock = _dial(host, port, private, self._step_s)
        deadline.watch(sock)
        try:
            if parts.scheme == "https":
                sock = self._trust.wrap_socket(sock, server_hostname=host, do_handshake_on_connect=False)
                deadline.watch(sock)
                sock.do_handshake()
            connection = http.client.HTTPConnection(host, port)
            connection.sock, connection.auto_open = sock, 0
            connection.request(
                "GET", _target(parts), headers={"Host": _name(host, parts.port), **self._headers}
            )
            with connection.getresponse() as response:
                if response.status in _REDIRECTS and (other := response.headers.get("Location")):
                    return urlsplit(urljoin(parts.geturl(), other))
                return self._body(response), _image_type(response)
        finally:
            sock.close()

    def _checked(self, parts: SplitResult) -> tuple[str, int, bool]:
        """Return host and port of a URL that may be asked, and whether its address may be a private one."""
        if parts.scheme not in _PORTS:
            raise Unfetchable("bad URL", f"a redirect to {parts.scheme or 'nowhere'}:")
        host, port = (parts.hostname or "").rstrip("."), parts.port or _PORTS[parts.scheme]
        if parts.username is not None or not host:
            raise Unfetchable("bad URL", "it names no host, or a user")
        if ":" not in host:
            host = host.encode("idna").decode()
        standard = port == _PORTS[parts.scheme]
        entries = [each.name for each in self._hosts if each.covers(host, port, standard)]
        if not entries:
            name = _name(host, None if standard else port)
            raise Unfetchable("host not allowed", f"add --allow-host {name} if it is to be asked")
        return host, port, host in entries

    def _body(self, response: http.client.HTTPResponse) -> bytes:
        if response.status != http.client.OK:
            later = response.status in _MAYBE_LATER or response.status >= 500
            raise Unfetchable(f"HTTP {response.status}", response.reason or "no reason given", later)
        promised = response.length
        data = b"" if (promised or 0) > self._max_bytes else response.read(self._max_bytes + 1)
        if max(promised or 0, len(data)) > self._max_bytes:
            raise Unfetchable("too large", f"more than {self._max_bytes:,} bytes")
        if promised is not None and len(data) < promised:
            # http.client says nothing of a body that ends early, unless all of it is asked for.
            raise http.client.IncompleteRead(data, promised - len(data))
        return data


class _Deadline:
    """Ends an exchange when its time is up, whatever it waits for.

    The timeout of a socket begins anew with each byte, so a server that drips would hold a thread for ever.

    Attributes:
        over: it was ended.
    """

    def __init__(self, seconds: float) -> None:
        self.over = False
        self._lock = threading.Lock()
        self._sock: socket.socket | None = None
        self._timer = threading.Timer(seconds, self.end)
        self._timer.daemon = True

    def __enter__(self) -> Self:
        self._timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()

    def watch(self, sock: socket.socket) -> None:
        """End this one when the time is up, or now if it was."""
        with self._lock:
            self._sock = sock
        if self.over:
            self.end()

    def end(self) -> None:
        """Wake whoever reads or writes; that fails then."""
        self.over = True
        with self._lock:
            try:
                if self._sock is not None:
                    # Not SSLSocket.shutdown, which takes the cipher from under the reader.
                    socket.socket.shutdown(self._sock, socket.SHUT_RDWR)
            except OSError:
                pass  # closed already


def _dial(host: str, port: int, private: bool, timeout_s: float) -> socket.socket:
    """Connect to a host at an address that was checked."""
    found = {each[4][0]: each for each in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)}
    problem: OSError | None = None
    refused = []
    for address, (family, kind, protocol, _, where) in found.items():
        if not private and not is_public(str(address)):
            refused.append(str(address))
            continue
        sock = socket.socket(family, kind, protocol)
        try:
            sock.settimeout(timeout_s)
            sock.connect(where)
            return sock
        except OSError as error:
            sock.close()
            problem = error
    if problem is None:
        what = f"{host} is {', '.join(refused)}; add --allow-host {_name(host)} if it is to be asked"
        raise Unfetchable("private address", what)
    raise problem


def is_public(address: str) -> bool:
    """Say whether an IP address belongs to the public internet, and leads nowhere else."""
    found = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(found, ipaddress.IPv6Address):
        if found.ipv4_mapped is not None:
            return is_public(str(found.ipv4_mapped))
        if any(found in network for network in _TRANSLATED):
            return False
    return found.is_global and not found.is_multicast


def _problem(error: Exception, parts: SplitResult, step_s: float) -> Unfetchable:
    """Put what went wrong on the way into words."""
    place = parts.hostname or ""
    if isinstance(error, ssl.SSLCertVerificationError):
        return Unfetchable("certificate refused", f"{place}: {error.verify_message}")
    if isinstance(error, TimeoutError):
        return Unfetchable("timed out", f"{place} said nothing for {step_s:g} s", transient=True)
    if isinstance(error, socket.gaierror):
        return Unfetchable("unknown host", f"{place}: {error.strerror}", error.errno == socket.EAI_AGAIN)
    if isinstance(error, OSError | http.client.HTTPException):
        return Unfetchable("connection failed", f"{place}: {error!r}", transient=True)
    return Unfetchable("bad URL", str(error))


def _image_type(response: http.client.HTTPResponse) -> str | None:
    kind = response.headers.get_content_type()
    return kind if _IMAGE_TYPE.fullmatch(kind) else None


def _target(parts: SplitResult) -> str:
    return quote(parts.path or "/", _SAFE) + (f"?{quote(parts.query, _SAFE)}" if parts.query else "")


def _name(host: str, port: int | None = None) -> str:
    return (f"[{host}]" if ":" in host else host) + (f":{port}" if port else "")
