"""``couturier predict``: images, folders, zips or a table in; lines, JSON lines or a table out."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .common import EngineName, Model, errors, load_classifier, wrong_use

if TYPE_CHECKING:
    from ..answers import Answer
    from ..data.rows import Rows

Images = Annotated[
    Path | None, typer.Option("--images", help="Folder or zip with the images that a table names.")
]
Key = Annotated[
    str | None, typer.Option("--key", help="The table's column that names the images; found out if possible.")
]
Out = Annotated[
    Path | None, typer.Option("--out", help="Write a table: .parquet, .csv or .jsonl, one row an input row.")
]
Details = Annotated[
    bool, typer.Option("--details", help="With --out: confidences, group, abstention, tag probabilities.")
]
Lines = Annotated[
    bool, typer.Option("--json", help="Print one JSON object a line; with --out one object about the run.")
]


def predict(
    paths: Annotated[
        list[Path], typer.Argument(help="Images, folders, zips; or one .csv or .parquet table.")
    ],
    images: Images = None,
    key: Key = None,
    model: Model = None,
    engine: EngineName = "onnx",
    out: Out = None,
    details: Details = False,
    as_json: Lines = False,
) -> None:
    """Classify images, folders, zips, or the rows of a table.

    Bad and missing images are named on stderr and do not stop the rest; in a table their cells are empty.
    """
    with errors():
        _check_use(paths, out, details)
        with _open(paths, images, key) as rows:
            classifier = load_classifier(model, engine)
            if out is None:
                _print(classifier, rows, as_json)
            else:
                _tabulate(classifier, rows, out, details, as_json)


def _check_use(paths: list[Path], out: Path | None, details: bool) -> None:
    """Refuse before any work what could not end well."""
    for path in paths:
        if not path.exists():
            wrong_use(f"{path}: no such file or folder")
    if out is None:
        if details:
            wrong_use("--details adds columns to a table; name one with --out")
        return
    from ..data.tables import writer_for
    from ..errors import DataError

    try:
        writer_for(out)
    except DataError as error:
        wrong_use(f"--out {error}")
    if out.is_dir() or not out.parent.is_dir():
        wrong_use(f"--out {out}: {'is a folder' if out.is_dir() else 'no such folder'}; name another file")
    if any(out.exists() and out.samefile(path) for path in paths):
        wrong_use(f"--out {out} would overwrite its own input; name another file")


def _open(paths: list[Path], images: Path | None, key: str | None) -> Rows:
    from ..data import open_rows
    from ..data.tables import is_table
    from ..files import file_rows

    tables = [path for path in paths if path.is_file() and is_table(path)]
    if not tables:
        if images is not None or key is not None:
            wrong_use("--images and --key belong to a table; give a .csv or .parquet file")
        rows = file_rows(paths)
        if rows.others:
            passed = ", ".join(f"{count:,} {suffix}" for suffix, count in sorted(rows.others.items()))
            typer.echo(f"passed over, neither PNG nor JPEG by name: {passed}", err=True)
        return rows
    if len(paths) > 1:
        wrong_use(
            f"{tables[0]} is a table, which stands alone; classify the other {len(paths) - 1} by themselves"
        )
    return open_rows(tables[0], images, key)


def _print(classifier: Any, rows: Rows, as_json: bool) -> None:
    """A line for each row: predictions on stdout, the others on stderr (with ``as_json`` all on stdout)."""
    from ..answers import classify
    from ..predict import Prediction

    name, good = "path" if rows.key_name == "path" else "key", 0
    for at, (key, answer) in enumerate(classify(classifier, rows)):
        known = isinstance(answer, Prediction)
        good += known
        if as_json:
            typer.echo(_json_line(name, key, answer))
        else:
            typer.echo(f"{_named(key, at)}: {_words(answer)}", err=not known)
    _require_some(good, len(rows))


def _tabulate(classifier: Any, rows: Rows, out: Path, details: bool, as_json: bool) -> None:
    """Write the table of answers; the file appears whole, once every row has its answer, or not at all."""
    from ..answers import AnswerTable, classify, why_not
    from ..data import write_table
    from ..predict import Prediction

    table, good, started = AnswerTable(rows.key_name, classifier.manifest, details), 0, time.perf_counter()
    with _bar(len(rows)) as advance:
        for at, (key, answer) in enumerate(classify(classifier, rows)):
            table.add(key, answer)
            if isinstance(answer, Prediction):
                good += 1
            else:
                typer.echo(f"{_named(key, at)}: {why_not(answer)}", err=True)
            advance()
    _require_some(good, len(rows))
    write_table(out, table.columns)
    seconds = time.perf_counter() - started
    if as_json:
        import json

        typer.echo(json.dumps({"out": str(out), "rows": len(rows), "classified": good, "seconds": seconds}))
        return
    if good < len(rows):
        typer.echo(f"warning: {len(rows) - good:,} of {len(rows):,} rows have no prediction", err=True)
    typer.echo(f"{out}: {good:,} of {len(rows):,} rows classified, {len(rows) / seconds:,.0f} rows/s")


def _require_some(good: int, total: int) -> None:
    from ..errors import DataError

    if not total:
        raise DataError("no PNG or JPEG file there, by its name")
    if not good:
        raise DataError(f"no image could be classified of {total:,}; PNG and JPEG files are accepted")


def _named(key: Any, at: int) -> str:
    """What a row is called in messages; rows without a key are counted from 0."""
    return f"row {at}" if key is None else str(key)


def _json_line(name: str, key: Any, answer: Answer) -> str:
    import json
    from dataclasses import asdict

    from ..errors import DataError
    from ..predict import Prediction

    if isinstance(answer, DataError):
        about: dict[str, Any] = {"reason": "missing", "detail": str(answer)}
    else:
        about = asdict(answer)
    # A parquet key may be bytes, a date or a decimal: shown as text.
    return json.dumps({name: key, "valid": isinstance(answer, Prediction), **about}, default=str)


def _words(answer: Answer) -> str:
    from ..answers import why_not
    from ..predict import Prediction

    if not isinstance(answer, Prediction):
        return why_not(answer)
    parts = [
        f"{answer.label} {answer.confidence:.1%}, then {answer.runner_up} {answer.runner_up_confidence:.1%}"
    ]
    if answer.tags:
        parts.append("tags " + ", ".join(answer.tags))
    if answer.abstained:
        parts.append("abstains: " + answer.why)
    return "; ".join(parts)


@contextmanager
def _bar(total: int) -> Iterator[Callable[[], None]]:
    """A live bar on a terminal, nothing elsewhere; call what it yields once a row."""
    if not sys.stderr.isatty():
        yield lambda: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("classifying"), BarColumn(), MofNCompleteColumn(), TextColumn("left"))
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as progress:
        task = progress.add_task("classifying", total=total)
        yield lambda: progress.advance(task)
