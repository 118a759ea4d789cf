"""Which backend, where: URLs, variables, and errors that name what to change."""

from __future__ import annotations

from pathlib import Path

import pytest

from broker import Closed, Message, connect
from broker.settings import broker_url, home

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No variable of the caller, and a state directory of the test's own."""
    for name in ("BROKER_URL", "BROKER_BACKEND", "COUTURIER_ENV"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COUTURIER_HOME", str(tmp_path / "home"))


def names(directory: Path) -> set[str]:
    """Return what lies in a directory."""
    return {each.name for each in directory.iterdir()}


async def works(url: str | None = None) -> None:
    """Publish and receive one message."""
    async with connect(url) as broker:
        await broker.ensure("images", group="workers")
        await broker.publish("images", [Message(data=b"x")])
        async with broker.subscribe("images", group="workers") as subscription:
            (delivery,) = await subscription.receive(max_messages=1, timeout=5.0)
            await subscription.ack(delivery)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("", "names no backend"),
        ("queue.db", "names no backend"),
        ("kafak://localhost", "kafak"),
        ("sqlite://queue.db", "three slashes"),
        ("sqlite:///", "three slashes"),
        ("sqlite:///q.db?lese=5", "'lese'"),
        ("sqlite:///q.db?lease=long", "'long'"),
        ("sqlite:///q.db?lease=0", "above 0"),
        ("sqlite:///q.db?lease=-1", "above 0"),
        ("sqlite:///q.db?lease=nan", "above 0"),
        ("sqlite:///q.db?lease=inf", "above 0"),
        ("sqlite:///q.db?lease", "lease"),
        ("memory://x?retention=5", "'retention'"),
    ],
)
def test_a_bad_url_is_named(url: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A ``ValueError`` quotes the URL, where it came from, and what is wrong with it."""
    with pytest.raises(ValueError, match="connect") as error:
        connect(url)
    assert said in str(error.value)
    assert repr(url) in str(error.value)
    if url:
        monkeypatch.setenv("BROKER_URL", url)
        with pytest.raises(ValueError, match="BROKER_URL") as error:
            connect()
        assert repr(url) in str(error.value)


def test_unknown_backends_are_told_the_known_ones() -> None:
    """The error lists what can be written instead."""
    with pytest.raises(ValueError, match=r"kafka://, memory://, pubsub://, sqlite://"):
        connect("rabbit://localhost")


async def test_the_variable_names_the_backend(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """``BROKER_URL`` decides; relative and absolute paths are those of the file system."""
    monkeypatch.chdir(tmp_path)
    for url, path in (
        (f"sqlite:///{tmp_path}/absolute.db", "absolute.db"),
        ("sqlite:///relative.db", "relative.db"),
    ):
        monkeypatch.setenv("BROKER_URL", url)
        await works()
        assert path in names(tmp_path)


async def test_a_backend_alone_uses_its_default_place(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """``BROKER_BACKEND`` without a URL: memory, or the queue in the state directory."""
    for backend, url in (("memory", "memory://"), ("sqlite", f"sqlite:///{tmp_path}/home/queue.db")):
        monkeypatch.setenv("BROKER_BACKEND", backend)
        assert broker_url() == url
        await works()


async def test_with_nothing_said_all_share_one_queue(tmp_path: Path) -> None:
    """No variable at all: one SQLite queue in the user's state directory."""
    assert broker_url() == f"sqlite:///{tmp_path}/home/queue.db"
    await works()


@pytest.mark.parametrize("name", ["a b", "a#b", "100%41", "what?", "é", "a&b=c"])
async def test_any_state_directory_works(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The queue lies in the directory that was named, whatever characters it has."""
    monkeypatch.setenv("COUTURIER_HOME", str(tmp_path / name))
    await works()
    assert names(tmp_path) == {name}


def test_contradicting_variables_are_both_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """A URL of one backend beside the name of another is refused, with both values."""
    monkeypatch.setenv("BROKER_URL", "sqlite:///q.db")
    monkeypatch.setenv("BROKER_BACKEND", "memory")
    with pytest.raises(ValueError, match=r"BROKER_URL='sqlite:///q.db'.*BROKER_BACKEND='memory'"):
        connect()
    monkeypatch.setenv("BROKER_BACKEND", "sqlite")
    assert broker_url() == "sqlite:///q.db"


def test_an_unknown_backend_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong value of ``BROKER_BACKEND`` is quoted beside the right ones."""
    monkeypatch.setenv("BROKER_BACKEND", "rabbit")
    with pytest.raises(ValueError, match=r"BROKER_BACKEND='rabbit'.*memory.*sqlite.*kafka.*pubsub"):
        connect()


def test_empty_variables_count_as_not_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Compose files and shells pass empty variables for missing ones."""
    monkeypatch.setenv("BROKER_URL", "")
    monkeypatch.setenv("BROKER_BACKEND", "")
    assert broker_url() == f"sqlite:///{tmp_path}/home/queue.db"


def test_the_state_directory_follows_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    """``COUTURIER_HOME`` first, then ``XDG_STATE_HOME``, then the home directory."""
    assert home({"COUTURIER_HOME": "/a", "XDG_STATE_HOME": "/b"}) == Path("/a")
    assert home({"XDG_STATE_HOME": "/b"}) == Path("/b/couturier")
    monkeypatch.setenv("HOME", "/c")
    assert home({}) == Path("/c/.local/state/couturier")
    assert home({"COUTURIER_HOME": "~/d"}) == Path("/c/d")


async def test_memory_urls_share_by_name() -> None:
    """Within a process everyone who names a memory queue sees the same one, and no other."""
    async with (
        connect("memory://one") as one,
        connect("memory://one?lease=5") as same,
        connect("memory://two") as two,
    ):
        await one.ensure("images", group="workers")
        assert (await same.stats("images", "workers")).published == 0
        assert same.capabilities.lease == 5.0
        await two.ensure("images")
        with pytest.raises(Exception, match="workers"):
            await two.stats("images", "workers")


async def test_connecting_opens_nothing(tmp_path: Path) -> None:
    """``connect`` alone touches no file; using it before ``async with`` is ``Closed`` and says how."""
    broker = connect(f"sqlite:///{tmp_path}/untouched.db")
    with pytest.raises(Closed, match="async with"):
        await broker.publish("images", [])
    assert names(tmp_path) == set()
