"""Groups of options that commands share: each field of these classes is an option of its own."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

if TYPE_CHECKING:
    from ..data import DataOptions


def column_names(text: str) -> tuple[str, ...]:
    """The names in a text such as ``"polka dot, floral"``."""
    return tuple(name.strip() for name in text.split(",") if name.strip())


@dataclass(frozen=True, slots=True)
class DataChoice:
    """What a user says about a data set; see :class:`classifier.data.DataOptions`."""

    images: Annotated[Path | None, typer.Option(help="Folder or zip with the images of a table.")] = None
    label: Annotated[str | None, typer.Option(help="A table's category column.")] = None
    tags: Annotated[str, typer.Option(help="A table's yes/no columns, with commas between.")] = ""
    groups: Annotated[
        Path | None, typer.Option(help="JSON or CSV file that puts classes into coarse groups.")
    ] = None
    key: Annotated[str | None, typer.Option(help="The table's column that names the image.")] = None
    size: Annotated[int | None, typer.Option(min=8, max=512, help="Side of the network's input, px.")] = None
    channels: Annotated[int | None, typer.Option(help="1 for gray, 3 for colour.")] = None
    val_fraction: Annotated[
        float | None,
        typer.Option(min=0.0, max=0.5, help="Share held out for choices [0.1; without DATA 1/30]."),
    ] = None
    test_fraction: Annotated[
        float | None, typer.Option(min=0.0, max=0.5, help="Share held out to judge the result [0.1].")
    ] = None

    def named(self, data: Path) -> str:
        """How a command that knows the model names the same data."""
        return f"{data}" if self.images is None else f"{data} --images {self.images}"

    def options(self, seed: int, shipped: bool) -> DataOptions:
        """For ``prepare``; ``shipped`` is Fashion-MNIST as it comes, which has its own test images."""
        from ..data import DataOptions

        val = self.val_fraction if self.val_fraction is not None else 1 / 30 if shipped else 0.1
        return DataOptions(
            images=self.images,
            label=self.label,
            tags=column_names(self.tags),
            groups=self.groups,
            key=self.key,
            size=self.size,
            channels=self.channels,
            val_fraction=val,
            test_fraction=0.1 if self.test_fraction is None else self.test_fraction,
            seed=seed,
        )


def spread(command: Callable[..., None]) -> Callable[..., None]:
    """Make options of the fields of a command's dataclass parameters, which say what typer needs.

    So that a command with many options takes a few objects, and commands share them.
    """
    own = inspect.signature(command, eval_str=True).parameters
    groups: dict[str, Any] = {n: each.annotation for n, each in own.items() if is_dataclass(each.annotation)}

    def run(**given: Any) -> None:
        taken = {
            name: {at.name: given.pop(at.name) for at in fields(group)} for name, group in groups.items()
        }
        command(**{name: group(**taken[name]) for name, group in groups.items()}, **given)

    parameters: list[inspect.Parameter] = []
    for name, each in own.items():
        hints = (
            get_type_hints(groups[name], include_extras=True) if name in groups else {name: each.annotation}
        )
        options = inspect.signature(groups[name]).parameters.values() if name in groups else (each,)
        parameters += [
            at.replace(annotation=hints[at.name], kind=inspect.Parameter.KEYWORD_ONLY) for at in options
        ]
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__doc__, run.__name__ = command.__doc__, command.__name__
    return run
