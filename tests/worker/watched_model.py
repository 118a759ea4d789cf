"""A copy of the shipped model that knows what its answers should look like, and when to abstain."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from classifier import Classifier, Prediction
from classifier.bundle import MANIFEST, SHIPPED, seal
from classifier.reference import Reference, reference_of

# Best guesses below it are not answered.
UNSURE = 0.6


def watched_model(directory: Path, images: Sequence[bytes], times: int = 1) -> tuple[Path, Reference]:
    """Make the copy.

    Args:
        directory: that is made.
        images: that its reference counts, each so many ``times``.
    """
    shutil.copytree(SHIPPED, directory)
    path = directory / MANIFEST
    document = json.loads(path.read_text())
    document.pop("manifest_sha256")
    document["abstention"] = {"outlier_threshold": None, "confidence_threshold": UNSURE, "accepted": 1.0}
    path.write_bytes(seal(document))
    model = Classifier.load(directory)
    answers = [each for each in model.predict(images) if isinstance(each, Prediction)]
    reference = reference_of(answers * times, model.manifest.labels, "held out")
    path.write_bytes(seal(document | {"reference": asdict(reference)}))
    return directory, reference
