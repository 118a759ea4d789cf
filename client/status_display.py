"""How ``couturier status`` shows what it found, to people."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from .display import plain
from .status import Oldest, Report, Worker, failures

_FAILURES = 5
_PARTITIONS = 12
_PIPE_COLUMNS = 160
_COLOURS = {"running": "green", "starting": "yellow", "draining": "yellow", "stopped": "yellow"}


def print_status(found: Report) -> None:
    """Print first what is stuck and what to do about it, then the figures."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=_PIPE_COLUMNS)  # a pipe takes whole ids
    for line in _verdict(found):
        console.print(line)
    console.print()
    for table in (_facts(found), _lag(found), _workers(found), _failures(found)):
        if table is not None:
            console.print(table)
    notes = list(found.queue.notes) if found.queue else []
    if found.others:
        notes.append(f"{found.others} worker(s) of other topics or groups are not shown")
    for note in notes:
        console.print(_text(f"note: {note}", "dim"))


def duration(seconds: float) -> str:
    """Return a time as people say it: ``4.2 s``, ``14 min``, ``3 h 20 min``, ``5 d``."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    if seconds < 172_800:
        return f"{seconds // 3600:.0f} h {seconds % 3600 / 60:.0f} min"
    return f"{seconds / 86_400:.0f} d"


def _text(words: str, style: str = "") -> Text:
    return Text(plain(words), style=style)


def _verdict(found: Report) -> Iterator[Text]:
    if found.stuck:
        for place, each in enumerate(found.stuck):
            yield Text.assemble(("also stuck: " if place else "STUCK: ", "bold red"), plain(each.detail))
            yield Text.assemble(("  next: ", "bold"), plain(each.next))
    elif found.queue is None:
        yield _text(
            "the queue cannot be looked at (see the error below); this is what the workers say", "bold red"
        )
    else:
        yield _text(_all_is_well(found), "bold green")


def _all_is_well(found: Report) -> str:
    assert found.queue is not None
    stats = found.queue.stats
    at_work = sum(each.works for each in found.workers)
    if stats is None:
        return f"nothing is known to be stuck; {at_work} worker(s) at work"
    if not stats.unsettled:
        return f"nothing is stuck: every message of {found.topic!r} is finished; {at_work} worker(s) ready"
    drains = [each.drain_s for each in found.workers if each.drain_s]
    time = f", about {duration(min(drains))} at the rate of the last minute" if drains else ""
    return f"nothing is stuck: {stats.unsettled:,} message(s) to do, {at_work} worker(s) at work{time}"


def _facts(found: Report) -> Table:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(justify="right", style="bold", no_wrap=True)
    grid.add_column(overflow="fold")
    grid.add_row(
        "queue",
        _text(f"{found.topic} for {found.group}" + (f" at {found.queue.address}" if found.queue else "")),
    )
    if found.queue is None:
        return grid
    stats, letters, oldest = found.queue.stats, found.queue.dead_letters, found.queue.oldest
    if stats is not None:
        of = "" if stats.published is None else f" of {stats.published:,}"
        held = max(stats.in_flight, sum(each.held for each in found.workers))
        grid.add_row(
            "messages",
            f"{stats.unsettled:,}{of} to do: {held:,} held by workers, {stats.delayed:,} wait to be retried",
        )
    if letters is not None:
        more = "; `couturier dlq list` shows them" if letters else ""
        grid.add_row("dead letters", f"{letters:,}{more}")
    if oldest is not None:
        grid.add_row("oldest", _text(_oldest(oldest)))
        grid.add_row("", _text(_where(oldest)))
        if oldest.last_error:
            grid.add_row("last error", _text(oldest.last_error))
    return grid


def _oldest(oldest: Oldest) -> str:
    subject = f" ({oldest.subject})" if oldest.subject else ""
    return f"{oldest.message_id}{subject}, {duration(oldest.age_s)} old, attempt {oldest.attempt}"


def _where(oldest: Oldest) -> str:
    if oldest.worker is None:
        return "in the queue: no worker that is known here holds it"
    return f"{oldest.stage} for {duration(oldest.held_s or 0)} in worker {oldest.worker}"


def _lag(found: Report) -> Table | None:
    """Return the partitions that have work, the fullest first."""
    parts = [
        each
        for each in (found.queue and found.queue.lag) or ()
        if each.unsettled and each.partition is not None
    ]
    if not parts:
        return None
    table = Table(box=SIMPLE_HEAD)
    for name in ("partition", "to do", "position", "end"):
        table.add_column(name, justify="right", no_wrap=True)
    for each in sorted(parts, key=lambda each: -each.unsettled)[:_PARTITIONS]:
        table.add_row(str(each.partition), f"{each.unsettled:,}", each.position, each.end)
    if len(parts) > _PARTITIONS:
        table.add_row("...", f"{sum(each.unsettled for each in parts):,}", "of all", str(len(parts)))
    return table


def _workers(found: Report) -> Table | None:
    if not found.workers:
        return None
    table = Table(box=SIMPLE_HEAD)
    table.add_column("worker", overflow="fold")
    table.add_column("state", no_wrap=True)
    table.add_column("held", justify="right", no_wrap=True)
    table.add_column("restarts", justify="right", no_wrap=True)
    table.add_column("settled", justify="right", no_wrap=True)
    table.add_column("longest held", overflow="fold")
    for each in found.workers:
        silent = each.state == "silent"
        table.add_row(
            _text(each.name or each.url),
            Text(each.state, _COLOURS.get(each.state, "red")),
            "" if silent else f"{each.held:,}",
            "" if silent else f"{each.restarts:,}",
            "" if silent else _settled(each),
            _text(_longest(each)),
        )
    return table


def _settled(worker: Worker) -> str:
    # What it says before it has settled anything is for how long it has run.
    totals = worker.body.get("totals", {})
    settled = any(totals.get(each) for each in ("done", "retried", "dead_lettered", "dropped"))
    return f"{duration(worker.idle_s)} ago" if settled else "nothing yet"


def _longest(worker: Worker) -> str:
    held = worker.body.get("oldest_held")
    return f"{held['stage']}, {duration(held['held_s'])}" if held else ""


def _failures(found: Report) -> Table | None:
    """Return what failed last, newest first."""
    known = failures(found.workers)
    if not known:
        return None
    table = Table(box=SIMPLE_HEAD)
    for name in ("failed at (UTC)", "message id"):
        table.add_column(name, no_wrap=True)
    table.add_column("try, stage and error", overflow="fold")
    for each in known[:_FAILURES]:
        at = datetime.fromtimestamp(float(each.get("at", 0)), UTC)
        words = f"{each.get('attempt')}, {each.get('stage')}: {each.get('error')}"
        table.add_row(f"{at:%H:%M:%S}", _text(str(each.get("message_id"))), _text(words))
    return table
