"""What the commands share: options, exit codes, and how an error becomes one line.

Exit codes: 0 done, 1 failed, 2 wrong use, 78 wrong configuration, 130 interrupted.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

FAILED, WRONG_USE, WRONG_CONFIGURATION, INTERRUPTED = 1, 2, 78, 130

Model = Annotated[
    Path | None,
    typer.Option(
        "--model",
        envvar="COUTURIER_MODEL",
        help="A model bundle's directory, or the name of a shipped one [student].",
    ),
]
EngineName = Annotated[
    str, typer.Option("--engine", help="onnx, onnx-int8, openvino, openvino-int8 or torch.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]


@contextmanager
def errors() -> Iterator[None]:
    """Turn expected errors into one line on stderr and the agreed exit code."""
    from ..errors import ClassifierError, MissingExtra, ModelError

    try:
        yield
    except (MissingExtra, ModelError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(WRONG_CONFIGURATION) from error
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None
    except (ClassifierError, ValueError, OSError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(FAILED) from error


def wrong_use(message: str) -> NoReturn:
    """Say what is wrong with the command line and exit 2."""
    typer.echo(f"error: {message}", err=True)
    raise typer.Exit(WRONG_USE) from None


def load_classifier(model: Path | None, engine: str) -> Any:
    """The model bundle on an engine; an unknown engine is wrong use."""
    from ..engines import ENGINES
    from ..predict import Classifier

    if engine not in ENGINES:
        wrong_use(f"unknown engine {engine!r}, choose one of {', '.join(ENGINES)}")
    return Classifier.load(model, engine)
