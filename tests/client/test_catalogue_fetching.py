"""Images are fetched from where the user allowed, within limits, and from nowhere else."""

from __future__ import annotations

import datetime
import ipaddress
import os
import socket
import ssl
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from image_server import Answer, ImageServer, image_server, says

from classifier.images import Preprocessing
from client.sources.fetching import MAX_IMAGE_BYTES, Allowed, Fetcher, Picture
from client.sources.web import Unfetchable, Web, is_public

IMAGE = b"\x89PNG..."
LIMIT = 1000


def fetcher(*hosts: str, timeout_s: float = 30.0, trust: ssl.SSLContext | None = None) -> Fetcher:
    """One with a small limit that does not wait between tries."""
    return Fetcher(Allowed(hosts), Web(hosts, LIMIT, timeout_s, trust=trust), backoff_s=0.0)


def reason(fetching: Fetcher, url: str) -> str:
    """Why an image cannot be had."""
    with pytest.raises(Unfetchable) as caught:
        fetching.fetch(url)
    assert str(caught.value).startswith(caught.value.reason)
    return caught.value.reason


class TestFiles:
    """``file:`` URLs."""

    def test_a_file_is_read(self, tmp_path: Path) -> None:
        """With characters that a URL escapes, and what browsers append."""
        path = tmp_path / "größe 38%#.JPG"
        path.write_bytes(IMAGE)
        url = path.as_uri()
        assert Fetcher(Allowed()).fetch(url) == Picture(IMAGE, "image/jpeg")
        assert Fetcher(Allowed()).fetch(f" {url}?v=2\n").data == IMAGE
        assert Fetcher(Allowed()).fetch(url.replace("file://", "file://localhost")).data == IMAGE

    @pytest.mark.parametrize(
        ("url", "why"),
        [
            ("file:///nowhere/at/all.png", "no such file"),
            ("file://other-machine/a.png", "bad URL"),
            ("file:a.png", "bad URL"),
            ("file:///a%00.png", "file cannot be read"),
            ("a.png", "bad URL"),
            ("//cdn.example.com/a.png", "bad URL"),
            ("ftp://cdn.example.com/a.png", "bad URL"),
            ("http://[::1", "bad URL"),
            ("data:image/png;base64,AAAA", "bad URL"),
            (f"file:///{'x' * 9000}.png", "bad URL"),
            (f"file:///{'x' * 4000}.png", "file cannot be read"),
        ],
    )
    def test_what_names_no_image_is_refused(self, url: str, why: str) -> None:
        """With a reason that can be counted."""
        assert reason(Fetcher(Allowed()), url) == why

    def test_only_images_are_read(self, tmp_path: Path) -> None:
        """A catalogue that others fill must not send this machine's secrets, by whatever link."""
        secret = tmp_path / "passwd"
        secret.write_text("root:x:0:0")
        link = tmp_path / "innocent.png"
        link.symlink_to(secret)
        for path in (secret, link):
            assert reason(Fetcher(Allowed()), path.as_uri()) == "no image by its name"
        loop = tmp_path / "loop.png"
        loop.symlink_to(loop)
        assert reason(Fetcher(Allowed()), loop.as_uri()) == "file cannot be read"

    def test_what_is_no_ordinary_file_is_not_waited_for(self, tmp_path: Path) -> None:
        """A pipe that nobody writes to; a folder of that name."""
        os.mkfifo(tmp_path / "pipe.png")
        (tmp_path / "folder.png").mkdir()
        for name in ("pipe.png", "folder.png"):
            assert reason(Fetcher(Allowed()), (tmp_path / name).as_uri()) == "file cannot be read"

    def test_folders_bound_what_is_read(self, tmp_path: Path) -> None:
        """Also for a path that climbs out, and for a link that leads out."""
        inside, outside = tmp_path / "in", tmp_path / "out"
        for folder in (inside, outside):
            folder.mkdir()
            (folder / "a.png").write_bytes(IMAGE)
        (inside / "link.png").symlink_to(outside / "a.png")
        bound = Fetcher(Allowed(folders=(inside,)))
        assert bound.fetch((inside / "a.png").as_uri()).data == IMAGE
        for url in (f"file://{inside}/../out/a.png", f"file://{inside}/%2e%2e/out/a.png"):
            assert reason(bound, url) == "folder not allowed"
        assert reason(bound, (inside / "link.png").as_uri()) == "folder not allowed"
        with pytest.raises(ValueError, match=r"CATALOGUE_ALLOW_FOLDERS.*is no folder"):
            Fetcher(Allowed(folders=(tmp_path / "missing",)))

    def test_a_large_file_is_not_read(self, tmp_path: Path) -> None:
        """The limit is that of the workers."""
        assert Preprocessing().max_bytes == MAX_IMAGE_BYTES
        with (tmp_path / "a.png").open("wb") as file:
            file.truncate(MAX_IMAGE_BYTES + 1)
        assert reason(Fetcher(Allowed()), (tmp_path / "a.png").as_uri()) == "too large"


def redirects(target: str, status: int = 302) -> Answer:
    """An answer that leads elsewhere."""
    return says(b"", status, Location=target)


def chunked(handler: BaseHTTPRequestHandler) -> None:
    """A body whose end says that it is the end."""
    handler.protocol_version = "HTTP/1.1"
    says(b"3\r\nabc\r\n0\r\n\r\n", length=None, Transfer_Encoding="chunked")(handler)


def flaky(*answers: Answer) -> Answer:
    """One answer after the other."""
    left = iter(answers)

    def answer(handler: BaseHTTPRequestHandler) -> None:
        next(left)(handler)

    return answer


@pytest.fixture
def hosts() -> dict[str, str]:
    """Names that the resolver knows for the test, beside the real ones."""
    return {}


@pytest.fixture(autouse=True)
def _resolver(hosts: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    real = socket.getaddrinfo

    def look_up(host: str, *rest: Any, **more: Any) -> Any:
        return real(hosts.get(host, host), *rest, **more)

    monkeypatch.setattr(socket, "getaddrinfo", look_up)


@pytest.fixture
def server() -> Iterator[ImageServer]:
    """A server of well-behaved, lying and hostile answers."""

    def drip(handler: BaseHTTPRequestHandler) -> None:
        says(b"", length=None)(handler)
        while not facts.over.wait(0.01):
            handler.wfile.write(b".")

    def hang(_: BaseHTTPRequestHandler) -> None:
        facts.over.wait()

    answers = {
        "/a.png": says(IMAGE, Content_Type="image/webp"),
        "/page.gif": says(b"<html>", Content_Type="text/html"),
        "/boast.bmp": says(IMAGE, Content_Type=f"image/{'x' * 5000}"),
        "/nothing": says(IMAGE, length=None),
        "/gr%C3%B6%C3%9Fe%2038.png?v=a%20b": says(IMAGE),
        "/chunked": chunked,
        "/large": says(b"x" * (LIMIT + 1)),
        "/large-by-its-word": says(b"x", length=10**12),
        "/endless": says(b"x" * 100_000, length=None),
        "/short": says(b"xxx", length=10),
        "/drip": drip,
        "/hang": hang,
        "/weak": flaky(says(b"", 503), says(b"", 429), says(IMAGE)),
        "/gone": says(b"", 410),
        "/broken": flaky(*[says(b"xxx", length=10)] * 2, says(IMAGE)),
        "/there": redirects("/a.png", 301),
        "/file": redirects("file:///etc/hostname"),
        "/round": redirects("/round"),
        "/bad": redirects("http://[::1"),
        "/metadata": redirects("http://169.254.169.254/latest/meta-data"),
        "/other-host": redirects("http://other.example:1/a.png"),
    }
    with image_server(answers) as facts:
        yield facts


class TestWeb:
    """``http:`` and ``https:`` URLs."""

    @pytest.fixture
    def own(self, server: ImageServer) -> Fetcher:
        """May ask this server."""
        return fetcher(f"127.0.0.1:{server.port}")

    def test_an_image_is_fetched(self, server: ImageServer, own: Fetcher) -> None:
        """With the server's word for its type if it calls it an image, else by the name."""
        assert own.fetch(server.url("/a.png")) == Picture(IMAGE, "image/webp")
        assert server.heads["Host"] == f"127.0.0.1:{server.port}"
        assert server.heads["Accept-Encoding"] == "identity"
        assert own.fetch(server.url("/page.gif")) == Picture(b"<html>", "image/gif")
        assert own.fetch(server.url("/boast.bmp")) == Picture(IMAGE, "image/bmp")
        assert own.fetch(server.url("/nothing")) == Picture(IMAGE, "application/octet-stream")
        assert own.fetch(server.url("/größe 38.png?v=a b")).data == IMAGE
        assert own.fetch(server.url("/chunked")).data == b"abc"

    def test_nothing_comes_from_a_host_that_is_not_named(self, server: ImageServer) -> None:
        """None is by default; a name stands for the port of the scheme, or for the one that is said."""
        url = server.url("/a.png")
        for hosts in ((), ("cdn.example.com",), ("127.0.0.1",), ("127.0.0.1:1",), ("*.0.0.1",)):
            assert reason(fetcher(*hosts), url) == "host not allowed", hosts
        with pytest.raises(Unfetchable, match=f"--allow-host 127.0.0.1:{server.port}"):
            fetcher().fetch(url)
        assert not server.asked

    def test_a_host_that_is_named_in_full_may_be_a_private_one(
        self, server: ImageServer, hosts: dict[str, str]
    ) -> None:
        """One that a pattern covers may not: who fills the catalogue chooses its address."""
        hosts |= {"images.shop.example": "127.0.0.1", "evil.example": "127.0.0.1"}
        port = server.port
        assert (
            fetcher(f"IMAGES.shop.example:{port}")
            .fetch(server.url("/a.png", host="images.Shop.example."))
            .data
            == IMAGE
        )
        assert server.heads["Host"] == f"images.shop.example:{port}"
        asked = server.asked.total()
        for pattern in (f"*:{port}", f"*.shop.example:{port}"):
            url = server.url("/a.png", host="images.shop.example")
            assert reason(fetcher(pattern), url) == "private address"
        for host in ("127.0.0.1", "localhost", "2130706433", "0x7f.1", "[::1]", "[::ffff:127.0.0.1]"):
            assert reason(fetcher(f"*:{port}"), server.url("/a.png", host=host)) in (
                "private address",
                "unknown host",
                "bad URL",
            ), host
        assert server.asked.total() == asked

    @pytest.mark.parametrize(
        ("path", "why"),
        [
            ("/missing.png", "HTTP 404"),
            ("/gone", "HTTP 410"),
            ("/large", "too large"),
            ("/large-by-its-word", "too large"),
            ("/endless", "too large"),
            ("/short", "connection failed"),
            ("/file", "bad URL"),
            ("/bad", "bad URL"),
            ("/round", "too many redirects"),
            ("/metadata", "host not allowed"),
            ("/other-host", "host not allowed"),
        ],
    )
    def test_what_cannot_be_had_has_a_reason(
        self, server: ImageServer, own: Fetcher, path: str, why: str
    ) -> None:
        """Redirects are checked like the first URL; what cannot change is tried once."""
        assert reason(own, server.url(path)) == why
        tries = {"/short": 3, "/round": 6}.get(path, 1)
        assert server.asked == {path: tries}

    def test_a_redirect_is_followed(self, server: ImageServer, own: Fetcher) -> None:
        """To where it may lead; a pattern does not open the way to a private address."""
        assert own.fetch(server.url("/there")).data == IMAGE
        both = fetcher(f"127.0.0.1:{server.port}", "*")
        assert reason(both, server.url("/metadata")) == "private address"

    def test_what_may_pass_is_tried_again(self, server: ImageServer, own: Fetcher) -> None:
        """A busy server, a body that ended early."""
        assert own.fetch(server.url("/weak")).data == IMAGE
        assert own.fetch(server.url("/broken")).data == IMAGE
        assert server.asked == {"/weak": 3, "/broken": 3}

    @pytest.mark.parametrize("path", ["/drip", "/hang"])
    def test_a_slow_server_is_given_up(self, server: ImageServer, path: str) -> None:
        """However often it sends a byte: the clock is for the whole."""
        slow = fetcher(f"127.0.0.1:{server.port}", timeout_s=0.1)
        assert reason(slow, server.url(path)) == "timed out"
        assert server.asked[path] == 3

    def test_closing_ends_what_is_being_fetched(self, server: ImageServer, own: Fetcher) -> None:
        """So that Ctrl-C does not wait for a slow server."""
        with ThreadPoolExecutor(1) as pool:
            fetching = pool.submit(own.fetch, server.url("/hang"))
            while not server.asked["/hang"]:
                assert not fetching.done()
            own.close()
            with pytest.raises(Unfetchable, match="stopped"):
                fetching.result(20)
        assert reason(own, server.url("/a.png")) == "stopped"

    def test_a_server_that_is_not_there_is_a_reason(self, hosts: dict[str, str]) -> None:
        """Refused connections and unknown names; a login in the URL is not sent anywhere."""
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            port = unused.getsockname()[1]
            assert reason(fetcher(f"127.0.0.1:{port}"), f"http://127.0.0.1:{port}/") == "connection failed"
        hosts["nowhere.example"] = "nowhere.invalid"
        assert reason(fetcher("nowhere.example"), "http://nowhere.example/a.png") == "unknown host"
        for url in ("http://me:secret@nowhere.example/a.png", "http:///a.png", "http://nowhere.example:x/"):
            assert reason(fetcher("*"), url) == "bad URL"

    @pytest.mark.parametrize("text", ["http://cdn.example.com", "cdn.example.com/x", "a b", "*.", "cdn:port"])
    def test_a_host_that_is_none_is_refused_at_once(self, text: str) -> None:
        """The error names both places it may come from, and what works."""
        with pytest.raises(ValueError, match=r"--allow-host or CATALOGUE_ALLOW_HOSTS.*is no host"):
            Web([text], LIMIT)


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("93.184.216.34", True),
        ("2606:2800:220:1::1", True),
        ("127.0.0.1", False),
        ("10.1.2.3", False),
        ("172.16.0.1", False),
        ("192.168.1.1", False),
        ("169.254.169.254", False),
        ("100.64.0.1", False),
        ("0.0.0.0", False),
        ("224.0.0.1", False),
        ("255.255.255.255", False),
        ("::1", False),
        ("::", False),
        ("fe80::1%eth0", False),
        ("fd00::1", False),
        ("ff02::1", False),
        ("::ffff:10.0.0.1", False),
        ("64:ff9b::a00:1", False),
        ("2002:a00:1::", False),
    ],
)
def test_addresses_that_lead_inside_are_not_public(address: str, public: bool) -> None:
    """Also those that a gateway turns into another one."""
    assert is_public(address) is public


def certificate(folder: Path, name: str) -> Path:
    """Make a certificate that vouches for itself; return the file with its key."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName(
                [x509.DNSName(name), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
            ),
            critical=False,
        )
        .sign(key, hashes.SHA256())
    )
    path = folder / "server.pem"
    path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        + made.public_bytes(serialization.Encoding.PEM)
    )
    return path


def test_https_asks_for_the_name_in_the_url(tmp_path: Path, hosts: dict[str, str]) -> None:
    """A certificate of nobody we trust, or of another name, is refused."""
    pem = certificate(tmp_path, "images.example")
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(pem)
    trust = ssl.create_default_context(cafile=str(pem))
    hosts |= {"images.example": "127.0.0.1", "other.example": "127.0.0.1"}
    with image_server({"/a.png": says(IMAGE)}, tls) as server:
        names = [f"{name}:{server.port}" for name in ("images.example", "other.example", "127.0.0.1")]
        for host in ("images.example", "127.0.0.1"):
            url = server.url("/a.png", "https", host)
            assert fetcher(*names, trust=trust).fetch(url).data == IMAGE
            assert reason(fetcher(*names), url) == "certificate refused"
        url = server.url("/a.png", "https", "other.example")
        assert reason(fetcher(*names, trust=trust), url) == "certificate refused"
