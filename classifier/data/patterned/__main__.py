"""``python -m classifier.data.patterned OUT``: write a set of patterned garments."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ...errors import ClassifierError
from .marketplace import silhouettes, write_marketplace
from .styles import STYLES, TAGS


def main() -> int:
    """Write the set and return the exit code: 1 for a failure, 2 for wrong use."""
    parser = argparse.ArgumentParser(
        prog="python -m classifier.data.patterned",
        description="Write patterned garments as a marketplace would: data.zip, data.parquet, test.parquet.",
    )
    parser.add_argument("out", type=Path, help="directory, made if missing")
    parser.add_argument("--rows", type=int, default=3000, help="labelled rows (default 3000)")
    parser.add_argument("--test-rows", type=int, default=1000, help="rows to be predicted (default 1000)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--style", choices=sorted(STYLES), default="trained", help="how garments look")
    given = parser.parse_args()
    style = STYLES[given.style]
    try:
        source = silhouettes()
        write_marketplace(given.out, given.rows, given.test_rows, given.seed, style, source, _show)
    except (ClassifierError, ValueError) as error:
        print(f"\nerror: {error}", file=sys.stderr)
        return 2 if isinstance(error, ValueError) else 1
    tags = ",".join(TAGS)
    print(
        f"{given.out}: {given.rows} rows in data.parquet, {given.test_rows} in test.parquet,"
        f" cut out of {len(source):,} Fashion-MNIST images. Next:\n"
        f"  couturier train {given.out}/data.parquet --images {given.out}/data.zip"
        f' --label cc3 --tags "{tags}" --out MODEL'
    )
    return 0


def _show(what: str, done: int, total: int) -> None:
    """One line, rewritten, on a terminal only."""
    if sys.stderr.isatty():
        print(f"\r{what} {done}/{total}", end="\n" if done == total else "", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
