"""Models that somebody prepared: right hashes, wrong contents."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_model_bundle import reseal

from classifier import Classifier, ModelError
from classifier.bundle import ONNX, WEIGHTS, file_entry


def put(bundle: Path, name: str, content: bytes) -> None:
    """Replace a file, and make the manifest's hashes fit."""
    (bundle / name).write_bytes(content)
    reseal(bundle, lambda document: document["files"].update({name: file_entry(content)}))


def header(tensors: dict[str, Any], body: bytes = b"") -> bytes:
    """A safetensors file with this header."""
    text = json.dumps(tensors).encode()
    return struct.pack("<Q", len(text)) + text + body


def many(count: int) -> bytes:
    """A header of so many empty tensors."""
    return header({f"t{n}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for n in range(count)})


def bias(shape: list[int], end: int) -> bytes:
    """One tensor that says of itself what it likes; there are 40 bytes of it."""
    return header({"head.bias": {"dtype": "F32", "shape": shape, "data_offsets": [0, end]}}, bytes(40))


HEADERS: dict[str, Callable[[], bytes]] = {
    "100,000 tensors": lambda: many(100_000),
    "a length beyond the file": lambda: struct.pack("<Q", 1 << 62) + b"{}",
    "offsets beyond the file": lambda: bias([10], 1 << 50),
    "more values than can be counted": lambda: bias([1 << 62, 1 << 62], 40),
    "nested a thousand deep": lambda: struct.pack("<Q", 2000) + b"[" * 1000 + b"]" * 1000,
}


@pytest.mark.parametrize("make", HEADERS.values(), ids=HEADERS)
def test_a_header_that_wants_too_much_is_refused_at_once(
    bundle_copy: Path, torch: Any, make: Callable[[], bytes]
) -> None:
    """Nothing of that size is made; the error names the file."""
    put(bundle_copy, WEIGHTS, make())
    with pytest.raises(ModelError, match=r"model\.safetensors"):
        Classifier.load(bundle_copy, "torch")


def test_a_network_that_answers_no_numbers_does_not_start(bundle_copy: Path, torch: Any) -> None:
    """Weights that are not finite: the golden images, which every engine answers at its start, notice."""
    import onnx

    network = onnx.load_model_from_string((bundle_copy / ONNX).read_bytes())
    weights = next(each for each in network.graph.initializer if len(each.dims) > 1)
    broken = onnx.numpy_helper.to_array(weights) * np.float32("nan")
    weights.CopyFrom(onnx.numpy_helper.from_array(broken.astype(np.float32), weights.name))
    put(bundle_copy, ONNX, network.SerializeToString())
    with pytest.raises(ModelError):
        Classifier.load(bundle_copy).self_test()


def test_a_network_cannot_read_other_files(
    bundle_copy: Path, tmp_path: Path, monkeypatch: Any, torch: Any
) -> None:
    """Weights "in another file", as ONNX may say: not looked for, wherever the process stands."""
    import onnx

    network = onnx.load_model_from_string((bundle_copy / ONNX).read_bytes())
    weights = next(each for each in network.graph.initializer if len(each.dims) > 1)
    size = len(onnx.numpy_helper.to_array(weights).tobytes())
    (tmp_path / "private").write_bytes(bytes(size))
    monkeypatch.chdir(tmp_path)
    for field in ("raw_data", "float_data"):
        weights.ClearField(field)
    weights.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", "private"), ("offset", "0"), ("length", str(size))):
        weights.external_data.add(key=key, value=value)
    put(bundle_copy, ONNX, network.SerializeToString())
    with pytest.raises(ModelError):
        Classifier.load(bundle_copy).self_test()
