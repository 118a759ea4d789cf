"""Augmentations: pure functions that keep what they promise to keep."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st


@pytest.fixture
def images(torch: Any, stripes: Any) -> Any:
    """(64, 1, 28, 28) uint8."""
    return torch.from_numpy(stripes.images[:64].copy())[:, None]


def generator(torch: Any, seed: int = 1) -> Any:
    """A seeded source of randomness."""
    return torch.Generator().manual_seed(seed)


def test_a_flip_mirrors_the_chosen_images_only(torch: Any, images: Any) -> None:
    """Twice is nothing, and the others stay."""
    from classifier.augment import flip

    chosen = torch.arange(64) % 2 == 0
    once = flip(images, chosen)
    assert torch.equal(once[0, 0], images[0, 0].flip(1))
    assert torch.equal(once[1], images[1])
    assert torch.equal(flip(once, chosen), images)


def test_a_shift_moves_and_fills_with_black(torch: Any) -> None:
    """A single bright pixel in the middle lands within the limit, once; every offset occurs."""
    from classifier.augment import shift

    dots = torch.zeros(2000, 1, 28, 28, dtype=torch.uint8)
    dots[:, 0, 14, 14] = 255
    moved = shift(dots, 2, generator(torch))
    assert moved.flatten(1).count_nonzero(1).tolist() == [1] * 2000
    _, _, rows, columns = moved.nonzero(as_tuple=True)
    assert set(zip((rows - 14).tolist(), (columns - 14).tolist(), strict=True)) == {
        (dy, dx) for dy in range(-2, 3) for dx in range(-2, 3)
    }


def test_erasing_only_blackens_a_rectangle(torch: Any) -> None:
    """What is lost is one box of 0..~30 % of the image; the share of touched images is as asked."""
    from classifier.augment import erase

    white = torch.full((2000, 1, 28, 28), 255, dtype=torch.uint8)
    erased = erase(white, 0.25, generator(torch))
    touched = 0
    for image in erased[:, 0]:
        holes = (image == 0).nonzero()
        if len(holes):
            touched += 1
            height, width = (holes.max(0).values - holes.min(0).values + 1).tolist()
            assert len(holes) == height * width
            assert len(holes) <= 0.32 * 784
    assert 0.2 < touched / 2000 < 0.3


def test_colour_is_uncovered_and_painted_in_the_given_colour(torch: Any) -> None:
    """On white studio photos a shift must not draw black bars; every channel has its own value."""
    from classifier.augment import erase, shift

    fill = (250, 240, 230)
    images = torch.zeros(500, 3, 20, 20, dtype=torch.uint8)
    for changed in (shift(images, 3, generator(torch), fill), erase(images, 1.0, generator(torch), fill)):
        new = changed[:, 0] != 0  # (B, H, W)
        assert bool(new.flatten(1).any(1).float().mean() > 0.9)
        for channel, value in enumerate(fill):
            assert set(changed[:, channel][new].tolist()) == {value}
            assert not bool(changed[:, channel][~new].any())


def test_a_shift_moves_all_channels_alike(torch: Any) -> None:
    """Colours must not come apart."""
    from classifier.augment import shift

    gray = torch.randint(0, 256, (50, 1, 20, 20), dtype=torch.uint8, generator=generator(torch))
    moved = shift(gray.expand(-1, 3, -1, -1), 3, generator(torch))
    assert torch.equal(moved[:, :1], shift(gray, 3, generator(torch)))
    assert torch.equal(moved[:, 0], moved[:, 1])
    assert torch.equal(moved[:, 0], moved[:, 2])


def test_jitter_changes_brightness_and_contrast_within_its_limits(torch: Any) -> None:
    """Each image by its own factors; black stays black under brightness alone."""
    from classifier.augment import jitter

    images = torch.full((400, 3, 4, 4), 100, dtype=torch.uint8)
    images[:, :, :2] = 200
    brighter = jitter(images, 0.1, 0.0, generator(torch))
    assert 89 <= int(brighter.min()) <= 92
    assert 218 <= int(brighter.max()) <= 221
    assert brighter[:, 0, 0, 0].unique().numel() > 20
    starker = jitter(images, 0.0, 0.1, generator(torch)).float()
    assert bool((starker.mean(dim=(1, 2, 3)) - 150).abs().max() < 1)
    assert not bool(jitter(torch.zeros_like(images), 0.1, 0.0, generator(torch)).any())


@given(
    seed=st.integers(0, 2**31),
    flip=st.booleans(),
    shift_px=st.integers(0, 4),
    erase=st.floats(0, 1),
    colour=st.floats(0, 0.9),
    channels=st.sampled_from([1, 3]),
)
@settings(max_examples=25, deadline=None)
def test_augmenting_keeps_shape_type_and_its_input(
    torch: Any, seed: int, flip: bool, shift_px: int, erase: float, colour: float, channels: int
) -> None:
    """Any configuration gives the same kind of tensor, leaves its input alone and repeats by seed."""
    from classifier.augment import AugmentConfig, augment

    rng = np.random.default_rng(seed)
    batch = torch.from_numpy(rng.integers(1, 256, (8, channels, 28, 28), dtype=np.uint8))
    before, flipped = batch.clone(), torch.from_numpy(rng.random(8) < 0.5)
    config = AugmentConfig(flip, shift_px, erase, colour, colour / 2)
    first = augment(batch, flipped, config, generator(torch, seed))
    again = augment(batch, flipped, config, generator(torch, seed))
    assert first.shape == batch.shape
    assert first.dtype == torch.uint8
    assert torch.equal(batch, before)
    assert torch.equal(first, again)


def test_the_empty_configuration_changes_nothing(torch: Any, images: Any) -> None:
    """Switched off means off."""
    from classifier.augment import AugmentConfig, augment

    same = augment(images, torch.ones(64, dtype=torch.bool), AugmentConfig(False, 0, 0.0), generator(torch))
    assert torch.equal(same, images)


def test_impossible_settings_are_refused(torch: Any) -> None:
    """A probability above one is a typing error."""
    from classifier.augment import AugmentConfig

    with pytest.raises(ValueError, match="erase_probability"):
        AugmentConfig(erase_probability=1.5)
    with pytest.raises(ValueError, match="contrast"):
        AugmentConfig(contrast=1.0)


def test_the_learning_rate_is_a_triangle(torch: Any) -> None:
    """Up to the peak at a fifth of the run, then straight to zero."""
    from classifier.optim import learning_rate

    rates = [learning_rate(step / 1000, 0.2) for step in range(1000)]
    assert max(rates) == rates[200] == pytest.approx(0.2)
    assert rates[:201] == sorted(rates[:201])
    assert rates[200:] == sorted(rates[200:], reverse=True)
    assert 0 < rates[-1] < 0.001


def test_biases_do_not_decay(torch: Any) -> None:
    """Every trained value is in exactly one group, and only filters and matrices shrink."""
    from classifier.model import ModelConfig, Network, parameter_count
    from classifier.optim import parameter_groups

    network = Network(ModelConfig())
    decaying, free = parameter_groups(network, 1e-3)
    assert (decaying["weight_decay"], free["weight_decay"]) == (1e-3, 0.0)
    assert {p.ndim for p in free["params"]} == {1}
    assert sum(p.numel() for group in (decaying, free) for p in group["params"]) == parameter_count(network)


def test_folding_keeps_the_function(torch: Any, images: Any) -> None:
    """Batch norms moved into convolutions, also past the max pool, change nothing but rounding."""
    from classifier.model import ModelConfig, Network, fold

    torch.manual_seed(2)
    network = Network(ModelConfig(widths=(4, 6, 8)))
    network.train()
    for _ in range(3):
        network(images)
    network.eval()
    with torch.no_grad():
        assert (fold(network)(images).logits - network(images).logits).abs().max() < 1e-4


def test_a_model_configuration_survives_json(torch: Any) -> None:
    """What a manifest stores rebuilds the same network, and nonsense is refused."""
    import json

    from classifier.model import ModelConfig

    config = ModelConfig(widths=(4, 6, 8), stem=3)
    assert ModelConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    for bad in ({}, {"widths": [1, 2]}, {"widths": [1, 2, 3], "depth": 4}):
        with pytest.raises(ValueError, match=r"not a model|three positive"):
            ModelConfig.from_dict(bad)
