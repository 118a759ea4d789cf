"""The guide for a stranger works as it stands on the page."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = Path(__file__).resolve().parent.parent / "docs" / "train-your-own.md"
BLOCK = re.compile(r"^```(sh|py)\n(.*?)^```", re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def printed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Every block of the page, run in its order in an empty directory: (directory, all that was printed)."""
    pytest.importorskip("torch")
    directory = tmp_path_factory.mktemp("stranger")
    script = "set -eu\n"
    for number, (language, text) in enumerate(BLOCK.findall(PAGE.read_text())):
        program = directory / f"block_{number}.py"
        if language == "py":
            program.write_text(text)
        script += f"echo '== block {number}'\n" + (text if language == "sh" else f"python {program.name}\n")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    shell = subprocess.Popen(
        ["bash", "-c", script],
        cwd=directory,
        env={**os.environ, "PATH": path, "OMP_NUM_THREADS": "1", "BROKER_URL": "", "SINK_URL": ""},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        text, errors = shell.communicate(timeout=900)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(shell.pid, signal.SIGKILL)  # the worker too, should a block fail before it is stopped
    assert shell.returncode == 0, f"{text}\n{errors}"
    return directory, text


def test_every_step_of_the_guide_leaves_what_it_promises(printed: tuple[Path, str]) -> None:
    """A report, predictions, a served row for each photo, and books that balance."""
    directory, text = printed
    metrics = json.loads((directory / "report" / "metrics.json").read_text())
    assert "digit-7" in json.dumps(metrics)
    assert (directory / "report" / "report.html").stat().st_size > 10_000
    photos = list((directory / "photos" / "digit-7").iterdir())
    with (directory / "predictions.csv").open() as rows:
        assert len(list(csv.DictReader(rows))) == len(photos)
    assert "digit-7" in text.split("== block 4")[1]
    assert f"{len(photos)}" in text.split("== block 4")[1]


def test_a_table_gives_a_row_for_each_of_its_rows(printed: tuple[Path, str]) -> None:
    """In its order, categories and tags included, most of them right."""
    directory, _ = printed
    with (directory / "answers.csv").open() as answers, (directory / "table.csv").open() as table:
        pairs = list(zip(csv.DictReader(answers), csv.DictReader(table), strict=True))
    assert sum(answer["category1"] == row["digit"] for answer, row in pairs) > 0.8 * len(pairs)
    assert sum(answer["loop"] == row["loop"] for answer, row in pairs) > 0.8 * len(pairs)


def test_a_network_of_ones_own_is_trained_and_exported(printed: tuple[Path, str]) -> None:
    """The last program says how good its network is; digits are easy enough for half."""
    _, text = printed
    share = re.search(r"([\d.]+)% of the test images", text)
    assert share
    assert float(share[1]) > 50
