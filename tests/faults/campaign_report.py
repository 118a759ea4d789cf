"""What a campaign says of itself: the facts beside its figures, and its section of a document."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from .fleet import ROOT
from .scene import Report


@dataclass
class Facts:
    """What a reader of the report wants to know beside the figures of the run.

    Attributes:
        command: that repeats it.
        date: when it began.
        commit: of the code.
        machine: cores, memory, processor, system.
        workers: at a time.
        started: worker processes in all.
        left_alone: workers that ended without having been killed.
        wall_s: from the first message to the last.
        rate: messages a second over all of it, faults included.
        recoveries_s: from each fault to the next row.
    """

    command: str
    date: str
    commit: str
    machine: str
    workers: int
    started: int = 0
    left_alone: int = 0
    wall_s: float = 0.0
    rate: float = 0.0
    recoveries_s: list[float] = field(default_factory=list)


def machine() -> str:
    """Return what the run was on, in a line."""
    cores = os.cpu_count()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1024**3
    with suppress(OSError):
        found = re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text())
        if found:
            return (
                f"{cores} cores, {found[1]}, {memory:.0f} GiB, Linux {platform.release().partition('-')[0]}"
            )
    return f"{cores} cores, {memory:.0f} GiB, {platform.platform()}"


def commit() -> str:
    """Return the commit of the code; with a plus where the tree differs from it."""
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty=+"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return done.stdout.strip() or "unknown"


def markdown(report: Report, facts: Facts) -> str:
    """Return the section of a document."""
    recoveries = sorted(facts.recoveries_s) or [0.0]
    lines = {
        "messages sent (confirmed)": f"{report.sent:,} ({report.acked:,})",
        "of these": ", ".join(f"{count:,} {kind}" for kind, count in sorted(report.kinds.items()))
        + f", {report.sent - sum(report.kinds.values()):,} repeated ids",
        "faults": ", ".join(f"{count} × {name}" for name, count in sorted(report.faults.items())),
        "**lost**": f"**{report.lost}**",
        "**duplicate rows**": f"**{report.duplicate_rows}**",
        "wrong class or reason, both row and letter, altered, unknown": (
            f"{report.wrong_class}, {report.both}, {report.altered}, {report.extra}"
        ),
        "rows (distinct)": f"{report.stored:,} ({report.distinct_stored:,})",
        "dead letters": ", ".join(f"{count:,} {reason}" for reason, count in sorted(report.dead.items()))
        + f"; {report.dead_copies} second copies",
        "redelivered (rows found there already, attempts above 1)": f"{report.redelivered:,}",
        "left unsettled": str(report.unsettled),
        "from a fault to the next row": (
            f"median {recoveries[len(recoveries) // 2]:.2f} s, longest {recoveries[-1]:.2f} s"
        ),
        "workers (started in all; ended by themselves)": (
            f"{facts.workers} ({facts.started}; {facts.left_alone})"
        ),
        "most memory of a worker, engine included": f"{report.peak_rss_bytes / 1024**2:.0f} MiB",
        "wall time, rate with all faults": f"{facts.wall_s:,.0f} s, {facts.rate:,.0f} messages/s",
        "seed, commit, date": f"{report.seed}, {facts.commit}, {facts.date}",
        "machine": facts.machine,
        "versions": ", ".join(f"{name} {value}" for name, value in sorted(report.versions.items())),
        "command": f"`{facts.command}`",
    }
    rows = "\n".join(f"| {name} | {value} |" for name, value in lines.items())
    return f"| {report.backend} | |\n|---|---|\n{rows}\n"


def write_section(path: Path, backend: str, text: str) -> None:
    """Put a section between its markers.

    Raises:
        ValueError: the document has no such markers.
    """
    begin, end = f"<!-- campaign {backend} -->", f"<!-- /campaign {backend} -->"
    old = path.read_text()
    if begin not in old or end not in old:
        raise ValueError(f"{path} has no {begin} and {end}")
    head, rest = old.split(begin, 1)
    path.write_text(f"{head}{begin}\n{text}{end}{rest.split(end, 1)[1]}")
