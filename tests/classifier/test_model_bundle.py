"""Bundles: whatever is missing, changed or foreign is refused by name."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from classifier import Bundle, Classifier, MissingExtra, ModelError
from classifier.bundle import (
    FILES,
    MANIFEST,
    SHIPPED,
    SHIPPED_MODELS,
    behaviour_hash,
    file_entry,
    locate,
    seal,
)


def reseal(directory: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the manifest and make its hashes fit again, as a careless editor with our tools could."""
    path = directory / MANIFEST
    document = json.loads(path.read_text())
    for key in ("manifest_sha256", "hash"):
        document.pop(key)
    change(document)
    path.write_bytes(seal(document))


@pytest.mark.parametrize("name", FILES)
def test_a_changed_file_is_refused_with_both_hashes(bundle_copy: Path, name: str) -> None:
    """One flipped bit, same size: named with what was found and what was expected."""
    content = bytearray((bundle_copy / name).read_bytes())
    content[len(content) // 2] ^= 1
    (bundle_copy / name).write_bytes(content)
    expected = Bundle.load().manifest.files[name]["sha256"]
    with pytest.raises(
        ModelError, match=rf"{name}: sha256 [0-9a-f]{{64}}, expected {expected}; take a fresh copy"
    ):
        Classifier.load(bundle_copy)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(bundle_copy: Path, name: str) -> None:
    """Also a file the chosen engine would not need."""
    (bundle_copy / name).unlink()
    with pytest.raises(ModelError, match=f"{name}: cannot be read"):
        Classifier.load(bundle_copy)


@pytest.mark.parametrize("name", FILES)
def test_a_cut_file_is_refused_by_its_size(bundle_copy: Path, name: str) -> None:
    """An interrupted copy is told by its length."""
    content = (bundle_copy / name).read_bytes()
    (bundle_copy / name).write_bytes(content[:-10])
    with pytest.raises(ModelError, match=rf"{name}: {len(content) - 10} bytes, expected {len(content)}"):
        Classifier.load(bundle_copy)


def test_a_missing_directory_says_what_to_type(tmp_path: Path) -> None:
    """A typing error in --model ends with the option's name."""
    with pytest.raises(ModelError, match=r"no such model directory.*--model"):
        Classifier.load(tmp_path / "nowhere")


def test_a_directory_that_is_no_bundle_is_named(tmp_path: Path) -> None:
    """An existing directory without a manifest."""
    with pytest.raises(ModelError, match=r"manifest\.json: cannot be read"):
        Classifier.load(tmp_path)


@pytest.mark.parametrize(
    "content",
    [b"", b"garbage", b"\xff\xfe\x00", b"[]", b"{}", b"null", b"[" * 100_000, b'{"format_version": 2}'],
)
def test_a_garbage_manifest_is_refused(bundle_copy: Path, content: bytes) -> None:
    """No content gets past the reader as another exception."""
    (bundle_copy / MANIFEST).write_bytes(content)
    with pytest.raises(ModelError, match=r"manifest\.json"):
        Classifier.load(bundle_copy)


def test_swapped_labels_are_noticed(bundle_copy: Path) -> None:
    """The costliest edit, two labels exchanged, leaves every other file intact."""
    path = bundle_copy / MANIFEST
    document = json.loads(path.read_text())
    document["labels"][0], document["labels"][1] = document["labels"][1], document["labels"][0]
    path.write_text(json.dumps(document))
    with pytest.raises(ModelError, match="was changed after export"):
        Classifier.load(bundle_copy)


def test_another_format_version_is_told_apart(bundle_copy: Path) -> None:
    """A bundle from the future asks for another release, not for a new copy."""
    reseal(bundle_copy, lambda document: document.update(format_version=3))
    with pytest.raises(ModelError, match="format version 3, this release reads 2"):
        Classifier.load(bundle_copy)


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d.pop("labels"),
        lambda d: d["labels"].pop(),
        lambda d: d.update(temperature=0),
        lambda d: d.update(temperature="hot"),
        lambda d: d.update(groups={}),
        lambda d: d.update(groups=[]),
        lambda d: d["preprocessing"].update(size=0),
        lambda d: d["preprocessing"].update(surprise=1),
        lambda d: d.update(architecture={}),
        lambda d: d.update(tags=[{"name": "floral", "threshold": 0.5}]),
        lambda d: d["architecture"].update(tags=1),
        lambda d: d.update(abstention={"outlier_threshold": "far"}),
        lambda d: d.update(conformal={"0.9": [0.5]}),
        lambda d: d["files"].pop("card.md"),
        lambda d: d["files"].update({"../secret": {"sha256": "", "bytes": 0}}),
        lambda d: d["files"].update({"weights.pkl": {"sha256": "", "bytes": 0}}),
    ],
)
def test_an_inconsistent_manifest_is_refused(bundle_copy: Path, change: Callable[[dict], object]) -> None:
    """Right hashes do not excuse missing or impossible fields."""
    path = bundle_copy / MANIFEST
    try:
        reseal(bundle_copy, change)
    except KeyError:
        document = json.loads(path.read_text())
        change(document)
        path.write_text(json.dumps(document))
    with pytest.raises(ModelError, match=r"manifest\.json"):
        Classifier.load(bundle_copy)


def test_a_label_too_few_is_refused_by_the_engine(bundle_copy: Path) -> None:
    """Ten outputs cannot carry nine names."""

    def drop(document: dict) -> None:
        at = document["labels"].index("Bag")
        for per_class in (document["labels"], *document["conformal"].values()):
            del per_class[at]
        del document["groups"]["Bags"], document["reference"]
        document["architecture"]["classes"] = 9

    reseal(bundle_copy, drop)
    for engine in ("onnx", "onnx-int8", "openvino"):
        with pytest.raises(ModelError, match=r"9 labels"):
            Classifier.load(bundle_copy, engine)


def test_a_listed_file_that_is_no_network_is_refused(bundle_copy: Path) -> None:
    """A pickle renamed to .onnx with right hashes is not run, and the error names it."""
    content = b"\x80\x04cos\nsystem\n(S'true'\ntR."
    (bundle_copy / "model.onnx").write_bytes(content)
    reseal(bundle_copy, lambda document: document["files"].update({"model.onnx": file_entry(content)}))
    for engine in ("onnx", "openvino"):
        with pytest.raises(ModelError, match=r"model\.onnx: cannot be run"):
            Classifier.load(bundle_copy, engine)


def test_weights_of_another_shape_are_refused(bundle_copy: Path, torch: Any) -> None:
    """Names, shapes and types are held against the architecture before anything is loaded."""
    from safetensors.torch import load, save

    tensors = load((SHIPPED / "model.safetensors").read_bytes())
    wrong = {**tensors, "head.bias": torch.zeros(11)}
    infinite = {**tensors, "head.bias": torch.full((10,), float("nan"))}
    missing = {name: tensor for name, tensor in tensors.items() if name != "head.bias"}
    for bad, message in (
        (wrong, "head.bias is"),
        (infinite, "not finite"),
        (missing, "head.bias is missing"),
    ):
        content = save(bad)
        (bundle_copy / "model.safetensors").write_bytes(content)
        entry = {"model.safetensors": file_entry(content)}
        reseal(bundle_copy, lambda document, entry=entry: document["files"].update(entry))
        with pytest.raises(ModelError, match=message):
            Classifier.load(bundle_copy, "torch")


def test_a_renamed_pickle_is_not_loaded_as_weights(bundle_copy: Path, torch: Any) -> None:
    """There is no pickle loader to fall back to."""
    content = b"\x80\x04cos\nsystem\n(S'true'\ntR."
    (bundle_copy / "model.safetensors").write_bytes(content)
    entry = {"model.safetensors": file_entry(content)}
    reseal(bundle_copy, lambda document: document["files"].update(entry))
    with pytest.raises(ModelError, match=r"model\.safetensors: cannot be read"):
        Classifier.load(bundle_copy, "torch")


def test_the_models_hash_ignores_dates_and_metrics() -> None:
    """Two exports of the same model are the same model to whoever compares results."""
    document = json.loads((SHIPPED / MANIFEST).read_text())
    assert document["hash"] == behaviour_hash({**document, "provenance": {}, "metrics": {}})
    assert document["hash"] != behaviour_hash({**document, "temperature": 2.0})


def test_an_unknown_engine_is_refused() -> None:
    """The error lists the engines there are."""
    with pytest.raises(ValueError, match="onnx, onnx-int8, openvino, openvino-int8, torch"):
        Classifier.load(engine="tpu")


def test_threads_must_be_positive() -> None:
    """Zero would mean "all cores" to the runtime, which no worker wants by accident."""
    with pytest.raises(ValueError, match="at least 1"):
        Classifier.load(threads=0)


NO_PICKLE = """
import io, pickle, sys, _pickle
def refuse(*_, **__):
    raise SystemExit("something was unpickled")
class Refuse:
    def __init__(self, *_, **__):
        refuse()
pickle.load = pickle.loads = _pickle.load = _pickle.loads = refuse
pickle.Unpickler = pickle._Unpickler = _pickle.Unpickler = Refuse
if "torch" in sys.argv:
    import torch
    torch.load = refuse
from classifier import Classifier
for engine in sys.argv[2:]:
    Classifier.load(sys.argv[1], engine).self_test()
print("loaded")
"""


def test_no_engine_unpickles_anything(torch: Any) -> None:
    """Every loader of pickles is out of order, and every engine works."""
    engines = ["onnx", "onnx-int8", "openvino", "openvino-int8", "torch"]
    command = [sys.executable, "-c", NO_PICKLE, str(SHIPPED), *engines]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.stdout.strip(), done.returncode) == ("loaded", 0), done.stderr


def test_a_pickle_beside_the_bundle_is_never_opened(bundle_copy: Path) -> None:
    """What the manifest does not list is no part of the model."""
    (bundle_copy / "model.pkl").symlink_to("/nonexistent/trap")
    Classifier.load(bundle_copy).self_test()


def test_the_shipped_models_have_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever lies in the current directory, and as a path; anything else is a directory."""
    (tmp_path / "student").mkdir()
    monkeypatch.chdir(tmp_path)
    assert locate() == locate("student") == locate(Path("student")) == SHIPPED
    assert SHIPPED_MODELS["student"] == SHIPPED
    assert locate(tmp_path / "student") == tmp_path / "student"
    assert locate("models/mine") == Path("models/mine")
    with pytest.raises(ModelError, match=r"no such model directory.*or one of student"):
        Classifier.load("studnet")


def test_openvino_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """With what to install."""
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(MissingExtra, match="needs the extra 'openvino'"):
        Classifier.load(engine="openvino")
