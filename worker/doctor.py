"""``couturier doctor``: can this machine run a worker, and if not, what is in the way?"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Annotated

import typer

_BROKER_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that ``doctor`` looked at.

    Attributes:
        what: its name.
        state: ``ok``, ``missing`` (something optional) or ``failed``.
        detail: what was found, or what to do.
    """

    what: str
    state: str
    detail: str


def register(app: typer.Typer) -> None:
    """Mount the command."""
    app.command()(doctor)


def doctor(as_json: Annotated[bool, typer.Option("--json", help="Print JSON for machines.")] = False) -> None:
    """Check that this machine is ready.

    Exits 1 when something that a worker needs fails.
    """
    findings = [_examine(what, look) for what, look in _LOOKS.items()]
    if as_json:
        typer.echo(json.dumps([asdict(each) for each in findings], indent=2))
    else:
        for each in findings:
            typer.echo(f"{each.state:>7}  {each.what:<14} {each.detail}")
    if any(each.state == "failed" for each in findings):
        raise typer.Exit(1)


def _examine(what: str, look: Callable[[], str]) -> Finding:
    try:
        return Finding(what, "ok", look())
    except ModuleNotFoundError as error:
        return Finding(what, "missing", f"{error.name} is not installed: `uv sync --extra train`")
    except Exception as error:
        optional = what == "training data"
        return Finding(what, "missing" if optional else "failed", str(error) or type(error).__name__)


def _look_at_python() -> str:
    from importlib.metadata import version

    return f"couturier {version('couturier')}, Python {sys.version.split()[0]}, {os.cpu_count()} cores"


def _look_at_broker() -> str:
    import asyncio

    from broker import connect
    from broker.settings import broker_url

    async def open_it() -> str:
        async with asyncio.timeout(_BROKER_TIMEOUT_S), connect() as broker:
            return f"{broker.capabilities.backend} at {broker_url()}"

    return asyncio.run(open_it())


def _look_at_sink() -> str:
    import asyncio

    from .settings import WorkerSettings
    from .sinks import open_sink

    url = WorkerSettings().sink_url

    async def open_it() -> str:
        sink = open_sink(url)
        await sink.open()
        await sink.aclose()
        return f"{url} can be written"

    return asyncio.run(open_it())


def _look_at_model() -> str:
    from classifier import Classifier

    model = Classifier.load(os.environ.get("COUTURIER_MODEL") or None)
    model.self_test()
    about = model.manifest
    return f"{about.name} {about.version}, {about.parameter_count:,} parameters, golden images agree"


def _look_at_validation() -> str:
    from classifier import validation_set

    return f"{len(validation_set().images):,} validation images"


def _look_at_training() -> str:
    from classifier import training_set

    return f"{len(training_set().images):,} training images"


def _look_at_torch() -> str:
    import torch

    return f"torch {torch.__version__}, {'CUDA' if torch.cuda.is_available() else 'CPU'}"


_LOOKS = {
    "python": _look_at_python,
    "queue": _look_at_broker,
    "results": _look_at_sink,
    "model": _look_at_model,
    "images": _look_at_validation,
    "training data": _look_at_training,
    "torch": _look_at_torch,
}
