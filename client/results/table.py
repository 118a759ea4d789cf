"""What every database's results table has in common: columns, versions, and what a replay is.

The table ``results_schema`` holds the version of the layout. It is raised only by a change that older code
could not work with, and such code then refuses the database. What older code need not know about (an index,
another table, a column that may be null) is a *revision*, kept in ``results_state`` and applied once, in
order, by the first new worker. So old and new workers run side by side on one database.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import islice
from types import TracebackType
from typing import Any, Self

from ..errors import StoreError
from ..schema import ResultRow

COLUMNS = ResultRow._fields
NAMES = ", ".join(f'"{name}"' for name in COLUMNS)
VERSION = 1
REVISION = 3
# Columns that a revision added: a table that only older workers, or an administrator, have seen lacks them.
ADDED = frozenset({"context"})

# What has to be equal for two rows of one id to say the same.
Content = tuple[str | None, str | None]


class ResultsMissing(StoreError):  # noqa: N818 - reads as the state it names
    """There is no results table yet; the first worker makes it."""


@dataclass(frozen=True, slots=True)
class WriteReport:
    """What became of the rows of one write.

    Attributes:
        new: rows that were not there before.
        identical: replays with the same content.
        conflicts: ids of replays with another label or model; the first row was kept.
        refused: message id to the reason why the database does not take its row.
    """

    new: int = 0
    identical: int = 0
    conflicts: tuple[str, ...] = ()
    refused: Mapping[str, str] = field(default_factory=dict)


class Results(ABC):
    """Reads a results table without changing it. A context manager; any thread may use it."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @abstractmethod
    def close(self) -> None:
        """Release the file or the connection."""

    @abstractmethod
    def _read(self, query: str) -> Iterable[tuple[Any, ...]]:
        """Return what a query without values finds."""

    def count(self) -> int:
        """Return how many rows there are."""
        ((found,),) = self._read("SELECT count(*) FROM results")
        return int(found)

    def statuses(self) -> Mapping[str, int]:
        """Return how many rows there are of each status."""
        found = self._read("SELECT status, count(*) FROM results GROUP BY status")
        return {str(status): int(count) for status, count in found}

    def duplicates(self) -> int:
        """Return how many rows repeat an id; 0, unless someone else made the table."""
        ((found,),) = self._read("SELECT count(*) - count(DISTINCT message_id) FROM results")
        return int(found)

    @abstractmethod
    def ids(self, status: str | None = None) -> Iterator[str]:
        """Yield the message id of every row, or of those with a status."""

    @abstractmethod
    def rows(
        self, label: str | None = None, limit: int | None = None, status: str | None = None
    ) -> Iterator[ResultRow]:
        """Yield rows, newest first.

        Args:
            label: only these.
            limit: at most so many.
            status: only these.
        """

    @abstractmethod
    def find(self, ids: Iterable[str]) -> Iterator[ResultRow]:
        """Yield the rows of these messages, in no particular order; what has no row is left out."""

    @abstractmethod
    def kept_since(self) -> datetime | None:
        """Return the time before which rows may have been removed (retention), aware; None: never."""


def content(row: ResultRow) -> Content:
    """Return what a replay has to repeat to be the same."""
    return row.label, row.model_hash


def firsts(rows: Iterable[ResultRow]) -> dict[str, ResultRow]:
    """Return the first row of each id: it is stored, or refused; the others are compared with it."""
    found: dict[str, ResultRow] = {}
    for row in rows:
        found.setdefault(row.message_id, row)
    return found


def judge(
    rows: Sequence[ResultRow], new: int, stored: Mapping[str, Content], refused: Mapping[str, str]
) -> WriteReport:
    """Tell replays that repeat what is stored from those that contradict it.

    Args:
        rows: of one write; an id may be there several times.
        new: how many of them were stored.
        stored: what is stored by now, by id; an id that was removed meanwhile may be left out.
        refused: id to reason; such an id has no row.
    """
    taken = [row for row in rows if row.message_id not in refused] if refused else rows
    conflicts = tuple(
        row.message_id for row in taken if stored.get(row.message_id, content(row)) != content(row)
    )
    return WriteReport(new, len(taken) - new - len(conflicts), conflicts, refused)


def check_version(version: int, place: str) -> None:
    """Refuse a layout that this code cannot work with.

    Raises:
        StoreError: it is of a later version.
    """
    if version > VERSION:
        raise StoreError(f"{place} was written by a newer couturier (schema {version}); upgrade this one")


def check_columns(names: set[str], place: str) -> None:
    """Refuse a table that somebody else made for something else.

    Raises:
        StoreError: columns are lacking.
    """
    lacking = ", ".join(sorted(set(COLUMNS) - ADDED - names))
    if lacking:
        raise StoreError(f"{place} holds no results of couturier (lacking: {lacking}); name another one")


def readable(names: set[str]) -> str:
    """Return what to select from a table with these columns; what it lacks reads as NULL."""
    return ", ".join(f'"{name}"' if name in names else f'NULL AS "{name}"' for name in COLUMNS)


def chunks(ids: Iterable[str], size: int) -> Iterator[list[str]]:
    """Yield the ids, so many at a time."""
    source = iter(ids)
    while chunk := list(islice(source, size)):
        yield chunk
