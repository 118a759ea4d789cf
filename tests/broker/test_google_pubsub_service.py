"""The Pub/Sub backend against the contract on Google's service, if ``TEST_PUBSUB_PROJECT`` names a project.

It takes application-default credentials that may create and delete topics, subscriptions and snapshots there,
and costs some cents. What a check creates it removes.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from types import MappingProxyType

import pytest
from google.api_core.exceptions import NotFound
from google.cloud import pubsub_v1
from test_google_pubsub import NO_ORDER, NO_RETENTION, PubsubHarness

from broker import Message
from broker.conformance import Conformance
from tests.services.pubsub import PubSubService

PROJECT = os.environ.get("TEST_PUBSUB_PROJECT")


class GoogleHarness(PubsubHarness):
    """Google's service, or the emulator where ``host`` names it, with time enough for a network."""

    lease = 10.0
    quiet = 2.0
    patience = 90.0
    crowd = 10
    impossible = MappingProxyType({**NO_ORDER, **NO_RETENTION})

    async def restart(self) -> None:
        """Nobody restarts Google."""

    async def remove(self) -> None:
        """Delete all that this harness has created."""
        await asyncio.to_thread(self._remove)

    def _remove(self) -> None:
        groups = [f"{topic}.{group}" for topic, group in self.books.began]
        with pubsub_v1.SubscriberClient() as subscriber:
            for name in [*groups, *(f"{each}.retry" for each in groups)]:
                path = f"projects/{self.project}/subscriptions/{name}"
                with contextlib.suppress(NotFound):
                    subscriber.delete_subscription(subscription=path)
        publisher = pubsub_v1.PublisherClient()
        for name in [*self.books.topics, *(f"{each}.retry" for each in groups)]:
            path = f"projects/{self.project}/topics/{name}"
            with contextlib.suppress(NotFound):
                publisher.delete_topic(topic=path)
        publisher.stop()
        publisher.transport.close()


class TestGoogle(Conformance):
    """Every check of the suite; not collected without a project."""

    __test__ = bool(PROJECT)

    @pytest.fixture
    async def harness(self) -> AsyncIterator[GoogleHarness]:
        harness = GoogleHarness(None, PROJECT)
        yield harness
        await harness.remove()


def test_a_project_is_named() -> None:
    """One line of the report says whether the suite ran there, instead of one for every check."""
    if not PROJECT:
        pytest.skip("TEST_PUBSUB_PROJECT names no project: nothing runs on Google's service")
    assert TestGoogle.__test__


@pytest.mark.pubsub
@pytest.mark.anyio
async def test_nothing_is_left_behind(pubsub_service: PubSubService, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a run on Google's service would create is removed; shown on the emulator."""
    monkeypatch.setenv("PUBSUB_EMULATOR_HOST", pubsub_service.host)
    harness = GoogleHarness(pubsub_service.host)
    async with harness.connect() as broker:
        await broker.ensure("images", group="workers")
        await broker.ensure("alone")
        await broker.publish("images", [Message(data=b"x")])
        assert len(await broker.topics()) == 2
        await harness.remove()
        await harness.remove()
        assert await broker.topics() == []
    with pubsub_v1.SubscriberClient() as subscriber:
        assert list(subscriber.list_subscriptions(project=f"projects/{harness.project}")) == []
    publisher = pubsub_v1.PublisherClient()
    assert list(publisher.list_topics(project=f"projects/{harness.project}")) == []
    publisher.stop()
    publisher.transport.close()
