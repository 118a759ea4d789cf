"""``python -m classifier train | evaluate | predict``: the commands without the rest of couturier."""

from __future__ import annotations

import typer

from .cli import register

app = typer.Typer(
    no_args_is_help=True, add_completion=False, help="Train, evaluate and use image classifiers."
)
register(app)

if __name__ == "__main__":
    app()
