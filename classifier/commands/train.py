"""``couturier train``: from a data set to a verified model bundle, in one command."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .common import INTERRUPTED, AsJson, errors, wrong_use
from .options import DataChoice, spread

if TYPE_CHECKING:
    from ..bundle import Manifest
    from ..data import Prepared
    from ..plan import TrainConfig
    from ..training import TrainResult


@dataclass(frozen=True, slots=True)
class TrainingChoice:
    """How to train; see :class:`classifier.TrainConfig`."""

    model: Annotated[
        str,
        typer.Option(
            help="student, base, or channel widths such as 16-32-64; for photos resnet18, resnet34,"
            " mobilenet_v3_small, efficientnet_b0 or convnext_tiny."
        ),
    ] = "student"
    epochs: Annotated[
        int | None, typer.Option(min=1, help="Passes over the training images [30 to 300, by number].")
    ] = None
    minutes: Annotated[
        float | None, typer.Option(help="Time for training; the epochs follow from this machine's speed.")
    ] = None
    patience: Annotated[
        int | None, typer.Option(min=1, help="Stop after so many epochs without progress, keep the best.")
    ] = None
    batch_size: Annotated[int | None, typer.Option(min=2, help="Images a step [16 to 256].")] = None
    seed: Annotated[int, typer.Option(help="Source of all randomness.")] = 0
    flip: Annotated[
        bool | None, typer.Option("--flip/--no-flip", help="Mirror images [Fashion-MNIST only].")
    ] = None
    erase: Annotated[
        float | None,
        typer.Option(min=0.0, max=1.0, help="Share of images that lose a rectangle in training [0.25]."),
    ] = None
    weights: Annotated[
        str, typer.Option(help="Where the body starts: auto, none, or a .safetensors or .pth file.")
    ] = "auto"
    device: Annotated[str, typer.Option(help="cpu, cuda, or auto for the GPU if there is one.")] = "auto"
    strict: Annotated[
        bool,
        typer.Option(
            "--strict", help="No bundle at all unless int8 is as good as required [a bundle without int8]."
        ),
    ] = False

    def config(self, prepared: Prepared) -> TrainConfig:
        """The settings for these data; what is left open is decided by rule."""
        from dataclasses import replace

        from ..plan import TrainConfig, default_augment

        augment = default_augment(prepared.training)
        if self.flip is not None:
            augment = replace(augment, flip=self.flip)
        if self.erase is not None:
            augment = replace(augment, erase_probability=self.erase)
        return TrainConfig(
            epochs=self.epochs,
            minutes=self.minutes,
            batch_size=self.batch_size,
            seed=self.seed,
            patience=self.patience,
            augment=augment,
            device=self.device,
            weights=self.weights,
        )


@spread
def train(
    data: Annotated[
        Path | None,
        typer.Argument(
            metavar="DATA",
            help="A folder or zip of class folders, a CSV or parquet table, or IDX files [Fashion-MNIST].",
        ),
    ] = None,
    same: Annotated[Path | None, typer.Option("--data", help="The same as DATA.")] = None,
    about: DataChoice = DataChoice(),  # noqa: B008 - immutable
    how: TrainingChoice = TrainingChoice(),
    out: Annotated[Path, typer.Option(help="Where the model bundle goes.")] = Path("model"),
    resume: Annotated[bool, typer.Option("--resume", help="Continue from the checkpoint in --out.")] = False,
    as_json: AsJson = False,
) -> None:
    """Train a model on your images and export it as a bundle.

    The data set is found out, shown, and split; the held-out test part measures the result once.
    Progress goes to stderr. Stopped with Ctrl-C or killed, the run goes on with --resume as if nothing
    had happened. On several GPUs: torchrun --nproc-per-node N -m classifier train ...
    """
    # Waiting threads that spin steal the cores of whatever else runs; must be set before torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    with errors():
        try:
            from ..distributed import process_group
            from ..progress import counter, reporter
            from ..training import train as run
        except ModuleNotFoundError as error:
            from ..errors import MissingExtra

            raise MissingExtra("training", "train", error.name) from error
        from ..data import prepare

        data = data or same
        architecture, checkpoint = _architecture(how.model), out / "training" / "checkpoint.safetensors"
        with process_group(how.device) as ranks:
            with ranks.first_leads(), counter(ranks.leads) as count:
                prepared = prepare(data, about.options(how.seed, shipped=data is None), count)
            if ranks.leads:
                typer.echo(prepared.describe(), err=as_json)
                if prepared.dropped:
                    prepared.write_dropped(kept := checkpoint.with_name("dropped.csv"))
                    typer.echo(f"every dropped row: {kept}", err=True)
            anew = ranks.leads and not resume
            with _kept_earlier(checkpoint, anew), _stoppable(checkpoint), reporter(ranks.leads) as report:
                config, val = how.config(prepared), prepared.val
                result = run(prepared.training, config, architecture, checkpoint, resume, report, val)
            if ranks.leads:
                manifest = _export(prepared, result, out, how.strict)
                _tell(manifest, result, out, "" if data is None else about.named(data), as_json)


def _export(prepared: Prepared, result: TrainResult, out: Path, strict: bool) -> Manifest:
    from ..agreement import Limits
    from ..exporting import ExportConfig, export

    settings = ExportConfig(
        groups=prepared.groups,
        preprocessing=prepared.preprocessing,
        facts=prepared.facts,
        limits=Limits(strict=strict),
    )
    return export(result, prepared.training, out, settings, card=prepared.test).manifest


def _tell(manifest: Manifest, result: TrainResult, out: Path, source: str, as_json: bool) -> None:
    """Say what came of it and what to type next."""
    import json

    if as_json:
        about = {"model": str(out), "name": manifest.name, "hash": manifest.hash, "labels": manifest.labels}
        parts = {key: manifest.raw.get(key) for key in ("metrics", "metrics_on", "tags", "data")}
        run = {
            "epochs": len(result.history),
            "wall_s": round(result.wall_s, 1),
            "config": result.config.to_dict(),
        }
        typer.echo(json.dumps({**about, "parameter_count": manifest.parameter_count, **run, **parts}))
        return
    minutes = f"{len(result.history)} epochs in {result.wall_s / 60:.1f} min"
    typer.echo(f"{out}: {manifest.parameter_count:,} parameters, {minutes}")
    for engine, metrics in manifest.metrics.items():
        low, high = metrics["accuracy_low"], metrics["accuracy_high"]
        typer.echo(f"  {engine:<13} accuracy {metrics['accuracy']:.2%} ({low:.2%} .. {high:.2%})")
    on = manifest.raw.get("metrics_on")
    typer.echo(
        f"  on {on['images']:,} images ({on['split']})" if on else "  not measured: no images were held out"
    )
    typer.echo(
        f"next:\n  couturier evaluate {f'{source} ' if source else ''}--model {out}"
        f"\n  couturier predict IMAGES --model {out}\n  couturier worker --model {out}"
    )


def _architecture(text: str) -> Any:
    """A preset's or backbone's name as it is, or three widths such as 16-32-64 as a configuration."""
    from ..backbones import BACKBONES
    from ..model import PRESETS, ModelConfig

    if text in PRESETS or text in BACKBONES:
        return text
    try:
        first, second, third = (int(width) for width in text.split("-"))
        return ModelConfig(widths=(first, second, third))
    except ValueError:
        known = ", ".join([*PRESETS, *BACKBONES])
        wrong_use(f"--model {text!r} is neither of {known} nor widths such as 16-32-64")


@contextmanager
def _kept_earlier(checkpoint: Path, anew: bool) -> Iterator[None]:
    """Hours of an earlier run are not lost to a forgotten --resume, nor to a run that never starts."""
    if not anew or not checkpoint.exists():
        yield
        return
    kept = checkpoint.with_name(f"previous-{checkpoint.name}")
    checkpoint.replace(kept)
    typer.echo(f"starting anew; the earlier run's checkpoint is now {kept}", err=True)
    try:
        yield
    finally:
        if not checkpoint.exists():
            kept.replace(checkpoint)
            typer.echo(f"this run left none; the earlier run's checkpoint is back at {checkpoint}", err=True)


@contextmanager
def _stoppable(checkpoint: Path) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        kept = f"{checkpoint} holds the last whole epoch, continue with --resume"
        typer.echo(f"stopped; {kept if checkpoint.exists() else 'no epoch was finished'}", err=True)
        raise typer.Exit(INTERRUPTED) from None
