"""The conformance suite on a real Apache Kafka."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator
from types import MappingProxyType
from typing import Any

import confluent_kafka
import pytest

from broker import Broker, Subscription
from broker.conformance import Conformance, Harness, check_names
from broker.conformance.ordering import Ordering
from broker.drivers.kafka import KafkaDriver

_KEY_CHECKS = tuple(
    name for name in check_names(Ordering) if hasattr(getattr(Ordering, f"test_{name}"), "claim")
)
# They let two members share one partition; a partition of Kafka has one owner. What they are about is tested
# for Kafka in test_kafka_faults.py.
_SHARED_CHECKS = (
    "a_delayed_message_does_not_come_early",
    "a_full_member_keeps_its_leases",
    "a_late_verdict_is_refused_and_disturbs_nobody",
    "a_late_verdict_leaves_the_attempts_alone",
    "a_lease_is_kept_while_a_delivery_is_open",
    "a_lost_delivery_cannot_be_forwarded",
    "a_message_taken_by_a_cancelled_receive_stays_leased",
    "batches_whose_leases_were_lost_are_counted",
    "closing_late_disturbs_nobody",
    "surplus_members_receive_nothing",
    "what_is_still_held_is_settled_beside_what_is_lost",
)
# A member that does not poll for so long, or whose heartbeats stop, loses its partitions.
SESSION_S = 2.0


class OffsetClock:
    """Real time, and more when told: delays need no waiting, sessions do."""

    def __init__(self) -> None:
        self.offset = 0.0

    def now(self) -> float:
        return time.time() + self.offset

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class Stalled:
    """A consumer that does nothing while its gate is closed, as in a suspended process."""

    def __init__(self, consumer: Any) -> None:
        self.gate = threading.Event()
        self._consumer = consumer

    def __getattr__(self, name: str) -> Any:
        self.gate.wait()
        return getattr(self._consumer, name)


def driver_member(subscription: Subscription) -> Any:
    """Return the driver's own member, below what resolves claims."""
    member: Any = subscription._member
    return getattr(member, "_member", member)


def give_consumer(member: Any, consumer: Any) -> None:
    """Put another consumer in the hands of a member, and of those who act for it."""
    for each in (member, member.commits, member._places, member._assignment):
        each._consumer = consumer


class KafkaHarness(Harness):
    """One cluster; every client measures delays by one clock."""

    lease = SESSION_S
    impossible = MappingProxyType(
        {
            **dict.fromkeys(_KEY_CHECKS, "order='key' is not offered"),
            **dict.fromkeys(_SHARED_CHECKS, "a rebalance may hand what one member holds to another"),
            "what_is_older_than_its_retention_goes": "Kafka looks every five minutes for segments that are"
            " too old as a whole",
        }
    )
    patience = 30.0
    quiet = 0.4
    rebalances = True
    native = confluent_kafka.Message
    crowd = 12

    def __init__(self, bootstrap: str) -> None:
        self.bootstrap = bootstrap
        self.clock = OffsetClock()
        self.frozen: list[tuple[Any, Stalled]] = []
        self.crashed: list[tuple[Any, Stalled]] = []

    def connect(self) -> Broker:
        driver = KafkaDriver(
            self.bootstrap,
            session=SESSION_S,
            max_poll=SESSION_S,
            group_id="{topic}.{group}",
            clock=self.clock,
        )
        return Broker(driver)

    async def advance(self, seconds: float) -> None:
        """Wait as long as sessions need; a delay is over by the clock alone."""
        self.clock.offset += seconds
        # The client looks every so often whether it was polled in time, and then leaves the group.
        margin = 4.0 if self.frozen or self.crashed else 0.0
        await asyncio.sleep(min(seconds, 8.0) * (seconds <= 4 * self.lease) + margin)
        while self.frozen:
            member, stalled = self.frozen.pop()
            give_consumer(member, stalled._consumer)
            stalled.gate.set()
        await asyncio.sleep(0.5)

    async def rebalanced(self) -> None:
        await asyncio.sleep(3.0)

    def _stall(self, subscription: Subscription) -> tuple[Any, Stalled]:
        member = driver_member(subscription)
        stalled = Stalled(member._consumer)
        give_consumer(member, stalled)
        return member, stalled

    async def freeze(self, subscription: Subscription) -> None:
        await super().freeze(subscription)
        self.frozen.append(self._stall(subscription))

    async def crash(self, subscription: Subscription) -> None:
        member, stalled = self._stall(subscription)
        member._driver.members.discard(member)
        self.crashed.append((member, stalled))
        await super().crash(subscription)

    async def aclose(self) -> None:
        """Let the threads of crashed members end."""
        for member, stalled in self.crashed + self.frozen:
            member._closing = True
            stalled.gate.set()
            await asyncio.to_thread(member._thread.join, 30)


class TestKafka(Conformance):
    @pytest.fixture
    async def harness(self, kafka_service: Any) -> AsyncIterator[KafkaHarness]:
        harness = KafkaHarness(kafka_service.bootstrap)
        yield harness
        await harness.aclose()
