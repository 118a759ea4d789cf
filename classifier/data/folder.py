"""A folder or zip with one folder of images for each class."""

from __future__ import annotations

from pathlib import Path

from ..errors import DataError
from .listing import SIDE_NAMES, TRAINING, Listing, no_tags
from .pictures import StoredPictures
from .store import ImageStore, readable
from .tables import is_table


def list_folder(path: Path) -> Listing:
    """The images of ``path/CLASS/...``, or of ``path/train/CLASS/...`` with ``val`` and ``test`` beside it.

    Folders below a class belong to it. A single folder around all classes is stepped into.

    Raises:
        DataError: no images, or no class folders.
    """
    store = ImageStore(path)
    parts = [tuple(readable(name).split("/")) for name in store.names]
    notes = [f"passed over, not PNG or JPEG by name: {_counted(store)}"] if store.others else []
    depth = 0
    if tops := {part[0] for part in parts if len(part) > 2}:
        alone = len(tops) == 1 and all(len(part) > 2 and part[0] in tops for part in parts)
        if alone:
            depth = 1
            notes.append(f"classes are the folders in {next(iter(tops))}/")
    tops = {part[depth].lower() for part in parts if len(part) > depth + 1}
    if not tops or (len(tops) == 1 and _tables(path)):
        store.close()
        raise DataError(_no_classes(path, store))
    split = tops <= set(SIDE_NAMES) and any(SIDE_NAMES[top] == TRAINING for top in tops)
    class_at = depth + split
    classes = [part[class_at] if len(part) > class_at + 1 else None for part in parts]
    given = [SIDE_NAMES[part[depth].lower()] if split and len(part) > depth + 1 else None for part in parts]
    problems = {
        row: ("no class", "the image lies in no class folder") for row, name in enumerate(classes) if not name
    }
    return Listing(
        "zip of class folders" if path.is_file() else "folder of classes",
        StoredPictures([(store, name) for name in store.names]),
        ["/".join(part) for part in parts],
        classes,
        given,
        no_tags(len(parts)),
        problems=problems,
        notes=notes,
    )


def _no_classes(path: Path, store: ImageStore) -> str:
    if tables := _tables(path):
        return f"{path}: holds no folder of images for each class, but tables; name one: {tables[0]}"
    found = f"{len(store.names)} images outside any folder" if store.names else "no PNG or JPEG file"
    others = f" (files of other kinds: {_counted(store)})" if store.others else ""
    return (
        f"{path}: {found}{others}. Put the images of each class into a folder named after it"
        f" ({path.name}/CLASS/image.png), or name a CSV or parquet table"
    )


def _tables(path: Path) -> list[Path]:
    return [file for file in sorted(path.glob("*")) if is_table(file)] if path.is_dir() else []


def _counted(store: ImageStore) -> str:
    return ", ".join(f"{count} {suffix}" for suffix, count in sorted(store.others.items()))
