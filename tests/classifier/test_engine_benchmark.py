"""The table of inference engines: every engine that runs here, with a reason for each that does not."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from benchmarks import engines
from classifier.bundle import SHIPPED
from classifier.engines import ENGINES


def test_the_engine_benchmark_measures_and_says_what_it_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """JSON on stdout, the table on stderr and in a page; an engine that is not installed is named."""
    monkeypatch.setitem(sys.modules, "openvino", None)
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- engines -->\nold\n<!-- /engines -->\nafter\n")
    arguments = ["--rounds", "1", "--seconds", "0.01", "--images", "64", "--markdown", str(page)]
    assert engines.main([*arguments, str(SHIPPED)]) == 0
    said = capsys.readouterr()
    rows = {row["engine"]: row for row in json.loads(said.out)["engines"]}
    assert rows.keys() == set(ENGINES)
    assert "needs the extra 'openvino'" in rows["openvino"]["skipped"]
    onnx, int8 = rows["onnx"], rows["onnx-int8"]
    assert (onnx["ratio"], onnx["latency_ratio"]) == (1.0, 1.0)
    assert min(onnx["images_per_core_s"], int8["images_per_core_s"], int8["latency_ms"]) > 0
    assert onnx["accuracy"] == pytest.approx(int8["accuracy"], abs=0.05)
    assert int8["bytes"] < onnx["bytes"]
    assert "| student, " in page.read_text()
    assert "openvino was not run" in said.err
