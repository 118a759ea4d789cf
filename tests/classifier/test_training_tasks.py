"""What is trained: categories, tags, missing ones, tiny sets, colour, and bodies of all kinds."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from classifier import Dataset, ModelError, dataset


@pytest.fixture(autouse=True)
def _needs_torch(torch: Any) -> None:
    """Every test here trains."""


def config(**changes: Any) -> Any:
    """Two quick epochs."""
    from classifier import TrainConfig

    return replace(TrainConfig(epochs=2, batch_size=64, seed=5), **changes)


def tiny() -> Any:
    """A network of a few hundred values."""
    from classifier import ModelConfig

    return ModelConfig(widths=(4, 6, 8), stem=3)


@pytest.fixture(scope="module")
def tagged(stripes: Dataset) -> Dataset:
    """Stripes in colour with two tags that the class decides; each fifth class and seventh tag is unknown."""
    odd_and_high = np.stack([stripes.labels % 2, stripes.labels // 5], axis=1).astype(np.int8)
    labels = stripes.labels.copy()
    labels[::5], odd_and_high[::7] = -1, -1
    images = np.repeat(stripes.images[:, None], 3, axis=1)
    return dataset(images, labels, stripes.class_names, odd_and_high, ("odd", "high"))


def test_category_and_tags_are_learnt_together(tagged: Dataset) -> None:
    """From rows that lack either; both are judged on what is known."""
    from classifier import AugmentConfig, train

    # A shift of two pixels would turn one stripe into the next.
    plain = AugmentConfig(flip=False, shift_px=0, erase_probability=0.0)
    settings = config(epochs=4, batch_size=32, average_decay=0.9, val_fraction=0.2, augment=plain)
    result = train(tagged, settings, tiny())
    assert result.network.config.tags == 2
    assert result.network.config.channels == 3
    assert result.history[-1]["val_accuracy"] > 0.8
    assert result.history[-1]["val_tag_f1"] > 0.8


def test_what_is_not_known_has_no_gradient(torch: Any) -> None:
    """Changing the answer for a masked label or tag changes no loss; all masked is a loss of zero."""
    from classifier.batches import Batch, loss_of
    from classifier.model import Outputs

    logits = torch.randn(4, 3, requires_grad=True)
    tags = torch.randn(4, 2, requires_grad=True)
    outputs = Outputs(logits, tags, torch.empty(4, 0))
    labels = torch.tensor([0, -1, 2, -1])
    truth = torch.tensor([[1, -1], [0, 0], [-1, -1], [1, 1]])
    loss = loss_of(outputs, Batch(torch.empty(0), labels, truth), 0.1, torch.ones(2))
    loss.backward()
    assert (logits.grad.abs().sum(1) > 0).tolist() == [True, False, True, False]
    assert (tags.grad != 0).tolist() == (truth >= 0).tolist()
    none = Batch(torch.empty(0), torch.full((4,), -1), torch.full((4, 2), -1))
    assert float(loss_of(outputs, none, 0.1, torch.ones(2)).detach()) == 0.0


def test_without_anything_missing_the_loss_is_the_textbook_one(torch: Any) -> None:
    """Equal to torch's own mean cross entropy plus mean weighted binary cross entropy."""
    from classifier.batches import Batch, loss_of
    from classifier.model import Outputs

    logits, tags, weight = torch.randn(8, 3), torch.randn(8, 2), torch.tensor([2.0, 0.5])
    labels, truth = torch.arange(8) % 3, torch.arange(16).reshape(8, 2) % 2
    category = torch.nn.CrossEntropyLoss(label_smoothing=0.1)(logits, labels)
    both = category + torch.nn.BCEWithLogitsLoss(pos_weight=weight)(tags, truth.float())
    outputs = Outputs(logits, tags, torch.empty(8, 0))
    found = loss_of(outputs, Batch(torch.empty(0), labels, truth), 0.1, weight)
    assert float(found) == pytest.approx(float(both), rel=1e-6)


def test_a_rare_tag_weighs_more(tagged: Dataset) -> None:
    """No per yes among what is known, within bounds; a tag nobody has does not divide by zero."""
    from classifier.batches import tag_weights

    tags = np.zeros((100, 4), np.int8)
    tags[:20, 0], tags[:1, 1], tags[:, 2], tags[:90, 3] = 1, 1, 1, -1
    rare = dataset(tagged.images[:100], tagged.labels[:100], tagged.class_names, tags, ("a", "b", "c", "d"))
    assert tag_weights(rare).tolist() == pytest.approx([4.0, 10.0, 0.1, 10.0])


@pytest.mark.parametrize("rows", [[0, 1], [0, 1, 2, 3, 4], [*range(0, 640, 10), 1]])
def test_few_images_are_enough(stripes: Dataset, rows: list[int]) -> None:
    """Two images, fewer than a batch, or one of a class: it trains and stays finite."""
    from classifier import TrainConfig, train

    few = stripes.take(np.array(rows))
    result = train(few, TrainConfig(epochs=2, val_fraction=0.1, seed=1), tiny())
    assert all(np.isfinite(entry["loss"]) for entry in result.history)
    assert all(bool(value.isfinite().all()) for value in result.network.state_dict().values())


def test_one_image_cannot_be_trained_on(stripes: Dataset) -> None:
    """Said before anything is built."""
    from classifier import TrainConfig, train

    with pytest.raises(ValueError, match="1 training images for 1 processes"):
        train(stripes.take(np.array([0])), TrainConfig(epochs=1), tiny())


def test_a_data_set_on_disk_is_not_copied(tmp_path: Path, stripes: Dataset) -> None:
    """A read-only memory map trains as it is, to the same weights."""
    from classifier import train

    np.save(tmp_path / "images.npy", stripes.images)
    mapped = replace(stripes, images=np.load(tmp_path / "images.npy", mmap_mode="r"))
    first, second = (train(data, config(), tiny()).network.state_dict() for data in (mapped, stripes))
    assert all(bool((first[name] == second[name]).all()) for name in first)


def test_any_module_can_be_the_body(stripes: Dataset, tmp_path: Path, torch: Any) -> None:
    """A factory gets channels and size; the run resumes with AdamW's memory, to the bit."""
    from classifier import train
    from classifier.run import Run

    def factory(channels: int, size: int) -> Any:
        assert (channels, size) == (1, 28)
        return torch.nn.Sequential(torch.nn.Conv2d(1, 4, 5, 3), torch.nn.ReLU(), torch.nn.Flatten())

    checkpoint = tmp_path / "checkpoint.safetensors"
    straight = train(stripes, config(epochs=3), factory)
    assert straight.network.config.kind == "custom"
    assert straight.network.head.in_features == 4 * 8 * 8

    class Stop:
        def note(self, line: str) -> None: ...

        def step(self, done: int, total: int) -> None:
            if done == 15:
                raise KeyboardInterrupt

        def epoch(self, report: Any) -> None: ...

    with pytest.raises(KeyboardInterrupt):
        train(stripes, config(epochs=3), factory, checkpoint, report=Stop())
    resumed = train(stripes, config(epochs=3), factory, checkpoint, resume=True)
    pairs = zip(straight.network.state_dict().values(), resumed.network.state_dict().values(), strict=True)
    assert all(bool((a == b).all()) for a, b in pairs)
    assert isinstance(Run(stripes, None, config(), factory).optimiser, torch.optim.AdamW)


def test_a_body_that_makes_no_vectors_is_refused(stripes: Dataset, torch: Any) -> None:
    """With the shape it made and the shape it should."""
    from classifier import train

    with pytest.raises(ModelError, match=r"made \(2, 4, 24, 24\).*must give features \(2, F\)"):
        train(stripes, config(), lambda channels, size: torch.nn.Conv2d(channels, 4, 5))


@pytest.mark.parametrize(
    ("name", "features"),
    [
        ("resnet18", 512),
        ("resnet34", 512),
        ("mobilenet_v3_small", 576),
        ("efficientnet_b0", 1280),
        ("convnext_tiny", 768),
    ],
)
def test_backbones_end_at_their_features(torch: Any, name: str, features: int) -> None:
    """Gray and colour, any size; the class layer of the original is gone."""
    from classifier.backbones import torchvision_body

    body = torchvision_body(name).eval()
    with torch.inference_mode():
        assert body(torch.zeros(1, 1, 40, 40)).shape == (1, features)
        assert body(torch.zeros(1, 3, 32, 32)).shape == (1, features)
    assert not any(value.shape[:1] == (1000,) for value in body.parameters())


def test_a_backbone_trains_and_starts_from_given_weights(
    stripes: Dataset, tmp_path: Path, torch: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From a bundle's safetensors, from torchvision's cache, and with a note from random weights."""
    from safetensors.torch import save_file

    from classifier import train
    from classifier.backbones import initial_weights, torchvision_body

    small = stripes.take(np.arange(32))
    trained = train(small, config(epochs=1, batch_size=16, weights="none"), "mobilenet_v3_small").network
    weights = {name: value.contiguous() for name, value in trained.state_dict().items()}
    save_file(weights, tmp_path / "model.safetensors")
    body = torchvision_body("mobilenet_v3_small")
    note = initial_weights(body, "mobilenet_v3_small", str(tmp_path / "model.safetensors"))
    assert "model.safetensors: " in note
    assert _equal(body, trained.body)

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    assert "starts from random weights" in initial_weights(body, "mobilenet_v3_small", "auto")
    (tmp_path / "checkpoints").mkdir()
    original = {name.removeprefix("net."): value for name, value in trained.body.state_dict().items()}
    torch.save(original, tmp_path / "checkpoints" / "mobilenet_v3_small-047dcff4.pth")
    other = torchvision_body("mobilenet_v3_small")
    assert "mobilenet_v3_small-047dcff4.pth: " in initial_weights(other, "mobilenet_v3_small", "auto")
    assert _equal(other, trained.body)


@pytest.mark.parametrize("content", [b"", b"no weights", None])
def test_weights_that_cannot_be_read_are_named(tmp_path: Path, content: bytes | None) -> None:
    """Missing or damaged, as either kind of file."""
    from classifier.backbones import initial_weights, torchvision_body

    body = torchvision_body("resnet18")
    for name in ("w.pth", "w.safetensors"):
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(ModelError, match=rf"{name}: cannot be read as weights"):
            initial_weights(body, "resnet18", str(tmp_path / name))


def test_weights_of_another_network_are_refused(tmp_path: Path, torch: Any) -> None:
    """Nothing fits: silently training from scratch would be a lie."""
    from safetensors.torch import save_file

    from classifier.backbones import initial_weights, torchvision_body

    save_file({"layer.weight": torch.zeros(3)}, tmp_path / "w.safetensors")
    with pytest.raises(ModelError, match="none of its 1 tensors fits resnet18"):
        initial_weights(torchvision_body("resnet18"), "resnet18", str(tmp_path / "w.safetensors"))


def test_a_torchvision_that_does_not_match_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever its import raises, the answer is what to install or which network needs none."""
    from classifier.backbones import torchvision_body

    monkeypatch.setitem(sys.modules, "torchvision", None)
    monkeypatch.delitem(sys.modules, "torchvision.models", raising=False)
    with pytest.raises(ModelError, match="needs a torchvision that matches torch"):
        torchvision_body("resnet18")


def test_an_unknown_network_or_device_is_named(stripes: Dataset) -> None:
    """With the choice."""
    from classifier import train

    with pytest.raises(ValueError, match="unknown model 'vgg'; choose one of student, base, resnet18"):
        train(stripes, config(), "vgg")
    with pytest.raises(ValueError, match="--device warp: not usable here"):
        train(stripes, config(device="warp"), tiny())


def _equal(first: Any, second: Any) -> bool:
    pairs = zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    return all(bool((a == b).all()) for a, b in pairs)
