"""The suite itself: its declarations bind both ways, its skips are pinned, and it finds planted bugs."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from test_memory import MemoryHarness
from test_sqlite import SqliteHarness

from broker import Broker, BrokerError, Delivery, Message, Receipt
from broker.conformance import GROUP, Bench, Conformance, Harness, check_names
from broker.drivers.base import Room
from broker.drivers.memory import MemoryDriver, MemorySubscription

pytestmark = pytest.mark.anyio


def test_skips_are_pinned() -> None:
    """What each backend cannot do, in full; a new entry needs a reason that convinces a reviewer."""
    backends: dict[str, type[Harness]] = {"memory": MemoryHarness, "sqlite": SqliteHarness}
    ends = "the store is memory of one process and ends with it"
    assert {name: dict(harness.impossible) for name, harness in backends.items()} == {
        "memory": {
            "messages_survive_a_restart": ends,
            "verdicts_survive_a_restart": ends,
            "a_restart_in_mid_run_loses_nothing": ends,
        },
        "sqlite": {},
    }


def test_every_check_says_what_must_hold() -> None:
    """Each check is documented by one sentence, and there are as many as ever."""
    names = check_names()
    assert len(names) >= 140
    for name in names:
        text = getattr(Conformance, f"test_{name}").__doc__
        assert text is not None, name
        assert text.endswith("."), name


_LIAR = """
import pytest
from broker import Broker, ManualClock
from broker.conformance import Conformance, Harness
from broker.drivers.base import Room
from broker.drivers.memory import MemoryDriver, MemoryStore
from dataclasses import replace

class Liar(Harness):
    lease = 30.0
    quiet = 0.02
    impossible = {impossible}

    def connect(self):
        driver = MemoryDriver(self.store, lease=30.0, clock=self.clock)
        driver.capabilities = replace(driver.capabilities, **{claims})
        return Broker(driver)

    async def advance(self, seconds):
        await self.clock.advance(seconds)

class TestLiar(Conformance):
    @pytest.fixture
    async def harness(self):
        harness = Liar()
        harness.store, harness.clock = MemoryStore(), ManualClock()
        return harness
"""
_DECLARED = {
    "messages_survive_a_restart": "memory",
    "verdicts_survive_a_restart": "memory",
    "a_restart_in_mid_run_loses_nothing": "memory",
}


def run_suite(tmp_path: Path, impossible: Mapping[str, str], claims: Mapping[str, Any], chosen: str) -> str:
    """Run chosen checks on a memory backend with these declarations, as a third party would."""
    module = tmp_path / "test_liar.py"
    module.write_text(_LIAR.format(impossible=dict(impossible), claims=dict(claims)))
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-rs",
        "-p",
        "no:cacheprovider",
        str(module),
        "-k",
        chosen,
    ]
    return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False).stdout


def test_a_third_party_needs_one_fixture(tmp_path: Path) -> None:
    """Outside this repository, with pytest and the package alone, checks run and skips show their reason."""
    printed = run_suite(tmp_path, _DECLARED, {}, "settling or restart or declarations or capabilities_are")
    assert "3 skipped" in printed, printed
    assert " passed" in printed, printed
    assert " 0 failed," in printed, printed
    assert "memory" in printed


def test_a_declaration_against_the_claims_fails(tmp_path: Path) -> None:
    """Declaring impossible what the capabilities claim is a failure, not a skip."""
    declared = {**_DECLARED, "order_outlives_a_crash": "too hard"}
    printed = run_suite(tmp_path, declared, {}, "order_outlives")
    assert "1 error" in printed, printed
    assert "the capabilities claim order='key'" in printed


def test_denying_a_capability_without_declaring_it_fails(tmp_path: Path) -> None:
    """A check that the capabilities rule out must be declared, so that the list of skips is complete."""
    printed = run_suite(tmp_path, {}, {}, "messages_survive_a_restart")
    assert "1 error" in printed, printed
    assert "declare messages_survive_a_restart impossible" in printed


def test_claims_that_do_not_hold_fail(tmp_path: Path) -> None:
    """Denying history that is there, claiming another lease and declaring unknown checks all fail."""
    declared = {**_DECLARED, "no_such_check": "typing error"}
    chosen = "starts_where_it_was_told or capabilities_are_stated or declarations"
    printed = run_suite(tmp_path, declared, {"history": False, "lease": 31.0}, chosen)
    assert "3 failed" in printed, printed


class BuggySubscription(MemorySubscription):
    """A member with one planted bug, by name."""

    bug = ""

    async def receive(self, limit: Room, timeout: float) -> list[Delivery]:
        if self.bug == "ignores max_messages":
            limit = replace(limit, messages=limit.messages + 1)
        if self.bug == "ignores max_bytes":
            limit = replace(limit, size_bytes=1 << 40)
        if self.bug == "lets a large one come beside others":
            limit = replace(limit, alone=True)
        deliveries = await super().receive(limit, timeout)
        if self.bug == "loses the last of a batch" and len(deliveries) > 5:
            await super().settle(deliveries[-1:], [], [])
            deliveries.pop()
        if self.bug == "hands over twice" and deliveries:
            deliveries.append(replace(deliveries[0]))
        if self.bug == "counts from zero":
            deliveries = [replace(each, attempt=each.attempt - 1) for each in deliveries]
        return deliveries

    async def settle(
        self, acks: Sequence[Delivery], releases: Sequence[Delivery], retries: Sequence[Any]
    ) -> list[Delivery]:
        if self.bug == "forgets acks" and acks:
            return []
        if self.bug == "acks what is released":
            acks, releases = [*acks, *releases], []
        if self.bug == "counts releases":
            releases = [replace(each, receipt=each.receipt) for each in releases]
            for each in releases:
                group = self._store.group(self._topic, self._group)
                group.pending[each.receipt.seq].failures += 1
        if self.bug == "ignores delays":
            retries = [replace(each, delay=0.0) for each in retries]
        if self.bug == "forgets attempts":
            retries = [replace(each, attempt=1) for each in retries]
        if self.bug == "says nothing of lost leases":
            await super().settle(acks, releases, retries)
            return []
        if self.bug == "does not check the lease":
            pending = self._store.group(self._topic, self._group).pending
            for each in acks:
                pending.pop(each.receipt.seq, None)
            return []
        return await super().settle(acks, releases, retries)

    async def extend(self, deliveries: Sequence[Delivery]) -> list[Delivery]:
        return [] if self.bug == "keeps no leases" else await super().extend(deliveries)

    async def forward(self, delivery: Delivery, topic: str, extra: Mapping[str, str]) -> None:
        if self.bug == "forgets the copy":
            return
        if self.bug == "forwards attributes only":
            extra = {**extra, **delivery.message.attributes}
        await super().forward(delivery, topic, extra)
        if self.bug == "forward settles":
            await super().settle([delivery], [], [])
        if self.bug == "forwards twice":
            await super().forward(delivery, topic, extra)


class BuggyDriver(MemoryDriver):
    """A backend with one planted bug, by name."""

    bug = ""

    async def send(self, topic: str, messages: Sequence[Message]) -> list[Receipt | BrokerError]:
        if self.bug == "makes topics by itself":
            await self.ensure(topic, None, 1, "earliest")
        if self.bug == "drops keys":
            messages = [replace(each, key=None) for each in messages]
        if self.bug == "drops the zone":
            messages = [replace(each, time=each.time.astimezone()) for each in messages]
        if self.bug == "reads a reserved name":
            messages = [
                replace(each, attributes={k: v for k, v in each.attributes.items() if k != "timeout"})
                for each in messages
            ]
        answers = await super().send(topic, messages)
        return answers[::-1] if self.bug == "receipts out of order" else answers

    async def subscribe(self, topic: str, group: str, order: Any) -> BuggySubscription:
        if self.bug == "makes groups by itself":
            await self.ensure(topic, group, 1, "earliest")
        if self.bug == "keeps no order":
            order = "none"
        self.store.group(topic, group)
        member = BuggySubscription(self, topic, group, order)
        member.bug = self.bug
        return member

    async def ensure(self, topic: str, group: str | None, partitions: int, start: Any) -> None:
        if self.bug == "latest is earliest":
            start = "earliest"
        if self.bug == "ensure starts over" and topic in self.store.topics:
            self.store.topics[topic].groups.pop(group or "", None)
        await super().ensure(topic, group, partitions, start)


BUGS = {
    "ignores max_messages": "max_in_flight_is_never_exceeded",
    "ignores max_bytes": "max_bytes_is_never_exceeded",
    "lets a large one come beside others": "a_body_over_max_bytes_comes_alone",
    "loses the last of a batch": "what_is_published_is_received",
    "hands over twice": "what_is_published_is_received",
    "counts from zero": "only_recorded_failures_count_as_attempts",
    "forgets acks": "an_acked_message_never_comes_again",
    "acks what is released": "closing_hands_open_deliveries_back_at_once",
    "counts releases": "only_recorded_failures_count_as_attempts",
    "ignores delays": "a_delayed_message_does_not_come_early",
    "forgets attempts": "nack_of_everything_brings_everything_again",
    "says nothing of lost leases": "a_late_verdict_is_refused_and_disturbs_nobody",
    "does not check the lease": "a_late_verdict_is_refused_and_disturbs_nobody",
    "keeps no leases": "a_lease_is_kept_while_a_delivery_is_open",
    "forgets the copy": "attempts_exhausted_means_one_dead_letter",
    "forwards attributes only": "an_extra_attribute_wins_over_one_of_the_same_name",
    "forward settles": "forward_settles_nothing",
    "forwards twice": "reject_dead_letters_at_once",
    "makes topics by itself": "publishing_to_an_unknown_topic_is_refused",
    "makes groups by itself": "receive_on_what_was_never_ensured_is_refused",
    "drops keys": "every_field_round_trips",
    "drops the zone": "every_field_round_trips",
    "reads a reserved name": "reserved_attribute_names_are_safe",
    "receipts out of order": "a_large_publish_is_complete_and_in_order",
    "keeps no order": "the_messages_of_a_key_come_one_by_one_in_order",
    "latest is earliest": "a_group_starts_where_it_was_told",
    "ensure starts over": "ensure_changes_nothing_that_exists",
}


class BuggyHarness(MemoryHarness):
    """Memory with one planted bug; impatient, because most bugs show as something that never comes."""

    patience = 0.4

    def __init__(self, bug: str) -> None:
        super().__init__()
        self.bug = bug

    def connect(self) -> Broker:
        driver = BuggyDriver(self.store, lease=self.lease, clock=self.clock)
        driver.bug = self.bug
        return Broker(driver)


@pytest.mark.parametrize(("bug", "check"), BUGS.items(), ids=BUGS)
async def test_a_planted_bug_is_found(bug: str, check: str) -> None:
    """The check that is there for a bug passes without it and fails with it."""
    run: Callable[[Bench], Any] = getattr(Conformance(), f"test_{check}")
    for planted in ("", bug):
        harness = BuggyHarness(planted)
        if not planted:
            harness.patience = 20.0
        async with harness.connect() as broker, asyncio.timeout(30):
            await broker.ensure("images", group=GROUP)
            bench = Bench(harness, broker, "images")
            if planted:
                with pytest.raises((AssertionError, pytest.fail.Exception, BrokerError)):
                    await run(bench)
            else:
                await run(bench)
