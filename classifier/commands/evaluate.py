"""``couturier evaluate``: judge a model, print the figures, write ``metrics.json`` and ``report.html``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .common import AsJson, EngineName, Model, errors, load_classifier, wrong_use
from .options import column_names, spread

if TYPE_CHECKING:
    from ..data import DataOptions
    from ..report import Report


@dataclass(frozen=True, slots=True)
class Rows:
    """Which rows to judge the model on; see :func:`classifier.report.source.find_rows`."""

    same: Annotated[Path | None, typer.Option("--data", help="The same as DATA.")] = None
    images: Annotated[Path | None, typer.Option(help="Folder or zip with the images of a table.")] = None
    label: Annotated[str | None, typer.Option(help="A table's category column.")] = None
    tags: Annotated[
        str, typer.Option(help="A table's yes/no columns, with commas between; default: the model's tags.")
    ] = ""
    key: Annotated[str | None, typer.Option(help="The table's column that names the image.")] = None
    split: Annotated[
        str | None,
        typer.Option(help="test, val, train or all; default: test for the data it was trained on, else all."),
    ] = None
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first so many rows.")] = None

    def options(self) -> DataOptions:
        """For ``find_rows``."""
        from ..data import DataOptions

        tags = column_names(self.tags)
        return DataOptions(images=self.images, label=self.label, tags=tags, key=self.key)


@spread
def evaluate(
    data: Annotated[
        Path | None,
        typer.Argument(
            metavar="DATA",
            help="A folder or zip of class folders, a CSV or parquet table, or IDX files;"
            " default: the 10,000 shipped images.",
        ),
    ] = None,
    model: Model = None,
    rows: Rows = Rows(),
    engine: EngineName = "onnx",
    against: Annotated[
        Path | None, typer.Option(help="Another model's directory: is the difference more than chance?")
    ] = None,
    out: Annotated[Path, typer.Option(help="Where metrics.json and report.html go.")] = Path("evaluation"),
    timing: Annotated[
        bool, typer.Option("--timing/--no-timing", help="Measure every engine's speed, some seconds.")
    ] = True,
    as_json: AsJson = False,
) -> None:
    """Measure a model on images with known labels and write a report.

    Prints the figures; metrics.json holds all of them, report.html shows them with plots and mistakes.
    """
    with errors():
        from ..progress import counter
        from ..report import StudyOptions, write_report
        from ..report.source import SPLITS, find_rows

        if rows.split not in (None, *SPLITS):
            wrong_use(f"--split {rows.split!r} is none of {', '.join(SPLITS)}")
        classifier = load_classifier(model, engine)
        other = None if against is None else load_classifier(against, engine)
        with counter() as count:
            found = find_rows(classifier.manifest, data or rows.same, rows.options(), rows.split, count)
            study = StudyOptions(
                limit=rows.limit,
                against=other,
                source=found.title,
                role=found.role,
                dropped=found.facts.get("dropped", {}),
                timing=timing,
            )
            report = write_report(classifier, found.data, out, study, count)
        _show(report, as_json)


def _show(report: Report, as_json: bool) -> None:
    """The figures on stdout, where the files are, and why there is no page if there is none."""
    import json

    from ..evaluation import text_report
    from ..report.words import against, tag_table

    found = report.document
    if as_json:
        typer.echo(json.dumps(found))
    else:
        model = f"{found['model']} {found['model_version']} ({found['model_hash'][:12]})"
        title = f"{model}, engine {found['engine']}, {found['data']['source']}"
        typer.echo(text_report(report.metrics, title) + tag_table(found))
        if found["against"]:
            typer.echo(f"\n{against(found)}")
    typer.echo(f"written: {report.page or report.numbers}", err=as_json)
    if report.missing:
        typer.echo(f"no report.html: {report.missing}", err=True)
