"""The benchmarks run, and what was lost or had twice is no result."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import broker, drift, scaling
from benchmarks.measure import Job, Stopwatch
from benchmarks.report import Measurement, summary, write_between_markers


def test_the_broker_benchmark_runs_and_counts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """On the embedded queue: figures for publishing and consuming, in JSON, as a table and in a page."""
    page, found = tmp_path / "page.md", tmp_path / "found.json"
    page.write_text("before\n<!-- sqlite -->\nold\n<!-- /sqlite -->\nafter\n")
    arguments = ["--backend", "sqlite", "--sizes", "100", "--messages", "300", "--rounds", "1"]
    assert broker.main([*arguments, "--json", str(found), "--markdown", str(page)]) == 0
    report = json.loads(found.read_text())
    assert [(row["task"], row["messages"]) for row in report["summary"]] == [
        ("publish", 300),
        ("consume", 300),
    ]
    assert all(row["rate"] > 0 and row["peak_bytes"] > 1e6 for row in report["summary"])
    assert report["not_run"] == []
    text = page.read_text()
    assert text.startswith("before\n<!-- sqlite -->\n")
    assert text.endswith("<!-- /sqlite -->\nafter\n")
    assert "| ours |" in text
    assert "old" not in text
    assert "| ours |" in capsys.readouterr().out


def test_the_scaling_benchmark_counts_what_the_workers_acked(tmp_path: Path) -> None:
    """Two workers of processes of their own: their ratio to one, and nothing done twice on SQLite."""
    found = tmp_path / "found.json"
    arguments = ["--backend", "sqlite", "--workers", "1", "2", "--seconds", "0.5"]
    assert scaling.main([*arguments, "--json", str(found)]) == 0
    steps = json.loads(found.read_text())["steps"]
    assert [each["workers"] for each in steps] == [1, 2]
    assert all(0 < each["ideal"] < 1.2 and each["again"] == 0 for each in steps)
    assert steps[0]["ratio"] == 1.0


def test_the_drift_benchmark_tells_harmed_images_from_others(tmp_path: Path) -> None:
    """Quiet for images of the same kind, loud for each harm, where it is."""
    page, found = tmp_path / "page.md", tmp_path / "found.json"
    page.write_text("<!-- drift -->\n<!-- /drift -->\n")
    assert drift.main(["--images", "500", "--json", str(found), "--markdown", str(page)]) == 0
    report = json.loads(found.read_text())
    psi = {each["scene"]: each["psi"] for each in report["scenes"]}
    assert max(psi["other images of the same set"].values()) < 0.1
    assert psi["half of them bags"]["classes"] > 0.2 > psi["half of them bags"]["confidence"]
    assert psi["half as bright"]["brightness"] > 0.2
    assert psi["blurred, mean of 3 x 3 pixels"]["confidence"] > 0.2
    assert next(each["blank"] for each in report["scenes"] if "blank" in each["scene"]) == 0.1
    assert report["cost"].keys() == {"watching", "decode_and_predict"}
    assert "| negatives | **" in page.read_text()


def test_a_client_that_fails_is_named_and_not_faked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The reason stands under the table, and a failure of ours is an exit code."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "sqlite3.py").write_text("raise ImportError('no sqlite here')\n")
    arguments = ["--backend", "sqlite", "--sizes", "100", "--messages", "20", "--rounds", "2"]
    assert broker.main(arguments) == 1
    assert capsys.readouterr().out.count("ours, publish: not run: ImportError: no sqlite here") == 1


@pytest.mark.parametrize(
    ("numbers", "whole"), [([0, 1, 2, 3], True), ([0, 1, 3, 3], False), ([0, 1, 2], False)]
)
def test_only_every_message_once_is_a_result(numbers: list[int], whole: bool) -> None:
    """A message lost and another had twice do not cancel out."""
    watch = Stopwatch(Job("sqlite", "ours", "consume", "", "t", "g", size_bytes=100, count=4))
    watch.take(number.to_bytes(8, "big") + b"filler" for number in numbers)
    watch.stop()
    if whole:
        assert watch.result().seconds > 0
    else:
        with pytest.raises(RuntimeError, match="of 4 messages"):
            watch.result()


def test_a_ratio_is_taken_within_its_round() -> None:
    """The second round was slow for all; ours is half as fast as raw in both."""

    def measured(client: str, number: int, seconds: float) -> Measurement:
        return Measurement(client, "publish", 100, number, 100, seconds, 1.0, (0, 0, 0), 1)

    rows = summary(
        [
            measured("raw", 0, 1.0),
            measured("ours", 0, 2.0),
            measured("raw", 1, 9.0),
            measured("ours", 1, 18.0),
        ]
    )
    assert [(row["client"], row["ratio"]) for row in rows] == [("raw", 1.0), ("ours", 0.5)]


def test_a_page_without_markers_is_left_alone(tmp_path: Path) -> None:
    """Nothing is guessed about where a table belongs."""
    page = tmp_path / "page.md"
    page.write_text("text\n")
    with pytest.raises(SystemExit, match="<!-- kafka -->"):
        write_between_markers(page, "kafka", "table")
    assert page.read_text() == "text\n"
