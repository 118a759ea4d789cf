"""The commands ``couturier dlq list``, ``show``, ``replay`` and ``purge``."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from .broker_cli import print_json
from .dlq_query import Group, Json, Query, Topic, spread

if TYPE_CHECKING:
    from broker import Broker

    from .dlq import Choice, Letter, Picked, Removed
    from .dlq_removal import OnProgress

T = TypeVar("T")

All = Annotated[bool, typer.Option("--all", help="Every letter.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only say which letters it would be.")]

_MAX_REPLAYS = 3
_TABLE_ROWS = 1_000
_NAMED = 5


def check_rate(rate: float | None) -> float | None:
    """Return a rate that was typed; wrong use when nothing could go at it."""
    if rate is not None and not 0 < rate < math.inf:
        raise typer.BadParameter(f"it must be above 0, not {rate:g}")
    return rate


def register(app: typer.Typer) -> None:
    """Mount the commands under ``dlq``."""
    commands = typer.Typer(help="See, replay and purge dead letters.", no_args_is_help=True)
    commands.command("list")(spread(list_letters))
    commands.command("show")(show)
    commands.command("replay")(spread(replay_letters))
    commands.command("purge")(spread(purge_letters))
    app.add_typer(commands, name="dlq")


def list_letters(query: Query, as_json: Json = False) -> None:
    """List dead letters, oldest first."""
    from .dlq_display import LetterObjects, LetterTable

    shown = LetterObjects() if as_json else LetterTable(query.limit or _TABLE_ROWS, query.limit)
    _look(query.topic, query.group, query.choice, shown.add, query.limit)
    shown.end()


def show(
    message_id: Annotated[str, typer.Argument(help="Id of the message, as `dlq list` prints it.")],
    topic: Topic = "images",
    group: Group = "classifiers",
    out: Annotated[Path | None, typer.Option(help="Write the body, unchanged, to this file.")] = None,
    draw: Annotated[
        bool | None, typer.Option("--draw/--no-draw", help="Draw the image [if this is a terminal].")
    ] = None,
    as_json: Json = False,
) -> None:
    """Show one dead letter, with its picture.

    With --out its body is written to a file. Changes nothing.
    """
    from .dlq_display import print_letter

    found: list[Letter] = []

    def keep_newest(letter: Letter) -> None:
        found[:] = [letter]

    _look(topic, group, Query(ids=[message_id]).choice, keep_newest, with_data=True)
    if not found:
        raise typer.BadParameter(
            f"no dead letter {message_id!r} in {topic!r}; `couturier dlq list` shows all"
        )
    if out is not None:
        out.write_bytes(found[0].data)
    if as_json:
        print_json(found[0].to_dict())
    else:
        print_letter(found[0], out, draw)


def replay_letters(
    query: Query,
    everything: All = False,
    rate: Annotated[
        float | None, typer.Option(callback=check_rate, help="Letters a second, at most.")
    ] = None,
    max_replays: Annotated[
        int, typer.Option(min=0, help="Leave out letters that were replayed so often.")
    ] = _MAX_REPLAYS,
    force: Annotated[bool, typer.Option("--force", help="Replay those, too.")] = False,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Send dead letters through again: by id, by filter, or --all.

    Run it again after an interruption; a result is never stored twice.
    """
    from .dlq import replay

    query.check(everything)
    picked = _pick(query, None if force else max_replays)
    removed = _nothing(picked)
    if not dry_run:
        removed = _remove(
            "replayed",
            picked,
            lambda broker, progress: replay(broker, query.topic, query.group, picked, rate, progress),
        )
    if picked.worn and not as_json:
        typer.echo(
            f"skipped {len(picked.worn):,} letter(s) that were replayed {max_replays} times or more"
            f" ({_some(picked.worn)}); --force takes them",
            err=True,
        )
    more = {"skipped": list(picked.worn)} if as_json else None
    _report(query, "replayed", removed, dry_run, more)
    _check_found(query, [*removed.done, *picked.worn], removed)


def purge_letters(
    query: Query,
    everything: All = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Remove dead letters for good: by id, by filter, or --all.

    Of each a note stays in TOPIC.GROUP.purged (who, when, why), so that `couturier audit` does not miss it.
    """
    import sys

    from broker.limits import days

    from .dlq import purge
    from .settings import load

    query.check(everything)
    if not (yes or dry_run or sys.stdin.isatty()):
        raise typer.BadParameter("this is no terminal to ask at: say --yes, or look first with --dry-run")
    settings = load()
    picked = _pick(query, None)
    removed = _nothing(picked)
    if not dry_run and picked.identities:
        question = f"purge {len(picked.identities):,} dead letter(s) of {query.topic!r} for good?"
        if not yes and not typer.confirm(question, err=True):
            raise typer.Exit(1)
        keep = settings.create, days(settings.letters_days)
        removed = _remove(
            "purged",
            picked,
            lambda broker, progress: purge(broker, query.topic, query.group, picked, *keep, progress),
        )
    _report(query, "purged", removed, dry_run, {} if as_json else None)
    _check_found(query, removed.done, removed)


def _look(
    topic: str,
    group: str,
    chosen: Choice,
    take: Callable[[Letter], None],
    limit: int | None = None,
    with_data: bool = False,
) -> None:
    """Hand over the letters that are chosen; without their bodies, which may not fit into memory."""
    from .dlq import letters

    async def look(broker: Broker) -> None:
        seen = count = 0
        async for each in letters(broker, topic, group):
            seen += 1
            if chosen(each):
                take(each if with_data else replace(each, data=b""))
                count += 1
                if count == limit:
                    break
        if not seen:
            await broker.stats(topic, group)  # NotFound, if the topic was never made or is misspelt

    _check_place()
    _run(look)


def _pick(query: Query, max_replays: int | None) -> Picked:
    from .dlq import pick

    async def look(broker: Broker) -> Picked:
        picked = await pick(broker, query.topic, query.group, query.choice, query.limit, max_replays)
        if not picked.seen:
            await broker.stats(query.topic, query.group)
        return picked

    _check_place()
    return _run(look)


def _remove(done: str, picked: Picked, work: Callable[[Broker, OnProgress], Awaitable[Removed]]) -> Removed:
    """Do the work with a progress bar; when it is interrupted, say how far it came."""
    from asyncio import CancelledError

    from .display import counting

    count = 0

    async def run(broker: Broker) -> Removed:
        nonlocal count

        def show_progress(now: int) -> None:
            nonlocal count
            count = now
            show_bar(now)

        try:
            with counting(f"{done} letters", len(picked.identities)) as show_bar:
                return await work(broker, show_progress)
        except CancelledError:
            typer.echo(f"interrupted: {done} {count:,} letter(s); run the same command again", err=True)
            raise

    return _run(run)


def _nothing(picked: Picked) -> Removed:
    from .dlq import Removed

    return Removed(picked.ids)


def _report(
    query: Query, done: str, removed: Removed, dry_run: bool, more: Mapping[str, object] | None
) -> None:
    """Print what was done; as JSON if there is ``more``."""
    if more is not None:
        print_json({"dry_run": dry_run, done: removed.done, "refused": removed.refused, **more})
        return
    would = f"would have {done}" if dry_run else done
    where = f"{'to' if done == 'replayed' else 'of'} {query.topic!r}"
    typer.echo(f"{would} {len(removed.done):,} letter(s) {where}")
    for message_id, why in list(removed.refused.items())[:_NAMED]:
        typer.echo(f"not {done}: {_some([message_id])}: {why}", err=True)


def _check_found(query: Query, found: Sequence[str], removed: Removed) -> None:
    """End with 1 if a letter that was named is not there, or could not be taken out."""
    if unknown := query.unknown([*found, *removed.refused]):
        typer.echo(f"no such dead letter: {_some(unknown)}", err=True)
    if unknown or removed.refused:
        raise typer.Exit(1)


def _some(ids: Sequence[str]) -> str:
    from .display import plain

    rest = len(ids) - _NAMED
    return ", ".join(map(plain, ids[:_NAMED])) + (f" and {rest:,} more" if rest > 0 else "")


def _run(work: Callable[[Broker], Awaitable[T]]) -> T:
    import asyncio

    from broker import connect

    async def run() -> T:
        async with connect() as broker:
            return await work(broker)

    return asyncio.run(run())


def _check_place() -> None:
    """Say which queue is used if none was named; refuse one that no worker can share."""
    from .settings import embedded_note, shared_broker_url

    shared_broker_url()
    if note := embedded_note(results=False):
        typer.echo(note, err=True)
