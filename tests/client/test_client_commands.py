"""``client send``, ``results`` and ``audit``, as a user types them."""

from __future__ import annotations

import json
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from client.results import ResultsWriter
from client.schema import ResultRow
from tests.commands import Run

COMMAND = [sys.executable, "-m", "couturier"]


def ids_of(ledger: Path) -> list[str]:
    """Return the ids of a ledger."""
    with sqlite3.connect(ledger) as db:
        ids = [message_id for (message_id,) in db.execute("SELECT message_id FROM ledger")]
    db.close()
    return ids


def store_rows_of(ledger: Path, results: Path, row: Callable[..., ResultRow]) -> list[str]:
    """Store a row for every message of a ledger, as workers would."""
    ids = ids_of(ledger)
    writer = ResultsWriter(results)
    writer.write([row(each, label="Bag" if place else "Coat") for place, each in enumerate(ids)])
    writer.close()
    return ids


def test_a_send_is_audited_and_its_results_shown(
    run: Run, tmp_path: Path, row: Callable[..., ResultRow]
) -> None:
    """With no configuration everything is in the state directory, and one line on stderr says so."""
    sent = run("client", "send", "--images", "20", "--bad-ratio", "0.1", "--json")
    assert sent.returncode == 0, sent.stderr
    assert json.loads(sent.stdout)["published"] == 20
    assert sent.stderr.strip() == (
        f"BROKER_URL and SINK_URL not set: using queue.db and results.db in {tmp_path / 'home'}"
    )
    books = run("audit", "--json")
    assert books.returncode == 1
    assert json.loads(books.stdout)["in_flight"] == 20

    missing = run("results", "--json")
    assert missing.returncode == 1
    assert "couturier worker" in missing.stderr

    home = tmp_path / "home"
    ids = store_rows_of(home / "ledger.db", home / "results.db", row)
    assert run("audit").returncode == 0
    shown = json.loads(run("results", "--json").stdout)
    assert [each["message_id"] for each in shown] == ids[::-1]
    assert shown[0]["tags"] == []
    assert len(json.loads(run("results", "--label", "Bag", "--limit", "3", "--json").stdout)) == 3
    assert json.loads(run("results", "--id", ids[0], "--json").stdout)[0]["label"] == "Coat"
    assert json.loads(run("results", "--label", "Hat", "--json").stdout) == []
    assert len(json.loads(run("results", "--status", "ok", "--label", "Bag", "--json").stdout)) == 19
    assert json.loads(run("results", "--status", "expired", "--json").stdout) == []
    assert "19" not in run("results", "--limit", "1").stdout.splitlines()[-1].split(" of ")[0]


def test_files_of_ones_own_are_sent(run: Run, tmp_path: Path) -> None:
    """Folders with their images; what is left out is counted."""
    for name in ("a.png", "b.jpg", "notes.txt"):
        (tmp_path / name).write_bytes(b"x")
    sent = json.loads(run("client", "send", str(tmp_path), "--json").stdout)
    assert (sent["published"], sent["skipped"]) == (2, 1)


def test_an_audit_names_what_is_missing(run: Run, tmp_path: Path, row: Callable[..., ResultRow]) -> None:
    """The first twenty ids for people, all for machines; and what may be configured wrongly."""
    queue = tmp_path / "home" / "queue.db"
    assert run("client", "send", "--images", "30").returncode == 0
    ledger = tmp_path / "home" / "ledger.db"
    ids = ids_of(ledger)
    waiting = run("audit")
    assert waiting.returncode == 1
    assert waiting.stdout.count("in the queue: ") == 20
    assert "and 10 more; --json lists all" in waiting.stdout
    assert sorted(json.loads(run("audit", "--json").stdout)["in_flight_ids"]) == sorted(ids)

    queue.unlink()
    assert run("topics", "ensure", "images", "--group", "classifiers").returncode == 0
    lost = run("audit")
    assert lost.returncode == 1
    assert lost.stdout.count("lost: ") == 20
    assert "results.db does not exist" in lost.stdout
    assert "another SINK_URL" in lost.stdout
    assert json.loads(run("audit", "--json").stdout)["lost_ids"] == sorted(ids)

    other = run("audit", BROKER_URL=f"sqlite:///{queue}", COUTURIER_TOPIC="nowhere")
    assert (other.returncode, "nowhere" in other.stderr) == (69, True)
    assert run("topics", "ensure", "others", "--group", "classifiers").returncode == 0
    books = run("audit", "--topic", "others")
    assert f"the ledger knows other places: topic 'images' at sqlite:///{queue}" in books.stdout


def test_an_audit_without_a_ledger_says_what_it_cannot_prove(
    run: Run, tmp_path: Path, row: Callable[..., ResultRow]
) -> None:
    """On another machine than the sender's there are only the broker's counts."""
    where = {"BROKER_URL": f"sqlite:///{tmp_path}/q.db", "SINK_URL": f"sqlite:///{tmp_path}/r.db"}
    assert run("client", "send", "--images", "3", **where).returncode == 0
    store_rows_of(tmp_path / "home" / "ledger.db", tmp_path / "r.db", row)
    elsewhere = run("audit", "--json", **where, COUTURIER_HOME=str(tmp_path / "elsewhere"))
    books = json.loads(elsewhere.stdout)
    assert (books["basis"], books["stored"], books["balanced"]) == ("broker", 3, True)
    assert "cannot" in books["notes"][0]
    named = run(
        "audit",
        "--json",
        "--ledger",
        str(tmp_path / "home" / "ledger.db"),
        **where,
        COUTURIER_HOME="/nowhere",
    )
    assert json.loads(named.stdout)["basis"] == "ledger"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_loop_is_stopped_with_its_books_in_order(env: dict[str, str], tmp_path: Path, number: int) -> None:
    """Ctrl-C prints how far it came; what was sent is confirmed."""
    command = [*COMMAND, "client", "send", "--loop", "--images", "10", "--rate", "50", "--json"]
    ledger = tmp_path / "home" / "ledger.db"
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as sender:
        while sender.poll() is None and not _confirmed(ledger):
            pass
        sender.send_signal(number)
        out, error = sender.communicate(timeout=30)
    assert sender.returncode == 130, error
    report = json.loads(out)
    assert report["stopped"]
    assert report["published"] == _confirmed(ledger)


def _confirmed(ledger: Path) -> int:
    if not ledger.exists():
        return 0
    db = sqlite3.connect(ledger)
    try:
        return int(db.execute("SELECT count(*) FROM ledger WHERE state = 'confirmed'").fetchone()[0])
    except sqlite3.OperationalError:
        return 0
    finally:
        db.close()


@pytest.mark.parametrize(
    ("arguments", "more", "code", "text"),
    [
        (("client", "send", "--images", "10001"), {}, 2, "10,000"),
        (("client", "send", "--images", "0"), {}, 2, "must be 1"),
        (("client", "send", "--bad-ratio", "2"), {}, 2, "within 0 and 1"),
        (("client", "send", "--rate", "0"), {}, 2, "--rate"),
        (("client", "send", "/nowhere.png"), {}, 1, "/nowhere.png does not exist"),
        (("client", "send", "pyproject.toml", "--images", "3"), {}, 2, "validation images"),
        (("client", "send", "--images", "1"), {"BROKER_URL": "carrier-pigeon://"}, 78, "BROKER_URL"),
        (("client", "send", "--images", "1"), {"BROKER_BACKEND": "memory"}, 78, "one process"),
        (
            ("client", "send", "--images", "1"),
            {"COUTURIER_CREATE": "perhaps"},
            78,
            "COUTURIER_CREATE='perhaps'",
        ),
        (
            ("results",),
            {"SINK_URL": "postgresql://bob:hunter2@127.0.0.1:1/d"},
            1,
            "postgresql://***@127.0.0.1:1/d",
        ),
        (("client", "send", "--images", "1"), {"COUTURIER_CREATE": "false"}, 69, "images"),
        (("results",), {"SINK_URL": "topic:answers"}, 78, "SINK_URL='topic:answers' cannot be read"),
        (
            ("audit",),
            {"SINK_URL": "jsonl:///rows.jsonl"},
            78,
            "SINK_URL='jsonl:///rows.jsonl' cannot be read",
        ),
        (("results", "--id", "x", "--status", "ok"), {}, 2, "--status"),
        (("results", "--status", "lost"), {}, 2, "--status"),
        (("results", "--limit", "-1"), {}, 2, "--limit"),
        (("results", "--id", "x", "--label", "Bag"), {}, 2, "--label"),
        (("audit",), {}, 69, "images"),
        (("audit", "--ledger", "/nowhere.db"), {}, 1, "/nowhere.db does not exist"),
    ],
    ids=lambda each: " ".join(each) if isinstance(each, tuple) else None,
)
def test_a_wrong_use_is_one_clear_error(
    run: Run, arguments: tuple[str, ...], more: dict[str, str], code: int, text: str
) -> None:
    """It names what is wrong and where it came from; nobody sees a traceback."""
    done = run(*arguments, **more)
    assert done.returncode == code, done.stderr
    assert text in " ".join(done.stderr.replace("│", " ").split())
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("words", "option"),
    [
        (("worker", "--batch-size", "0"), "--batch-size"),
        (("worker", "--engine", "tpu"), "--engine"),
        (("worker", "--topic", "bad name"), "--topic"),
        (("client", "send", "--group", "bad name"), "--group"),
        (("dlq", "list", "--topic", "bad name"), "--topic"),
        (("topics", "ensure", "t", "--group", "bad name"), "--group"),
        (("demo", "--backend", "rabbit"), "--backend"),
        (("demo", "--picture", "sheet.xyz"), "--picture"),
        (("demo", "--picture", "pyproject.toml/sheet.png"), "--picture"),
    ],
)
def test_a_wrong_flag_is_blamed_itself(run: Run, words: tuple[str, ...], option: str) -> None:
    """Wrong use, before anything is done; no variable is named that nobody set."""
    done = run(*words, BROKER_URL="kafka://127.0.0.1:1")
    assert done.returncode == 2
    assert f"Invalid value for '{option}'" in " ".join(done.stderr.replace("│", " ").split())
