"""How the client's commands show what they did: text for people, JSON for machines."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn
from rich.table import Table

if TYPE_CHECKING:
    from .audit import Balance
    from .client import Progress as OnProgress
    from .client import SendReport
    from .run import Run
    from .schema import ResultRow

_SHOWN = 5
_MISSING_SHOWN = 20
_PIPE_COLUMNS = 160


@contextmanager
def bar(total: int | None) -> Iterator[OnProgress]:
    """Show a progress bar on stderr while the block runs, if that is a terminal.

    Args:
        total: images to be sent; None for no end.
    """
    console = Console(stderr=True)
    columns = (
        SpinnerColumn(),
        TextColumn("publishing"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[speed]}/s"),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as progress:
        task = progress.add_task("publishing", total=total, speed="0")

        def on_progress(report: SendReport) -> None:
            done = report.published + len(report.refused)
            progress.update(task, completed=done, speed=f"{_speed(report):,.0f}")

        yield on_progress


@contextmanager
def counting(what: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
    """Show on stderr, if that is a terminal, how far something has come while the block runs.

    Args:
        what: is done.
        total: how many there are; None if nobody knows.
    """
    console = Console(stderr=True)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as progress:
        task = progress.add_task(what, total=total)
        yield lambda done: progress.update(task, completed=done)


@contextmanager
def looking() -> Iterator[Callable[[str, int], None]]:
    """Show on stderr, if that is a terminal, what is looked at and how much of it was seen."""
    console = Console(stderr=True)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TextColumn("{task.completed:,.0f}"))
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as progress:
        task = progress.add_task("looking", total=None)
        yield lambda what, count: progress.update(task, description=what, completed=count)


def print_report(
    report: SendReport, topic: str, skipped: int, as_json: bool, catalogue: Mapping[str, Any]
) -> None:
    """Print what a send did.

    Args:
        report: how far it came.
        topic: where it went.
        skipped: files that were left out.
        as_json: for machines.
        catalogue: what a product catalogue held, and what of it could not be sent; empty where none was.
    """
    if as_json:
        _print_json(
            {
                "run_id": report.run_id,
                "topic": topic,
                "published": report.published,
                "refused": report.refused,
                "skipped": skipped,
                "size_bytes": report.size_bytes,
                "elapsed_s": report.elapsed_s,
                "images_per_second": _speed(report),
                "stopped": report.stopped,
                **catalogue,
            }
        )
        return
    print(
        f"published {report.published:,} image(s) to {topic!r} in {report.elapsed_s:.1f} s"
        f" ({_speed(report):,.0f}/s){'; stopped early' if report.stopped else ''}"
    )
    if skipped:
        print(f"skipped {skipped:,} file(s) that are no image by their name or too large")
    if catalogue:
        print(f"{catalogue['products']:,} product(s) read, {catalogue['without_url']:,} without an image URL")
        for reason, count in catalogue["failures"].items():
            print(f"could not be had, {plain(reason)}: {count:,} image(s), named on stderr")
        if catalogue["shortened"]:
            print(f"title or description shortened: {catalogue['shortened']:,} product(s)")
    if report.refused:
        print(f"the broker refused {len(report.refused):,} image(s):")
        for message_id, error in list(report.refused.items())[:_SHOWN]:
            print(f"  {message_id}: {error}")


def print_results(rows: Iterable[ResultRow], total: int, as_json: bool) -> None:
    """Print rows as a table or as one JSON list, without holding all of them.

    Args:
        rows: what to show.
        total: rows in the results file.
        as_json: for machines.
    """
    if as_json:
        _print_json_list(row.to_dict() for row in rows)
        return
    table = Table("stored", "subject", "label", "confidence", "runner-up", "latency", box=SIMPLE_HEAD)
    table.add_column("message id", no_wrap=True)
    for row in rows:
        label = row.label if row.status == "ok" else f"{row.label or '-'} ({row.status})"
        table.add_row(
            row.created_at[11:19],
            _plain(row.subject),
            _plain(label),
            _share(row.confidence),
            f"{_plain(row.runner_up)} {_share(row.runner_up_confidence)}".strip(),
            f"{row.latency_s:.3f} s",
            _plain(row.message_id),
        )
    console = wide_stdout()
    console.print(table)
    console.print(f"{table.row_count:,} of {total:,} row(s)")


def wide_stdout() -> Console:
    """The terminal, or a pipe that is wide enough for whole ids."""
    console = Console()
    return console if console.is_terminal else Console(width=_PIPE_COLUMNS)


def print_run(report: Mapping[str, Any], run: Run) -> None:
    """Print what a demo found: recall by class, dead letters, figures."""
    console = Console()
    classes = Table("class", "images", "recall", title="Recall by class")
    for name, (recall, count) in run.recalls().items():
        classes.add_row(name, f"{count:,}", f"{recall:.1%}")
    dead = Table("dead letters", "reason", "for example", title="Dead letters")
    kinds = {(each.reason, each.error.partition(":")[0]): each.error for each in run.letters}
    for (reason, kind), example in kinds.items():
        count = sum((each.reason, each.error.partition(":")[0]) == (reason, kind) for each in run.letters)
        dead.add_row(f"{count:,}", _plain(reason), _plain(example))
    console.print(classes, dead if run.letters else "no dead letters")
    for name, text in _figures(report, run).items():
        console.print(f"[bold]{name:>11}[/bold]  {text}", soft_wrap=True, highlight=False)
    console.print("\nlook closer: couturier results, couturier dlq list, couturier audit", highlight=False)


def _figures(report: Mapping[str, Any], run: Run) -> dict[str, str]:
    low, high = report["accuracy_interval"]
    latency = ", ".join(f"{name} {value:,.0f} ms" for name, value in report["latency_ms"].items())
    efficiency = accuracy = "-"
    if report["efficiency"] is not None:
        alone = f"decode + predict alone on the same cores ({report['engine_images_per_second']:,.0f}/s)"
        efficiency = f"{report['efficiency']:.0%} of {alone}"
    if report["accuracy"] is not None:
        interval = f"95 % interval {low:.2%} to {high:.2%}"
        unlike = f"{report['labels_unlike_offline']} label(s) unlike offline prediction"
        accuracy = f"{report['accuracy']:.2%} ({interval}); {unlike}"
    return {
        "throughput": f"{report['images_per_second']:,.0f} images/s with {report['workers']} workers",
        "efficiency": efficiency,
        "latency": latency or "-",
        "accuracy": accuracy,
        "books": f"{report['published']:,} published = {report['stored']:,} stored +"
        f" {report['dead_lettered']:,} dead letters + {report['in_flight']:,} in flight +"
        f" {report['lost']:,} lost; {report['duplicate_rows']:,} duplicate rows",
        "as planned": f"{'yes' if run.as_planned else 'NO'}: {report['planted_bad']:,} corrupt on purpose",
        "picture": report["picture"],
    }


def print_balance(balance: Balance, as_json: bool) -> None:
    """Print the books."""
    if as_json:
        _print_json(balance.to_dict())
        return
    gone = {
        "stored": balance.stored,
        "expired": balance.expired,
        "dead-lettered": balance.dead_lettered,
        "purged": balance.purged,
        "too old": balance.beyond_retention,
    }
    meaning = {"expired": "their deadline had passed", "purged": "removed by an operator"}
    meaning["too old"] = "older than the rows that are kept"
    lines = [f"published      {_count(balance.published):>10}"]
    for name, count in gone.items():
        if count or name in ("stored", "dead-lettered"):
            lines.append(f"- {name:<13}{count:>10,}   {meaning.get(name, '')}".rstrip())
    lines += [
        f"= missing      {_count(balance.missing):>10}   {balance.in_flight:,} in the queue,"
        f" {_count(balance.lost)} lost",
        f"duplicate rows {balance.duplicate_rows:>10,}",
    ]
    if balance.unexpected:
        lines.append(f"other rows     {balance.unexpected:>10,}   of messages that these books do not know")
    lines += [f"note: {plain(note)}" for note in balance.notes]
    print("\n".join([*lines, *_missing(balance), _verdict(balance)]))


def _missing(balance: Balance) -> list[str]:
    """The first ids that are missing, those that are lost before all others."""
    kinds = (("lost", balance.lost_ids), ("in the queue", balance.in_flight_ids))
    every = [f"{kind}: {plain(each)}" for kind, ids in kinds for each in ids[:_MISSING_SHOWN]]
    more = len(balance.lost_ids) + len(balance.in_flight_ids) - _MISSING_SHOWN
    return every[:_MISSING_SHOWN] + ([f"and {more:,} more; --json lists all"] if more > 0 else [])


def _verdict(balance: Balance) -> str:
    if balance.balanced:
        return "balanced: nothing is missing"
    if balance.lost is None:
        return "NOT proven: nobody counted what was published"
    if balance.lost:
        return (
            "NOT balanced: messages are lost, or their rows went to another SINK_URL than the one asked now"
        )
    if balance.duplicate_rows:
        return "NOT balanced: message ids have more than one row; the table was not made by couturier"
    return "not balanced yet: `couturier worker` takes what is in the queue; then ask again"


def _print_json(value: dict[str, Any]) -> None:
    print(json.dumps(value, indent=2))


def _print_json_list(values: Iterable[dict[str, Any]]) -> None:
    opening = "["
    for value in values:
        sys.stdout.write(f"{opening}\n{json.dumps(value)}")
        opening = ","
    sys.stdout.write("[]\n" if opening == "[" else "\n]\n")


def _speed(report: SendReport) -> float:
    return report.published / report.elapsed_s if report.elapsed_s else 0.0


def plain(text: str | None) -> str:
    """Text of unknown origin, without what a terminal would obey."""
    if text is None or text.isprintable():
        return text or ""
    return "".join(each if each.isprintable() else "?" for each in text)


def _plain(text: str | None) -> str:
    """The same, and without what rich would obey."""
    return escape(plain(text))


def _count(value: int | None) -> str:
    return "unknown" if value is None else f"{value:,}"


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"
