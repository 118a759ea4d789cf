"""The command ``worker``."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

# A numeric library would take as many threads as there are cores, in every process.
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def register(app: typer.Typer) -> None:
    """Mount the command of this package."""
    app.command("worker")(worker)


def _check_name(name: str | None) -> str | None:
    from broker.drivers.options import check_name

    try:
        return None if name is None else check_name(name)
    except ValueError as error:
        raise typer.BadParameter(f"{name!r}: {error}") from None


def worker(
    topic: Annotated[
        str | None, typer.Option(callback=_check_name, help="Where images come from [COUTURIER_TOPIC].")
    ] = None,
    group: Annotated[
        str | None, typer.Option(callback=_check_name, help="Who shares the work [COUTURIER_GROUP].")
    ] = None,
    sink: Annotated[str | None, typer.Option(help="Where results go [SINK_URL].")] = None,
    model: Annotated[
        Path | None, typer.Option(help="A bundle's directory, or a shipped one [COUTURIER_MODEL].")
    ] = None,
    engine: Annotated[
        Literal["onnx", "onnx-int8", "openvino", "openvino-int8", "torch"] | None,
        typer.Option(help="[COUTURIER_ENGINE, onnx]."),
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, max=4096, help="Most images at once [COUTURIER_BATCH_SIZE, 128].")
    ] = None,
    drain_timeout: Annotated[
        float | None,
        typer.Option(min=0, help="Seconds to finish after SIGTERM [COUTURIER_DRAIN_TIMEOUT, 25]."),
    ] = None,
    processes: Annotated[
        int | None, typer.Option(min=1, max=256, help="Workers to keep running [COUTURIER_PROCESSES, 1].")
    ] = None,
    ready_file: Annotated[Path | None, typer.Option(help="Create this file when receiving.")] = None,
) -> None:
    """Classify images from the queue.

    Until SIGTERM or Ctrl-C; then it finishes what it holds and exits 0. A second signal ends it at once.
    With --processes several workers run, and one that dies is started again.
    """
    said: dict[str, Any] = {
        "topic": topic,
        "group": group,
        "sink_url": sink,
        "model": model,
        "engine": engine,
        "batch_size": batch_size,
        "drain_timeout_s": drain_timeout,
        "processes": processes,
    }
    code = _work(said, ready_file)
    if code:
        raise typer.Exit(code)


def _work(said: Mapping[str, Any], ready_file: Path | None) -> int:
    """Run one worker or several; return the exit code."""
    import asyncio

    from broker.drivers.options import public_url
    from broker.settings import broker_url

    from .launch import Launch
    from .log import configure
    from .settings import environment, load

    settings = load(**said)
    if broker_url().startswith("memory:"):
        raise ValueError(
            f"the broker {public_url(broker_url())!r} lives inside one process, and nobody could send to this"
            " worker; set BROKER_URL=sqlite:///queue.db, or unset BROKER_URL and BROKER_BACKEND"
        )
    for name in _THREAD_VARIABLES:
        os.environ.setdefault(name, str(settings.threads))
    configure(settings.log_level, settings.log_format)
    launch = Launch(ready_file, settings.until_stdin_closes)
    if settings.processes > 1:
        from .supervisor import supervise

        return asyncio.run(supervise(settings, environment(**said), launch))
    from .main import run

    return asyncio.run(run(settings, launch))
