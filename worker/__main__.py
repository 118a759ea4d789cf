"""``python -m worker``: the command ``worker`` without the front door."""

from __future__ import annotations

import typer

from .cli import worker

if __name__ == "__main__":
    typer.run(worker)
