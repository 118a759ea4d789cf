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
from typing import TYPE_CHECKING, Annotated, Any, Literal

try:
    import typer

    import classifier.cli
    import client.cli
    import client.config_cli
    import client.gateway.cli
    import worker.cli
    import worker.doctor
    from client import exits
except KeyboardInterrupt:
    # Ctrl-C before `main` could catch it.
    raise SystemExit(130) from None

if TYPE_CHECKING:
    from rich.progress import Progress

    from broker import Broker
    from client.run import Run
    from client.settings import ClientSettings
    from client.sources.fashion_mnist import FashionMnist
    from worker.crew import Crew

Images = Mapping[str | None, bytes]
_STALLED_S, _LOOK_S, _STILL_S = 120.0, 0.1, 2.0
# The limit is measured before and after the pipeline, because the speed of a shared machine drifts.
_LIMIT_S = 0.7
_TILES, _TILES_WRONG = 60, 20


def application() -> typer.Typer:
    """Return the command line with every package's commands."""
    app = typer.Typer(
        help="Classify images that arrive on a message queue, and lose none.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,  # importing rich would double the time that --help takes
    )
    app.callback()(_global_options)
    app.command()(demo)
    for part in (worker.cli, client.cli, client.gateway.cli, classifier.cli, worker.doctor):
        part.register(app)
    client.config_cli.register(app, "worker.settings:WorkerSettings")
    return app


def main() -> None:
    """Run the command line; every expected error is one line and an exit code."""
    kafka = exits.listen()
    exits.end_with_reader()
    try:
        application()()
    except (Exception, KeyboardInterrupt) as error:
        code = exits.exit_code(error)
        if code is None:
            raise
        typer.echo(f"error: {exits.last_words(error, kafka.last)}" if str(error) else "interrupted", err=True)
        sys.exit(code)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"couturier {version('couturier')}")
        raise typer.Exit


def _global_options(
    _version: Annotated[
        bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    """Nothing else is global."""


def demo(
    images: Annotated[int, typer.Option(min=1, max=10_000, help="How many images to publish.")] = 2_000,
    bad_ratio: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Share of them that is corrupt on purpose.")
    ] = 0.01,
    workers: Annotated[int, typer.Option(min=1, max=64, help="Worker processes.")] = 2,
    backend: Annotated[
        Literal["sqlite", "kafka", "pubsub"] | None, typer.Option(help="Where its own variables say.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Which images, in which order.")] = 0,
    model: Annotated[Path | None, typer.Option(envvar="COUTURIER_MODEL", help="A model bundle.")] = None,
    picture: Annotated[
        Path | None, typer.Option(callback=client.cli.check_picture, help="Where the contact sheet goes.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")] = False,
) -> None:
    """Classify real garments, end to end.

    Starts worker processes, publishes validation images, some of them corrupt, waits for the rows, and shows
    accuracy, latency, dead letters and the balanced books.
    """
    if backend is not None:
        os.environ["BROKER_BACKEND"] = backend
    plan = Plan(images, bad_ratio, workers, seed, model, picture)
    outcome = _demonstrate(plan)
    if as_json:
        import json

        typer.echo(json.dumps(outcome.to_dict()))
    else:
        from client.display import print_run

        print_run(outcome.report, outcome.run)
    if not outcome.run.as_planned:
        raise typer.Exit(exits.FAILED)


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


def _demonstrate(plan: Plan) -> Outcome:
    """Run the pipeline between two measurements of its limit; compare it with offline prediction."""
    import asyncio

    from classifier import Classifier
    from client.settings import embedded_note, load, shared_broker_url
    from client.sources.fashion_mnist import FashionMnist

    shared_broker_url()
    load().results_url()
    if note := embedded_note():
        typer.echo(note, err=True)
    source = FashionMnist(plan.images, plan.seed, plan.bad_ratio)
    # Encodes all pictures now, not while the clock runs.
    sound = {each.request.subject: each.request.image for each in source if each.kind == "good"}
    offline = Classifier.load(plan.model).predict(list(sound.values()))
    expected = {name: getattr(each, "label", None) for name, each in zip(sound, offline, strict=True)}
    before = _limit(plan, sound)
    run, backend, elapsed_s = asyncio.run(_run_pipeline(plan, source))
    limit = (before + _limit(plan, sound)) / 2
    picture = _draw(plan, run, sound)
    return Outcome(_report(plan, run, elapsed_s, limit, expected, backend, picture), run)


def _limit(plan: Plan, sound: Images) -> float:
    """Return images per second of decode + predict alone, in as many processes as there are workers."""
    from classifier.throughput import engine_rate

    if not sound:
        return 0.0
    typer.echo("measuring decode + predict alone ...", err=True)
    return engine_rate(list(sound.values()), plan.workers, plan.model, seconds=_LIMIT_S)


async def _run_pipeline(plan: Plan, source: FashionMnist) -> tuple[Run, str, float]:
    """Publish, wait for the workers, look up what became of it; the last is how long it took, seconds."""
    from broker import connect
    from broker.settings import home
    from client.client import Client
    from client.ledger import Ledger
    from client.run import collect
    from client.settings import load, shared_broker_url

    settings, url = load(), shared_broker_url()
    async with connect() as broker:
        if settings.create:
            await settings.ensure(broker)
        with Ledger() as ledger, _progress() as progress, _workers(plan, home() / "demo", url) as crew:
            bars = [progress.add_task(name, total=plan.images) for name in ("published", "classified")]
            starting = progress.add_task("workers", total=plan.workers)
            await crew.ready(lambda count: progress.update(starting, completed=count))
            client = Client(broker, settings.topic, ledger)
            with settings.open_results() as results:
                before, due = results.count(), plan.images - source.bad_count
                start = time.time()
                sent = await client.publish(
                    source, progress=lambda report: progress.update(bars[0], completed=report.published)
                )
                await _settled(
                    broker,
                    settings,
                    crew,
                    lambda: results.count() - before,
                    due,
                    lambda rows: progress.update(bars[1], completed=rows),
                )
                end = time.time()
                await crew.stop()
                mine = list(ledger.entries(run_id=sent.run_id))
                run = await collect(broker, settings.topic, settings.group, results, mine)
            return run, broker.capabilities.backend, (run.last_stored or end) - start


@contextmanager
def _progress() -> Iterator[Progress]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = TextColumn("{task.description:>10}"), BarColumn(), MofNCompleteColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True, refresh_per_second=4) as progress:
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
    broker: Broker,
    settings: ClientSettings,
    crew: Crew,
    stored: Callable[[], int],
    due: int,
    progress: Callable[[int], None],
) -> None:
    """Return once the group has nothing left.

    The results are asked all the time. The broker is asked once they have what is due, or stand still:
    on Pub/Sub its answer costs as much as receiving all that is left.

    Args:
        broker: open.
        settings: which group.
        crew: the workers.
        stored: how many rows there are by now.
        due: how many there should be.
        progress: is told how many there are.

    Raises:
        OSError: the workers are gone, or nothing moves.
    """
    import asyncio

    rows, left, since = -1, -1, time.monotonic()
    while True:
        crew.check()
        await asyncio.sleep(_LOOK_S)
        seen = rows, left
        rows = await asyncio.to_thread(stored)
        progress(rows)
        if rows >= due or (rows == seen[0] and time.monotonic() - since > _STILL_S):
            left = (await broker.stats(settings.topic, settings.group)).unsettled
            if not left:
                return
        if (rows, left) != seen:
            since = time.monotonic()
        elif time.monotonic() - since > _STALLED_S:
            raise OSError(f"{left} message(s) did not move for {_STALLED_S:g} s; see `couturier doctor`")


def _report(
    plan: Plan,
    run: Run,
    elapsed_s: float,
    limit: float,
    expected: Mapping[str | None, str | None],
    backend: str,
    picture: Path,
) -> dict[str, Any]:
    from classifier.metrics import wilson

    rate = len(run.entries) / elapsed_s
    books = run.books.to_dict()
    return {
        "backend": backend,
        **{name: value for name, value in books.items() if name not in ("basis", "notes", "lost_ids")},
        "planted_bad": len(run.planted),
        "accuracy": run.right / len(run.rows) if run.rows else None,
        "accuracy_interval": wilson(run.right, len(run.rows)),
        "labels_unlike_offline": sum(row.label != expected.get(row.subject) for row in run.rows),
        "images_per_second": rate,
        "latency_ms": run.latency_ms(),
        "workers": plan.workers,
        "engine_images_per_second": limit or None,
        "efficiency": rate / limit if limit else None,
        "picture": str(picture),
    }


def _draw(plan: Plan, run: Run, sound: Images) -> Path:
    """Draw the contact sheet; return where it is."""
    from broker.settings import home
    from client.contact_sheet import draw_contact_sheet

    path = plan.picture or home() / "demo" / "contact-sheet.png"
    tiles = run.tiles(sound, _TILES, _TILES_WRONG)
    wrong = sum(tile.predicted != tile.truth for tile in tiles)
    title = (
        f"{run.right:,} of {len(run.rows):,} garments right. Shown: {wrong} of the"
        f" {len(run.rows) - run.right:,} mistakes (red) and {len(tiles) - wrong} others."
    )
    draw_contact_sheet(tiles, title, path)
    return path


if __name__ == "__main__":
    main()
