"""Progress of a training run: silent, plain lines, or a live bar with the time left."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class EpochReport:
    """One finished epoch; ``val_accuracy`` is NaN without a validation split."""

    epoch: int
    epochs: int
    loss: float
    val_accuracy: float
    seconds: float

    def line(self) -> str:
        """One readable line, with the time left at this epoch's pace."""
        accuracy = "" if self.val_accuracy != self.val_accuracy else f"  val {self.val_accuracy:.2%}"
        left_s = (self.epochs - self.epoch) * self.seconds
        return (
            f"epoch {self.epoch:3d}/{self.epochs}  loss {self.loss:.4f}{accuracy}"
            f"  {self.seconds:.1f} s  left {left_s / 60:.1f} min"
        )


class Reporter(Protocol):
    """What :func:`classifier.training.train` calls; steps are counted over the whole run."""

    def step(self, done: int, total: int) -> None: ...

    def epoch(self, report: EpochReport) -> None: ...


class _Silent:
    def step(self, done: int, total: int) -> None:
        pass

    def epoch(self, report: EpochReport) -> None:
        pass


silent: Reporter = _Silent()


class Lines:
    """One line an epoch on stderr: for logs and pipes."""

    def step(self, done: int, total: int) -> None:
        pass

    def epoch(self, report: EpochReport) -> None:
        print(report.line(), file=sys.stderr, flush=True)


@contextmanager
def reporter() -> Iterator[Reporter]:
    """A live bar with the time left on a terminal, :class:`Lines` elsewhere; both on stderr."""
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

            def step(self, done: int, total: int) -> None:
                # Redrawing on every step would cost more than a tiny step itself.
                if time.monotonic() - self.drawn_at > 0.1 or done == total:
                    progress.update(task, completed=done, total=total)
                    self.drawn_at = time.monotonic()

            def epoch(self, report: EpochReport) -> None:
                console.print(report.line(), highlight=False)

        yield Bar()
