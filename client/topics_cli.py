"""The commands ``couturier topics ensure``, ``list`` and ``lag``, on any backend."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from .broker_cli import Json, Topic, check_flag, check_flags, print_json, with_broker

if TYPE_CHECKING:
    from broker import Broker


def register(app: typer.Typer) -> None:
    """Mount the commands under ``topics``."""
    topics = typer.Typer(no_args_is_help=True, help="Make and list topics; see how far groups are.")
    topics.command("ensure")(ensure)
    topics.command("list")(list_topics)
    topics.command("lag")(lag)
    app.add_typer(topics, name="topics")


def ensure(
    topic: Topic,
    groups: Annotated[
        list[str] | None, typer.Option("--group", callback=check_flags, help="Also this group; may repeat.")
    ] = None,
    partitions: Annotated[int, typer.Option(min=1, help="Of a new topic, where there are any.")] = 12,
    start: Annotated[
        Literal["earliest", "latest"], typer.Option(help="Where new groups begin.")
    ] = "earliest",
    retention: Annotated[
        float | None,
        typer.Option(metavar="DAYS", help="How long a new topic keeps messages, settled or not."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Create a topic and groups where they are missing.

    Changes nothing that exists. A group gets what is published after it was made; with --start earliest also
    what the broker still keeps.
    """

    from broker.limits import days

    async def make(broker: Broker) -> dict[str, Any]:
        kept = days(retention)
        await broker.ensure(topic, partitions=partitions, retention=kept)
        for group in groups or ():
            await broker.ensure(topic, group, partitions=partitions, start=start, retention=kept)
        there = next((each for each in await broker.topics() if each.name == topic), None)
        return {
            "topic": topic,
            "partitions": there.partitions if there else None,
            "groups": list(groups or []),
            "address": broker.address,
        }

    made = with_broker(make)
    if as_json:
        print_json(made)
        return
    parts = "" if made["partitions"] is None else f" ({made['partitions']} partitions)"
    names = "".join(f", group {name!r}" for name in made["groups"])
    typer.echo(f"topic {topic!r}{parts}{names} at {made['address']}")


def list_topics(as_json: Json = False) -> None:
    """List topics, with their partitions and groups."""
    found = with_broker(lambda broker: broker.topics())
    if as_json:
        print_json([{"topic": t.name, "partitions": t.partitions, "groups": list(t.groups)} for t in found])
        return
    if not found:
        typer.echo("no topics")
        return
    rows = [(t.name, "-" if t.partitions is None else str(t.partitions), ", ".join(t.groups)) for t in found]
    _print_columns(("topic", "partitions", "groups"), rows)


def lag(
    topic: Annotated[
        str | None, typer.Argument(metavar="TOPIC", callback=check_flag, help="[COUTURIER_TOPIC, images]")
    ] = None,
    group: Annotated[
        str | None, typer.Option(callback=check_flag, help="Only this group; else all of the topic.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Show what groups have before them.

    Partition by partition on Kafka, subscription by subscription on Pub/Sub, which must receive a copy of all
    of it to count.
    """
    from .settings import load

    name = topic or load().topic

    async def look(broker: Broker) -> list[dict[str, Any]]:
        groups = [group] if group else await _groups(broker, name)
        return [
            {
                "topic": name,
                "group": each,
                "partition": part.partition,
                "unsettled": part.unsettled,
                "position": part.position,
                "end": part.end,
            }
            for each in groups
            for part in await broker.lag(name, each)
        ]

    found = with_broker(look)
    if as_json:
        print_json(found)
        return
    fields = ("group", "partition", "unsettled", "position", "end")
    _print_columns(
        fields, [tuple("-" if row[f] in (None, "") else str(row[f]) for f in fields) for row in found]
    )
    typer.echo(f"{sum(row['unsettled'] for row in found):,} message(s) not finished")


async def _groups(broker: Broker, topic: str) -> list[str]:
    from broker import NotFound

    for each in await broker.topics():
        if each.name == topic:
            return list(each.groups)
    raise NotFound(
        f"topic {topic!r} does not exist at {broker.address}; create it with `await broker.ensure({topic!r})`"
    )


def _print_columns(names: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    from .display import plain

    shown = [names, *(tuple(map(plain, row)) for row in rows)]
    widths = [max(len(row[place]) for row in shown) for place in range(len(names))]
    for row in shown:
        typer.echo("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())
