"""``couturier dlq list|show|replay|purge``, as an operator types them."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import pytest
from dead_letters import DEAD, GROUP, TOPIC, bury, found, kill, process, waiting

from broker import Broker, Message, connect
from client.dlq import purged_ids
from client.schema import encode_png
from tests.commands import Run

T = TypeVar("T")
Ask = Callable[[Callable[[Broker], Awaitable[T]]], T]
FORGED = {
    "couturier-reason": "r" * 5_000,
    "couturier-stage": "\x1b[2J",
    "couturier-attempts": "-5",
    "couturier-error": "\r\nok\x1b[31m[bold]\x00" + "e" * 60_000,
    "couturier-failed-at": "tomorrow",
    "couturier-replays": "1e9",
}


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/queue.db?lease=0.5"


@pytest.fixture
def ask(url: str) -> Ask[object]:
    """Does something with the queue, and returns what it found."""

    def do(work: Callable[[Broker], Awaitable[T]]) -> T:
        async def run() -> T:
            async with connect(url) as broker:
                await broker.ensure(TOPIC, group=GROUP)
                return await work(broker)

        return asyncio.run(run())

    return do


@pytest.fixture
def dlq(run: Run, url: str) -> Run:
    return lambda *words, **more: run("dlq", *words, BROKER_URL=url, **more)


def letters(*facts: tuple[str, str, str]) -> list[Message]:
    """Dead letters that say reason, error and when."""
    return [
        Message(
            data=b"x",
            id=f"m{n}",
            attributes={"couturier-reason": why, "couturier-error": error, "couturier-failed-at": when},
        )
        for n, (why, error, when) in enumerate(facts)
    ]


def test_the_commands_show_and_replay(dlq: Run, ask: Ask[list[Message]], tmp_path: Path) -> None:
    """list, show and replay work from the shell, for people and for machines."""
    sent = ask(lambda broker: kill(broker, 3))
    listed = json.loads(dlq("list", "--json", "--limit", "2").stdout)
    assert [each["message_id"] for each in listed] == [sent[0].id, sent[1].id]
    assert {"message_id", "reason", "stage", "attempts", "error"} <= set(listed[0])
    text = dlq("list").stdout
    assert sent[2].id in text
    assert "3 dead letter(s): 3 bad-image" in text
    dlq("show", sent[0].id, "--out", str(tmp_path / "body"))
    assert (tmp_path / "body").read_bytes() == b"body 0"
    assert "62 6f 64 79 20 30" in dlq("show", sent[0].id).stdout
    assert len(json.loads(dlq("replay", "--all", "--dry-run", "--json").stdout)["replayed"]) == 3
    assert json.loads(dlq("replay", sent[0].id, "--json").stdout)["replayed"] == [sent[0].id]
    again = json.loads(dlq("replay", "--reason", "bad-image", "--json").stdout)
    assert again == {
        "dry_run": False,
        "replayed": [sent[1].id, sent[2].id],
        "refused": {},
        "skipped": [],
    }
    assert "no dead letters" in dlq("list").stdout
    assert json.loads(dlq("list", "--json").stdout) == []
    unknown = dlq("show", "nobody")
    assert (unknown.returncode, "nobody" in unknown.stderr) == (2, True)
    gone = dlq("replay", sent[0].id)
    assert (gone.returncode, f"no such dead letter: {sent[0].id}" in gone.stderr) == (1, True)


def test_everything_is_redriven_once(dlq: Run, ask: Ask[list[str]]) -> None:
    """All, filtered, and twice: what was redriven is in the queue once, and the second run does nothing."""
    facts = [("a", "OSError: x", "2026-01-01T00:00:00+00:00"), ("b", "ValueError: y", "2026-02-01T00:00:00Z")]
    ask(lambda broker: bury(broker, letters(*facts * 5)))
    assert "replayed 5 letter(s)" in dlq("replay", "--error", "OSError").stdout
    assert "replayed 0 letter(s)" in dlq("replay", "--error", "OSError").stdout
    assert sorted(ask(waiting)) == ["m0", "m2", "m4", "m6", "m8"]
    assert "replayed 5 letter(s)" in dlq("replay", "--all").stdout
    assert "replayed 0 letter(s)" in dlq("replay", "--all").stdout
    assert sorted(ask(waiting)) == sorted(f"m{n}" for n in range(10))


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (("--reason", "a"), ["m0", "m3"]),
        (("--error", "OSError"), ["m0", "m1"]),
        (("--error", "truncated"), ["m1"]),
        (("--since", "2026-02-01"), ["m1", "m2"]),
        (("--since", "2026-02-01", "--until", "2026-03-01T00:00:01+00:00"), ["m1"]),
        (("--until", "1d"), ["m0", "m1", "m2"]),
        (("--since", "1h"), []),
        (("m0", "m2"), ["m0", "m2"]),
        (("m0", "m2", "--reason", "a"), ["m0"]),
        (("--stage", "unknown", "--limit", "2"), ["m0", "m1"]),
    ],
    ids=" ".join,
)
def test_filters_mean_the_same_everywhere(
    dlq: Run, ask: Ask[list[str]], words: tuple[str, ...], meant: list[str]
) -> None:
    """list, replay and purge choose the same letters; nothing is changed by a dry run."""
    buried = letters(
        ("a", "OSError: x", "2026-01-01T00:00:00+00:00"),
        ("b", "OSError: image is truncated", "2026-02-01T00:00:00+00:00"),
        ("b", "ValueError: y", "2026-03-01T00:00:01+00:00"),
        ("a", "KeyError: y", "no time"),
    )
    ask(lambda broker: bury(broker, buried))
    assert [each["message_id"] for each in json.loads(dlq("list", *words, "--json").stdout)] == meant
    for command, done in (("replay", "replayed"), ("purge", "purged")):
        assert json.loads(dlq(command, *words, "--dry-run", "--json").stdout)[done] == meant
    assert len(ask(found)) == 4


def test_a_loop_is_noticed(dlq: Run, ask: Ask[object]) -> None:
    """What was replayed three times stays, and a line says so; --force takes it."""
    (sent,) = ask(lambda broker: kill(broker, 1))  # type: ignore[misc]
    for _ in range(3):
        assert "replayed 1 letter(s)" in dlq("replay", "--all").stdout
        ask(lambda broker: process(broker, 1, reject=True))
    guarded = dlq("replay", "--all")
    assert (guarded.returncode, "replayed 0 letter(s)" in guarded.stdout) == (0, True)
    assert f"skipped 1 letter(s) that were replayed 3 times or more ({sent.id}); --force" in guarded.stderr
    named = dlq("replay", sent.id, "--json")
    assert (named.returncode, json.loads(named.stdout)["skipped"]) == (0, [sent.id])
    assert "+3 replays" in dlq("list").stdout
    assert "replayed 1 letter(s)" in dlq("replay", "--all", "--max-replays", "4").stdout
    ask(lambda broker: process(broker, 1, reject=True))
    assert "replayed 1 letter(s)" in dlq("replay", "--all", "--force").stdout


def test_a_purge_asks_first(dlq: Run, ask: Ask[object], env: dict[str, str], url: str) -> None:
    """Where there is nobody to ask it wants --yes; on a terminal "n" leaves everything as it was."""
    ask(lambda broker: kill(broker, 3))
    refused = dlq("purge", "--all")
    assert (refused.returncode, "--yes" in refused.stderr) == (2, True)
    assert dlq("purge").returncode == 2
    assert answered("n", env, url) == 1
    assert len(ask(found)) == 3  # type: ignore[arg-type]
    assert answered("y", env, url) == 0
    assert (ask(found), len(ask(lambda broker: purged_ids(broker, TOPIC, GROUP)))) == ([], 3)  # type: ignore[arg-type]
    assert "purged 0 letter(s) of 'images'" in dlq("purge", "--all", "--yes").stdout


def answered(answer: str, env: dict[str, str], url: str) -> int:
    """Purge everything at a terminal where somebody types ``answer``; return the exit code."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "couturier", "dlq", "purge", "--all"]
    with subprocess.Popen(
        command, env={**env, "BROKER_URL": url}, stdin=theirs, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as purging:
        os.write(ours, f"{answer}\n".encode())
        out, error = purging.communicate(timeout=60)
    os.close(ours)
    os.close(theirs)
    assert b"purge 3 dead letter(s) of 'images' for good?" in out + error
    return purging.returncode


def test_a_purge_makes_no_topic_where_that_is_not_wanted(dlq: Run, ask: Ask[object]) -> None:
    """With COUTURIER_CREATE=false a missing topic for the notes is an error, and no letter goes."""
    ask(lambda broker: kill(broker, 1))
    done = dlq("purge", "--all", "--yes", COUTURIER_CREATE="false")
    assert (done.returncode, f"{TOPIC}.{GROUP}.purged" in done.stderr) == (69, True)
    assert len(ask(found)) == 1  # type: ignore[arg-type]


def test_forged_letters_are_shown_safely(dlq: Run, ask: Ask[object]) -> None:
    """Nothing that a terminal obeys, no line of its own, and nothing longer than a screen."""
    evil = Message(data=b"\x1b[31m", id="e\x1b]0;x\x07", subject="[bold]\n:bomb:", attributes=FORGED)
    ask(lambda broker: bury(broker, [evil]))
    for done in (dlq("list"), dlq("show", evil.id)):
        assert done.returncode == 0
        assert "\x1b" not in done.stdout
        assert "\x07" not in done.stdout
        assert "[bold]?:bomb:" in done.stdout
        assert max(map(len, done.stdout.splitlines())) < 1_100
    (listed,) = json.loads(dlq("list", "--json").stdout)
    assert (listed["attempts"], listed["replays"]) == (0, 0)
    assert listed["error"] == FORGED["couturier-error"]
    done = dlq("purge", "--all", "--yes", "--json")
    assert json.loads(done.stdout)["purged"] == [evil.id]


def test_a_picture_is_drawn_at_a_terminal_or_when_asked(
    dlq: Run, ask: Ask[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a pipe there are bytes, with --draw a picture, with --json neither."""
    import numpy as np

    # rich keeps the environment in which it was imported.
    monkeypatch.setattr("rich.console.Console._environ", {"COLORTERM": "truecolor", "TERM": "xterm"})
    image = encode_png(np.full((2, 3), 200, np.uint8))
    ask(lambda broker: bury(broker, [Message(data=image, id="picture")]))
    assert "89 50 4e 47" in dlq("show", "picture").stdout
    shown = dlq("show", "picture", "--draw").stdout
    assert "3 x 2 pixels" in shown
    assert shown.endswith("\x1b[38;2;200;200;200;48;2;200;200;200m▀\x1b[0m" * 3 + "\n")
    assert json.loads(dlq("show", "picture", "--draw", "--json").stdout)["size_bytes"] == len(image)


def test_a_long_list_is_counted_and_shown_in_part(
    dlq: Run, ask: Ask[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A table of a hundred thousand rows helps nobody; --limit and --json show what is wanted."""
    monkeypatch.setattr("client.dlq_cli._TABLE_ROWS", 5)
    ask(lambda broker: bury(broker, [Message(data=b"x") for _ in range(12)]))
    assert "12 dead letter(s): 12 unknown; 7 more are not shown" in dlq("list").stdout
    limited = dlq("list", "--limit", "8").stdout
    assert "8 dead letter(s): 8 unknown; there may be more: --limit ended the search\n" in limited
    assert len(json.loads(dlq("list", "--json").stdout)) == 12


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("replay",), "--all"),
        (("replay", "--limit", "3"), "--all"),
        (("replay", "--all", "--rate", "0"), "--rate"),
        (("replay", "--all", "--rate", "inf"), "--rate"),
        (("list", "--since", "soon"), "2h or 3d"),
        (("list", "--limit", "0"), "--limit"),
        (("purge", "--yes"), "--all"),
    ],
    ids=lambda each: " ".join(each) if isinstance(each, tuple) else None,
)
def test_a_wrong_use_is_one_clear_error(dlq: Run, words: tuple[str, ...], text: str) -> None:
    """Before anything is looked at."""
    done = dlq(*words)
    assert (done.returncode, text in " ".join(done.stderr.replace("│", " ").split())) == (2, True)


def test_a_topic_that_does_not_exist_is_an_error(dlq: Run, ask: Ask[object]) -> None:
    """It is not a queue without dead letters."""
    ask(lambda broker: broker.ensure(DEAD, "operators"))
    assert dlq("list").returncode == 0
    for command in (("list",), ("replay", "--all"), ("purge", "--all", "--yes")):
        done = dlq(*command, "--topic", "imagse")
        assert (done.returncode, "imagse" in done.stderr) == (69, True)
