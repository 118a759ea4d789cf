"""The commands ``couturier broker publish``, ``consume`` and ``ping``: the queue itself, on any backend."""

from __future__ import annotations

import io
import sys
from collections.abc import Awaitable, Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

if TYPE_CHECKING:
    from broker import Broker, Delivery, Message

T = TypeVar("T")

Json = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]


def check_flag(name: str | None) -> str | None:
    """Return the name of a topic or group that was typed; wrong use when none can have it."""
    from broker.drivers.options import check_name

    try:
        return None if name is None else check_name(name)
    except ValueError as error:
        raise typer.BadParameter(f"{name!r}: {error}") from None


def check_flags(names: list[str] | None) -> list[str] | None:
    """Return names of groups that were typed, as ``check_flag`` does."""
    return names and [check_flag(each) or each for each in names]


Topic = Annotated[str, typer.Argument(metavar="TOPIC", callback=check_flag)]

# Published, or received and settled, in one go.
_BATCH = 100
_HEAD_BYTES = 2_000


def register(app: typer.Typer) -> None:
    """Mount the commands under ``broker``."""
    broker = typer.Typer(no_args_is_help=True, help="Publish, consume and ping, on any backend.")
    broker.command("publish")(publish)
    broker.command("consume")(consume)
    broker.command("ping")(ping)
    app.add_typer(broker, name="broker")


def publish(
    topic: Topic,
    data: Annotated[
        str | None, typer.Argument(metavar="DATA", help="The body, '' an empty one; else standard input.")
    ] = None,
    files: Annotated[
        list[Path] | None,
        typer.Option("--file", exists=True, dir_okay=False, help="A body from this file; may repeat."),
    ] = None,
    lines: Annotated[bool, typer.Option("--lines", help="One message for each line of the input.")] = False,
    key: Annotated[str | None, typer.Option(help="What belongs together has one key.")] = None,
    attributes: Annotated[
        list[str] | None, typer.Option("--attribute", metavar="NAME=VALUE", help="May repeat.")
    ] = None,
    message_id: Annotated[
        str | None, typer.Option("--id", help="Of the one message; else a new one.")
    ] = None,
    content_type: Annotated[
        str | None, typer.Option(help="Such as image/png; else by the file's name.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Publish messages to a topic that exists.

    The body is DATA, or a --file, or standard input. Returns once the broker has stored all of them.
    """
    from broker import Message, PublishError

    if data is not None and files:
        raise typer.BadParameter("DATA and --file exclude each other")
    if message_id is not None and (lines or len(files or []) > 1):
        raise typer.BadParameter("--id names one message; there may be several")
    common: dict[str, Any] = {"key": key, "attributes": _attributes(attributes or [])}
    if message_id is not None:
        common["id"] = message_id
    bodies = _bodies(data, files or [], lines, content_type)
    messages = (Message(data=body, content_type=kind, **common) for body, kind in bodies)

    async def send(broker: Broker) -> int:
        refused = 0
        while batch := list(islice(messages, _BATCH)):
            places: dict[str, str | None] = {}
            try:
                places = {each.message_id: each.position for each in await broker.publish(topic, batch)}
            except PublishError as error:
                places = {each.id: None for each in batch if each.id not in error.failed}
                refused += len(error.failed)
                for each_id, why in error.failed.items():
                    typer.echo(f"not stored: {each_id}: {why}", err=True)
            for each_id, place in places.items():
                if as_json:
                    _print_json_line({"id": each_id, "topic": topic, "position": place})
                else:
                    typer.echo(f"stored {each_id} in {topic!r}{f' at {place}' if place else ''}")
        return refused

    if with_broker(send):
        raise typer.Exit(1)


def consume(
    topic: Topic,
    group: Annotated[
        str, typer.Option(callback=check_flag, help="Whose messages; acked ones are gone for this group.")
    ],
    most: Annotated[int | None, typer.Option("--max", min=1, help="At most so many.")] = None,
    timeout: Annotated[float, typer.Option(min=0, help="End when nothing came for so long, seconds.")] = 10.0,
    peek: Annotated[bool, typer.Option("--peek", help="Only look: settle nothing, hide nothing.")] = False,
    as_json: Json = False,
) -> None:
    """Print messages, oldest first, and acknowledge them once they are printed.

    The group must exist: `couturier topics ensure TOPIC --group GROUP` makes one of your own. With --json one
    object a line; a body that is no text is in `data_base64`.
    """
    show = _print_delivery_json if as_json else _print_delivery

    async def look(broker: Broker) -> None:
        count = 0
        async for delivery in broker.browse(topic, group):
            show(delivery)
            count += 1
            if count == most:
                return

    async def take(broker: Broker) -> None:
        count = 0
        async with broker.subscribe(topic, group=group) as subscription:
            while most is None or count < most:
                batch = _BATCH if most is None else min(_BATCH, most - count)
                deliveries = await subscription.receive(max_messages=batch, timeout=timeout)
                if not deliveries:
                    return
                for delivery in deliveries:
                    show(delivery)
                sys.stdout.flush()
                await subscription.ack(deliveries)
                count += len(deliveries)

    with_broker(look if peek else take)


def ping(
    timeout: Annotated[float, typer.Option(min=0.1, help="How long to wait, seconds.")] = 5.0,
    as_json: Json = False,
) -> None:
    """Say whether the broker answers, how fast, and what it is.

    Exits 69 when it does not answer or refuses the login, 78 when the configuration cannot work.
    """
    import asyncio
    from time import perf_counter

    from broker import Unavailable, connect

    async def ask() -> dict[str, Any]:
        broker = connect()
        start = perf_counter()
        try:
            async with asyncio.timeout(timeout), broker:
                connected = perf_counter()
                facts = await broker.describe()
                return {
                    "backend": broker.capabilities.backend,
                    "address": broker.address,
                    "connect_ms": (connected - start) * 1000,
                    "round_trip_ms": (perf_counter() - connected) * 1000,
                    **facts,
                }
        except TimeoutError:
            raise Unavailable(f"no answer from {broker.address} within {timeout:g} s") from None

    found = asyncio.run(ask())
    if as_json:
        print_json(found)
        return
    for name, value in found.items():
        shown = f"{value:.1f}" if isinstance(value, float) else _plain(str(value))
        typer.echo(f"{name:>13}  {shown}")


def with_broker(work: Callable[[Broker], Awaitable[T]]) -> T:
    """Open the broker that the environment names, and return what ``work`` returns.

    Raises:
        ValueError: the environment does not work, or names a broker that lives in one process.
    """
    import asyncio

    from broker import connect

    from .settings import embedded_note, shared_broker_url

    shared_broker_url()
    if note := embedded_note(results=False):
        typer.echo(note, err=True)

    async def run() -> T:
        async with connect() as broker:
            return await work(broker)

    return asyncio.run(run())


def _bodies(
    data: str | None, files: list[Path], lines: bool, content_type: str | None
) -> Iterator[tuple[bytes, str]]:
    """Yield bodies and their content types."""
    import mimetypes

    plain, unknown = "text/plain; charset=utf-8", "application/octet-stream"
    sources: Iterable[tuple[bytes, str]]
    if data is not None:
        sources = [(data.encode("utf-8", "surrogateescape"), plain)]
    elif files:
        sources = ((path.read_bytes(), mimetypes.guess_type(path.name)[0] or unknown) for path in files)
    elif lines:
        sources = ((line, plain) for line in sys.stdin.buffer)
    else:
        body = sys.stdin.buffer.read()
        if not body:
            raise typer.BadParameter("standard input is empty; give '' as DATA for an empty body")
        sources = [(body, unknown)]
    for body, kind in sources:
        for part in io.BytesIO(body) if lines else [body]:  # ends lines at \n only; splitlines at \r, too
            yield _without_line_end(part) if lines else part, content_type or kind


def _without_line_end(line: bytes) -> bytes:
    return line.removesuffix(b"\n").removesuffix(b"\r") if line.endswith(b"\n") else line


def _attributes(pairs: list[str]) -> dict[str, str]:
    found = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not name or not equals:
            raise typer.BadParameter(f"--attribute {pair!r}: write NAME=VALUE")
        found[name] = value
    return found


def _print_delivery(delivery: Delivery) -> None:
    message = delivery.message
    facts = [f"attempt {delivery.attempt}"] if delivery.attempt else []
    facts += [f"{len(message.data):,} bytes", message.content_type]
    if message.key is not None:
        facts.append(f"key {message.key}")
    facts += [f"{name}={value}" for name, value in message.attributes.items()]
    typer.echo(_plain(f"{message.id}  {', '.join(facts)}"))
    typer.echo(f"    {_plain(_head(message))}")


def _print_delivery_json(delivery: Delivery) -> None:
    import base64

    message = delivery.message
    try:
        body = {"data": message.data.decode()}
    except UnicodeDecodeError:
        body = {"data_base64": base64.b64encode(message.data).decode()}
    _print_json_line(
        {
            "id": message.id,
            "topic": delivery.topic,
            "key": message.key,
            "attempt": delivery.attempt,
            "type": message.type,
            "source": message.source,
            "subject": message.subject,
            "time": message.time.isoformat() if message.time else None,
            "content_type": message.content_type,
            "attributes": dict(message.attributes),
            **body,
        }
    )


def _head(message: Message) -> str:
    """Return the beginning of a body, as text if it is text."""
    head = message.data[:_HEAD_BYTES]
    more = " ..." if len(message.data) > len(head) else ""
    try:
        return head.decode("utf-8") + more
    except UnicodeDecodeError:
        return f"{head[:32]!r}{' ...' if len(message.data) > 32 else ''}"


def print_json(value: object) -> None:
    """Print one JSON document."""
    import json

    typer.echo(json.dumps(value, indent=2))


def _print_json_line(value: object) -> None:
    import json

    typer.echo(json.dumps(value))


def _plain(text: str) -> str:
    from .display import plain

    return plain(text)
