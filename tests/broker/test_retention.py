"""How long topics keep messages, and groups that are removed: what no portable check can see."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from broker import Broker, BrokerError, LeaseLost, Message, NotFound, connect
from broker.drivers.memory import MemoryDriver, MemoryStore
from broker.drivers.sqlite import SqliteDriver
from tests.services.kafka import KafkaService
from tests.services.pubsub import PubSubService

pytestmark = pytest.mark.anyio

DAY_S = 86_400.0
TOPIC, GROUP = "images", "workers"
Open = Callable[[], Broker]


class Clock:
    """Stands still until a test moves ``offset``; who sleeps by it sleeps on, so nobody keeps leases."""

    def __init__(self) -> None:
        self.offset = 0.0

    def now(self) -> float:
        return 1_000_000.0 + self.offset

    async def sleep(self, _: float) -> None:
        await asyncio.Event().wait()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(params=["memory", "sqlite"])
def embedded(request: pytest.FixtureRequest, tmp_path: Path, clock: Clock) -> Open:
    """Makes clients of one queue inside this process, on a clock that moves when told."""
    store = MemoryStore()
    if request.param == "memory":
        return lambda: Broker(MemoryDriver(store, clock=clock))
    return lambda: Broker(SqliteDriver(tmp_path / "queue.db", clock=clock))


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [each.getMessage() for each in caplog.records if each.levelno >= logging.WARNING]


async def test_what_goes_unsettled_is_counted_in_one_warning(
    embedded: Open, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    """More than one sweep takes at once is one line; settled messages go without; it is not said again."""
    async with embedded() as broker:
        await broker.ensure(TOPIC, GROUP, retention=600.0)
        await broker.publish(TOPIC, [Message(b"settled")])
        async with broker.subscribe(TOPIC, group=GROUP) as subscription:
            await subscription.ack(await subscription.receive())
        await broker.publish(TOPIC, [Message(b"x")] * 2500)
        clock.offset = 700.0
        for _ in range(5):
            await broker.publish(TOPIC, [Message(b"new")])
        assert (await broker.stats(TOPIC, GROUP)).unsettled == 5
        await broker.ensure(TOPIC, "later", start="earliest")
        assert (await broker.stats(TOPIC, "later")).unsettled == 5
    assert warnings(caplog) == [
        "2500 message(s) of topic 'images' that were not settled are older than its retention, and removed"
    ]


async def test_publishing_alone_removes_too(embedded: Open, clock: Clock) -> None:
    """A topic that nobody reads does not grow without end."""
    async with embedded() as broker:
        await broker.ensure(TOPIC, GROUP, retention=600.0)
        await broker.publish(TOPIC, [Message(b"old")])
        clock.offset = 700.0
        await broker.publish(TOPIC, [Message(b"new")])
        assert [each.message.data async for each in broker.browse(TOPIC, GROUP)] == [b"new"]


async def test_one_group_may_be_done_with_what_another_missed(embedded: Open, clock: Clock) -> None:
    """What one group holds is left to it, and no other group gets it any more."""
    async with embedded() as broker:
        await broker.ensure(TOPIC, GROUP, retention=600.0)
        await broker.ensure(TOPIC, "others")
        await broker.publish(TOPIC, [Message(b"%d" % number) for number in range(3)])
        async with broker.subscribe(TOPIC, group=GROUP) as subscription:
            held = await subscription.receive(max_messages=1)
            clock.offset = 595.0
            await subscription._member.extend(held)  # type: ignore[union-attr]
            clock.offset = 601.0
            assert await subscription.receive(timeout=0.0) == []
            assert subscription.holds(held[0])
            await subscription.ack(held)
        clock.offset = 700.0
        async with broker.subscribe(TOPIC, group="others") as subscription:
            assert await subscription.receive(timeout=0.0) == []
        for group in (GROUP, "others"):
            assert (await broker.stats(TOPIC, group)).unsettled == 0


async def test_a_key_goes_on_behind_a_message_that_is_gone(embedded: Open, clock: Clock) -> None:
    """Its successor, which waited for its turn, comes."""
    async with embedded() as broker:
        await broker.ensure(TOPIC, GROUP, retention=600.0)
        await broker.publish(TOPIC, [Message(b"first", key="k")])
        clock.offset = 300.0
        await broker.publish(TOPIC, [Message(b"second", key="k")])
        async with broker.subscribe(TOPIC, group=GROUP, order="key") as subscription:
            (first,) = await subscription.receive(timeout=0.0)
            assert await subscription.receive(timeout=0.0) == []
            await subscription.nack(first, delay=10_000.0)
            clock.offset = 650.0
            (second,) = await subscription.receive(timeout=0.0)
            assert second.message.data == b"second"


async def test_a_topic_that_is_there_keeps_its_retention_and_it_is_said_once(
    embedded: Open, caplog: pytest.LogCaptureFixture
) -> None:
    """Also one that had none."""
    async with embedded() as broker:
        await broker.ensure(TOPIC)
        await broker.ensure("brief", retention=DAY_S)
        await broker.ensure("brief", retention=DAY_S)
        await broker.ensure("brief")
        for _ in range(2):
            await broker.ensure(TOPIC, GROUP, retention=2 * DAY_S)
            await broker.ensure("brief", retention=2 * DAY_S)
    assert [each.partition(";")[0] for each in warnings(caplog)] == [
        "topic 'images' was there and keeps messages for inf days, not 2",
        "topic 'brief' was there and keeps messages for 1 days, not 2",
    ]


async def test_members_of_a_group_that_was_removed_learn_it(embedded: Open) -> None:
    """Also when a group of the same name has been made since: it is another one."""
    async with embedded() as broker:
        await broker.ensure(TOPIC, GROUP)
        await broker.publish(TOPIC, [Message(b"x")])
        async with broker.subscribe(TOPIC, group=GROUP) as subscription:
            (held,) = await subscription.receive()
            await broker.remove_group(TOPIC, GROUP)
            with pytest.raises(NotFound):
                await subscription.receive(timeout=0.0)
            with pytest.raises((NotFound, LeaseLost)):
                await subscription.ack(held)


@pytest.mark.parametrize("seconds", [59.0, float("nan")])
async def test_a_retention_that_makes_no_sense_names_its_variable(embedded: Open, seconds: float) -> None:
    """In days, as it was given."""
    async with embedded() as broker:
        with pytest.raises(ValueError, match=r"COUTURIER_RETENTION.* the (memory|sqlite) backend can keep"):
            await broker.ensure(TOPIC, retention=seconds)


async def test_a_queue_file_of_before_learns_of_retention(tmp_path: Path) -> None:
    """And a worker of before goes on with it: nothing that it knows has changed."""
    path = tmp_path / "queue.db"
    async with connect(f"sqlite:///{path}") as broker:
        await broker.ensure(TOPIC, GROUP)
    with sqlite3.connect(path) as db:
        db.execute("DROP TABLE retentions")
        before = db.execute("PRAGMA user_version").fetchone()
    db.close()
    async with connect(f"sqlite:///{path}") as broker:
        await broker.ensure("brief", retention=DAY_S)
        await broker.publish(TOPIC, [Message(b"x")])
        assert (await broker.stats(TOPIC, GROUP)).unsettled == 1
    with sqlite3.connect(path) as db:
        assert db.execute("SELECT count(*) FROM retentions").fetchone() == (1,)
        assert db.execute("PRAGMA user_version").fetchone() == before
    db.close()


async def test_a_group_that_was_removed_leaves_no_id_behind(tmp_path: Path) -> None:
    """What it copied elsewhere is not taken for a copy of the next group's."""
    async with connect(f"sqlite:///{tmp_path}/queue.db") as broker:
        await broker.ensure("letters", "operators")
        await broker.ensure(TOPIC, retention=DAY_S)
        await broker.publish(TOPIC, [Message(b"x")])
        for group in ("one", "two"):
            await broker.ensure(TOPIC, group)
            async with broker.subscribe(TOPIC, group=group) as subscription:
                (held,) = await subscription.receive()
                await subscription.forward(held, "letters", {"by": group})
            await broker.remove_group(TOPIC, group)
        copies = [each.message.attributes["by"] async for each in broker.browse("letters", "operators")]
    assert copies == ["one", "two"]


@pytest.mark.kafka
async def test_kafka_is_told_and_asked(kafka_service: KafkaService, caplog: pytest.LogCaptureFixture) -> None:
    """The topic's settings are there; what waits for its retry is kept for as long as a delay may last."""
    name = f"images-{uuid.uuid4().hex[:8]}"
    async with connect(f"kafka://{kafka_service.bootstrap}?group_id={{topic}}.{{group}}") as broker:
        await broker.ensure(name, GROUP, partitions=1, retention=2 * DAY_S)
        found = await asyncio.to_thread(_kafka_settings, kafka_service.bootstrap, name)
        assert (found["retention.ms"], found["segment.ms"]) == ("172800000", "172800000")
        found = await asyncio.to_thread(_kafka_settings, kafka_service.bootstrap, f"{name}.{GROUP}.retry")
        assert int(found["retention.ms"]) >= 1000 * broker.capabilities.max_delay
        await broker.ensure(name, retention=2 * DAY_S)
        assert warnings(caplog) == []
        await broker.ensure(name, retention=3 * DAY_S)
        assert "keeps messages for 2 days, not 3" in "".join(warnings(caplog))


@pytest.mark.kafka
async def test_kafka_removes_no_group_that_is_at_work_or_has_begun_elsewhere(
    kafka_service: KafkaService,
) -> None:
    """The error says what stands in the way; then it goes, with its storage."""
    name, group = f"images-{uuid.uuid4().hex[:8]}", f"workers-{uuid.uuid4().hex[:8]}"
    async with connect(f"kafka://{kafka_service.bootstrap}") as broker:
        await broker.ensure(name, group, partitions=1)
        await broker.publish(name, [Message(b"x")])
        async with broker.subscribe(name, group=group) as subscription:
            assert len(await subscription.receive(timeout=30.0)) == 1
            with pytest.raises(BrokerError, match="has members"):
                await broker.remove_group(name, group)
        await broker.ensure(f"{name}-too", group, partitions=1)
        with pytest.raises(BrokerError, match=f"{name}-too"):
            await broker.remove_group(name, group)
        assert (await broker.stats(name, group)).unsettled == 1


@pytest.mark.pubsub
async def test_pubsub_is_told_and_asked(
    pubsub_service: PubSubService, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Topic and subscription keep messages for as long as they were told; a retry for as long as a delay."""
    monkeypatch.setenv("PUBSUB_EMULATOR_HOST", pubsub_service.host)
    async with connect(f"pubsub://proj-{uuid.uuid4().hex[:12]}") as broker:
        await broker.ensure(TOPIC, GROUP, retention=2 * DAY_S)
        rpc: Any = broker._driver._driver
        kept = {}
        for method, path in (
            ("GetTopic", rpc.names.topic(TOPIC)),
            ("GetSubscription", rpc.names.subscription(TOPIC, GROUP)),
            ("GetTopic", rpc.names.retry_topic(TOPIC, GROUP)),
            ("GetSubscription", rpc.names.retry_subscription(TOPIC, GROUP)),
        ):
            field = "topic" if method == "GetTopic" else "subscription"
            found = await rpc.admin._find(method, **{field: path})
            kept[method, path.endswith(".retry")] = found.message_retention_duration.seconds / DAY_S
        assert kept == {
            ("GetTopic", False): 2.0,
            ("GetSubscription", False): 2.0,
            ("GetTopic", True): 7.0,
            ("GetSubscription", True): 7.0,
        }
        await broker.ensure(TOPIC, retention=3 * DAY_S)
        assert "keeps messages for 2 days, not 3" in "".join(warnings(caplog))
        for seconds in (599.0, 32 * DAY_S):
            with pytest.raises(ValueError, match=r"pubsub backend can keep messages for 0\.00694 to 31 days"):
                await broker.ensure("brief", retention=seconds)
        await broker.remove_group(TOPIC, GROUP)
        assert (
            await rpc.admin._list("ListSubscriptions", "subscriptions", f"projects/{rpc.names.project}") == []
        )
        listed = await rpc.admin._list("ListTopics", "topics", f"projects/{rpc.names.project}")
        assert [each.name for each in listed] == [rpc.names.topic(TOPIC)]


def _kafka_settings(bootstrap: str, topic: str) -> dict[str, str]:
    from confluent_kafka.admin import AdminClient
    from confluent_kafka.admin._config import ConfigResource
    from confluent_kafka.admin._resource import ResourceType

    client = AdminClient({"bootstrap.servers": bootstrap})
    (future,) = client.describe_configs([ConfigResource(ResourceType.TOPIC, topic)]).values()
    return {name: each.value for name, each in future.result(timeout=20).items()}
