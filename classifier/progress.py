"""Progress of a training run: silent, plain lines, or a live bar with the time left."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class EpochReport:
    """One finished epoch; ``val_accuracy`` and ``val_tag_f1`` are NaN where there is nothing to judge."""

    epoch: int
    epochs: int
    loss: float
    val_accuracy: float
    seconds: float
    val_tag_f1: float = math.nan

    @classmethod
    def of(cls, entry: Mapping[str, float], epochs: int) -> EpochReport:
        """From an entry of a run's history."""
        judged = (entry.get("val_accuracy", math.nan), entry["seconds"], entry.get("val_tag_f1", math.nan))
        return cls(int(entry["epoch"]), epochs, entry["loss"], *judged)

    def line(self) -> str:
        """One readable line, with the time left at this epoch's pace."""
        accuracy = "" if math.isnan(self.val_accuracy) else f"  val {self.val_accuracy:.2%}"
        accuracy += "" if math.isnan(self.val_tag_f1) else f"  tags {self.val_tag_f1:.2%}"
        left_s = (self.epochs - self.epoch) * self.seconds
        return (
            f"epoch {self.epoch:3d}/{self.epochs}  loss {self.loss:.4f}{accuracy}"
            f"  {self.seconds:.1f} s  left {left_s / 60:.1f} min"
        )


class Reporter(Protocol):
    """What :func:`classifier.training.train` calls; steps are counted over the whole run."""

    def note(self, line: str) -> None: ...

    def step(self, done: int, total: int) -> None: ...

    def epoch(self, report: EpochReport) -> None: ...


class _Silent:
    def note(self, line: str) -> None:
        pass

    def step(self, done: int, total: int) -> None:
        pass

    def epoch(self, report: EpochReport) -> None:
        pass


silent: Reporter = _Silent()


class Lines:
    """One line an epoch on stderr: for logs and pipes."""

    def note(self, line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    def step(self, done: int, total: int) -> None:
        pass

    def epoch(self, report: EpochReport) -> None:
        print(report.line(), file=sys.stderr, flush=True)


@contextmanager
def reporter(shown: bool = True) -> Iterator[Reporter]:
    """A live bar with the time left on a terminal, :class:`Lines` elsewhere; both on stderr."""
    if not shown:
        yield silent
        return
    if not sys.stderr.isatty():
        yield Lines()
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (
        TextColumn("training"),
        BarColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("training", total=None)

        class Bar:
            def __init__(self) -> None:
                self.drawn_at = 0.0

            def note(self, line: str) -> None:
                console.print(line, highlight=False)

            def step(self, done: int, total: int) -> None:
                # Redrawing on every step would cost more than a tiny step itself.
                if time.monotonic() - self.drawn_at > 0.1 or done == total:
                    progress.update(task, completed=done, total=total)
                    self.drawn_at = time.monotonic()

            def epoch(self, report: EpochReport) -> None:
                console.print(report.line(), highlight=False)

        yield Bar()


@contextmanager
def counter(shown: bool = True) -> Iterator[Callable[[str, int, int], None]]:
    """``(what, done, total)`` on stderr: a line written over on a terminal, else one in ten seconds."""
    terminal, drawn_at = sys.stderr.isatty(), time.monotonic()

    def count(what: str, done: int, total: int) -> None:
        nonlocal drawn_at
        if shown and time.monotonic() - drawn_at > (0.1 if terminal else 10.0):
            drawn_at = time.monotonic()
            line = f"{what} {done:,} of {total:,}"
            print(
                f"\r{line}\033[K" if terminal else line,
                end="" if terminal else "\n",
                file=sys.stderr,
                flush=True,
            )

    yield count
    if shown and terminal:
        print("\r\033[K", end="", file=sys.stderr, flush=True)
