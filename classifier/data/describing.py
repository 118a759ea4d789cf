"""The facts about a data set as lines for people."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

_CLASSES_SHOWN = 30


def describe(facts: dict[str, Any]) -> str:
    """Readable lines of :attr:`Prepared.facts`."""
    return "\n".join(_lines(facts))


def _lines(facts: dict[str, Any]) -> Iterator[str]:
    yield f"{facts['source']}: {facts['kind']}, {facts['rows']:,} rows, {facts['used']:,} used"
    for note in facts["notes"]:
        yield f"  {note}"
    classes = facts["classes"]
    yield f"classes: {len(classes)}"
    yield from _table(classes, facts["used"])
    if facts["unlabelled"]:
        yield f"  {facts['unlabelled']:,} rows have no class and count for their tags only"
    for name, tag in facts["tags"].items():
        share = "never known" if tag["prevalence"] is None else f"{tag['prevalence']:.1%} yes"
        yield f"tag {name}: {share} ({tag['yes']:,} yes, {tag['no']:,} no, {tag['missing']:,} missing)"
    for name, members in facts["groups"].items():
        yield f"group {name}: {', '.join(members)}"
    yield from _images(facts)
    yield from _split(facts)
    yield from _findings(facts)


def _table(classes: dict[str, int], used: int) -> Iterator[str]:
    width = max(map(len, classes), default=0)
    for name, count in list(classes.items())[:_CLASSES_SHOWN]:
        few = "  (too few to hold any out)" if count < 5 else ""
        yield f"  {name:<{width}}  {count:>8,}  {count / max(used, 1):6.1%}{few}"
    if len(classes) > _CLASSES_SHOWN:
        yield f"  and {len(classes) - _CLASSES_SHOWN} more"


def _images(facts: dict[str, Any]) -> Iterator[str]:
    looks, spec, pixels = facts["looks"], facts["preprocessing"], facts["pixels"]
    side = looks["longer_side_px"]
    modes = ", ".join(f"{name} {count}" for name, count in looks["modes"].items())
    yield (
        f"images (sample of {looks['sample']}): longer side {side['min']} to {side['max']} px, median"
        f" {side['median']}; {modes}; {looks['coloured']:.0%} coloured,"
        f" {looks['light_framed']:.0%} dark on light"
    )
    colour = "colour" if spec["channels"] == 3 else "gray"
    yield (
        f"network input: {spec['size']} x {spec['size']} px, {colour}, polarity {spec['polarity']};"
        f" {pixels['bytes'] / 2**20:,.1f} MiB of pixels in {'a file' if pixels['in'] == 'file' else 'memory'}"
    )


def _split(facts: dict[str, Any]) -> Iterator[str]:
    split = facts["split"]
    how = "stratified by class"
    if split["given"]:
        own = "" if "val" in split["given"] else ", validation held out of its training rows by class"
        how = f"{' and '.join(split['given'])} as the source states{own}"
    yield (
        f"split: {split['training']:,} training, {split['val']:,} validation, {split['test']:,} test"
        f" ({how}; seed {split['seed']}, sha256 {split['sha256'][:16]})"
    )


def _findings(facts: dict[str, Any]) -> Iterator[str]:
    for key, what in (
        ("duplicates", "the same image more than once"),
        ("conflicts", "the same image with different classes"),
        ("leaks", "the same image on two sides of the split"),
    ):
        found = facts[key]
        if found["groups"]:
            yield f"{key}: {what}, {found['groups']:,} times ({found['rows']:,} rows)"
            for group in found["first"][: 3 if key == "duplicates" else None]:
                yield f"  {' = '.join(group[:4])}{' = ...' if len(group) > 4 else ''}"
    dropped = facts["dropped"]
    if dropped["count"]:
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in dropped["reasons"].items())
        yield f"dropped: {dropped['count']:,} row{'s' * (dropped['count'] > 1)} ({reasons})"
        yield from (f"  {line}" for line in dropped["first"])
