"""The reference of drift: counted at export, read back as it was, optional in the format."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from classifier import Bundle, Classifier, Dataset, ModelError, Prediction
from classifier.bundle import MANIFEST, seal
from classifier.light import light
from classifier.reference import BRIGHTNESS_BOUNDS, Bins, Reference, reference_of


@pytest.fixture(scope="module")
def answers(classifier: Classifier, validation: Dataset) -> list[Prediction]:
    """What the shipped model says of 300 images, of which the first three are black, gray and white."""
    images = validation.images[:300, None].copy()
    images[:3] = np.array([0, 128, 255], np.uint8)[:, None, None, None]
    return classifier.answers(images)


def rewritten(bundle: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """The bundle with its manifest changed and sealed again."""
    path = bundle / MANIFEST
    document = json.loads(path.read_text())
    document.pop("manifest_sha256")
    change(document)
    path.write_bytes(seal(document))
    return bundle


def test_light_is_mean_and_deviation_of_what_the_network_gets(validation: Dataset) -> None:
    """Of small images every pixel counts; both figures are those of float64."""
    images = validation.images[:200, None]
    mean, spread = light(images)
    flat = images.reshape(200, -1).astype(np.float64)
    np.testing.assert_allclose(mean, flat.mean(1), rtol=1e-5)
    np.testing.assert_allclose(spread, flat.std(1), rtol=1e-3)


@pytest.mark.parametrize("shape", [(0, 1, 28, 28), (0, 3, 224, 224)])
def test_no_images_have_no_light(shape: tuple[int, ...]) -> None:
    """A batch in which nothing could be decoded is no special case."""
    mean, spread = light(np.empty(shape, np.uint8))
    assert mean.shape == spread.shape == (0,)


def test_of_large_images_a_part_is_looked_at(validation: Dataset) -> None:
    """A mean of every seventh row and column is near that of all."""
    large = [np.asarray(Image.fromarray(each).resize((224, 224))) for each in validation.images[:20]]
    images = np.repeat(np.stack(large)[:, None], 3, axis=1)
    mean, spread = light(images)
    np.testing.assert_allclose(mean, images.mean((1, 2, 3)), atol=2)
    np.testing.assert_allclose(spread, images.std((1, 2, 3)), atol=2)


def test_blank_images_are_told_from_garments(answers: list[Prediction]) -> None:
    """Black, gray and white show nothing; every garment does."""
    assert [each.blank for each in answers] == [True] * 3 + [False] * 297
    assert [each.brightness for each in answers[:3]] == [0, 128, 255]
    assert max(each.contrast for each in answers[:3]) < 0.1


def test_noise_of_a_camera_is_blank_still(classifier: Classifier) -> None:
    """A lens cap is not perfectly black."""
    noise = np.random.default_rng(3).normal(20, 2, (1, 1, 28, 28)).astype(np.uint8)
    assert classifier.answers(noise)[0].blank


def test_the_reference_counts_answers(answers: list[Prediction], classifier: Classifier) -> None:
    """Each part adds up to the images, and says what the answers say."""
    answers = [replace(each, abstained=place % 100 == 7) for place, each in enumerate(answers)]
    found = reference_of(answers, classifier.manifest.labels, "held out")
    assert found.images == 300
    assert list(found.classes) == list(classifier.manifest.labels)
    assert Counter(found.classes) == Counter(each.label for each in answers)
    assert found.blank == 3
    assert found.abstained == 3
    below = sum(each.confidence <= 0.5 for each in answers)
    assert sum(found.confidence.counts[:5]) == below
    assert (
        found.brightness.counts[-1] == sum(each.brightness > BRIGHTNESS_BOUNDS[-1] for each in answers) >= 1
    )


def test_a_class_that_is_never_answered_counts_nothing(answers: list[Prediction]) -> None:
    """Else nobody could tell it from a class that the model does not know."""
    labels = (*{each.label for each in answers}, "Scarf")
    assert reference_of(answers, labels, "training").classes["Scarf"] == 0


def test_a_value_on_a_bound_belongs_to_it() -> None:
    """As Prometheus counts: up to and with the bound."""
    assert Bins.of((1.0, 2.0), [0.5, 1.0, 1.5, 2.0, 2.5]).counts == (2, 2, 1)


def test_a_bundle_brings_its_reference(
    bundle_copy: Path, answers: list[Prediction], classifier: Classifier
) -> None:
    """As it was written, through JSON and back; the model keeps its hash, for it answers as before."""
    made = reference_of(answers, classifier.manifest.labels, "held out")
    bundle = rewritten(bundle_copy, lambda document: document.update(reference=asdict(made)))
    manifest = Bundle.load(bundle).manifest
    assert manifest.reference == made
    assert manifest.hash == classifier.manifest.hash


def test_a_bundle_without_a_reference_still_loads(bundle_copy: Path, pngs: list[bytes]) -> None:
    """Those of earlier releases answer as ever."""
    loaded = Classifier.load(rewritten(bundle_copy, lambda document: document.pop("reference", None)))
    assert loaded.manifest.reference is None
    assert isinstance(loaded.predict(pngs[:1])[0], Prediction)


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("images", 299),
        ("images", 0),
        ("classes", {"Coat": 1}),
        ("classes", "Coat"),
        ("confidence", {"bounds": [0.5], "counts": [300]}),
        ("confidence", {"bounds": [0.5, 0.5], "counts": [100, 100, 100]}),
        ("brightness", {"bounds": [128], "counts": [301, -1]}),
        ("brightness", None),
        ("blank", 301),
        ("abstained", -1),
    ],
)
def test_a_reference_that_contradicts_itself_is_refused(
    bundle_copy: Path, answers: list[Prediction], classifier: Classifier, part: str, value: object
) -> None:
    """Wrong counts would be a false alarm every night, or none when it burns."""
    made = asdict(reference_of(answers, classifier.manifest.labels, "held out"))
    broken = rewritten(bundle_copy, lambda document: document.update(reference={**made, part: value}))
    with pytest.raises(ModelError, match=r"incomplete or inconsistent .*export the model again"):
        Bundle.load(broken)


def test_an_export_counts_some_of_every_class(
    torch: Any, stripes: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Held-out images that lie class by class are looked at evenly, where only a part of them is."""
    from classifier import ExportConfig, ModelConfig, TrainConfig, dataset, export, train
    from classifier.agreement import Limits

    monkeypatch.setattr("classifier.exporting._GATE_IMAGES", 60)
    order = np.argsort(stripes.labels, kind="stable")
    by_class = dataset(stripes.images[order], stripes.labels[order], stripes.class_names)
    config = TrainConfig(epochs=1, batch_size=64, val_fraction=0.2, average_decay=0.9)
    run = train(by_class, config, ModelConfig(widths=(16, 16, 24), stem=8))
    limits = Limits(int8_disagreement=1.0, int8_drop=1.0)
    bundle = export(run, by_class, tmp_path / "bundle", ExportConfig(limits=limits))
    made = bundle.manifest.reference
    assert isinstance(made, Reference)
    assert (made.of, made.images) == ("held out", 60)
    assert run.val is not None
    assert len(run.val) == 120
    every_second = run.val.pixels(np.arange(0, 120, 2))
    again = Classifier.load(bundle.directory).answers(every_second)
    assert made == reference_of(again, by_class.class_names, "held out")
