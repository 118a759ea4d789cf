"""The model bundle: a directory that holds everything needed to serve one model, and proof of it.

    manifest.json       what the model is, what it expects, how good it is, hashes of all other files
    model.safetensors   trained weights (torch engine, further training)
    model.onnx          fp32, normalisation of pixels and outlier score included; the default engine
    model.int8.onnx     int8, statically quantised; left out when it is not as good
    golden.json         images with their expected pixels and answers
    card.md             the same for people: data, recipe, figures, intended use, limits

Nothing in it can run code: there is no pickle, and no loader of pickles. Every file is checked against
the manifest before a parser sees it, and the manifest against its own hash.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import ModelError
from .images import Preprocessing
from .metrics import group_index
from .reference import Reference
from .uncertainty import Abstention

FORMAT_VERSION = 2
MANIFEST = "manifest.json"
WEIGHTS, ONNX, ONNX_INT8 = "model.safetensors", "model.onnx", "model.int8.onnx"
GOLDEN, CARD = "golden.json", "card.md"
REQUIRED = (WEIGHTS, ONNX, GOLDEN, CARD)
FILES = (*REQUIRED, ONNX_INT8)
_ASSETS = Path(__file__).parent / "assets"
SHIPPED_MODELS = {name: _ASSETS / name for name in ("student", "base") if (_ASSETS / name).is_dir()}
SHIPPED = _ASSETS / "student"
_MAX_MANIFEST_BYTES = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Tag:
    """A yes-or-no property: it is there when its probability is at least ``threshold``."""

    name: str
    threshold: float


@dataclass(frozen=True, slots=True)
class Manifest:
    """The parsed manifest.

    Attributes:
        name, version: chosen by whoever exported the model.
        labels: class names in the order of the outputs.
        groups: coarse group -> class names.
        tags: in the order of the outputs.
        preprocessing: how image bytes become the input.
        temperature: logits are divided by it before softmax.
        abstention: when not to answer; None if that was never measured.
        conformal: level ("0.95") -> largest 1 - probability, per class, that is in the answer set.
        architecture: fields of ``ModelConfig``.
        parameter_count: trained values.
        metrics: per engine, the single numbers of :class:`classifier.metrics.Metrics`.
        unavailable: engine -> why this bundle does not run on it.
        reference: its answers on images of the kind it was made for; None in bundles of earlier releases.
        hash: identifies behaviour: weights of every engine and all that turns outputs into answers.
        files: name -> {"sha256", "bytes"}.
        raw: the whole document, with provenance, facts of the data and metrics tables.
    """

    name: str
    version: str
    labels: tuple[str, ...]
    groups: dict[str, tuple[str, ...]]
    tags: tuple[Tag, ...]
    preprocessing: Preprocessing
    temperature: float
    abstention: Abstention | None
    conformal: dict[str, tuple[float, ...]]
    architecture: dict[str, Any]
    parameter_count: int
    metrics: dict[str, dict[str, float]]
    unavailable: dict[str, str]
    reference: Reference | None
    hash: str
    files: dict[str, dict[str, Any]]
    raw: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Bundle:
    """A verified bundle."""

    directory: Path
    manifest: Manifest

    @classmethod
    def load(cls, model: str | os.PathLike[str] | None = None) -> Bundle:
        """Open a bundle and verify every file in it.

        Args:
            model: the bundle's directory, or the name of a shipped one; see :func:`locate`.

        Raises:
            ModelError: missing, damaged, tampered with, or of another format version.
        """
        path = locate(model)
        manifest = _read_manifest(path)
        for name in manifest.files:
            _check_file(path / name, manifest.files[name])
        return cls(path, manifest)

    def read(self, name: str) -> bytes:
        """The bytes of one listed file, verified again as they are read.

        Raises:
            ModelError: the file changed since the bundle was opened.
        """
        return _check_file(self.directory / name, self.manifest.files[name])


def locate(model: str | os.PathLike[str] | None = None) -> Path:
    """The directory that a model's name stands for.

    Args:
        model: "student" or "base" for the shipped ones (``./student`` for a directory of that name), any
            other text for a directory; None for the shipped student.
    """
    if model is None:
        return SHIPPED
    return SHIPPED_MODELS.get(os.fspath(model)) or Path(model)


def behaviour_hash(document: Mapping[str, Any]) -> str:
    """sha256 of what decides the answers; equal for two exports of the same model."""
    keys = ("labels", "groups", "tags", "preprocessing", "temperature", "abstention", "conformal")
    networks = {name: document["files"].get(name) for name in (WEIGHTS, ONNX, ONNX_INT8)}
    return _hash({key: document[key] for key in keys} | {"files": networks})


def seal(document: Mapping[str, Any]) -> bytes:
    """The manifest as written: with the model's hash and the document's own."""
    complete = {**document, "hash": behaviour_hash(document)}
    complete["manifest_sha256"] = _hash(complete)
    return (json.dumps(complete, indent=1, ensure_ascii=False) + "\n").encode()


def file_entry(content: bytes) -> dict[str, Any]:
    """How the manifest lists a file."""
    return {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}


def _hash(document: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(document, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _read_manifest(directory: Path) -> Manifest:
    path = directory / MANIFEST
    again = "; export the model again or take a fresh copy of the whole directory"
    if not directory.is_dir():
        raise ModelError(
            f"{directory}: no such model directory; name with --model a directory that holds a {MANIFEST},"
            f" or one of {', '.join(SHIPPED_MODELS)}"
        )
    try:
        if path.stat().st_size > _MAX_MANIFEST_BYTES:
            raise ModelError(f"{path}: larger than {_MAX_MANIFEST_BYTES} bytes, not a manifest{again}")
        document = json.loads(path.read_bytes())
    except OSError as error:
        raise ModelError(
            f"{path}: cannot be read ({error.strerror}); is {directory} a model bundle?"
        ) from error
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path}: not valid JSON ({error}){again}") from error
    if not isinstance(document, dict):
        raise ModelError(f"{path}: not a manifest, the document is no object{again}")
    if document.get("format_version") != FORMAT_VERSION:
        raise ModelError(
            f"{path}: format version {document.get('format_version')!r}, this release reads {FORMAT_VERSION};"
            " export the model with this release, or install the one it was made with"
        )
    stated = document.pop("manifest_sha256", None)
    found = _hash(document)
    if stated != found:
        raise ModelError(f"{path}: was changed after export: sha256 {found}, expected {stated}{again}")
    try:
        return _parse(document)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ModelError(
            f"{path}: incomplete or inconsistent ({type(error).__name__}: {error}){again}"
        ) from error


def _parse(document: dict[str, Any]) -> Manifest:
    """Raises KeyError, TypeError, ValueError or AttributeError for a document that is no manifest."""
    labels = tuple(str(name) for name in document["labels"])
    groups = {str(name): tuple(members) for name, members in document["groups"].items()}
    group_index(labels, groups)
    temperature = float(document["temperature"])
    if not 0 < temperature < float("inf"):
        raise ValueError(f"temperature {temperature}")
    tags = tuple(Tag(str(tag["name"]), float(tag["threshold"])) for tag in document["tags"])
    _check_outputs(document, labels, tags)
    abstention, reference = document["abstention"], document.get("reference")
    return Manifest(
        name=str(document["name"]),
        version=str(document["version"]),
        labels=labels,
        groups=groups,
        tags=tags,
        preprocessing=Preprocessing(**document["preprocessing"]),
        temperature=temperature,
        abstention=None if abstention is None else Abstention.from_dict(abstention),
        conformal={str(level): tuple(map(float, row)) for level, row in document["conformal"].items()},
        architecture=dict(document["architecture"]),
        parameter_count=int(document["parameter_count"]),
        metrics=dict(document["metrics"]),
        unavailable=dict(document["unavailable"]),
        reference=None if reference is None else Reference.from_dict(reference),
        hash=str(document["hash"]),
        files=dict(document["files"]),
        raw=document,
    )


def _check_outputs(document: dict[str, Any], labels: tuple[str, ...], tags: tuple[Tag, ...]) -> None:
    """Labels, tags, thresholds and files fit each other and the network."""
    shape = document["architecture"]
    if shape["classes"] != len(labels) or shape.get("tags", 0) != len(tags):
        raise ValueError(
            f"{len(labels)} labels and {len(tags)} tags for {shape['classes']} and"
            f" {shape.get('tags', 0)} outputs"
        )
    if not all(0 <= tag.threshold <= 1 for tag in tags):
        raise ValueError(f"tag thresholds must be within 0 and 1: {tags}")
    if any(len(row) != len(labels) for row in document["conformal"].values()):
        raise ValueError("every conformal level needs one quantile for each label")
    names = set(document["files"])
    if names - set(FILES) or set(REQUIRED) - names:
        raise ValueError(f"lists the files {sorted(names)}, a bundle has {', '.join(FILES)}")
    if document["hash"] != behaviour_hash(document):
        raise ValueError("the model's hash does not fit its parts")


def _check_file(path: Path, entry: dict[str, Any]) -> bytes:
    again = "take a fresh copy of the whole directory, or export the model again"
    try:
        size_bytes = path.stat().st_size
        content = path.read_bytes() if size_bytes == entry["bytes"] else b""
    except OSError as error:
        raise ModelError(f"{path}: cannot be read ({error.strerror}); {again}") from error
    if size_bytes != entry["bytes"]:
        raise ModelError(f"{path}: {size_bytes} bytes, expected {entry['bytes']}; {again}")
    found = hashlib.sha256(content).hexdigest()
    if found != entry["sha256"]:
        raise ModelError(f"{path}: sha256 {found}, expected {entry['sha256']}; {again}")
    return content
