"""The two ONNX files of a bundle: fp32 and statically quantised int8."""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from .errors import MissingExtra, ModelError
from .model import Network, fold
from .outliers import OutlierScore

_INPUT, _LOGITS, _TAGS, _OUTLIER = "images", "logits", "tag_logits", "outlier"
_QUANTISED = ["Add", "Conv", "Gemm", "MatMul", "MaxPool", "Relu"]


class _Served(nn.Module):
    """A network as it is served: what exists of logits, tag logits and outlier score."""

    def __init__(self, network: Network, score: OutlierScore | None) -> None:
        super().__init__()
        self.network, self.score = fold(network).to(memory_format=torch.contiguous_format), score
        tags = [_TAGS] if network.config.tags else []
        self.names = [_LOGITS, *tags, *([_OUTLIER] if score is not None else [])]

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        logits, tag_logits, evidence = self.network(images)
        found = {_LOGITS: logits, _TAGS: tag_logits}
        if self.score is not None:
            found[_OUTLIER] = self.score(evidence, logits)
        return tuple(found[name] for name in self.names)


def onnx_bytes(network: Network, score: OutlierScore | None = None) -> bytes:
    """The network and its outlier score as one self-contained ONNX file with a free batch size.

    Input ``images``; outputs ``logits``, ``tag_logits`` if there are tags, ``outlier`` if there is a score.
    The batch norms of our own bodies are folded into their convolutions, and so are those of others where
    the layers follow each other.

    Raises:
        MissingExtra: onnx or onnxscript is not installed.
        ModelError: a layer of a custom body has no ONNX form.
    """
    config = network.config
    served = _Served(network, score).eval()
    example = torch.zeros(2, config.channels, config.size, config.size, dtype=torch.uint8)
    target = io.BytesIO()
    try:
        with _quiet():
            program = torch.onnx.export(
                served,
                (example,),
                dynamo=True,
                input_names=[_INPUT],
                output_names=served.names,
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                verbose=False,
            )
            assert program is not None
            program.save(target, external_data=False)  # type: ignore[arg-type] # the stub omits file objects
    except ModuleNotFoundError as error:
        raise MissingExtra("exporting", "train", error.name) from error
    except torch.onnx.OnnxExporterError as error:
        raise ModelError(
            f"this network cannot be written as ONNX ({_first_cause(error)}); replace that layer in your"
            " factory"
        ) from error
    return _without_traces(target.getvalue())


def _first_cause(error: BaseException) -> str:
    """What the innermost error says, without torch's pages of advice."""
    while error.__cause__ is not None:
        error = error.__cause__
    return str(error).strip().partition("\n")[0] or type(error).__name__


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
    """Static QDQ quantisation, ranges from (N, C, H, W) ``images``; the outlier score stays as it is.

    Weights use 7 of 8 bits: processors without VNNI add pairs of products in 16 bits,
    which full-range weights overflow, so the same file would answer differently there.
    """
    try:
        import onnx
        from onnxruntime.quantization import (  # type: ignore[import-untyped]
            CalibrationDataReader,
            QuantType,
            quantize_static,
        )
    except ModuleNotFoundError as error:
        raise MissingExtra("exporting int8", "train", error.name) from error

    class Reader(CalibrationDataReader):  # type: ignore[misc] # untyped base class
        def __init__(self) -> None:
            self._parts = iter(np.array_split(images, max(1, len(images) // 64)))

        def get_next(self) -> dict[str, NDArray[np.uint8]] | None:
            part = next(self._parts, None)
            return None if part is None else {_INPUT: part}

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
            op_types_to_quantize=_QUANTISED,
            nodes_to_exclude=_only_for_outliers(onnx.load_from_string(model).graph),
        )
        return target.read_bytes()


def _only_for_outliers(graph: Any) -> list[str]:
    """The nodes that work for the outlier score alone.

    Distances are differences of nearly equal numbers: eight bits would leave nothing of them.
    """
    maker = {name: node for node in graph.node for name in node.output}

    def behind(outputs: list[str]) -> set[str]:
        found: set[str] = set()
        waiting = list(outputs)
        while waiting:
            node = maker.get(waiting.pop())
            if node is not None and node.name not in found:
                found.add(node.name)
                waiting.extend(node.input)
        return found

    answers = [output.name for output in graph.output if output.name != _OUTLIER]
    return sorted(behind([_OUTLIER]) - behind(answers))


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
