"""The command ``gateway``."""

from __future__ import annotations

import logging
import sys
from typing import Annotated

import typer

from ..broker_cli import check_flag

_LIBRARIES = ("fastapi", "multipart", "python_multipart", "starlette", "uvicorn")


def register(app: typer.Typer) -> None:
    """Mount the command."""
    app.command("gateway")(gateway)


def gateway(
    host: Annotated[str | None, typer.Option(help="[COUTURIER_GATEWAY_HOST, 127.0.0.1].")] = None,
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="[COUTURIER_GATEWAY_PORT, 8080].")
    ] = None,
    topic: Annotated[
        str | None, typer.Option(callback=check_flag, help="Where images go [COUTURIER_TOPIC, images].")
    ] = None,
    group: Annotated[
        str | None, typer.Option(callback=check_flag, help="The workers' [COUTURIER_GROUP, classifiers].")
    ] = None,
    with_worker: Annotated[
        bool, typer.Option("--with-worker", help="Run a worker, too: no broker is needed.")
    ] = False,
    openapi: Annotated[bool, typer.Option("--openapi", help="Print OpenAPI's description and end.")] = False,
) -> None:
    """Take images and give answers by HTTP.

    POST /v1/images answers 202 with an id once the broker has stored the image; GET /v1/results/ID?wait=5
    gives what was found. Listens on this machine alone, unless COUTURIER_GATEWAY_TOKEN is set.
    Until SIGTERM or Ctrl-C; then it finishes what has begun and exits 0. A second signal ends it at once.
    """
    code = _gateway(host, port, topic, group, with_worker, openapi)
    if code:
        raise typer.Exit(code)


def _gateway(
    host: str | None, port: int | None, topic: str | None, group: str | None, with_worker: bool, openapi: bool
) -> int:
    import asyncio

    try:
        from .server import serve
    except ModuleNotFoundError as error:
        if error.name not in _LIBRARIES:
            raise
        raise ValueError(
            f"`couturier gateway` needs the extra 'gateway' ({error.name} is not installed): `uv sync --extra"
            " gateway`, or `pip install -e '.[gateway]'` in the checkout"
        ) from error
    if openapi:
        return _print_openapi()
    from ..settings import embedded_note, shared_broker_url
    from ..settings import load as load_client
    from .companion import Companion, environment
    from .settings import load

    found, client = load(host=host, port=port), load_client(topic=topic, group=group)
    shared_broker_url()
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(message)s")
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    if note := embedded_note():
        typer.echo(note, err=True)
    companion = None
    if with_worker:
        companion = Companion(environment(COUTURIER_TOPIC=client.topic, COUTURIER_GROUP=client.group))
    return asyncio.run(serve(found, client, companion))


def _print_openapi() -> int:
    import json
    from importlib.metadata import version

    from .app import openapi

    typer.echo(json.dumps(openapi(version("couturier")), indent=2))
    return 0
