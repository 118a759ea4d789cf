"""The options that say which dead letters a command is about."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, get_type_hints

import typer

from .broker_cli import check_flag

if TYPE_CHECKING:
    from .dlq_letter import Choice


def check_time(text: str) -> datetime:
    """Return the time that was typed; wrong use when it is none."""
    from .dlq_letter import moment

    try:
        return moment(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


def _time(about: str) -> object:
    return typer.Option(parser=check_time, metavar="TIME", help=about)


Topic = Annotated[
    str, typer.Option(envvar="COUTURIER_TOPIC", callback=check_flag, help="The topic that workers read.")
]
Group = Annotated[
    str, typer.Option(envvar="COUTURIER_GROUP", callback=check_flag, help="The group of the workers.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]


@dataclass(frozen=True, slots=True)
class Query:
    """Which letters of which queue: every field is an option of each command that takes a ``Query``."""

    ids: Annotated[list[str] | None, typer.Argument(metavar="ID", help="Only these messages.")] = None
    topic: Topic = "images"
    group: Group = "classifiers"
    reason: Annotated[str | None, typer.Option(help="Only this reason, such as invalid-image.")] = None
    stage: Annotated[str | None, typer.Option(help="Only what failed there, such as decode.")] = None
    error: Annotated[
        str | None, typer.Option(help="Only this class of error, such as OSError, or any part of its text.")
    ] = None
    since: Annotated[
        datetime | None, _time("Only what failed then or later: 2026-03-01T14:00 (UTC), 2h, 3d.")
    ] = None
    until: Annotated[datetime | None, _time("Only what failed before then, or longer ago.")] = None
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many, the oldest.")] = None

    @property
    def choice(self) -> Choice:
        """What the filters say."""
        from .dlq_letter import Choice

        return Choice(frozenset(self.ids or ()), self.reason, self.stage, self.error, self.since, self.until)

    def check(self, everything: bool) -> None:
        """Refuse to change letters that nobody named."""
        if self.choice.everything and not everything:
            raise typer.BadParameter("say which: ids, --reason, --stage, --error, --since, --until, or --all")

    def unknown(self, found: Iterable[str]) -> list[str]:
        """Return the ids that were typed and not found."""
        return [] if self.limit else sorted(set(self.ids or ()).difference(found))


def spread(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the fields of its first parameter, a ``Query``, as options of its own."""
    shared, hints = inspect.signature(Query).parameters, get_type_hints(Query, include_extras=True)
    own = list(inspect.signature(command, eval_str=True).parameters.values())[1:]

    def run(**given: object) -> None:
        command(Query(**{name: given.pop(name) for name in shared}), **given)  # type: ignore[arg-type]

    spread_out = [each.replace(annotation=hints[name]) for name, each in shared.items()]
    parameters = [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in (*spread_out, *own)]
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__doc__, run.__name__ = command.__doc__, command.__name__
    return run
