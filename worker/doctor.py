"""``couturier doctor``: can this machine run a worker, and if not, what is in the way?"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from .doctor_broker import Finding
    from .settings import WorkerSettings


def register(app: typer.Typer) -> None:
    """Mount the command."""
    app.command()(doctor)


def doctor(
    workers: Annotated[
        int | None, typer.Option(min=1, help="How many are to share the work [cores].")
    ] = None,
    probe: Annotated[
        bool, typer.Option("--probe", help="Send a message through a topic of its own; compare clocks.")
    ] = False,
    of_self: Annotated[
        bool, typer.Option("--self", help="Look at the workers that run here, and what they stand on.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for machines.")] = False,
) -> None:
    """Check that this machine and its broker are ready; with --self, that the workers that run here are well.

    Exits 1 when something that a worker needs fails, and says what to do.
    """
    if of_self and (probe or workers is not None):
        raise typer.BadParameter("--self looks at no broker; leave out --probe and --workers")
    findings = list(_examine_self() if of_self else _examine(workers or os.cpu_count() or 1, probe))
    if as_json:
        typer.echo(json.dumps([asdict(each) for each in findings], indent=2))
    else:
        for each in findings:
            typer.echo(f"{each.state:>7}  {each.what:<14} {each.detail}")
            if each.next:
                typer.echo(f"{'':>7}  {'':<14} next: {each.next}")
    if any(each.state == "failed" for each in findings):
        raise typer.Exit(1)


def _examine(workers: int, probe: bool) -> Iterator[Finding]:
    import asyncio

    from .doctor_broker import Finding, examine_broker
    from .settings import load

    try:
        settings = load()
    except ValueError as error:
        yield Finding("settings", "failed", str(error), "`couturier config show` lists what is set")
        return
    for what, look in _LOOKS.items():
        if what == "results":
            yield from asyncio.run(examine_broker(settings, workers, probe))
        try:
            yield Finding(what, "ok", look(settings))
        except ModuleNotFoundError as error:
            yield Finding(what, "missing", f"{error.name} is not installed", "`uv sync --extra train`")
        except Exception as error:
            optional = what == "training data"
            yield Finding(what, "missing" if optional else "failed", str(error) or type(error).__name__)


def _examine_self() -> Iterator[Finding]:
    from .doctor_broker import Finding
    from .doctor_self import examine_self
    from .settings import load

    try:
        yield from examine_self(load())
    except ValueError as error:
        yield Finding("settings", "failed", str(error), "`couturier config show` lists what is set")


def _look_at_python(_: WorkerSettings) -> str:
    from importlib.metadata import version

    return f"couturier {version('couturier')}, Python {sys.version.split()[0]}, {os.cpu_count()} cores"


def _look_at_sink(settings: WorkerSettings) -> str:
    import asyncio

    from client.results import public_urls

    from .sinks import open_sink

    async def open_it() -> str:
        sink = open_sink(settings.sink_url, settings.results_days, settings.create)
        try:
            await sink.open()
        finally:
            await sink.aclose()
        return f"{public_urls(settings.sink_url)} can be written"

    return asyncio.run(open_it())


def _look_at_model(settings: WorkerSettings) -> str:
    from classifier import Classifier

    model = Classifier.load(settings.model, settings.engine)
    model.self_test()
    about = model.manifest
    return f"{about.name} {about.version}, {about.parameter_count:,} parameters, golden images agree"


def _look_at_validation(_: WorkerSettings) -> str:
    from classifier import validation_set

    return f"{len(validation_set().images):,} validation images"


def _look_at_training(_: WorkerSettings) -> str:
    from classifier import training_set

    return f"{len(training_set().images):,} training images"


def _look_at_torch(_: WorkerSettings) -> str:
    import torch

    return f"torch {torch.__version__}, {'CUDA' if torch.cuda.is_available() else 'CPU'}"


_LOOKS = {
    "python": _look_at_python,
    "results": _look_at_sink,
    "model": _look_at_model,
    "images": _look_at_validation,
    "training data": _look_at_training,
    "torch": _look_at_torch,
}
