"""The benchmarks of decoding run and report what they measured."""

from __future__ import annotations

import json
from itertools import islice

import pytest

from benchmarks import decode, photos


def test_every_case_is_measured_beside_pillow(capsys: pytest.CaptureFixture[str]) -> None:
    """One JSON object on stdout with a rate and a ratio for each case; a table for people on stderr."""
    assert decode.main(["--rounds", "1", "--seconds", "0.01"]) == 0
    printed = capsys.readouterr()
    report = json.loads(printed.out)
    assert [row["case"] for row in report["results"]] == [case.name for case in decode.CASES]
    assert all(row["images_per_s"] > 0 and row["ratio"] > 0 for row in report["results"])
    assert set(report["versions"]) == {"pillow", "numpy"}
    assert len(printed.err.splitlines()) == len(decode.CASES)


@pytest.mark.parametrize("case", decode.CASES, ids=lambda case: case.name)
def test_both_sides_make_the_same_pixels(case: decode.Case) -> None:
    """The comparison is of two ways to one result: equal for PNG, a rounding apart for reduced JPEG."""
    files = list(islice(decode.files(case), 2))
    ours = decode.decode(files, case.spec).tensor.astype(int)
    theirs = [decode.plain_pillow(data, case.spec) for data in files]
    for mine, other in zip(ours, theirs, strict=True):
        assert abs(mine - other).mean() <= (0 if case.kind == "PNG" else 3), case.name


def test_polarity_costs_no_accuracy_and_saves_photos(capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing changes for garments light on dark, and those dark on light are recognised."""
    assert photos.main(["--images", "500", "--photos", "20"]) == 0
    report = json.loads(capsys.readouterr().out)
    usual, inverted = report["light on dark"], report["dark on light"]
    assert usual["turned_over"] == 0
    assert usual["accuracy_keep"] == usual["accuracy_auto"]
    assert inverted["turned_over"] >= 495
    assert inverted["accuracy_auto"] > usual["accuracy_keep"] - 0.01
    assert inverted["accuracy_keep"] < 0.5
