"""The Kafka driver against the contract on librdkafka's mock cluster: for machines without Java."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from types import MappingProxyType

import pytest
from test_kafka import SESSION_S, KafkaHarness

from broker import Broker
from broker.conformance import Conformance
from broker.conformance.checks import Checks
from broker.drivers.kafka import KafkaDriver
from broker.drivers.kafka_admin import KafkaAdmin
from tests.services.mock_kafka import MockKafka

_ENDS = "the mock cluster is memory of this process and ends with its owner"
_KEEPS = "the mock cluster keeps everything for as long as it lasts"
_FOUR = "the mock cluster gives every topic four partitions"


class MockAdmin(KafkaAdmin):
    """The mock cluster knows no CreateTopics: it makes a topic when a producer asks about it."""

    def _create(self, topic: str, partitions: int, retention: float | None) -> None:
        from confluent_kafka import Producer

        Producer(self._driver.common_config).list_topics(topic, timeout=10.0)


class MockHarness(KafkaHarness):
    """One mock cluster; its topics have 4 partitions, whatever is asked for."""

    lease = 45.0
    impossible = MappingProxyType(
        {
            **{name: why for name, why in KafkaHarness.impossible.items() if not name.startswith("surplus")},
            "messages_survive_a_restart": _ENDS,
            "verdicts_survive_a_restart": _ENDS,
            "a_restart_in_mid_run_loses_nothing": _ENDS,
            "topics_are_listed_with_their_groups": _FOUR,
            "lag_has_a_part_for_every_partition": _FOUR,
            "browse_shows_what_is_not_settled_in_order": _FOUR,
            "a_removed_group_is_gone_and_the_others_stay": "the mock cluster deletes no groups",
            "a_topic_with_a_retention_keeps_what_is_younger": _KEEPS,
            "what_is_older_than_its_retention_goes": _KEEPS,
        }
    )
    partitions = MockKafka.partitions
    patience = 60.0  # more than the session, for a member that leaves while it joins

    def connect(self) -> Broker:
        driver = KafkaDriver(
            self.bootstrap,
            protocol="consumer",
            max_poll=SESSION_S,
            group_id="{topic}.{group}",
            clock=self.clock,
        )
        driver.admin = MockAdmin(driver)
        driver.capabilities = replace(driver.capabilities, durable=False, retention=None)
        return Broker(driver)

    async def restart(self) -> None:
        """Begin with nothing, on a cluster that lasts as long as the harness."""
        self.next = MockKafka()
        self.bootstrap = self.next.bootstrap

    async def advance(self, seconds: float) -> None:
        """Let members that do not poll be noticed: the lease itself is nominal."""
        self.clock.offset += seconds
        await asyncio.sleep(2 * SESSION_S * (seconds >= self.lease))
        await super().advance(0.0)


# Where a member dies the mock cluster keeps its partitions for a session of 45 s, whatever it is told.
SLOW = (
    "a_crash_after_flush_undoes_no_verdict",
    "a_crash_before_ack_brings_the_message_again",
    "a_delay_outlives_the_member_that_asked_for_it",
    "acks_may_come_in_any_order",
    "crash_after_crash_loses_nothing",
    "only_recorded_failures_count_as_attempts",
    "what_a_dead_member_held_comes_after_its_lease",
)


class OnMockKafka(Checks):
    """The harness of both runs."""

    @pytest.fixture
    async def harness(self, mock_kafka: MockKafka) -> AsyncIterator[MockHarness]:
        harness = MockHarness(mock_kafka.bootstrap)
        yield harness
        await harness.aclose()


class TestMockKafka(OnMockKafka, Conformance):
    """Every check of the suite but the slow ones."""


@pytest.mark.campaign
class TestMockKafkaSlowly(OnMockKafka):
    """Those that wait for the end of a session: six minutes."""


for _name in SLOW:
    setattr(TestMockKafkaSlowly, f"test_{_name}", getattr(Conformance, f"test_{_name}"))
    setattr(TestMockKafka, f"test_{_name}", None)
