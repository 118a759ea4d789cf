"""What a model says beside its label comes into the rows: tags, and that it declines to answer."""

from __future__ import annotations

import importlib.util
import io
import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rig import Rig

from classifier import Classifier, Prediction
from client import Submission
from client.schema import ClassifyRequest

pytestmark = pytest.mark.anyio
TAGS = ("striped", "größe")


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


def pictures(count: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Gray images, bright or dark, some with stripes, some with a white corner."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count, dtype=np.int64) % 2
    tags = rng.integers(0, 2, (count, 2)).astype(np.int8)
    images = (
        rng.integers(0, 40, (count, 28, 28), dtype=np.uint8) + (labels * 150).astype(np.uint8)[:, None, None]
    )
    images[tags[:, 0] == 1, ::4] = 250
    images[tags[:, 1] == 1, 20:, 20:] = 255
    return images, labels, tags


@pytest.fixture(scope="session")
def tagged_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of two classes and two tags that knows what it has not seen."""
    if importlib.util.find_spec("torch") is None:
        if os.environ.get("REQUIRE_SERVICES") == "1":
            pytest.fail("torch is not installed, but REQUIRE_SERVICES=1 wants every test to run")
        pytest.skip("torch is not installed (extra 'train')")
    from classifier import ExportConfig, ModelConfig, TrainConfig, export, train
    from classifier.agreement import Limits
    from classifier.data import dataset

    images, labels, tags = pictures(320, 1)
    drawn = dataset(images, labels, ("dark", "bright"), tags, TAGS)
    config = TrainConfig(epochs=12, batch_size=32, val_fraction=0.25, average_decay=0.9)
    run = train(drawn, config, ModelConfig(widths=(12, 12, 12), stem=6))
    lax = Limits(int8_disagreement=1.0, int8_drop=1.0)
    out = tmp_path_factory.mktemp("tagged") / "lights"
    return export(run, drawn, out, ExportConfig(calibration_images=64, limits=lax, accepted=0.95)).directory


def submission(pixels: np.ndarray) -> Submission:
    target = io.BytesIO()
    Image.fromarray(pixels).save(target, "PNG")
    return Submission(ClassifyRequest(image=target.getvalue()))


async def test_rows_hold_tags_and_say_where_the_model_declines(rig: Rig, tagged_bundle: Path) -> None:
    """Ordinary images are `ok` with their tags, strange ones `abstained` with a best guess; as offline."""
    ordinary, _, _ = pictures(40, 2)
    strange = np.zeros((10, 28, 28), np.uint8)
    strange[:, ::2, ::2] = 255
    sent = [submission(pixels) for pixels in (*ordinary, *strange)]
    offline = Classifier.load(tagged_bundle).predict([each.request.image for each in sent])
    ids = await rig.publish(sent)
    await rig.worker(COUTURIER_MODEL=str(tagged_bundle))
    await rig.until(rig.settled)
    rows = rig.rows()
    for message_id, answer in zip(ids, offline, strict=True):
        assert isinstance(answer, Prediction)
        row = rows[message_id]
        assert (row.label, tuple(json.loads(row.tags))) == (answer.label, answer.tags)
        assert row.status == ("abstained" if answer.abstained else "ok")
        assert row.confidence == pytest.approx(answer.confidence, abs=1e-5)
    statuses = [rows[each].status for each in ids]
    assert statuses[:40].count("ok") >= 30
    assert set(statuses[40:]) == {"abstained"}
    assert {tag for row in rows.values() for tag in json.loads(row.tags)} == set(TAGS)


async def test_a_worker_told_to_answer_always_writes_ok(rig: Rig, tagged_bundle: Path) -> None:
    """COUTURIER_ABSTAIN=false: for consumers that know `ok` alone."""
    strange = np.zeros((28, 28), np.uint8)
    strange[::2, ::2] = 255
    (message_id,) = await rig.publish([submission(strange)])
    await rig.worker(COUTURIER_MODEL=str(tagged_bundle), COUTURIER_ABSTAIN="false")
    await rig.until(rig.settled)
    assert rig.rows()[message_id].status == "ok"
