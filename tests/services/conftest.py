"""What the tests of the fake Pub/Sub service share; some have another ``bench``."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from .fake_pubsub import FakePubSub
from .fake_pubsub_bench import Bench


@pytest.fixture
def fake() -> Iterator[FakePubSub]:
    with FakePubSub() as fake:
        yield fake


@pytest.fixture
def bench(fake: FakePubSub) -> Iterator[Bench]:
    with Bench(fake.host, fake) as bench:
        yield bench


@pytest.fixture
def topic(bench: Bench) -> str:
    return bench.topic()


@pytest.fixture
def sub(bench: Bench, topic: str) -> str:
    return bench.sub(topic)
