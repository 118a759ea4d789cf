"""What an answer costs on this machine: latency, throughput and file size of every engine that runs here."""

from __future__ import annotations

import os
import platform
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..bundle import Bundle
from ..data import Dataset
from ..engines import ENGINES, file_of
from ..errors import MissingExtra, ModelError
from ..installed import package_versions
from ..metrics import Labels
from ..predict import Classifier
from .answers import ask

BATCHES = (1, 32, 256)
_COMPARED = 2000
# Instruction sets that decide how fast fp32, int8 and bf16 networks run.
_FLAGS = (
    "avx2",
    "avx512f",
    "avx512_vnni",
    "avx_vnni",
    "avx512_bf16",
    "amx_int8",
    "amx_bf16",
    "asimddp",
    "i8mm",
)


@dataclass(frozen=True, slots=True)
class Latency:
    """One batch size: milliseconds a call, and images a second at the median."""

    batch: int
    p50_ms: float
    p99_ms: float
    images_per_s: float
    calls: int


def latency(classifier: Classifier, data: Dataset, batch: int, seconds: float = 0.15) -> Latency:
    """Time calls of ``batch`` images for about ``seconds``, at least five, after one that does not count."""
    pixels = data.pixels(np.arange(batch) % len(data))
    classifier.logits(pixels)
    times: list[float] = []
    while sum(times) < seconds or len(times) < 5:
        start = time.perf_counter()
        classifier.logits(pixels)
        times.append(time.perf_counter() - start)
    p50, p99 = np.percentile(times, (50, 99))
    return Latency(batch, 1e3 * float(p50), 1e3 * float(p99), batch / float(p50), len(times))


def engine_costs(bundle: Bundle, data: Dataset) -> list[dict[str, Any]]:
    """One object per engine: file and bytes, latencies, accuracy, disagreement with the first engine.

    Accuracy and disagreement are measured on at most 2,000 rows, evenly spread. An engine that cannot run
    here is listed with the reason.
    """
    rows = np.unique(np.linspace(0, len(data) - 1, min(len(data), _COMPARED)).astype(np.int64))
    part = data.take(rows)
    found: list[dict[str, Any]] = []
    first: Labels | None = None
    for engine in ENGINES:
        try:
            classifier = Classifier(bundle, engine)
        except (MissingExtra, ModelError) as error:
            reason = bundle.manifest.unavailable.get(engine, str(error))
            found.append({"engine": engine, "skipped": reason})
            continue
        said = ask(classifier, part).logits.argmax(1)
        first = said if first is None else first
        known = part.labels >= 0
        file = file_of(engine)
        found.append(
            {
                "engine": engine,
                "file": file,
                "bytes": bundle.manifest.files[file]["bytes"],
                "latency": [asdict(latency(classifier, part, batch)) for batch in BATCHES],
                "compared_images": len(part),
                "accuracy": float((said == part.labels)[known].mean()) if known.any() else None,
                "disagreement": float((said != first).mean()),
            }
        )
    return found


def machine() -> dict[str, Any]:
    """Processor, instruction sets that matter, cores this process may use, versions."""
    model, flags = platform.processor() or platform.machine(), set[str]()
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                model = value.strip()
            elif key.strip() in ("flags", "Features"):
                flags = set(value.split())
    except OSError:
        pass
    return {
        "processor": model,
        "flags": [flag for flag in _FLAGS if flag in flags],
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": 1,
        "system": platform.platform(terse=True),
        "python": platform.python_version(),
        "packages": package_versions("numpy", "onnxruntime", "openvino", "pillow", "torch"),
    }
