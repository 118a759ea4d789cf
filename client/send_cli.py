"""The command ``client send``: where images come from, and how many."""

from __future__ import annotations

import inspect
import signal
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from .broker_cli import check_flag

if TYPE_CHECKING:
    import asyncio

    from .client import SendReport
    from .settings import ClientSettings
    from .sources.base import Submission
    from .sources.catalogue import Catalogue

_DEFAULT_IMAGES = 2_000
INTERRUPTED = 130

Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]
Topic = Annotated[
    str | None, typer.Option(callback=check_flag, help="Topic of the images [COUTURIER_TOPIC, images].")
]
Group = Annotated[
    str | None, typer.Option(callback=check_flag, help="Group of the workers [COUTURIER_GROUP, classifiers].")
]


@dataclass(frozen=True)
class SendOptions:
    """What a user says; every field is an option, so that the command stays within its parameters."""

    paths: Annotated[
        list[Path] | None, typer.Argument(metavar="PATH", help="Images, folders, zips of your own.")
    ] = None
    images: Annotated[
        int | None,
        typer.Option(
            help=f"How many validation images, to 10,000 [{_DEFAULT_IMAGES:,}]; or products, at most."
        ),
    ] = None
    rate: Annotated[float | None, typer.Option(help="Images a second; flat out when not given.")] = None
    bad_ratio: Annotated[float, typer.Option(help="Share of images damaged on purpose, 0 to 1.")] = 0.0
    seed: Annotated[int, typer.Option(help="Decides which images, in which order.")] = 0
    loop: Annotated[bool, typer.Option("--loop", help="Start over until stopped.")] = False
    source: Annotated[
        Literal["postgres"] | None,
        typer.Option(help="The images of a product catalogue (docs/catalogue.md)."),
    ] = None
    catalogue_url: Annotated[
        str | None, typer.Option(metavar="URL", help="Where that is, postgresql://... [CATALOGUE_URL].")
    ] = None
    allow_host: Annotated[
        list[str] | None,
        typer.Option(
            metavar="HOST", help="Get its images from this host; may repeat [CATALOGUE_ALLOW_HOSTS]."
        ),
    ] = None
    allow_folder: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="DIR", help="Read its file: images below this only; may repeat [CATALOGUE_ALLOW_FOLDERS]."
        ),
    ] = None
    topic: Topic = None
    group: Group = None
    json: Json = False


@dataclass(frozen=True, slots=True)
class _Load:
    """What a send publishes; ``total`` is None where it has no end, or nobody knows it."""

    images: Iterable[Submission]
    total: int | None
    skipped: int = 0
    close: Callable[[], None] = lambda: None


def send(**given: Any) -> None:
    """Publish Fashion-MNIST validation images, your own files, folders and zips, or a product catalogue."""
    _run(SendOptions(**given))


# typer reads the options off the signature.
send.__signature__ = inspect.signature(SendOptions, eval_str=True)  # type: ignore[attr-defined]


def _run(options: SendOptions) -> None:
    import asyncio

    from .display import print_report
    from .settings import load, shared_broker_url

    _check(options)
    settings = load(
        topic=options.topic,
        group=options.group,
        catalogue_url=options.catalogue_url,
        catalogue_allow_hosts=options.allow_host and ",".join(options.allow_host),
    )
    what = _load_of(options, settings)
    say_defaults()
    shared_broker_url()
    report = asyncio.run(_send(settings, what, options.rate))
    found = _found(what.images) if options.source else {}
    print_report(report, settings.topic, what.skipped, options.json, found)
    if report.stopped:
        raise typer.Exit(INTERRUPTED)
    if report.refused or found.get("failed"):
        raise typer.Exit(1)


def _check(options: SendOptions) -> None:
    """Refuse options that contradict each other."""
    if options.paths and (options.images is not None or options.bad_ratio):
        raise typer.BadParameter("--images and --bad-ratio are for validation images; leave out PATH...")
    if options.rate is not None and not options.rate > 0:
        raise typer.BadParameter(f"--rate must be above 0, not {options.rate:g}")
    if options.source is None:
        if options.catalogue_url or options.allow_host or options.allow_folder:
            raise typer.BadParameter(
                "--catalogue-url, --allow-host and --allow-folder are for a product catalogue; add"
                " --source postgres"
            )
        return
    if options.paths or options.bad_ratio or options.seed or options.loop:
        raise typer.BadParameter(
            "--source postgres sends each product once; leave out PATH..., --bad-ratio, --seed and --loop"
        )
    if options.images is not None and options.images < 1:
        raise typer.BadParameter(f"--images must be above 0, not {options.images}")


def _load_of(options: SendOptions, settings: ClientSettings) -> _Load:
    from .sources.fashion_mnist import FashionMnist
    from .sources.files import Files

    if options.source:
        catalogue = _catalogue(options, settings)
        return _Load(catalogue, None, close=catalogue.close)
    if options.paths:
        files = Files(options.paths)
        endless = options.loop
        return _Load(_endless(files) if endless else files, None if endless else len(files), files.skipped)
    count = _DEFAULT_IMAGES if options.images is None else options.images
    try:
        source = FashionMnist(count, options.seed, options.bad_ratio, options.loop)
    except ValueError as error:
        raise typer.BadParameter(f"--{error}") from None
    return _Load(source, None if options.loop else count)


def _catalogue(options: SendOptions, settings: ClientSettings) -> Catalogue:
    from .display import plain
    from .sources.catalogue import Catalogue
    from .sources.fetching import Allowed, Fetcher, folder_list

    if settings.catalogue_url is None:
        raise ValueError(
            "--source postgres: which database? Set CATALOGUE_URL=postgresql://user:password@host/database,"
            " or --catalogue-url"
        )
    hosts = (settings.catalogue_allow_hosts or "").split(",")
    folders = folder_list(settings.catalogue_allow_folders or "")
    allowed = Allowed(
        tuple(each for each in hosts if each.strip()),
        tuple(options.allow_folder) if options.allow_folder else folders,
    )
    return Catalogue(
        settings.catalogue_url,
        Fetcher(allowed),
        options.images,
        on_failure=lambda line: typer.echo(plain(line), err=True),
    )


def _endless(source: Iterable[Submission]) -> Iterator[Submission]:
    while True:
        yield from source


def _found(images: Iterable[Submission]) -> Mapping[str, Any]:
    """What a catalogue held, for the report."""
    from .sources.catalogue import Catalogue

    assert isinstance(images, Catalogue)
    return {
        "products": images.products,
        "without_url": images.without_url,
        "failed": images.failed.total(),
        "failures": dict(images.failed.most_common()),
        "shortened": images.shortened,
    }


async def _send(settings: ClientSettings, what: _Load, rate: float | None) -> SendReport:
    from broker import connect, tracing

    from .client import Client
    from .display import bar
    from .ledger import Ledger

    stop = _stop_on_signals(what.close)
    tracing.configure("couturier-client")
    with Ledger() as ledger:
        async with connect() as broker:
            if settings.create:
                await settings.ensure(broker)
            client = Client(broker, settings.topic, ledger)
            images = iter(what.images)
            try:
                with bar(what.total) as progress:
                    return await client.publish(images, rate=rate, progress=progress, stop=stop)
            finally:
                what.close()
                if isinstance(images, Generator):
                    images.close()


def _stop_on_signals(close: Callable[[], None]) -> asyncio.Event:
    """Return an event that the first Ctrl-C or SIGTERM sets; the second one ends the process.

    Args:
        close: called with the first, so that a source does not keep us waiting.
    """
    import asyncio

    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def on_signal(number: signal.Signals) -> None:
        stop.set()
        close()
        loop.remove_signal_handler(number)

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, on_signal, number)
    return stop


def say_defaults() -> None:
    """Tell of the files that stand in for what is not configured."""
    from .settings import embedded_note

    if note := embedded_note():
        typer.echo(note, err=True)
