"""Parity tables in Markdown: what backends promise, which checks they pass, and why not the rest.

They are made from declarations alone, nothing is run. A declaration is as good as a run all the same: a suite
fails where its harness declares too little or contradicts the capabilities, and with ``--conformance-verify``
where it declares too much.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields
from math import inf

from ..message import Capabilities
from .harness import Harness
from .items import ITEMS
from .suite import Conformance, check_names

_SECONDS = {"lease", "max_delay"}
_MEANING = {
    "backend": "name",
    "shared": "several processes can use one queue",
    "durable": "outlives every process",
    "history": "a group ensured later sees what was stored before",
    "counts": "`stats` knows `published` and `settled`",
    "order": "values of `subscribe(order=…)`",
    "lease": "a dead member's messages come again after",
    "max_delay": "longest `nack` delay",
    "max_message_bytes": "largest body",
    "max_attributes": "most attributes",
    "max_attribute_bytes": "longest attribute value",
    "max_attribute_name_bytes": "longest attribute name",
    "retention": "how long `ensure(retention=…)` can keep messages",
}


def capability_table(backends: Mapping[str, Capabilities]) -> str:
    """Return a table of capabilities, a row for each field, a column for each backend."""
    rows = [["capability", *backends]]
    for field in fields(Capabilities):
        values = [_text(field.name, getattr(each, field.name)) for each in backends.values()]
        rows.append([f"{_MEANING[field.name]} (`{field.name}`)", *values])
    return _table(rows)


def check_table(runs: Mapping[str, type[Harness]]) -> str:
    """Return a section for each theme with its checks, a column for each run, and the reasons below.

    A cell is a tick, or the number of the reason why the check is impossible there.
    """
    reasons: dict[str, int] = {}
    parts = []
    for theme in Conformance.__bases__:
        rows = [["check", "what must hold", *runs]]
        for name in sorted(name for name in vars(theme) if name.startswith("test_")):
            check = name.removeprefix("test_")
            rows.append([f"`{check}`", _sentence(getattr(theme, name))])
            for harness in runs.values():
                reason = harness.impossible.get(check)
                rows[-1].append("✓" if reason is None else str(reasons.setdefault(reason, len(reasons) + 1)))
        parts.append(f"### {theme.__name__}\n\n{_sentence(theme)}\n\n{_table(rows)}")
    numbered = "\n".join(f"{number}. {reason}" for reason, number in reasons.items())
    return "\n\n".join([*parts, f"### Reasons\n\n{numbered}"])


def summary(runs: Mapping[str, type[Harness]]) -> str:
    """Return how many checks each run passes, and how many are declared impossible."""
    total = len(check_names())
    rows = [["run", "checks that pass", "impossible"]]
    rows += [
        [name, str(total - len(each.impossible)), str(len(each.impossible))] for name, each in runs.items()
    ]
    return _table(rows)


def item_table() -> str:
    """Return the items that the suite as a whole covers, with the checks of each."""
    rows = [["item", "what must hold", "checks", "elsewhere"]]
    for number, item in ITEMS.items():
        rows.append([str(number), item.text, " ".join(f"`{each}`" for each in item.checks), item.beyond])
    return _table(rows)


def _text(name: str, value: object) -> str:
    if isinstance(value, bool | None):
        return "yes" if value else "no"
    if isinstance(value, tuple):
        return " to ".join("any" if each == inf else _text("lease", each) for each in value)
    if isinstance(value, frozenset):
        return ", ".join(sorted(value))
    if isinstance(value, int | float):
        if name in _SECONDS:
            return f"{value / 86_400:g} days" if value >= 86_400 else f"{value:g} s"
        return f"{value:,} B" if name.endswith("_bytes") else f"{value:,}"
    return str(value)


def _sentence(described: object) -> str:
    return " ".join((described.__doc__ or "").split()).replace("``", "`").replace("|", "\\|")


def _table(rows: Iterable[list[str]]) -> str:
    head, *body = rows
    lines = [head, ["---"] * len(head), *body]
    return "\n".join(f"| {' | '.join(each)} |" for each in lines)
