"""The commands ``results`` and ``audit``, and the place where all others of this package are mounted."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from . import broker_cli, dlq_cli, status_cli, topics_cli
from .send_cli import Group, Json, Topic, say_defaults, send

if TYPE_CHECKING:
    from .audit import Balance
    from .settings import ClientSettings

Status = Literal["ok", "abstained", "expired"]
_TABLE_ROWS = 20


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
    say_defaults()
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
    say_defaults()
    shared_broker_url()
    found = asyncio.run(_audit(settings, ledger))
    print_balance(found, json)
    if not found.balanced:
        raise typer.Exit(1)


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
