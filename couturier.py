"""The front door: the ``couturier`` command line, which mounts every package's commands, and the demo.

Nothing heavy is imported before a command runs, so that ``couturier --help`` answers at once.
"""

from __future__ import annotations

import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import classifier.cli
import client.cli
import client.dlq_cli
import worker.cli
import worker.doctor

if TYPE_CHECKING:
    from rich.progress import Progress

    from broker import Broker
    from client.run import Run
    from client.settings import ClientSettings
    from worker.crew import Crew

Images = Mapping[str | None, bytes]

FAILED, WRONG_CONFIGURATION, UNAVAILABLE, DRAIN_TIMED_OUT, INTERRUPTED = 1, 78, 69, 75, 130
# Looked up by name, because importing the classes would cost every command its start-up time.
_EXIT_CODES = {
    "broker.errors.DeadlineExceeded": DRAIN_TIMED_OUT,
    "broker.errors.BrokerError": UNAVAILABLE,
    "classifier.errors.ModelError": WRONG_CONFIGURATION,
    "classifier.errors.MissingExtra": WRONG_CONFIGURATION,
    "classifier.errors.ClassifierError": FAILED,
    "client.errors.ClientError": FAILED,
    "builtins.ValueError": WRONG_CONFIGURATION,
    "builtins.OSError": FAILED,
    "builtins.KeyboardInterrupt": INTERRUPTED,
}
_STALLED_S = 120.0
_TILES, _TILES_WRONG = 60, 20


def main() -> None:
    """Run the command line; every expected error is one line and an exit code."""
    app = typer.Typer(
        help="Classify images that arrive on a message queue, and lose none.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,  # importing rich would double the time that --help takes
    )
    app.callback()(_global_options)
    app.command()(demo)
    for part in (worker.cli, client.cli, client.dlq_cli, classifier.cli, worker.doctor):
        part.register(app)
    try:
        app()
    except (Exception, KeyboardInterrupt) as error:
        code = _exit_code(error)
        if code is None:
            raise
        typer.echo(f"error: {error}" if str(error) else "interrupted", err=True)
        sys.exit(code)


def _exit_code(error: BaseException) -> int | None:
    """Return the exit code for an error that a user can cause, or None for a bug of ours."""
    for kind in type(error).__mro__:
        code = _EXIT_CODES.get(f"{kind.__module__}.{kind.__name__}")
        # Ours raise plain ValueError; its subclasses, such as a decoding error, are bugs.
        if code is not None and not (kind is ValueError and type(error) is not ValueError):
            return code
    return None


def _global_options(
    show_version: Annotated[
        bool, typer.Option("--version", help="Print the version.", is_eager=True)
    ] = False,
) -> None:
    if show_version:
        from importlib.metadata import version

        typer.echo(f"couturier {version('couturier')}")
        raise typer.Exit


def demo(
    images: Annotated[int, typer.Option(min=1, max=10_000, help="How many images to publish.")] = 2_000,
    bad_ratio: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Share of them that is corrupt on purpose.")
    ] = 0.01,
    workers: Annotated[int, typer.Option(min=1, max=64, help="Worker processes.")] = 2,
    backend: Annotated[
        str | None, typer.Option(help="sqlite, the embedded default; else what BROKER_URL names.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Which images, in which order.")] = 0,
    model: Annotated[Path | None, typer.Option(envvar="COUTURIER_MODEL", help="A model bundle.")] = None,
    picture: Annotated[Path | None, typer.Option(help="Where the contact sheet goes.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")] = False,
) -> None:
    """Classify real garments, end to end.

    Starts worker processes, publishes validation images, some of them corrupt, waits for the rows, and shows
    accuracy, latency, dead letters and the balanced books.
    """
    import asyncio

    if backend is not None:
        os.environ["BROKER_BACKEND"] = backend
    plan = Plan(images, bad_ratio, workers, seed, model, picture)
    run, images_by_subject, backend_name, start = asyncio.run(_run_demo(plan))
    typer.echo("measuring decode + predict alone …", err=True)
    outcome = _judge(plan, run, images_by_subject, backend_name, start)
    if as_json:
        import json

        typer.echo(json.dumps(outcome.to_dict()))
    else:
        _print_demo(outcome)
    if not outcome.run.as_planned:
        raise typer.Exit(FAILED)


@dataclass(frozen=True, slots=True)
class Plan:
    """What a demo is asked to do; the options of the command."""

    images: int
    bad_ratio: float
    workers: int
    seed: int
    model: Path | None
    picture: Path | None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a demo found.

    Attributes:
        report: the figures.
        run: what they were counted from.
    """

    report: dict[str, Any]
    run: Run

    def to_dict(self) -> dict[str, Any]:
        """Return the figures, recall by class and dead letters by reason, for JSON."""
        recalls = {name: {"recall": share, "images": n} for name, (share, n) in self.run.recalls().items()}
        return {
            **self.report,
            "classes": recalls,
            "dead_letters": Counter(each.reason for each in self.run.letters),
            "as_planned": self.run.as_planned,
        }


async def _run_demo(plan: Plan) -> tuple[Run, Images, str, float]:
    """Publish, wait for the workers, look up what became of it; the last is when publishing began."""
    from broker import connect
    from broker.settings import home
    from client.client import Client
    from client.ledger import Ledger
    from client.run import collect
    from client.settings import embedded_note, load, shared_broker_url
    from client.sources.fashion_mnist import FashionMnist

    settings, url = load(), shared_broker_url()
    settings.results_path()
    if note := embedded_note():
        typer.echo(note, err=True)
    source = FashionMnist(plan.images, plan.seed, plan.bad_ratio)
    async with connect() as broker:
        if settings.create:
            await broker.ensure(settings.topic, settings.group)
        with Ledger() as ledger, _progress() as progress, _workers(plan, home() / "demo", url) as crew:
            bars = [progress.add_task(name, total=plan.images) for name in ("published", "classified")]
            starting = progress.add_task("workers", total=plan.workers)
            # Encodes all pictures while the workers start, not while the clock runs.
            sound = {each.request.subject: each.request.image for each in source if each.kind == "good"}
            await crew.ready(lambda count: progress.update(starting, completed=count))
            client = Client(broker, settings.topic, ledger)
            start = time.time()
            sent = await client.publish(
                source, progress=lambda report: progress.update(bars[0], completed=report.published)
            )
            await _settled(broker, settings, crew, lambda left: progress.update(bars[1], completed=left))
            await crew.stop()
            mine = list(ledger.entries(run_id=sent.run_id))
            run = await collect(broker, settings.topic, settings.group, settings.results_path(), mine)
            return run, sound, broker.capabilities.backend, start


@contextmanager
def _progress() -> Iterator[Progress]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = TextColumn("{task.description:>10}"), BarColumn(), MofNCompleteColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        yield progress


@contextmanager
def _workers(plan: Plan, logs: Path, url: str) -> Iterator[Crew]:
    from worker.crew import Crew

    crew = Crew(plan.workers, plan.model, logs, url)
    try:
        yield crew
    finally:
        crew.kill()


async def _settled(
    broker: Broker, settings: ClientSettings, crew: Crew, classified: Callable[[int], None]
) -> None:
    """Return once the group has nothing left.

    Raises:
        OSError: the workers are gone, or the queue does not move.
    """
    import asyncio

    total = left = (await broker.stats(settings.topic, settings.group)).unsettled
    since = time.monotonic()
    while left:
        crew.check()
        await asyncio.sleep(0.05)
        now_left = (await broker.stats(settings.topic, settings.group)).unsettled
        classified(total - now_left)
        if now_left != left:
            left, since = now_left, time.monotonic()
        elif time.monotonic() - since > _STALLED_S:
            raise OSError(f"{left} message(s) did not move for {_STALLED_S:g} s; see `couturier doctor`")


def _judge(plan: Plan, run: Run, images: Images, backend: str, start: float) -> Outcome:
    from broker.settings import home
    from classifier import Classifier
    from classifier.metrics import wilson
    from classifier.throughput import engine_rate

    offline = Classifier.load(plan.model).predict(list(images.values()))
    expected = {name: getattr(each, "label", None) for name, each in zip(images, offline, strict=True)}
    rate = len(run.entries) / ((run.last_stored or time.time()) - start)
    engine = engine_rate(list(images.values()), plan.workers, plan.model) if images else None
    picture = plan.picture or home() / "demo" / "contact-sheet.png"
    _draw(run, images, picture)
    books = run.books.to_dict()
    report = {
        "backend": backend,
        **{name: value for name, value in books.items() if name not in ("basis", "notes", "lost_ids")},
        "planted_bad": len(run.planted),
        "accuracy": run.right / len(run.rows) if run.rows else None,
        "accuracy_interval": wilson(run.right, len(run.rows)),
        "labels_unlike_offline": sum(row.label != expected.get(row.subject) for row in run.rows),
        "images_per_second": rate,
        "latency_ms": run.latency_ms(),
        "workers": plan.workers,
        "engine_images_per_second": engine,
        "efficiency": rate / engine if engine else None,
        "picture": str(picture),
    }
    return Outcome(report, run)


def _draw(run: Run, images: Images, path: Path) -> None:
    from client.contact_sheet import draw_contact_sheet

    tiles = run.tiles(images, _TILES, _TILES_WRONG)
    wrong = sum(tile.predicted != tile.truth for tile in tiles)
    title = (
        f"{run.right:,} of {len(run.rows):,} garments right. Shown: {wrong} of the"
        f" {len(run.rows) - run.right:,} mistakes (red) and {len(tiles) - wrong} others."
    )
    draw_contact_sheet(tiles, title, path)


def _print_demo(outcome: Outcome) -> None:
    from rich.console import Console
    from rich.table import Table

    console, report, run = Console(), outcome.report, outcome.run
    classes = Table("class", "images", "recall", title="Recall by class")
    for name, (recall, count) in run.recalls().items():
        classes.add_row(name, f"{count:,}", f"{recall:.1%}")
    dead = Table("dead letters", "reason", "for example", title="Dead letters")
    kinds = {(each.reason, each.error.partition(":")[0]): each.error for each in run.letters}
    for (reason, kind), example in kinds.items():
        count = sum((each.reason, each.error.partition(":")[0]) == (reason, kind) for each in run.letters)
        dead.add_row(f"{count:,}", reason, example)
    console.print(classes, dead if run.letters else "no dead letters")
    latency = report["latency_ms"]
    low, high = report["accuracy_interval"]
    lines = {
        "throughput": f"{report['images_per_second']:,.0f} images/s with {report['workers']} workers;"
        f" decode + predict alone {report['engine_images_per_second']:,.0f}/s",
        "efficiency": f"{report['efficiency'] or 0:.0%} of decode + predict alone on the same cores",
        "latency": ", ".join(f"{name} {value:,.0f} ms" for name, value in latency.items()) or "-",
        "accuracy": f"{report['accuracy'] or 0:.2%} (95 % interval {low:.2%} to {high:.2%});"
        f" {report['labels_unlike_offline']} label(s) unlike offline prediction",
        "books": f"{report['published']:,} published = {report['stored']:,} stored +"
        f" {report['dead_lettered']:,} dead letters + {report['in_flight']:,} in flight +"
        f" {report['lost']:,} lost; {report['duplicate_rows']:,} duplicate rows",
        "as planned": f"{'yes' if run.as_planned else 'NO'}: {report['planted_bad']:,} corrupt on purpose",
        "picture": report["picture"],
    }
    for name, text in lines.items():
        console.print(f"[bold]{name:>11}[/bold]  {text}", soft_wrap=True, highlight=False)
    console.print("\nlook closer: couturier results · couturier dlq list · couturier audit", highlight=False)


if __name__ == "__main__":
    main()
