"""Every sink keeps one row per message id, also when a process dies or two write at once."""

from __future__ import annotations

import asyncio
import fcntl
import io
import json
import multiprocessing
import resource
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from sink_bench import opened, row

from broker import Unavailable
from client import StoreError
from client.results import WriteReport
from client.schema import ResultRow
from worker import SinkUnavailable, open_sink
from worker.sinks import jsonl, write_patiently
from worker.sinks.console import ConsoleSink
from worker.sinks.jsonl import JsonlSink
from worker.sinks.sqlite import SqliteSink

pytestmark = pytest.mark.anyio


def stored(url: str) -> list[str]:
    """The ids in a sink, read without its own code."""
    scheme, _, path = url.partition(":///")
    if scheme == "jsonl":
        return [json.loads(line)["message_id"] for line in Path(path).read_text().splitlines()]
    db = sqlite3.connect(path)
    try:
        return [each for (each,) in db.execute("SELECT message_id FROM results ORDER BY rowid")]
    finally:
        db.close()


@pytest.fixture(params=["sqlite", "jsonl"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return f"{request.param}:///{tmp_path}/deep/results"


async def test_rows_are_there_when_write_returns(url: str) -> None:
    """For another process to see."""
    async with opened(open_sink(url)) as sink:
        assert await sink.write([row("a"), row("b")]) == WriteReport(new=2)
        assert stored(url) == ["a", "b"]


async def test_a_replay_is_no_second_row_even_after_a_restart(url: str) -> None:
    """What was written by an earlier process counts too."""
    async with opened(open_sink(url)) as sink:
        await sink.write([row("a")])
    async with opened(open_sink(url)) as sink:
        report = await sink.write([row("a"), row("b"), row("b"), row("a", label="Bag")])
    assert report == WriteReport(new=1, identical=2, conflicts=("a",))
    assert stored(url) == ["a", "b"]


async def test_a_refused_row_keeps_no_other_out(url: str) -> None:
    """A value that cannot be written is named with its message."""
    async with opened(open_sink(url)) as sink:
        report = await sink.write([row("a"), row("bad", confidence=object()), row("b")])
    assert report.new == 2
    assert list(report.refused) == ["bad"]
    assert stored(url) == ["a", "b"]


async def test_several_members_share_one_sink(url: str) -> None:
    """Each sees what the other wrote meanwhile."""
    async with opened(open_sink(url)) as one, opened(open_sink(url)) as two:
        await one.write([row("a")])
        assert await two.write([row("a"), row("b")]) == WriteReport(new=1, identical=1)
        assert await one.write([row("b"), row("c")]) == WriteReport(new=1, identical=1)
    assert stored(url) == ["a", "b", "c"]


def _write_from(url: str, first: int) -> None:
    async def write() -> None:
        async with opened(open_sink(url)) as sink:
            ids = [str(number) for number in range(200)]
            order = ids[first:] + ids[:first]
            for start in range(0, 200, 5):
                await write_patiently(sink, [row(each) for each in order[start : start + 5]], 30.0)

    asyncio.run(write())


async def test_processes_that_write_the_same_rows_leave_one_of_each(url: str) -> None:
    """Started at once, on a file that is not there yet."""
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=_write_from, args=(url, first)) for first in (0, 100)]
    for each in writers:
        each.start()
    for each in writers:
        await asyncio.to_thread(each.join)
    assert [each.exitcode for each in writers] == [0, 0]
    assert sorted(stored(url), key=int) == [str(number) for number in range(200)]


@pytest.mark.parametrize("torn", ['{"message_id": "b", "la', '{"message_id": "b", "label": "Coat"}', "\n{"])
async def test_a_line_that_a_crash_left_unfinished_is_cut_off(tmp_path: Path, torn: str) -> None:
    """Its message was never acked, so it comes again and is written whole."""
    path = tmp_path / "results.jsonl"
    async with opened(JsonlSink(path)) as sink:
        await sink.write([row("a")])
    whole = path.read_text()
    torn = torn.removeprefix("\n")
    path.write_text(whole + torn)
    async with opened(JsonlSink(path)) as sink:
        assert path.read_text() == whole
        path.write_text(whole + torn)
        assert (await sink.write([row("a"), row("b")])).new == 1
    assert stored(f"jsonl:///{path}") == ["a", "b"]


async def test_a_file_that_holds_something_else_is_refused(tmp_path: Path) -> None:
    """Before any message is taken."""
    path = tmp_path / "results.jsonl"
    path.write_text("name,label\n")
    with pytest.raises(StoreError, match="no result"):
        await JsonlSink(path).open()
    assert path.read_text() == "name,label\n"


async def test_a_place_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    """For both kinds of file."""
    (tmp_path / "file").touch()
    for sink in (JsonlSink(tmp_path / "file" / "r"), SqliteSink(tmp_path / "file" / "r")):
        with pytest.raises(StoreError):
            await sink.open()
        await sink.aclose()


async def test_a_disk_that_takes_no_more_is_an_outage(url: str) -> None:
    """Half a write is undone, nobody's message is to blame, and the same write works once there is room."""
    rows = [row(f"m-{number}", subject="x" * 1000) for number in range(64)]
    async with opened(open_sink(url)) as sink:
        await sink.write([row("first")])
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
        try:
            with pytest.raises(SinkUnavailable):
                await sink.write(rows)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert stored(url) == ["first"]
        assert await sink.write(rows) == WriteReport(new=64)
    assert len(stored(url)) == 65


async def test_the_console_prints_json_lines_in_a_pipe_and_short_lines_on_a_terminal() -> None:
    """Control characters of a stranger's subject do not reach the terminal."""
    pipe = io.StringIO()
    async with opened(ConsoleSink(pipe)) as sink:
        assert await sink.write([row("a"), row("b")]) == WriteReport(new=2)
    assert [json.loads(line)["message_id"] for line in pipe.getvalue().splitlines()] == ["a", "b"]

    terminal = io.StringIO()
    terminal.isatty = lambda: True  # type: ignore[method-assign]
    async with opened(ConsoleSink(terminal)) as sink:
        await sink.write([row("a", confidence=0.987, subject="shoe"), row("b", subject="\x1b[2J")])
    shown = terminal.getvalue().splitlines()
    assert shown[0].split() == ["Coat", "98.7%", "shoe"]
    assert "\x1b" not in shown[1]


BROKEN_SOCKET_THEN_PRINT = """
import anyio, socket
from test_sinks import ConsoleSink, opened, row

async def main():
    ours, theirs = socket.socketpair()
    theirs.close()
    async with opened(ConsoleSink()) as sink:
        try:
            ours.send(b"to nobody")
        except BrokenPipeError:
            await sink.write([row("first")])
        while True:
            await sink.write([row("later")])

anyio.run(main)
"""


def test_a_reader_of_the_console_that_leaves_ends_the_worker_and_no_other_does() -> None:
    """As in ``couturier worker | head -1``; a probe that hangs up, or a dead engine, is no such reader."""
    with subprocess.Popen(
        [sys.executable, "-c", BROKEN_SOCKET_THEN_PRINT], stdout=subprocess.PIPE, cwd=Path(__file__).parent
    ) as process:
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())["message_id"] == "first"
        process.stdout.close()
        assert process.wait(30) == -signal.SIGPIPE


@pytest.mark.parametrize(
    "url",
    ["results.db", "jsonl://results", "jsonl:///", "sqlite://x", "console:x", "redis://host", ""],
)
def test_a_sink_that_is_unknown_is_named_with_what_works(url: str) -> None:
    """The error says which variable, and what would do."""
    with pytest.raises(ValueError, match=r"SINK_URL=.*(sqlite|jsonl):///"):
        open_sink(url)


class Away:
    """A sink that is away for its first writes."""

    def __init__(self, outages: int) -> None:
        self.outages = outages
        self.calls = 0

    async def open(self) -> None:
        """Nothing to do."""

    async def write(self, rows: list[ResultRow]) -> WriteReport:
        self.calls += 1
        if self.calls <= self.outages:
            raise SinkUnavailable("away")
        return WriteReport(len(rows))

    async def aclose(self) -> None:
        """Nothing to do."""


async def test_a_short_outage_is_retried_and_a_long_one_is_unavailable() -> None:
    """The caller pauses then, and blames no message."""
    short = Away(2)
    assert (await write_patiently(short, [row("a")], deadline_s=30.0)).new == 1
    assert short.calls == 3
    with pytest.raises(Unavailable, match="away"):
        await write_patiently(Away(10**9), [row("a")], deadline_s=0.05)


async def test_a_file_that_another_process_holds_for_good_is_an_outage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stopped worker that holds the lock makes the others wait, not hang."""
    monkeypatch.setattr(jsonl, "_LOCK_TIMEOUT_S", 0.1)
    sink = JsonlSink(tmp_path / "rows.jsonl")
    await sink.open()
    with (tmp_path / "rows.jsonl").open("rb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(SinkUnavailable):
            await sink.write([row("a")])
    assert (await sink.write([row("a")])).new == 1
    await sink.aclose()
