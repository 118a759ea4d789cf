"""The two ONNX files of a bundle: fp32 and statically quantised int8."""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from .errors import MissingExtra
from .model import Network, fold


def onnx_bytes(network: Network) -> bytes:
    """The network, batch norms folded, as one self-contained ONNX file with a free batch size.

    Raises:
        MissingExtra: onnx or onnxscript is not installed.
    """
    size = network.config.size
    example = torch.zeros(2, 1, size, size, dtype=torch.uint8)
    folded = fold(network).to(memory_format=torch.contiguous_format)
    target = io.BytesIO()
    try:
        with _quiet():
            program = torch.onnx.export(
                folded,
                (example,),
                dynamo=True,
                input_names=["images"],
                output_names=["logits"],
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                verbose=False,
            )
            assert program is not None
            program.save(target, external_data=False)  # type: ignore[arg-type] # the stub omits file objects
    except ModuleNotFoundError as error:
        raise MissingExtra("exporting", "train", error.name) from error
    return _without_traces(target.getvalue())


def _without_traces(model: bytes) -> bytes:
    """The exporter notes on every node the source lines, with this machine's paths, that made it."""
    import onnx

    document = onnx.load_from_string(model)
    graph = document.graph
    for part in (
        document,
        graph,
        *graph.node,
        *graph.value_info,
        *graph.input,
        *graph.output,
        *graph.initializer,
    ):
        part.doc_string = ""
        del part.metadata_props[:]
    return bytes(document.SerializeToString())


def int8_bytes(model: bytes, images: NDArray[np.uint8]) -> bytes:
    """Static QDQ quantisation, ranges from (N, H, W) ``images``.

    Weights use 7 of 8 bits: processors without VNNI add pairs of products in 16 bits,
    which full-range weights overflow, so the same file would answer differently there.
    """
    try:
        from onnxruntime.quantization import (  # type: ignore[import-untyped]
            CalibrationDataReader,
            QuantType,
            quantize_static,
        )
    except ModuleNotFoundError as error:
        raise MissingExtra("exporting int8", "train", error.name) from error

    class Reader(CalibrationDataReader):  # type: ignore[misc] # untyped base class
        def __init__(self) -> None:
            parts = np.array_split(images[:, None], max(1, len(images) // 64))
            self._parts = iter(parts)

        def get_next(self) -> dict[str, NDArray[np.uint8]] | None:
            part = next(self._parts, None)
            return None if part is None else {"images": part}

    with tempfile.TemporaryDirectory() as scratch, _quiet():
        source, target = Path(scratch) / "fp32.onnx", Path(scratch) / "int8.onnx"
        source.write_bytes(model)
        quantize_static(
            source,
            target,
            Reader(),
            per_channel=True,
            reduce_range=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            op_types_to_quantize=["Conv", "MaxPool", "Relu", "Gemm", "MatMul"],
        )
        return target.read_bytes()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporters' advice on their own internals is of no use to whoever exports a model."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
