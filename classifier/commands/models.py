"""``couturier models``: which models are there, what they are, and whether they are whole."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .common import FAILED, AsJson, errors

if TYPE_CHECKING:
    from ..bundle import Bundle

app = typer.Typer(name="models", help="List, show and verify model bundles.", no_args_is_help=True)
Which = Annotated[
    Path | None,
    typer.Argument(
        metavar="[MODEL]",
        envvar="COUTURIER_MODEL",
        help="A bundle's directory, or the name of a shipped one [student].",
    ),
]


@app.command("list")
def list_models(as_json: AsJson = False) -> None:
    """List the models at hand.

    The shipped ones, those in the current directory, and COUTURIER_MODEL.
    """
    with errors():
        import json

        rows = [_row(name, path) for name, path in _places()]
        if as_json:
            typer.echo(json.dumps(rows, indent=2))
            return
        for row in rows:
            if "error" in row:
                typer.echo(f"{row['model']:<16} {row['error']}")
                continue
            tags = f", {row['tags']} tags" if row["tags"] else ""
            accuracy = "" if row["accuracy"] is None else f", {row['accuracy']:.2%}"
            typer.echo(
                f"{row['model']:<16} {row['name']} {row['version']}: {row['parameters']:,} parameters,"
                f" {row['size']}x{row['size']}x{row['channels']}, {row['classes']} classes{tags}{accuracy}"
            )


@app.command("show")
def show(model: Which = None, as_json: AsJson = False) -> None:
    """Show a model's card; with --json its whole manifest."""
    with errors():
        import json

        from ..bundle import CARD, Bundle

        bundle = Bundle.load(model)
        if as_json:
            typer.echo(json.dumps({"directory": str(bundle.directory), **bundle.manifest.raw}))
        else:
            typer.echo(bundle.read(CARD).decode())
            typer.echo(f"{bundle.directory}: hash {bundle.manifest.hash}")


@app.command("verify")
def verify(model: Which = None, as_json: AsJson = False) -> None:
    """Prove that a model is whole.

    Checks every file's hash, and the golden images on every engine that is installed. Exits 1 when
    anything fails.
    """
    with errors():
        import json

        findings = list(_examine(model))
        if as_json:
            typer.echo(json.dumps(findings, indent=2))
        else:
            for each in findings:
                typer.echo(f"{each['state']:>7}  {each['what']:<14} {each['detail']}")
        if any(each["state"] == "failed" for each in findings):
            raise typer.Exit(FAILED)


def _places() -> Iterator[tuple[str, Path]]:
    """(name to load it by, directory) of every bundle in sight, once."""
    import os

    from ..bundle import MANIFEST, SHIPPED_MODELS, locate

    here = Path.cwd()
    found = list(SHIPPED_MODELS.items())
    found += [(each.parent.name, each.parent) for each in sorted(here.glob(f"*/{MANIFEST}"))]
    if (here / MANIFEST).exists():
        found.append((".", here))
    if named := os.environ.get("COUTURIER_MODEL"):
        found.append((named, locate(named)))
    seen = set()
    for name, path in found:
        if path.resolve() not in seen:
            seen.add(path.resolve())
            yield name, path


def _row(model: str, directory: Path) -> dict[str, Any]:
    from ..bundle import Bundle
    from ..errors import ModelError

    try:
        manifest = Bundle.load(directory).manifest
    except ModelError as error:
        return {"model": model, "directory": str(directory), "error": str(error)}
    return {
        "model": model,
        "directory": str(directory),
        "name": manifest.name,
        "version": manifest.version,
        "hash": manifest.hash,
        "parameters": manifest.parameter_count,
        "size": manifest.preprocessing.size,
        "channels": manifest.preprocessing.channels,
        "classes": len(manifest.labels),
        "tags": len(manifest.tags),
        "accuracy": manifest.metrics.get("onnx", {}).get("accuracy"),
        "bytes": sum(entry["bytes"] for entry in manifest.files.values()),
    }


def _examine(model: Path | None) -> Iterator[dict[str, str]]:
    """What was looked at, and how it was: ok, skipped or failed."""
    from ..bundle import Bundle, locate
    from ..engines import ENGINES
    from ..errors import ModelError

    def finding(state: str, what: str, detail: str) -> dict[str, str]:
        return {"state": state, "what": what, "detail": detail}

    try:
        bundle = Bundle.load(model)
    except ModelError as error:
        yield finding("failed", str(locate(model)), str(error))
        return
    manifest = bundle.manifest
    yield finding("ok", "manifest.json", f"{manifest.name} {manifest.version}, hash {manifest.hash}")
    for name, entry in manifest.files.items():
        yield finding("ok", name, f"{entry['bytes']:,} bytes, sha256 {entry['sha256']}")
    for engine in ENGINES:
        yield finding(*_test(bundle, engine))


def _test(bundle: Bundle, engine: str) -> tuple[str, str, str]:
    from ..errors import MissingExtra, ModelError
    from ..predict import Classifier

    if why := bundle.manifest.unavailable.get(engine):
        return "skipped", engine, f"not in this bundle: {why}"
    if engine == "torch" and bundle.manifest.architecture.get("kind") == "custom":
        return "skipped", engine, "needs your factory: load(..., engine='torch', model=factory)"
    try:
        Classifier(bundle, engine).self_test()
    except MissingExtra as error:
        return "skipped", engine, str(error)
    except ModelError as error:
        return "failed", engine, str(error)
    return "ok", engine, "golden images agree"
