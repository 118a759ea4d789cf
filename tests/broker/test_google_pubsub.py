"""The Pub/Sub backend against the contract, on Google's emulator."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import pytest

from broker import Broker, BrokerError, GroupStats, Subscription
from broker.conformance import Conformance, Harness, member_of
from broker.drivers.base import Start
from broker.drivers.google_pubsub import PubsubDriver
from broker.drivers.google_pubsub_admin import PubsubAdmin
from broker.drivers.google_pubsub_publish import Publisher, Record
from broker.drivers.google_pubsub_rpc import Rpc
from tests.services.pubsub import PubSubService

pytestmark = pytest.mark.pubsub

_FORGETS = "the emulator keeps everything in memory: after a restart it is empty"
NO_RETENTION = {
    "what_is_older_than_its_retention_goes": "the service forgets after ten minutes at the earliest, and what"
    " stands in for it in tests never does"
}
NO_ORDER = dict.fromkeys(
    (
        "the_messages_of_a_key_come_one_by_one_in_order",
        "order_holds_with_several_members",
        "a_blocked_key_does_not_stop_the_others",
        "a_failed_message_comes_before_its_successors",
        "order_outlives_a_crash",
        "order_and_limits_together_lose_nothing",
        "order_holds_behind_a_member_that_keeps_none",
        "messages_without_a_key_wait_for_nobody",
    ),
    "order by key is not offered: a copy that waits for its retry would have to hold up its successors",
)


class OffsetClock:
    """The wall clock and an offset that tests move: delays end by it, while leases need real time."""

    def __init__(self) -> None:
        self.offset = 0.0

    def now(self) -> float:
        return time.time() + self.offset

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class Books:
    """What Pub/Sub does not count: how much was published to each topic, and where each group began."""

    def __init__(self) -> None:
        self.topics: set[str] = set()
        self.published: Counter[str] = Counter()
        self.began: dict[tuple[str, str], int] = {}


class CountingPublisher(Publisher):
    """Enters everything that is stored, by ``send``, ``forward`` or for a retry, under its topic."""

    def __init__(self, rpc: Rpc, books: Books) -> None:
        super().__init__(rpc)
        self._books = books

    async def store(
        self, path: str, records: Sequence[Record], doing: str, missing: str
    ) -> list[str | BrokerError]:
        answers = await super().store(path, records, doing, missing)
        self._books.published[path.rpartition("/")[2]] += sum(isinstance(each, str) for each in answers)
        return answers


class CountingAdmin(PubsubAdmin):
    """Enters where a group begins."""

    def __init__(self, driver: PubsubDriver, books: Books, exactly_once: bool) -> None:
        super().__init__(driver, retention=7 * 86_400.0, exactly_once=exactly_once)
        self._books = books

    async def ensure(
        self, topic: str, group: str | None, partitions: int, start: Start, retention: float | None
    ) -> float | None:
        before = 0 if start == "earliest" else self._books.published[topic]
        self._books.topics.add(topic)
        kept = await super().ensure(topic, group, partitions, start, retention)
        if group is not None:
            self._books.began.setdefault((topic, group), before)
        return kept


class CountingDriver(PubsubDriver):
    """The driver, with books; ``settings`` are the driver's own."""

    def __init__(
        self, project: str, host: str | None, books: Books, exactly_once: bool = False, **settings: Any
    ) -> None:
        super().__init__(project, host, exactly_once=exactly_once, **settings)
        self.admin = CountingAdmin(self, books, exactly_once)
        self._books = books

    async def open(self) -> None:
        await super().open()
        self.publisher = CountingPublisher(self.rpc, self._books)


class CountingHarness(Harness):
    """What all runs of the suite on Pub/Sub share; clients of one harness have one project and its books."""

    impossible: Mapping[str, str] = MappingProxyType({**NO_ORDER, **NO_RETENTION})

    def __init__(self, host: str | None, project: str | None = None) -> None:
        self.host = host
        self.project = project or f"proj-{uuid.uuid4().hex[:12]}"
        self.books = Books()

    async def stats(self, broker: Broker, topic: str, group: str) -> GroupStats:
        stats = await broker.stats(topic, group)
        published = self.books.published[topic] - self.books.began[topic, group]
        return replace(stats, published=published, settled=published - stats.unsettled)

    async def restart(self) -> None:
        """Begin with nothing, which is what a restarted emulator has."""
        self.project = f"proj-{uuid.uuid4().hex[:12]}"

    async def crash(self, subscription: Subscription) -> None:
        """Cut the connection, too, as the end of the process would."""
        member = member_of(subscription)
        await super().crash(subscription)
        member._driver.rpc.close()  # type: ignore[attr-defined]


class PubsubHarness(CountingHarness):
    """The emulator: leases in real time, delays by a clock that is moved."""

    lease = 2.0
    quiet = 0.3
    delay = 60.0
    impossible = {  # noqa: RUF012 - a declaration
        **NO_ORDER,
        **NO_RETENTION,
        "messages_survive_a_restart": _FORGETS,
        "verdicts_survive_a_restart": _FORGETS,
        "a_restart_in_mid_run_loses_nothing": _FORGETS,
    }

    def __init__(self, host: str | None, project: str | None = None) -> None:
        super().__init__(host, project)
        self.clock = OffsetClock()

    def connect(self) -> Broker:
        return Broker(
            CountingDriver(
                self.project, self.host, self.books, lease=self.lease, clock=self.clock, look_again=1.0
            )
        )

    async def advance(self, seconds: float) -> None:
        """Let leases run in real time; delays are longer than any wait for a lease, and only counted."""
        self.clock.offset += seconds
        if seconds < 5 * self.lease:
            await asyncio.sleep(seconds)


class TestPubsub(Conformance):
    """Every check of the suite."""

    @pytest.fixture
    async def harness(self, pubsub_service: PubSubService) -> PubsubHarness:
        return PubsubHarness(pubsub_service.host)
