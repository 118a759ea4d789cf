"""The classifier's commands: train, evaluate, predict. Mounted by the ``couturier`` command line.

Only typer is imported at the top, so that ``couturier --help`` stays fast.
Exit codes: 0 done, 1 failed, 2 wrong use, 78 wrong configuration, 130 interrupted.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

FAILED, WRONG_USE, WRONG_CONFIGURATION, INTERRUPTED = 1, 2, 78, 130

Model = Annotated[
    Path | None,
    typer.Option(
        "--model", envvar="COUTURIER_MODEL", help="A model bundle's directory; default: the shipped model."
    ),
]
EngineName = Annotated[str, typer.Option("--engine", help="onnx, onnx-int8 or torch.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]


def register(app: typer.Typer) -> None:
    """Mount the commands on ``app``."""
    app.command("train")(train)
    app.command("evaluate")(evaluate)
    app.command("predict")(predict)


def train(
    directory: Annotated[
        Path | None, typer.Argument(metavar="DATA", help="Directory with the training set's IDX files.")
    ] = None,
    data: Annotated[Path | None, typer.Option("--data", help="The same as DATA.")] = None,
    out: Annotated[Path, typer.Option(help="Where the model bundle goes.")] = Path("model"),
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the training images.")] = 60,
    model: Annotated[
        str, typer.Option(help="student or base; or channel widths such as 16-32-64.")
    ] = "student",
    seed: Annotated[int, typer.Option(help="Source of all randomness.")] = 0,
    val_fraction: Annotated[
        float, typer.Option(min=0.0, max=0.5, help="Share of the training images held out for choices.")
    ] = 0.0,
    resume: Annotated[bool, typer.Option("--resume", help="Continue from the checkpoint in --out.")] = False,
) -> None:
    """Train a model and export it as a bundle.

    With --val-fraction the held-out share measures the model and the 10,000 validation images stay
    untouched; without it every training image is used and those 10,000 measure the result once.
    """
    with _errors():
        from .data import training_set, validation_set
        from .errors import MissingExtra

        try:
            from .exporting import export
            from .progress import reporter
            from .training import TrainConfig
            from .training import train as run
        except ModuleNotFoundError as error:
            raise MissingExtra("training", "train", error.name) from error
        architecture, dataset = _architecture(model), training_set(directory or data)
        config = TrainConfig(epochs=epochs, seed=seed, val_fraction=val_fraction)
        checkpoint = out / "training" / "checkpoint.safetensors"
        with _stoppable(checkpoint), reporter() as report:
            result = run(dataset, config, architecture, checkpoint, resume, report)
        card = None if val_fraction else validation_set()
        typer.echo(_summary(export(result, dataset, out, card=card).manifest, out))


def evaluate(
    model: Model = None,
    data: Annotated[
        Path | None, typer.Option(help="Directory with the t10k IDX files; default: shipped.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first so many images.")] = None,
    engine: EngineName = "onnx",
    as_json: AsJson = False,
) -> None:
    """Measure a model on the validation images."""
    with _errors():
        import json

        from .data import validation_set
        from .evaluation import evaluate as judge
        from .evaluation import text_report

        classifier = _load(model, engine)
        metrics = judge(classifier, validation_set(data), limit)
        manifest = classifier.manifest
        if as_json:
            about = {"model": manifest.name, "model_version": manifest.version, "model_hash": manifest.hash}
            typer.echo(json.dumps({**about, "engine": engine, **metrics.to_dict()}))
        else:
            title = f"{manifest.name} {manifest.version} ({manifest.hash[:12]}), engine {engine}"
            typer.echo(text_report(metrics, title))


def predict(
    paths: Annotated[list[Path], typer.Argument(help="Images, folders or zips of images.")],
    model: Model = None,
    engine: EngineName = "onnx",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a line.")] = False,
) -> None:
    """Classify images, folders and zips.

    Bad images are reported and do not stop the rest.
    """
    with _errors():
        from itertools import islice

        from .errors import DataError
        from .files import iter_images
        from .images import InvalidImage

        for path in paths:
            if not path.exists():
                typer.echo(f"error: {path}: no such file or folder", err=True)
                raise typer.Exit(WRONG_USE)
        classifier = _load(model, engine)
        images, good = iter_images(paths), 0
        while batch := list(islice(images, 64)):
            results = classifier.predict([data for _, data in batch])
            for (name, _), result in zip(batch, results, strict=True):
                good += not isinstance(result, InvalidImage)
                typer.echo(_line(name, result, as_json), err=isinstance(result, InvalidImage) and not as_json)
        if not good:
            raise DataError("no image could be classified; PNG and JPEG files are accepted")


def _summary(manifest: Any, directory: Path) -> str:
    lines = [f"{directory}: {manifest.parameter_count:,} parameters"]
    for engine, metrics in manifest.metrics.items():
        low, high = metrics["accuracy_low"], metrics["accuracy_high"]
        lines.append(f"  {engine:<10} accuracy {metrics['accuracy']:.2%} ({low:.2%} .. {high:.2%})")
    return "\n".join(lines)


def _line(name: str, result: Any, as_json: bool) -> str:
    import json
    from dataclasses import asdict

    from .images import InvalidImage

    if as_json:
        return json.dumps({"path": name, "valid": not isinstance(result, InvalidImage), **asdict(result)})
    if isinstance(result, InvalidImage):
        return f"{name}: refused, {result.reason}: {result.detail}"
    second = f"{result.runner_up} {result.runner_up_confidence:.1%}"
    return f"{name}: {result.label} {result.confidence:.1%}, then {second}"


def _load(model: Path | None, engine: str) -> Any:
    from .engines import ENGINES
    from .predict import Classifier

    if engine not in ENGINES:
        typer.echo(f"error: unknown engine {engine!r}, choose one of {', '.join(ENGINES)}", err=True)
        raise typer.Exit(WRONG_USE)
    return Classifier.load(model, engine)


def _architecture(text: str) -> Any:
    """A preset's name or three widths such as 16-32-64."""
    from .model import PRESETS, ModelConfig

    if text in PRESETS:
        return PRESETS[text]
    try:
        first, second, third = (int(width) for width in text.split("-"))
        return ModelConfig(widths=(first, second, third))
    except ValueError:
        typer.echo(
            f"error: --model {text!r} is neither {' nor '.join(PRESETS)} nor widths such as 16-32-64",
            err=True,
        )
        raise typer.Exit(WRONG_USE) from None


@contextmanager
def _stoppable(checkpoint: Path) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        kept = f"{checkpoint} holds the last whole epoch, continue with --resume"
        typer.echo(f"stopped; {kept if checkpoint.exists() else 'no epoch was finished'}", err=True)
        raise typer.Exit(INTERRUPTED) from None


@contextmanager
def _errors() -> Iterator[None]:
    """Turn expected errors into one line on stderr and the agreed exit code."""
    from .errors import ClassifierError, MissingExtra, ModelError

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
