"""``couturier models``: what is there, what it is, whether it is whole."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from classifier.__main__ import app
from classifier.bundle import ONNX_INT8


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> object:
    """Runs ``couturier models ...`` in an empty directory."""
    monkeypatch.delenv("COUTURIER_MODEL", raising=False)
    monkeypatch.chdir(tmp_path)
    return lambda *arguments, **env: CliRunner().invoke(app, ["models", *arguments], env=env)


def said(result: Result) -> object:
    return json.loads(result.stdout)


def test_the_list_has_shipped_local_and_configured_models(run, bundle_copy: Path, tmp_path: Path) -> None:
    """Each once, with what it is; one that is damaged is listed with the reason."""
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    (damaged / "manifest.json").write_text("{}")
    result = run("list", "--json", COUTURIER_MODEL=str(bundle_copy))
    assert result.exit_code == 0, result.output
    rows = {row["model"]: row for row in said(result)}
    assert {"student", "bundle", "damaged"} <= rows.keys()
    assert rows["student"]["hash"] == rows["bundle"]["hash"]
    assert "error" in rows["damaged"]
    text = run("list").stdout
    assert "28x28x1, 10 classes" in text
    assert "damaged" in text
    elsewhere = bundle_copy.rename(tmp_path / "deep").resolve()
    (tmp_path / "below").mkdir()
    elsewhere = elsewhere.rename(tmp_path / "below" / "model")
    named = said(run("list", "--json", COUTURIER_MODEL=str(elsewhere)))
    assert str(elsewhere) in [row["model"] for row in named]


def test_show_prints_the_card_or_the_manifest(run, bundle_copy: Path) -> None:
    """Of the shipped student, of a directory, of the one that the environment names."""
    card = run("show")
    assert card.exit_code == 0
    assert card.stdout.startswith("# student")
    assert "## Limits" in card.stdout
    manifest = said(run("show", "--json", COUTURIER_MODEL=str(bundle_copy)))
    assert manifest["directory"] == str(bundle_copy)
    assert manifest["labels"] == said(run("show", "student", "--json"))["labels"]
    missing = run("show", "nowhere")
    assert missing.exit_code == 78
    assert "nowhere: no such model directory" in missing.stderr


def test_verify_checks_every_file_and_engine(run) -> None:
    """Hashes, and the golden images on what is installed."""
    result = run("verify", "student", "--json")
    assert result.exit_code == 0, result.output
    states = {each["what"]: each["state"] for each in said(result)}
    assert states["manifest.json"] == states[ONNX_INT8] == states["card.md"] == "ok"
    assert states["onnx"] == states["onnx-int8"] == "ok"
    assert set(states.values()) <= {"ok", "skipped"}


def test_verify_fails_on_a_tampered_file(run, bundle_copy: Path) -> None:
    """With the file's name and both hashes, in words and in JSON."""
    content = bytearray((bundle_copy / ONNX_INT8).read_bytes())
    content[-1] ^= 1
    (bundle_copy / ONNX_INT8).write_bytes(content)
    result = run("verify", str(bundle_copy))
    assert result.exit_code == 1
    assert "failed" in result.stdout
    assert "model.int8.onnx: sha256" in result.stdout
    (finding,) = said(run("verify", str(bundle_copy), "--json"))
    assert finding["state"] == "failed"
