"""The commands ``couturier dlq list``, ``show`` and ``replay``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .broker_cli import check_flag

if TYPE_CHECKING:
    from .dlq import Letter

Topic = Annotated[
    str, typer.Option(envvar="COUTURIER_TOPIC", callback=check_flag, help="The topic that workers read.")
]
Group = Annotated[
    str, typer.Option(envvar="COUTURIER_GROUP", callback=check_flag, help="The group of the workers.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]
Reason = Annotated[str | None, typer.Option(help="Only letters with this reason.")]


def register(app: typer.Typer) -> None:
    """Mount the commands under ``dlq``."""
    commands = typer.Typer(help="See and replay dead letters.", no_args_is_help=True)
    commands.command("list")(list_letters)
    commands.command("show")(show)
    commands.command("replay")(replay_letters)
    app.add_typer(commands, name="dlq")


def list_letters(
    topic: Topic = "images",
    group: Group = "classifiers",
    reason: Reason = None,
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many.")] = None,
    as_json: Json = False,
) -> None:
    """List dead letters, oldest first."""
    found = _letters(topic, group, lambda each: reason in (None, each.reason), limit)
    if as_json:
        import json

        typer.echo(json.dumps([each.to_dict() for each in found], indent=2))
        return
    if not found:
        typer.echo("no dead letters")
        return
    from .display import print_letters

    print_letters(found)


def show(
    message_id: Annotated[str, typer.Argument(help="Id of the message, as `dlq list` prints it.")],
    topic: Topic = "images",
    group: Group = "classifiers",
    out: Annotated[Path | None, typer.Option(help="Write the body, unchanged, to this file.")] = None,
    as_json: Json = False,
) -> None:
    """Show one dead letter.

    With --out its body is written to a file. Changes nothing.
    """
    found = _letters(topic, group, lambda each: each.message_id == message_id, with_data=True)
    if not found:
        raise typer.BadParameter(
            f"no dead letter {message_id!r} in {topic!r}; `couturier dlq list` shows all"
        )
    letter = found[-1]
    from .display import plain

    if out is not None:
        out.write_bytes(letter.data)
    if as_json:
        import json

        typer.echo(json.dumps(letter.to_dict(), indent=2))
    else:
        for name, value in letter.to_dict().items():
            typer.echo(f"{name:>14}  {plain(str(value))}")
        typer.echo(f"{'body':>14}  {out if out else f'{letter.data[:32]!r}… (--out FILE writes all of it)'}")


def replay_letters(
    message_ids: Annotated[list[str] | None, typer.Argument(help="Ids of the letters to replay.")] = None,
    topic: Topic = "images",
    group: Group = "classifiers",
    reason: Reason = None,
    everything: Annotated[bool, typer.Option("--all", help="Replay every letter.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be replayed.")] = False,
    as_json: Json = False,
) -> None:
    """Send dead letters through again.

    By id, by --reason, or --all: back to the topic they came from.

    Run it again after an interruption; a result is never stored twice.
    """
    if not message_ids and reason is None and not everything:
        raise typer.BadParameter("say which: ids, --reason REASON, or --all")
    ids = set(message_ids or ())

    def chosen(letter: Letter) -> bool:
        return (not ids or letter.message_id in ids) and reason in (None, letter.reason)

    if dry_run:
        picked = _letters(topic, group, chosen)
    else:
        import asyncio

        picked = asyncio.run(_replay(topic, group, chosen))
    if unknown := ids - {each.message_id for each in picked}:
        typer.echo(f"no such dead letter: {', '.join(sorted(unknown))}", err=True)
    if as_json:
        import json

        typer.echo(json.dumps({"dry_run": dry_run, "replayed": [each.message_id for each in picked]}))
    else:
        typer.echo(f"{'would replay' if dry_run else 'replayed'} {len(picked)} letter(s) to {topic!r}")
    if unknown:
        raise typer.Exit(1)


def _letters(
    topic: str,
    group: str,
    chosen: Callable[[Letter], bool],
    limit: int | None = None,
    with_data: bool = False,
) -> list[Letter]:
    """Return the first letters that are chosen; without their bodies, which may not fit into memory."""
    import asyncio
    from dataclasses import replace

    from broker import connect

    from .dlq import letters

    _check_place()

    async def gather() -> list[Letter]:
        found: list[Letter] = []
        async with connect() as broker:
            await broker.stats(topic, group)  # NotFound, if the topic was never made or is misspelt
            async for each in letters(broker, topic, group):
                if chosen(each):
                    found.append(each if with_data else replace(each, data=b""))
                if limit is not None and len(found) >= limit:
                    break
        return found

    return asyncio.run(gather())


async def _replay(topic: str, group: str, chosen: Callable[[Letter], bool]) -> list[Letter]:
    from broker import connect

    from .dlq import replay

    _check_place()
    async with connect() as broker:
        await broker.stats(topic, group)
        return await replay(broker, topic, group, chosen)


def _check_place() -> None:
    """Say which queue is used if none was named; refuse one that no worker can share."""
    from .settings import embedded_note, shared_broker_url

    shared_broker_url()
    if note := embedded_note():
        typer.echo(note, err=True)
