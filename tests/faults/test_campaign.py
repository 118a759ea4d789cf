"""The campaign: short enough to be tried here with ``-m campaign``, and as long as its command is told."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from .campaign import main
from .campaign_report import Facts, markdown, write_section
from .scene import Report

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "reliability.md"


@pytest.mark.campaign
@pytest.mark.parametrize("backend", ["kafka", "pubsub"])
def test_a_campaign_loses_nothing(backend: str, tmp_path: Path) -> None:
    """``FAULT_MESSAGES`` messages, a kill for every thousand: lost 0, duplicate rows 0, wrong class 0."""
    count = int(os.environ.get("FAULT_MESSAGES", "20000"))
    report = tmp_path / "report.json"
    arguments = ["--messages", str(count), "--kills", str(count // 1000), "--backend", backend]
    assert main([*arguments, "--report", str(report)]) == 0
    found = json.loads(report.read_text())
    assert (found["lost"], found["duplicate_rows"], found["wrong_class"]) == (0, 0, 0)
    assert found["faults"]["worker killed"] + found["faults"]["engine killed"] == count // 1000


@pytest.mark.parametrize("backend", ["kafka", "pubsub"])
def test_a_report_finds_its_place_in_the_document(backend: str, tmp_path: Path) -> None:
    """The markers are there; what stands between them is replaced, and nothing else."""
    copy = tmp_path / "reliability.md"
    copy.write_text(DOCUMENT.read_text())
    facts = Facts("command", "date", "commit", "machine", 3)
    for name in ("first", "second"):
        text = markdown(Report(name, f"{name} report", faults={"worker killed": 1}), facts)
        write_section(copy, backend, text)
    assert "first report" not in copy.read_text()
    assert "second report" in copy.read_text()
    begin, end = f"<!-- campaign {backend} -->", f"<!-- /campaign {backend} -->"
    for old, new in zip(DOCUMENT.read_text().split(begin), copy.read_text().split(begin), strict=True):
        assert old.partition(end)[2] == new.partition(end)[2]
