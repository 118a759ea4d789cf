"""Every notebook runs from its first cell to its last, and what is committed is a clean full run."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import nbformat
import pytest

NOTEBOOKS = sorted((Path(__file__).resolve().parent.parent / "notebooks").glob("*.ipynb"))
# What fits a model, in torch, in scikit-learn or with our own library, or defines a network.
MODELLING = re.compile(r"\bnn\.Sequential\(|\.fit(_transform)?\(|\btrain\(|\bcompare\(|couturier train\b")
SOURCE = re.compile(r"https?://|arXiv:\d{4}\.\d{4,5}")
MACHINE_PATH = re.compile(r"(?<![\w.])/(root|home|work|tmp|Users|private|var|opt|mnt)/|site-packages")


def read(path: Path) -> Any:
    return nbformat.read(path, as_version=4)


def printed(cell: Any) -> str:
    """Everything textual that a cell put out."""
    parts = []
    for output in cell.get("outputs", []):
        parts.append(output.get("text", ""))
        parts += [str(value) for kind, value in output.get("data", {}).items() if kind.startswith("text/")]
    return "\n".join(parts)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_from_its_first_cell_to_its_last(path: Path, tmp_path: Path) -> None:
    """On the reduced size, in an empty directory, so that nothing of an earlier run helps."""
    from nbclient import NotebookClient

    notebook = read(path)
    environment = {
        **os.environ,
        "NOTEBOOK_SIZE": "small",
        "OMP_NUM_THREADS": "1",
        "IPYTHONDIR": str(tmp_path),
    }
    client = NotebookClient(notebook, timeout=240, resources={"metadata": {"path": str(tmp_path)}})
    client.execute(env=environment)
    assert all(cell["execution_count"] for cell in notebook.cells if cell.cell_type == "code")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_model_is_announced_with_its_source(path: Path) -> None:
    """A reader learns what is tried, and who proposed it, before seeing the code."""
    cells = read(path).cells
    models = [
        at for at, cell in enumerate(cells) if cell.cell_type == "code" and MODELLING.search(cell.source)
    ]
    assert models, f"{path.name} fits no model"
    for at in models:
        before = cells[at - 1]
        assert before.cell_type == "markdown", f"cell {at} fits a model unannounced:\n{cells[at].source}"
        assert SOURCE.search(before.source), f"cell {at - 1} names no source:\n{before.source}"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_committed_outputs_are_those_of_a_clean_full_run(path: Path) -> None:
    """Cells ran in order, none failed or warned, and no output names the machine it ran on."""
    cells = [cell for cell in read(path).cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    text = "\n".join(printed(cell) for cell in cells)
    kinds = {(output.output_type, output.get("name")) for cell in cells for output in cell.outputs}
    assert not {kind for kind in kinds if kind[0] == "error" or kind[1] == "stderr"}
    assert "full run" in text, f"{path.name} was committed with the outputs of a reduced run"
    assert not MACHINE_PATH.search(text), MACHINE_PATH.search(text)
    assert any("image/png" in output.get("data", {}) for cell in cells for output in cell.outputs)
