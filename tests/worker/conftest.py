"""Things that the worker's tests share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from rig import Rig

from broker import Delivery, Message
from broker.message import utc_now
from classifier import Classifier
from client.schema import ClassifyRequest
from client.sources.fashion_mnist import FashionMnist


@pytest.fixture(scope="session")
def classifier() -> Classifier:
    """The shipped model."""
    return Classifier.load()


@pytest.fixture(scope="session")
def pictures() -> list[bytes]:
    """Two hundred validation images as PNG."""
    return [each.request.image for each in FashionMnist(200)]


@pytest.fixture
def deliver() -> Callable[..., Delivery]:
    """Makes a delivery, as a broker would, of a message published a second before it was received."""

    def make(image: bytes, attempt: int = 1, **fields: object) -> Delivery:
        now = utc_now()
        if "message" in fields:
            message = fields["message"]
            assert isinstance(message, Message)
        else:
            fields.setdefault("time", now - timedelta(seconds=1))
            message = ClassifyRequest(image=image, **fields).to_message()  # type: ignore[arg-type]
        return Delivery(message, "images", attempt, now)

    return make


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    """Worker processes on files of their own; none is left when the test ends."""
    rig = Rig(tmp_path)
    yield rig
    for process in rig.started:
        process.kill()
        process.wait()
        if process.stdin is not None:
            process.stdin.close()
