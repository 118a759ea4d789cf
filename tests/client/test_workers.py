"""The workers of this machine: how they are listed, found, and asked over HTTP."""

from __future__ import annotations

import fcntl
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from client.workers import Listed, addresses, ask, listed, listing
from tests.client.saying import serving

LISTED = Listed("host-7", socket.gethostname(), "http://127.0.0.1:1", 7, 0.0, "images", "classifiers")


def test_a_worker_is_listed_while_it_lives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And not after; nothing is left behind."""
    monkeypatch.setenv("COUTURIER_HOME", str(tmp_path))
    child = (
        "import sys; from client.workers import *\n"
        "with listing(Listed('a/b-1', 'h', 'http://x:1', 1, 2.0, 't', 'g')):\n"
        "    print('up', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", child], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        assert listed() == [Listed("a/b-1", "h", "http://x:1", 1, 2.0, "t", "g")]
        process.kill()
    # The pid in the file need not be free: the lock went with the process.
    assert list((tmp_path / "workers").glob("*.json")) != []
    assert listed() == []
    assert list((tmp_path / "workers").iterdir()) == []
    with listing(LISTED):
        pass
    assert list((tmp_path / "workers").iterdir()) == []


def test_a_worker_of_another_container_is_asked_by_its_name() -> None:
    """Containers may share a state directory, and not what 127.0.0.1 means."""
    assert LISTED.reached_at == "http://127.0.0.1:1"
    far = replace(LISTED, host="4f1c")
    assert far.reached_at == "http://4f1c:1"
    assert replace(far, url="http://10.0.0.7:1").reached_at == "http://10.0.0.7:1"


def test_what_others_put_there_is_ignored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No JSON, other JSON: locked, so that it is not removed either."""
    monkeypatch.setenv("COUTURIER_HOME", str(tmp_path))
    (tmp_path / "workers").mkdir()
    for name, text in (("a.json", "not json"), ("b.json", "[]"), ("c.json", '{"worker": "x"}')):
        (tmp_path / "workers" / name).write_text(text)
    with (tmp_path / "workers" / "a.json").open() as a, (tmp_path / "workers" / "c.json").open() as c:
        fcntl.flock(a, fcntl.LOCK_EX)
        fcntl.flock(c, fcntl.LOCK_EX)
        assert listed() == []
        assert sorted(each.name for each in (tmp_path / "workers").iterdir()) == ["a.json", "c.json"]


def test_a_name_stands_for_all_its_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a service of containers has them."""

    def resolve(host: str, port: int, **_: object) -> list[tuple[Any, ...]]:
        assert host == "workers"
        return [(0, 0, 0, "", (each, port)) for each in ("10.0.0.1", "10.0.0.2", "10.0.0.1")]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    assert addresses("workers") == ["http://10.0.0.1:9464", "http://10.0.0.2:9464"]
    assert addresses("http://workers:80") == ["http://10.0.0.1:80", "http://10.0.0.2:80"]
    for wrong in ("https://h:1", "http://bob:pw@h:1", "h:port", "", "http://[::1"):
        with pytest.raises(ValueError, match="worker "):
            addresses(wrong)


def test_whatever_answers_that_is_no_worker_is_told_so() -> None:
    """Text, or nobody."""
    with serving(b"<html>", []) as where:
        answer = ask(f"http://{where}", "/status")
    assert (answer.code, answer.body, answer.text) == (200, {}, "<html>")
    assert ask(f"http://{where}", "/status").error
