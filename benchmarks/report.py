"""What was measured, as a table: medians, and ratios taken within a round."""

from __future__ import annotations

import json
import os
import platform
from argparse import ArgumentParser, Namespace
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from itertools import groupby
from pathlib import Path
from statistics import median
from typing import Any

from classifier.report.speed import machine

_PACKAGES = ("confluent-kafka", "google-cloud-pubsub", "faststream", "repid", "aiokafka", "kombu")


@dataclass(frozen=True, slots=True)
class Measurement:
    """One client did one thing once; see ``measure.Result`` for the figures."""

    client: str
    task: str
    size_bytes: int
    round: int
    count: int
    seconds: float
    cpu_seconds: float
    rss_bytes: tuple[int, int, int]
    peak_bytes: int

    @property
    def rate(self) -> float:
        """Messages per second."""
        return self.count / self.seconds


@dataclass(frozen=True, slots=True)
class Failure:
    """A client that was not run, or did not do what it was asked to, and why."""

    client: str
    task: str
    size_bytes: int
    reason: str


def facts(backend: str) -> dict[str, Any]:
    """Return where and when, without names of hosts or paths."""
    return {
        "backend": backend,
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "machine": {
            "cores": os.cpu_count(),
            "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9),
            "processor": machine()["processor"],
            "system": platform.system(),
            "python": platform.python_version(),
        },
        "versions": {name: found for name in _PACKAGES if (found := _version(name))},
    }


def summary(measurements: list[Measurement]) -> list[dict[str, Any]]:
    """Return one row for each size, task and client."""
    raw = {(each.size_bytes, each.task, each.round): each for each in measurements if each.client == "raw"}
    order = {each.client: number for number, each in reversed(list(enumerate(measurements)))}

    def key(each: Measurement) -> tuple[int, bool, int]:
        return each.size_bytes, each.task == "consume", order[each.client]

    rows = []
    for _, group in groupby(sorted(measurements, key=key), key=key):
        rounds = list(group)
        first = rounds[0]
        pairs = [(each, raw.get((each.size_bytes, each.task, each.round))) for each in rounds]
        ratios = [each.rate / base.rate for each, base in pairs if base is not None]
        rates = [each.rate for each in rounds]
        rows.append(
            {
                "size_bytes": first.size_bytes,
                "task": first.task,
                "client": first.client,
                "messages": first.count,
                "rate": median(rates),
                "slowest": min(rates),
                "fastest": max(rates),
                "ratio": median(ratios) if ratios else None,
                "cpu_us": median(each.cpu_seconds / each.count * 1e6 for each in rounds),
                "growth_bytes": median(each.rss_bytes[2] - each.rss_bytes[1] for each in rounds),
                "peak_bytes": max(each.peak_bytes for each in rounds),
            }
        )
    return rows


def markdown(report: dict[str, Any]) -> str:
    """Return the tables of a report, and what did not run."""
    machine = report["machine"]
    lines = [
        f"{report['date']}, {report['backend']}; {machine['cores']} cores ({machine['processor']}),"
        f" {machine['memory_gb']} GB, {machine['system']}, Python {machine['python']};"
        f" {', '.join(f'{name} {number}' for name, number in report['versions'].items())};"
        f" medians of {report['options']['rounds']} interleaved rounds.",
    ]
    for (size, task), group in groupby(report["summary"], key=lambda row: (row["size_bytes"], row["task"])):
        lines += [
            "",
            f"**{size:,} B, {'consume + ack' if task == 'consume' else task}**",
            "",
            "| client | messages/s | slowest to fastest | of raw | CPU, µs each | 2nd half, MB | peak, MB |",
            "|---|--:|--:|--:|--:|--:|--:|",
            *(_row(row) for row in group),
        ]
    failures = {(each["client"], each["task"], each["reason"]) for each in report["not_run"]}
    if failures:
        lines += ["", *(f"- {name}, {task}: not run: {why}" for name, task, why in sorted(failures))]
    return "\n".join(lines)


def _row(row: dict[str, Any]) -> str:
    ratio = (
        "" if row["ratio"] is None else f"{row['ratio']:.3f}" if row["ratio"] < 0.1 else f"{row['ratio']:.2f}"
    )
    return (
        f"| {row['client']} | {row['rate']:,.0f} | {row['slowest']:,.0f} to {row['fastest']:,.0f} | {ratio}"
        f" | {row['cpu_us']:,.1f} | {row['growth_bytes'] / 1e6:+.1f} | {row['peak_bytes'] / 1e6:.0f} |"
    )


def add_outputs(parser: ArgumentParser, page: bool = True) -> None:
    """Add ``--json`` and, for what has a table, ``--markdown``; :func:`keep` obeys them."""
    parser.add_argument("--json", type=Path, help="write everything measured to this file")
    if page:
        parser.add_argument("--markdown", type=Path, help="put the tables into this page between its markers")


def keep(report: object, options: Namespace, table: str = "", name: str = "") -> None:
    """Write the report, and the table between the markers of this name, where the options say.

    Raises:
        SystemExit: the page has no such markers.
    """
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n")
    if table and options.markdown:
        write_between_markers(options.markdown, name, table)


def write_between_markers(page: Path, name: str, text: str) -> None:
    """Replace what stands between ``<!-- NAME -->`` and ``<!-- /NAME -->``.

    Raises:
        SystemExit: the page has no such markers.
    """
    begin, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
    old = page.read_text()
    if begin not in old or end not in old:
        raise SystemExit(f"{page} has no {begin.strip()} and {end}")
    before, after = old.split(begin)[0], old.split(end, 1)[1]
    page.write_text(f"{before}{begin}{text}\n{end}{after}")


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
