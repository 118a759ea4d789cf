"""CSV and parquet tables, read column by column; results written as parquet, CSV or JSON lines."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from ..errors import DataError, MissingExtra

CSV, PARQUET, JSON_LINES = (".csv", ".tsv"), (".parquet", ".pq"), (".jsonl", ".ndjson")
_CSV_FIELD_CHARACTERS = 1 << 20  # a path or a label is far shorter; a lost quote swallows the rest of a file


@dataclass(frozen=True, slots=True)
class Table:
    """A table whose columns are read on use.

    Attributes:
        path: the file.
        columns: names of the columns in order.
        rows: number of rows, damaged ones included.
        binary: columns that hold bytes, as such or as Hugging Face's struct of bytes and path.
        damaged: rows that could not be taken apart, with why; their values read None.
        values: ``values(column)`` -> one value a row; None where missing. CSV gives text, stripped.
        class_names: names that the file itself states for a column of class numbers.
    """

    path: Path
    columns: tuple[str, ...]
    rows: int
    values: Callable[[str], list[Any]]
    binary: tuple[str, ...] = ()
    damaged: Mapping[int, str] = field(default_factory=dict)
    class_names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def require(self, column: str, option: str) -> str:
        """``column``, which the user named with ``option``.

        Raises:
            DataError: the table has no such column.
        """
        if column not in self.columns:
            from difflib import get_close_matches

            close = get_close_matches(column, self.columns, 1, 0.6)
            meant = f'; next: {option} "{close[0]}"' if close else f"; give {option} one of them"
            raise DataError(f"{self.path}: no column {column!r}, only {', '.join(self.columns)}{meant}")
        return column


def is_table(path: Path) -> bool:
    """Whether the name says CSV or parquet."""
    return path.suffix.lower() in (*CSV, *PARQUET)


def open_table(path: Path) -> Table:
    """Open a CSV (``.csv``, ``.tsv``) or parquet (``.parquet``, ``.pq``) file.

    Raises:
        DataError: it cannot be read or is not what its name says.
        MissingExtra: a parquet file, and pyarrow is not installed.
    """
    try:
        table = _open_parquet(path) if path.suffix.lower() in PARQUET else _open_csv(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error
    if not table.rows:
        raise DataError(f"{path}: the table has no rows, only the columns {', '.join(table.columns)}")
    repeated = sorted({name for name in table.columns if table.columns.count(name) > 1})
    if repeated:
        raise DataError(f"{path}: column {repeated[0]!r} occurs twice; rename one of them")
    return replace(table, values=cache(table.values))


def _open_csv(path: Path) -> Table:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            header = file.readline()
            file.seek(0)
            separator = max(",;\t", key=header.count)
            csv.field_size_limit(_CSV_FIELD_CHARACTERS)
            lines = list(csv.reader(file, delimiter=separator, strict=True))
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: not UTF-8 at byte {error.start}; convert it, for instance with"
            f" `iconv -f WINDOWS-1252 -t UTF-8 {path.name} > utf8.csv`"
        ) from error
    except csv.Error as error:
        raise DataError(f"{path}: not a CSV table ({error}); is a quote left open?") from error
    lines = [line for line in lines if line]
    if not lines:
        raise DataError(f"{path}: the file is empty; the first line must name the columns")
    columns = tuple(name.strip() for name in lines.pop(0))
    damaged = {
        at: f"{len(line)} fields where the header has {len(columns)}"
        for at, line in enumerate(lines)
        if len(line) != len(columns)
    }

    def values(column: str) -> list[Any]:
        place = columns.index(column)
        return [None if at in damaged else line[place].strip() or None for at, line in enumerate(lines)]

    return Table(path, columns, len(lines), values, (), damaged)


def _open_parquet(path: Path) -> Table:
    arrow, parquet = import_arrow()
    try:
        with parquet.ParquetFile(path) as file:
            schema, rows = file.schema_arrow, file.metadata.num_rows
    except (arrow.ArrowException, ValueError) as error:
        raise DataError(f"{path}: not a parquet file ({error})") from error

    def values(column: str) -> list[Any]:
        try:
            with parquet.ParquetFile(path) as file:
                found = list(file.read(columns=[column]).column(column).to_pylist())
        except (arrow.ArrowException, OSError, ValueError, OverflowError) as error:
            raise DataError(f"{path}: column {column!r} cannot be read ({error})") from error
        if len(found) != rows:
            raise DataError(f"{path}: column {column!r} has {len(found)} values, the file states {rows} rows")
        return found

    binary = tuple(each.name for each in schema if _holds_bytes(arrow, each.type))
    return Table(path, tuple(schema.names), rows, values, binary, {}, _stated_names(schema.metadata or {}))


def _holds_bytes(arrow: Any, kind: Any) -> bool:
    if arrow.types.is_struct(kind):
        return any(kind.field(at).name == "bytes" for at in range(kind.num_fields))
    return bool(
        arrow.types.is_binary(kind)
        or arrow.types.is_large_binary(kind)
        or arrow.types.is_fixed_size_binary(kind)
    )


def _stated_names(metadata: Mapping[bytes, bytes]) -> dict[str, tuple[str, ...]]:
    """Class names in the metadata that Hugging Face's ``datasets`` writes; {} when there are none."""
    try:
        features = json.loads(metadata[b"huggingface"])["info"]["features"]
        found = {name: each.get("names") for name, each in features.items() if isinstance(each, dict)}
        return {name: tuple(map(str, names)) for name, names in found.items() if names}
    except (KeyError, TypeError, ValueError, AttributeError):
        return {}


def write_table(path: str | os.PathLike[str], columns: Mapping[str, Sequence[Any]]) -> None:
    """Write ``columns`` by the suffix of ``path``: parquet, CSV (None is an empty field) or JSON lines.

    The file appears whole or not at all.

    Raises:
        DataError: another suffix, or the file cannot be written.
        MissingExtra: a parquet file, and pyarrow is not installed.
        ValueError: the columns differ in length.
    """
    target = Path(path)
    lengths = {name: len(values) for name, values in columns.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"the columns differ in length: {lengths}")
    write = writer_for(target)
    partial = target.with_name(f"{target.name}.{os.getpid()}.part")
    try:
        try:
            write(partial, columns)
            partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise DataError(f"{target}: cannot be written ({error.strerror or error})") from error


def writer_for(path: Path) -> Callable[[Path, Mapping[str, Sequence[Any]]], None]:
    """How to write a table of this name; ask before the work whose result it shall hold.

    Raises:
        DataError: another suffix.
        MissingExtra: a parquet file, and pyarrow is not installed.
    """
    suffix = path.suffix.lower()
    if suffix in PARQUET:
        import_arrow()
        return _write_parquet
    if suffix == ".csv":
        return _write_csv
    if suffix in JSON_LINES:
        return _write_lines
    raise DataError(f"{path}: tables are written as .parquet, .csv or .jsonl; name it so")


def _write_parquet(path: Path, columns: Mapping[str, Sequence[Any]]) -> None:
    arrow, parquet = import_arrow()
    parquet.write_table(arrow.table({name: list(values) for name, values in columns.items()}), path)


def _write_csv(path: Path, columns: Mapping[str, Sequence[Any]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))


def _write_lines(path: Path, columns: Mapping[str, Sequence[Any]]) -> None:
    with path.open("w", encoding="utf-8") as file:
        for row in zip(*columns.values(), strict=True):
            file.write(json.dumps(dict(zip(columns, row, strict=True)), ensure_ascii=False) + "\n")


def import_arrow() -> tuple[ModuleType, Any]:
    """(pyarrow, pyarrow.parquet).

    Raises:
        MissingExtra: not installed.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ModuleNotFoundError as error:
        raise MissingExtra("reading and writing parquet files", "train", error.name) from error
    return pyarrow, pyarrow.parquet
