"""Training: learns, repeats, resumes to the bit, and survives being stopped."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from classifier import Dataset, ModelError
from classifier.progress import EpochReport, reporter


@pytest.fixture(autouse=True)
def _needs_torch(torch: Any) -> None:
    """Every test here trains."""


def config(**changes: Any) -> Any:
    """Two quick epochs with everything switched on."""
    from classifier import TrainConfig

    return replace(TrainConfig(epochs=2, batch_size=64, val_fraction=0.1, seed=5), **changes)


def tiny() -> Any:
    """A network of a few hundred values."""
    from classifier import ModelConfig

    return ModelConfig(widths=(4, 6, 8), stem=3)


class StopAfter:
    """A reporter that presses Ctrl-C at a given step."""

    def __init__(self, step: int) -> None:
        self.at = step

    def note(self, line: str) -> None:
        assert line

    def step(self, done: int, total: int) -> None:
        if done == self.at:
            raise KeyboardInterrupt

    def epoch(self, report: EpochReport) -> None:
        assert report.epoch <= report.epochs


def assert_same_weights(first: Any, second: Any) -> None:
    """Equal to the last bit, batch statistics included."""
    for (name, a), (_, b) in zip(first.state_dict().items(), second.state_dict().items(), strict=True):
        assert bool((a == b).all()), name


def test_a_small_net_learns_stripes(stripes: Dataset) -> None:
    """A few epochs tell ten easy classes apart on images never trained on."""
    from classifier import train

    result = train(stripes, config(epochs=12, average_decay=0.9, peak_learning_rate=0.1), tiny())
    assert result.history[-1]["val_accuracy"] > 0.8
    assert result.history[-1]["loss"] < result.history[0]["loss"]


def test_the_same_seed_gives_the_same_weights(stripes: Dataset) -> None:
    """A run can be repeated; another seed is another run."""
    from classifier import train

    first, second = train(stripes, config(), tiny()), train(stripes, config(), tiny())
    assert_same_weights(first.network, second.network)
    other = train(stripes, config(seed=6), tiny())
    assert not bool((other.network.head.weight == first.network.head.weight).all())


@pytest.mark.parametrize("stop_at_step", [1, 9, 10, 17])
def test_an_interrupted_run_resumes_to_the_bit(stripes: Dataset, tmp_path: Path, stop_at_step: int) -> None:
    """Ctrl-C in the first, second or third epoch, then --resume: the straight run's weights and history."""
    from classifier import train

    straight = train(stripes, config(epochs=3), tiny())
    checkpoint = tmp_path / "checkpoint.safetensors"
    with pytest.raises(KeyboardInterrupt):
        train(stripes, config(epochs=3), tiny(), checkpoint, report=StopAfter(stop_at_step))
    resumed = train(stripes, config(epochs=3), tiny(), checkpoint, resume=True)
    assert_same_weights(resumed.network, straight.network)
    losses = [[entry["loss"] for entry in run.history] for run in (resumed, straight)]
    assert losses[0] == losses[1]


def test_resuming_a_finished_run_returns_it(stripes: Dataset, tmp_path: Path) -> None:
    """So an export can be repeated without training again."""
    from classifier import train

    checkpoint = tmp_path / "checkpoint.safetensors"
    first = train(stripes, config(), tiny(), checkpoint)
    again = train(stripes, config(), tiny(), checkpoint, resume=True)
    assert_same_weights(first.network, again.network)
    assert again.history == first.history


@pytest.mark.parametrize("changes", [{"seed": 6}, {"epochs": 3}, {"weight_decay": 0.1}])
def test_a_checkpoint_of_another_run_is_refused(stripes: Dataset, tmp_path: Path, changes: dict) -> None:
    """Mixing two runs would give weights nobody can reproduce."""
    from classifier import train

    checkpoint = tmp_path / "checkpoint.safetensors"
    train(stripes, config(), tiny(), checkpoint)
    with pytest.raises(ModelError, match="resume with the same settings"):
        train(stripes, config(**changes), tiny(), checkpoint, resume=True)


@pytest.mark.parametrize("content", [None, b"", b"\x80\x04cos\nsystem\n(S'true'\ntR.", b"\xff" * 100])
def test_a_damaged_checkpoint_is_refused(stripes: Dataset, tmp_path: Path, content: bytes | None) -> None:
    """Missing, empty, a pickle, or noise: named, and nothing in it is run."""
    from classifier import train

    checkpoint = tmp_path / "checkpoint.safetensors"
    if content is not None:
        checkpoint.write_bytes(content)
    with pytest.raises(ModelError, match=r"checkpoint\.safetensors: not a training checkpoint"):
        train(stripes, config(), tiny(), checkpoint, resume=True)


def test_no_partial_file_is_left_behind(stripes: Dataset, tmp_path: Path) -> None:
    """Checkpoints are written beside their target and renamed."""
    from classifier import train

    train(stripes, config(), tiny(), tmp_path / "checkpoint.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.safetensors"]


def test_the_held_out_share_is_never_trained_on(stripes: Dataset) -> None:
    """Split sizes add up, and the manifest's hash is that of the images really used."""
    from classifier import train
    from classifier.data import stratified_split

    result = train(stripes, config(epochs=1), tiny())
    kept, held = stratified_split(stripes.labels, 0.1, 5)
    assert result.val is not None
    assert np.array_equal(result.val.images, stripes.images[held])
    assert result.train_sha256 == stripes.take(kept).sha256


def test_what_depends_on_the_data_is_taken_from_the_data(stripes: Dataset) -> None:
    """Whatever sizes a configuration has, the network fits; the pixel statistics are the training part's."""
    from classifier import ModelConfig, train

    network = train(stripes, config(epochs=1), replace(tiny(), size=32, classes=3)).network
    kept = train(stripes, config(epochs=1), tiny())
    images = stripes.images[np.setdiff1d(np.arange(640), _held(stripes))]
    assert network.config == kept.network.config
    assert network.config == ModelConfig(
        widths=(4, 6, 8),
        stem=3,
        mean=(round(float(images.mean()), 4),),
        std=(round(float(images.std()), 4),),
    )


def _held(stripes: Dataset) -> np.ndarray:
    from classifier.data import stratified_split

    return stratified_split(stripes.labels, 0.1, 5)[1]


@pytest.mark.parametrize(
    "fields",
    [
        {"epochs": 0},
        {"batch_size": 1},
        {"label_smoothing": 1.0},
        {"val_fraction": -1},
        {"patience": 0},
        {"minutes": 1.0},
        {"epochs": None, "minutes": 0.0},
    ],
)
def test_impossible_settings_are_refused(fields: dict) -> None:
    """Before any work is done."""
    with pytest.raises(ValueError, match=r"need|must"):
        config(**fields)


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("stream", [io.StringIO(), Terminal()])
def test_progress_goes_to_stderr_as_lines_or_as_a_bar(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], stream: io.StringIO
) -> None:
    """A log gets one line an epoch and nothing else; a terminal gets a bar besides; stdout stays clean."""
    monkeypatch.setattr("sys.stderr", stream)
    with reporter() as report:
        report.note("the plan")
        for step in range(1, 11):
            report.step(step, 10)
        report.epoch(EpochReport(1, 1, 0.5, 0.91, 3.0))
    line = EpochReport(1, 1, 0.5, 0.91, 3.0).line()
    assert line in stream.getvalue()
    assert (stream.getvalue() == "the plan\n" + line + "\n") is not stream.isatty()
    assert capsys.readouterr().out == ""


def test_a_progress_line_tells_the_time_left() -> None:
    """For logs: epoch, loss, accuracy if there is one, and minutes left at this pace."""
    line = EpochReport(2, 10, 0.5, 0.91, 30.0).line()
    assert line == "epoch   2/10  loss 0.5000  val 91.00%  30.0 s  left 4.0 min"
    assert "val" not in EpochReport(2, 10, 0.5, float("nan"), 30.0).line()
    assert "val 91.00%  tags 80.00%  " in EpochReport(2, 10, 0.5, 0.91, 30.0, 0.8).line()
