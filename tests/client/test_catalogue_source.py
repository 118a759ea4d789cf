"""A catalogue's images go through the pipeline, whatever its URLs are like and whoever is killed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from http.server import BaseHTTPRequestHandler
from itertools import count, islice
from pathlib import Path
from threading import Event

import psycopg
import pytest
from dead_letters import running
from image_server import ImageServer, image_server, says
from test_catalogue import BLOCKS, TABLES, put

from client import SourceError
from client.client import _take
from client.results import ResultsReader
from client.schema import ClassifyRequest
from client.sources.catalogue import MAX_DESCRIPTION, MAX_TITLE, Catalogue
from client.sources.fashion_mnist import FashionMnist
from client.sources.fetching import Allowed, Fetcher
from tests.commands import Run
from tests.services.postgres import PostgresService

PICTURES = [each.request.image for each in FashionMnist(8)]
PATIENCE_S = 60.0
SEND = ["-m", "couturier", "client", "send", "--source", "postgres"]
CONFIRMED = "SELECT count(*) FROM ledger WHERE state = 'confirmed'"


@pytest.fixture
def url(postgres_service: PostgresService) -> str:
    """A database with an empty catalogue."""
    url = postgres_service.new_database()
    postgres_service.sql(TABLES, url)
    return url


@pytest.fixture
def pictures(tmp_path: Path) -> list[str]:
    """The URLs of a few images on disk."""
    found = []
    for number, each in enumerate(PICTURES):
        path = tmp_path / f"{number}.png"
        path.write_bytes(each)
        found.append(path.as_uri())
    return found


def fill(url: str, urls: Sequence[str | None], title: str = "title", text: str | None = "text") -> None:
    """One product for each URL, numbered from 1; None: without an image."""
    put(
        url,
        {
            "Product": [(n, f"{title} {n}") for n in range(1, len(urls) + 1)],
            "Image": [(n, n, 0, each) for n, each in enumerate(urls, 1) if each is not None],
            "ProductDescription": [(n, n, "us", text, None) for n in range(1, len(urls) + 1)],
        },
    )


def requests(catalogue: Catalogue) -> dict[str | None, ClassifyRequest]:
    """What a catalogue sends, by product."""
    return {each.request.subject: each.request for each in catalogue}


def open_catalogue(url: str, **more: object) -> Catalogue:
    """A catalogue whose files may be read."""
    return Catalogue(url, Fetcher(Allowed()), **more)  # type: ignore[arg-type]


def test_a_product_becomes_a_request(url: str, pictures: list[str]) -> None:
    """Its id the subject, its texts the context; what is NULL is left out."""
    fill(url, pictures[:2])
    with psycopg.connect(url) as db:
        db.execute(
            "UPDATE Product SET Title = NULL WHERE Id = 2; UPDATE ProductDescription SET OriginalText = NULL"
        )
    found = requests(open_catalogue(url))
    assert sorted(found) == ["1", "2"]
    assert found["1"].context == {"title": "title 1"}
    assert found["2"].context == {}
    assert (found["1"].image, found["1"].content_type) == (PICTURES[0], "image/png")
    assert found["1"].source == f"/couturier/catalogue/{url.rpartition('/')[2]}"


def test_an_id_follows_from_database_product_and_image(
    postgres_service: PostgresService, url: str, pictures: list[str]
) -> None:
    """Not from the title, nor from where the image lies; so what is sent again is one row."""
    fill(url, [pictures[0], pictures[0]])
    first = {name: each.id for name, each in requests(open_catalogue(url)).items()}
    assert len(set(first.values())) == 2
    with psycopg.connect(url) as db:
        db.execute("UPDATE Product SET Title = 'new'; UPDATE Image SET Url = Url || '?v=2'")
    assert {name: each.id for name, each in requests(open_catalogue(url)).items()} == first
    with psycopg.connect(url) as db:
        db.execute("UPDATE Image SET Url = %s WHERE ProductId = 2", [pictures[1]])
    again = requests(open_catalogue(url))
    assert again["1"].id == first["1"]
    assert again["2"].id != first["2"]
    other = postgres_service.new_database()
    postgres_service.sql(TABLES, other)
    fill(other, [pictures[0]])
    assert requests(open_catalogue(other))["1"].id != first["1"]


def test_what_cannot_be_had_is_counted_and_stops_nothing(
    url: str, pictures: list[str], tmp_path: Path
) -> None:
    """Each with its product and reason, secrets of the URL left out."""
    missing = (tmp_path / "missing.png").as_uri()
    fill(
        url,
        [
            missing,
            None,
            pictures[0],
            "",
            "https://me:hush@cdn.example.com/a",
            " \t",
            missing,
            pictures[1],
            "x" * 9999,
        ],
    )
    said: list[str] = []
    catalogue = open_catalogue(url, on_failure=said.append)
    assert sorted(requests(catalogue), key=str) == ["3", "8"]
    assert (catalogue.products, catalogue.without_url) == (9, 3)
    assert catalogue.failed == {"no such file": 2, "bad URL": 2}
    assert {each.partition(":")[0] for each in said} == {"product 1", "product 5", "product 7", "product 9"}
    assert "hush" not in "".join(said)


def test_texts_that_are_too_long_are_cut(url: str, pictures: list[str]) -> None:
    """Visibly, to the character, and counted by product; the image is sent all the same."""
    fill(url, pictures[:1], title="👗" * MAX_TITLE, text="x" * (MAX_DESCRIPTION + 1))
    catalogue = open_catalogue(url)
    context = requests(catalogue)["1"].context
    assert context["title"] == "👗" * (MAX_TITLE - 1) + "…"
    assert context["description"] == "x" * (MAX_DESCRIPTION - 1) + "…"
    assert catalogue.shortened == 1
    with psycopg.connect(url) as db:
        db.execute("UPDATE Product SET Title = left(Title, %s)", [MAX_TITLE])
        db.execute("UPDATE ProductDescription SET OriginalText = left(OriginalText, %s)", [MAX_DESCRIPTION])
    catalogue = open_catalogue(url)
    context = requests(catalogue)["1"].context
    assert (len(context["title"]), len(context["description"])) == (MAX_TITLE, MAX_DESCRIPTION)
    assert catalogue.shortened == 0


def test_a_large_catalogue_is_read_bit_by_bit(url: str, pictures: list[str]) -> None:
    """Neither products nor images are fetched far ahead of what is sent."""
    fill(url, pictures[:1] * 5000)
    catalogue = open_catalogue(url)
    images = iter(catalogue)
    assert len(list(islice(images, 10))) == 10
    assert catalogue.products < 100
    with psycopg.connect(url) as db:
        query = "SELECT query FROM pg_stat_activity WHERE application_name = 'couturier' AND datname = %s"
        ((asked,),) = db.execute(query, [url.rpartition("/")[2]]).fetchall()
    assert asked.startswith("FETCH FORWARD")
    catalogue.close()
    assert len(list(images)) < 20
    assert not catalogue.failed
    catalogue = open_catalogue(url, most=7)
    assert len(requests(catalogue)) == catalogue.products == 7


def test_a_database_that_fails_on_the_way_is_one_clear_error(
    postgres_service: PostgresService, url: str, pictures: list[str]
) -> None:
    """And what to do: nothing that was sent has to be undone."""
    fill(url, pictures[:1] * 2000)
    images = iter(open_catalogue(url))
    next(images)
    name = url.rpartition("/")[2]
    postgres_service.sql(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        f" WHERE datname = '{name}' AND application_name = 'couturier'"
    )
    with pytest.raises(SourceError, match="run the same command again"):
        list(images)


def test_a_database_that_holds_no_catalogue_is_named(postgres_service: PostgresService, url: str) -> None:
    """With what is missing; a password is never repeated."""
    empty = postgres_service.new_database()
    with pytest.raises(SourceError, match=r"relation \"product\" does not exist.*ProductDescription \(Id"):
        list(open_catalogue(empty))
    with psycopg.connect(url) as db:
        db.execute("ALTER TABLE Image DROP COLUMN ImageIndex")
    with pytest.raises(SourceError, match="imageindex"):
        list(open_catalogue(url))
    with pytest.raises(ValueError, match=r"CATALOGUE_URL=.*does not exist"):
        list(open_catalogue(f"{url}x"))
    with pytest.raises(SourceError, match=r"CATALOGUE_URL=.*is PostgreSQL running there"):
        list(open_catalogue("postgresql://me:hush@127.0.0.1:1/shop"))
    with pytest.raises(ValueError, match="CATALOGUE_URL=") as caught:
        open_catalogue("postgresql://me:hu sh@[x/shop")
    assert "hu sh" not in str(caught.value)


def test_the_command_reports_and_fails_only_where_something_failed(
    run: Run, url: str, pictures: list[str], tmp_path: Path
) -> None:
    """Products without an image are no failure; the address may be a flag or a variable."""
    fill(url, [pictures[0], None])
    sent = run("client", "send", "--source", "postgres", "--json", CATALOGUE_URL=url)
    assert sent.returncode == 0, sent.stderr
    report = json.loads(sent.stdout)
    expected = {"published": 1, "products": 2, "without_url": 1, "failed": 0, "failures": {}, "shortened": 0}
    assert report.items() >= expected.items()
    with psycopg.connect(url) as db:
        db.execute("UPDATE Image SET Url = 'https://cdn.example.com/a.png?token=hush'")
    sent = run("client", "send", "--source", "postgres", "--catalogue-url", url)
    assert sent.returncode == 1
    assert "2 product(s) read, 1 without an image URL" in sent.stdout
    assert "could not be had, host not allowed: 1 image(s)" in sent.stdout
    assert "product 1: host not allowed: add --allow-host cdn.example.com" in sent.stderr
    assert "hush" not in sent.stdout + sent.stderr
    with psycopg.connect(url) as db:
        db.execute("UPDATE Image SET Url = %s", [pictures[0]])
    bound = run(
        *("client", "send", "--source", "postgres", "--json"),
        CATALOGUE_URL=url,
        CATALOGUE_ALLOW_FOLDERS=str(tmp_path / "home"),
    )
    assert json.loads(bound.stdout)["failures"] == {"folder not allowed": 1}


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--source", "postgres"], 78, "CATALOGUE_URL=postgresql://"),
        (["--source", "postgres", "--loop"], 2, "sends each product once"),
        (["--source", "postgres", "a.png"], 2, "sends each product once"),
        (["--source", "postgres", "--images", "0"], 2, "must be above 0"),
        (["--source", "mysql"], 2, "postgres"),
        (["--allow-host", "a"], 2, "add --source postgres"),
        (
            ["--source", "postgres", "--catalogue-url", "postgresql://x/y", "--allow-host", "http://a"],
            78,
            "is no host",
        ),
    ],
)
def test_wrong_use_is_told_before_anything_is_done(run: Run, words: list[str], code: int, said: str) -> None:
    """With the exit code of its kind."""
    done = run("client", "send", *words)
    assert done.returncode == code
    assert said in " ".join(done.stderr.split())


def test_a_slow_source_is_sent_bit_by_bit(pictures: list[str]) -> None:
    """What came in a second is a batch: progress is seen, and Ctrl-C heeded."""
    submissions = [*FashionMnist(8)]
    source = iter(submissions)
    clock = iter([0.0, 0.4, 0.8, 1.2, 100.0, 102.0]).__next__
    assert _take(source, 500, clock) == submissions[:3]
    assert _take(source, 500, clock) == submissions[3:4]


@pytest.fixture
def home(tmp_path: Path) -> dict[str, str]:
    """The environment of commands in processes of their own."""
    ours = ("BROKER_", "SINK_", "COUTURIER_", "CATALOGUE_")
    clean = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    return {**clean, "COUTURIER_HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1"}


def rows_of(path: Path, query: str) -> int:
    """A count in a SQLite file of another process; 0 before there is one."""
    if not path.exists():
        return 0
    with closing(sqlite3.connect(path, timeout=30)) as db:
        try:
            return int(db.execute(query).fetchone()[0])
        except sqlite3.OperationalError:
            return 0


def wait_for(process: subprocess.Popen[bytes], met: Callable[[], bool]) -> None:
    """Return when something holds; the process has to run on."""
    deadline = time.monotonic() + PATIENCE_S
    while not met():
        assert process.poll() is None, "it ended"
        assert time.monotonic() < deadline
        time.sleep(0.02)


def run_worker(home: dict[str, str], rows: int) -> list[object]:
    """Run a worker until there are so many rows; return what all of them say."""
    path = Path(home["COUTURIER_HOME"]) / "results.db"
    with running(["-m", "couturier", "worker"], **home) as worker:
        wait_for(worker, lambda: rows_of(path, "SELECT count(*) FROM results") >= rows)
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(PATIENCE_S) == 0
    with ResultsReader(path) as reader:
        return sorted((each.subject, each.result().context) for each in reader.rows())


class Shop:
    """Products with images on a server that falls silent after a while, until it is told to go on.

    Attributes:
        home: the environment of commands that send them.
        ledger: what these have sent.
        server: where the images are.
    """

    products, answered = 120, 90

    def __init__(self, url: str, home: dict[str, str], server: ImageServer) -> None:
        fill(url, [server.url(f"/p{n}.png") for n in range(1, self.products + 1)])
        self.server = server
        self.home = {**home, "CATALOGUE_URL": url, "CATALOGUE_ALLOW_HOSTS": f"127.0.0.1:{server.port}"}
        self.ledger = Path(home["COUTURIER_HOME"]) / "ledger.db"

    def end_a_send(self, how: signal.Signals) -> int:
        """Start to send, and send a signal when the first are stored and the next get no answer."""
        with running(SEND, **self.home) as victim:
            wait_for(victim, lambda: rows_of(self.ledger, CONFIRMED) > 0)
            victim.send_signal(how)
            return victim.wait(PATIENCE_S)


@pytest.fixture
def go_on() -> Event:
    """Tells the server to answer again."""
    return Event()


@pytest.fixture
def shop(url: str, home: dict[str, str], go_on: Event) -> Iterator[Shop]:
    """A shop on a server that falls silent."""
    answering = count()

    def image(handler: BaseHTTPRequestHandler) -> None:
        if next(answering) >= Shop.answered and not go_on.is_set():
            server.over.wait()
        says(PICTURES[int(handler.path[2:-4]) % len(PICTURES)])(handler)

    with image_server({f"/p{n}.png": image for n in range(1, Shop.products + 1)}) as server:
        yield Shop(url, home, server)


def test_a_killed_send_is_run_again_and_every_product_has_one_row(shop: Shop, go_on: Event) -> None:
    """A worker and an audit find all of them, once."""
    assert shop.end_a_send(signal.SIGKILL) == -signal.SIGKILL
    assert 0 < rows_of(shop.ledger, CONFIRMED) < shop.products
    go_on.set()
    with running(SEND, **shop.home) as sender:
        assert sender.wait(PATIENCE_S) == 0
    assert rows_of(shop.ledger, CONFIRMED) == shop.products
    expected = [(str(n), {"title": f"title {n}", "description": "text"}) for n in range(1, shop.products + 1)]
    assert run_worker(shop.home, shop.products) == sorted(expected)
    with running(["-m", "couturier", "audit"], **shop.home) as audit:
        assert audit.wait(PATIENCE_S) == 0


def test_a_send_that_is_asked_to_stop_does_not_wait_for_a_silent_server(shop: Shop) -> None:
    """What it has is sent; nothing is asked for again."""
    assert shop.end_a_send(signal.SIGTERM) == 130
    assert set(shop.server.asked.values()) == {1}
    assert 64 <= rows_of(shop.ledger, CONFIRMED) <= Shop.answered


def test_the_example_of_the_page_works(
    postgres_service: PostgresService, home: dict[str, str], tmp_path: Path
) -> None:
    """As a reader types it: a shop, a send, a worker, the rows."""
    psql = shutil.which("psql") or str(postgres_service.facts.get("psql"))
    if not Path(psql).exists():
        pytest.skip("the example of the page needs psql (Debian: postgresql-client)")
    make, show = (text for language, text in BLOCKS if language == "sh")
    shop = tmp_path / "shop"
    shop.mkdir()
    places = [str(Path(sys.executable).parent), str(Path(psql).parent), home["PATH"]]
    env = {**home, "PATH": os.pathsep.join(places), "CATALOGUE_URL": postgres_service.new_database()}

    def typed(lines: str) -> str:
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", lines],
            env=env, cwd=shop, capture_output=True, text=True, timeout=PATIENCE_S, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    sent = typed(make)
    assert "published 2 image(s)" in sent
    assert "3 product(s) read, 1 without an image URL" in sent
    run_worker(home, 2)
    found = {row["subject"]: row["context"] for row in json.loads(typed(show))}
    assert found == {
        "1": {"title": "Veste", "description": "A light jacket"},
        "2": {"title": "Basket", "description": "Basket en toile"},
    }
