"""The commands ``client send``, ``results`` and ``audit``."""

from __future__ import annotations

import signal
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from . import broker_cli, dlq_cli, status_cli, topics_cli
from .broker_cli import check_flag

if TYPE_CHECKING:
    import asyncio

    from .audit import Balance
    from .client import SendReport
    from .settings import ClientSettings
    from .sources.base import Submission

Status = Literal["ok", "abstained", "expired"]
_DEFAULT_IMAGES = 2_000
_TABLE_ROWS = 20
INTERRUPTED = 130

Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]
Topic = Annotated[
    str | None, typer.Option(callback=check_flag, help="Topic of the images [COUTURIER_TOPIC, images].")
]
Group = Annotated[
    str | None, typer.Option(callback=check_flag, help="Group of the workers [COUTURIER_GROUP, classifiers].")
]


def register(app: typer.Typer) -> None:
    """Mount the commands of this package."""
    client = typer.Typer(no_args_is_help=True, help="Send images to the workers.")
    client.command("send")(send)
    app.add_typer(client, name="client")
    app.command("results")(results)
    app.command("audit")(audit)
    for part in (dlq_cli, status_cli, topics_cli, broker_cli):
        part.register(app)


def check_picture(path: Path | None) -> Path | None:
    """Refuse, before the work and not after it, a file that cannot be drawn."""
    if path is not None:
        from .contact_sheet import can_write

        if not can_write(path):
            raise typer.BadParameter(f"{path}: name a file that can be made, such as sheet.png or sheet.jpg")
    return path


@dataclass(frozen=True, slots=True)
class _Load:
    """What a send publishes; ``total`` is None where it has no end."""

    images: Iterable[Submission]
    total: int | None
    skipped: int = 0


def send(
    paths: Annotated[
        list[Path] | None, typer.Argument(metavar="PATH", help="Images, folders, zips of your own.")
    ] = None,
    images: Annotated[
        int | None, typer.Option(help=f"How many validation images, to 10,000 [{_DEFAULT_IMAGES:,}].")
    ] = None,
    rate: Annotated[float | None, typer.Option(help="Images a second; flat out when not given.")] = None,
    bad_ratio: Annotated[float, typer.Option(help="Share of images damaged on purpose, 0 to 1.")] = 0.0,
    seed: Annotated[int, typer.Option(help="Decides which images, in which order.")] = 0,
    loop: Annotated[bool, typer.Option("--loop", help="Start over until stopped.")] = False,
    topic: Topic = None,
    group: Group = None,
    json: Json = False,
) -> None:
    """Publish Fashion-MNIST validation images, or your own files, folders and zips."""
    import asyncio

    from .display import print_report
    from .settings import load, shared_broker_url

    if paths and (images is not None or bad_ratio):
        raise typer.BadParameter("--images and --bad-ratio are for validation images; leave out PATH...")
    if rate is not None and not rate > 0:
        raise typer.BadParameter(f"--rate must be above 0, not {rate:g}")
    what = _load_of(paths or [], images, bad_ratio, seed, loop)
    settings = load(topic=topic, group=group)
    _say_defaults()
    shared_broker_url()
    report = asyncio.run(_send(settings, what, rate))
    print_report(report, settings.topic, what.skipped, json)
    if report.stopped:
        raise typer.Exit(INTERRUPTED)
    if report.refused:
        raise typer.Exit(1)


def results(
    limit: Annotated[
        int | None, typer.Option(help=f"Newest rows only [{_TABLE_ROWS} in a table, all as JSON].")
    ] = None,
    label: Annotated[str | None, typer.Option(help="Only this label.")] = None,
    status: Annotated[Status | None, typer.Option(help="Only this status.")] = None,
    ids: Annotated[list[str] | None, typer.Option("--id", help="Only this message; may repeat.")] = None,
    json: Json = False,
) -> None:
    """Show what the workers found, newest first."""
    from .display import print_results
    from .settings import load

    settings = load()
    _say_defaults()
    if limit is not None and limit < 0:
        raise typer.BadParameter(f"--limit must not be negative, not {limit}")
    if ids and (label, status, limit) != (None, None, None):
        raise typer.BadParameter("--id names the rows; leave out --label, --status and --limit")
    if limit is None and not json:
        limit = _TABLE_ROWS
    with settings.open_results() as table:
        rows = table.find(ids) if ids else table.rows(label, limit, status)
        print_results(rows, table.count(), json)


def audit(
    ledger: Annotated[
        Path | None, typer.Option(help="What was published [ledger.db in the state directory].")
    ] = None,
    topic: Topic = None,
    group: Group = None,
    json: Json = False,
) -> None:
    """Prove that nothing was lost.

    Balances published = stored + expired + dead letters + purged + in the queue + lost, by message id.

    Exits 0 only when nothing is missing, else it names what is.
    """
    import asyncio

    from .display import print_balance
    from .settings import load, shared_broker_url

    settings = load(topic=topic, group=group)
    _say_defaults()
    shared_broker_url()
    found = asyncio.run(_audit(settings, ledger))
    print_balance(found, json)
    if not found.balanced:
        raise typer.Exit(1)


def _load_of(paths: list[Path], images: int | None, bad_ratio: float, seed: int, loop: bool) -> _Load:
    from .sources.fashion_mnist import FashionMnist
    from .sources.files import Files

    if paths:
        files = Files(paths)
        return _Load(_endless(files) if loop else files, None if loop else len(files), files.skipped)
    count = _DEFAULT_IMAGES if images is None else images
    try:
        source = FashionMnist(count, seed, bad_ratio, loop)
    except ValueError as error:
        raise typer.BadParameter(f"--{error}") from None
    return _Load(source, None if loop else count)


def _endless(source: Iterable[Submission]) -> Iterator[Submission]:
    while True:
        yield from source


async def _send(settings: ClientSettings, what: _Load, rate: float | None) -> SendReport:
    from broker import connect, tracing

    from .client import Client
    from .display import bar
    from .ledger import Ledger

    stop = _stop_on_signals()
    tracing.configure("couturier-client")
    with Ledger() as ledger:
        async with connect() as broker:
            if settings.create:
                await settings.ensure(broker)
            client = Client(broker, settings.topic, ledger)
            with bar(what.total) as progress:
                return await client.publish(what.images, rate=rate, progress=progress, stop=stop)


async def _audit(settings: ClientSettings, path: Path | None) -> Balance:
    from broker import connect

    from .audit import audit as balance_books
    from .display import looking
    from .ledger import Ledger, default_path

    settings.results_url()
    ledger = Ledger(path, read_only=True) if path or default_path().exists() else None
    try:
        async with connect() as broker:
            with looking() as on_look:
                return await balance_books(
                    broker, settings.topic, settings.group, settings.open_results, ledger, on_look
                )
    finally:
        if ledger is not None:
            ledger.close()


def _stop_on_signals() -> asyncio.Event:
    """Return an event that the first Ctrl-C or SIGTERM sets; the second one ends the process."""
    import asyncio

    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def on_signal(number: signal.Signals) -> None:
        stop.set()
        loop.remove_signal_handler(number)

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, on_signal, number)
    return stop


def _say_defaults() -> None:
    from .settings import embedded_note

    if note := embedded_note():
        typer.echo(note, err=True)
