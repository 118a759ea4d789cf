"""The command ``couturier status``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated
from urllib.parse import quote

import typer

from .broker_cli import Json, check_flag, print_json

if TYPE_CHECKING:
    from .settings import ClientSettings
    from .status import Queue, Report


def register(app: typer.Typer) -> None:
    """Mount the command."""
    app.command("status")(status)


def status(
    topic: Annotated[
        str | None, typer.Option(callback=check_flag, help="Topic of the images [COUTURIER_TOPIC, images].")
    ] = None,
    group: Annotated[
        str | None,
        typer.Option(callback=check_flag, help="Group of the workers [COUTURIER_GROUP, classifiers]."),
    ] = None,
    workers: Annotated[
        list[str] | None,
        typer.Option(
            "--worker",
            metavar="HOST:PORT",
            help="Also ask this worker, or all behind this name; may repeat [COUTURIER_WORKERS].",
        ),
    ] = None,
    older_than: Annotated[
        float, typer.Option(min=0, help="What stands for so long may be stuck, seconds.")
    ] = 60.0,
    timeout: Annotated[
        float, typer.Option(min=0.001, help="For each question to the broker, seconds.")
    ] = 15.0,
    json: Json = False,
) -> None:
    """Say what is stuck, and why.

    The oldest unsettled message, its stage, attempts and last error, the worker that holds it, what waits in
    each partition, and every worker of this machine. The last error is what a worker remembers: no broker
    keeps it. Exits 69 when the broker does not answer, and still says what the workers say.
    """
    from .settings import embedded_note, load, shared_broker_url

    settings = load(topic=topic, group=group)
    shared_broker_url()
    named = workers or [each for each in (settings.workers or "").split(",") if each.strip()]
    if note := embedded_note(results=False):
        typer.echo(note, err=True)
    found, error = _gather(settings, named, older_than, timeout)
    if json:
        print_json(found.to_dict())
    else:
        from .status_display import print_status

        print_status(found)
    if error is not None:
        raise error


def _gather(
    settings: ClientSettings, named: list[str], old_s: float, timeout: float
) -> tuple[Report, Exception | None]:
    """Ask the broker, then the workers; the first may fail, and is told with what the second say."""
    import asyncio

    from broker import BrokerError

    from .status import look, report
    from .workers import addresses, ask_all

    urls = [url for each in named for url in addresses(each.strip())]
    queue: Queue | Exception
    try:
        queue = asyncio.run(look(settings.topic, settings.group, timeout))
    except BrokerError as error:
        queue = error
    oldest = None if isinstance(queue, Exception) else queue.oldest
    path = f"/status?message={quote(oldest.message_id, safe='')}" if oldest else "/status"
    found = report(settings.topic, settings.group, queue, ask_all(urls, path), old_s)
    return found, queue if isinstance(queue, Exception) else None
