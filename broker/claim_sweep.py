"""Removing bodies from a claim store once they are past their retention, so that no reader misses one.

A sweep moves what is too old to ``expired`` and deletes what an earlier sweep moved there. So a body that is
published again at the very moment of its removal still lies in one of the two places; readers look in both.
"""

from __future__ import annotations

import contextlib
import re
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

SWEEP_INTERVAL_S = 3600.0
_SWEPT = ".couturier-swept"
# Nothing else is touched: the directory may hold other files.
_BODY = re.compile(r"[0-9a-f]{2}/[0-9a-f]{64}")
_LEFT_OVER = re.compile(r"(expired/[0-9a-f]{64}|tmp/[0-9a-f]{32})")


def sweep(files: Any, root: str, local: bool, retention: float, stop: threading.Event) -> int:
    """Remove what is past its retention by one step, at most once an hour for all publishers of a store.

    Args:
        files: the file system, as fsspec has it.
        root: where the store begins.
        local: whether that is a local directory.
        retention: seconds.
        stop: set it to end early.

    Returns:
        How many files were moved or deleted.
    """
    swept, now, count = f"{root}/{_SWEPT}", time.time(), 0
    if files.exists(swept) and now - _changed_at(files, swept, {}) < SWEEP_INTERVAL_S:
        return 0
    files.pipe_file(swept, b"")
    for path, info in files.find(root, detail=True).items():
        if stop.is_set():
            break
        with contextlib.suppress(FileNotFoundError):  # Another publisher sweeps, too.
            if now - _changed_at(files, path, info) > retention:
                count += _expire(files, root, local, path[len(root) :].lstrip("/"))
    return count


def _expire(files: Any, root: str, local: bool, name: str) -> bool:
    """Move a body out of the way, or remove what was moved before; return whether it was ours."""
    if _LEFT_OVER.fullmatch(name):
        files.rm_file(f"{root}/{name}")
    elif not _BODY.fullmatch(name):
        return False
    elif local:
        Path(root, "expired").mkdir(exist_ok=True)
        Path(root, name).replace(Path(root, "expired", name[3:]))
    else:
        # The copy is as young as this sweep: in a bucket a body is found for a second retention.
        files.cp_file(f"{root}/{name}", f"{root}/expired/{name[3:]}")
        files.rm_file(f"{root}/{name}")
    return True


def _changed_at(files: Any, path: str, info: dict[str, Any]) -> float:
    """Return when a file was written, seconds since 1970; file systems disagree on how to say it."""
    when = info.get("mtime") or info.get("LastModified")
    if not isinstance(when, int | float | datetime):
        when = files.modified(path)
    if isinstance(when, datetime):
        when = (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp()
    return float(when)
