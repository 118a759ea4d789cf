"""The classifier's commands, mounted by the ``couturier`` command line.

Only typer is imported at the top, so that ``couturier --help`` stays fast.
"""

from __future__ import annotations

import typer

from . import models
from .evaluate import evaluate
from .predict import predict
from .train import train


def register(app: typer.Typer) -> None:
    """Mount the commands on ``app``."""
    app.command("train")(train)
    app.command("evaluate")(evaluate)
    app.command("predict")(predict)
    app.add_typer(models.app)
