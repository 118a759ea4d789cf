"""A memory backend with planted bugs, by name, and the checks of the suite that are there to find them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from test_memory import MemoryHarness

from broker import Broker, BrokerError, Delivery, Message, Receipt, Unavailable
from broker.drivers.base import Room
from broker.drivers.memory import MemoryDriver, MemoryStore, MemorySubscription

Sent = Sequence[Message]


def _renamed(message: Message, rename: Callable[[str], str]) -> Message:
    return replace(message, attributes={rename(name): text for name, text in message.attributes.items()})


def _decoded(message: Message) -> Message:
    clean = {name: text.encode("utf-8", "replace").decode() for name, text in message.attributes.items()}
    return replace(message, attributes=clean)


def _without(message: Message, name: str) -> Message:
    return replace(message, attributes={k: text for k, text in message.attributes.items() if k != name})


# What becomes of messages on their way in.
_MANGLED: dict[str, Callable[[Message], Message]] = {
    "drops keys": lambda each: replace(each, key=None),
    "drops the zone": lambda each: replace(each, time=each.time.astimezone()),
    "reads a reserved name": lambda each: _without(each, "timeout"),
    "takes an empty body for none": lambda each: replace(each, data=each.data or b"null"),
    "takes bodies for text": lambda each: replace(each, data=each.data.decode(errors="replace").encode()),
    "lowers attribute names": lambda each: _renamed(each, str.lower),
    "decodes foreign bytes": _decoded,
    "cuts long bodies": lambda each: replace(each, data=each.data[:1_000_000]),
}


class BuggySubscription(MemorySubscription):
    """A member with one planted bug."""

    bug = ""

    async def receive(self, limit: Room, timeout: float) -> list[Delivery]:
        if self.bug == "ignores max_messages":
            limit = replace(limit, messages=limit.messages + 1)
        if self.bug == "ignores max_bytes":
            limit = replace(limit, size_bytes=1 << 40)
        if self.bug == "lets a large one come beside others":
            limit = replace(limit, alone=True)
        if self.bug == "a slow key stops the others" and self._order == "key" and not limit.alone:
            await asyncio.sleep(timeout)
            return []
        deliveries = await super().receive(limit, timeout)
        if self.bug == "loses the last of a batch" and len(deliveries) > 5:
            await super().settle(deliveries[-1:], [], [])
            deliveries.pop()
        if self.bug == "acks by itself":
            await super().settle(deliveries, [], [])
        if self.bug == "hands over twice" and deliveries:
            deliveries.append(replace(deliveries[0]))
        if self.bug == "counts from zero":
            deliveries = [replace(each, attempt=each.attempt - 1) for each in deliveries]
        if self.bug == "a retry gets a new id":
            deliveries = [
                replace(each, message=replace(each.message, id=f"{each.message.id}-{each.attempt}"))
                for each in deliveries
            ]
        return deliveries

    async def settle(
        self, acks: Sequence[Delivery], releases: Sequence[Delivery], retries: Sequence[Any]
    ) -> list[Delivery]:
        pending = self._store.group(self._topic, self._group).pending
        if self.bug == "forgets acks" and acks:
            return []
        if self.bug == "acks what is released":
            acks, releases = [*acks, *releases], []
        if self.bug == "acks what is nacked":
            acks, retries = [*acks, *(each.delivery for each in retries)], []
        if self.bug == "commits the highest" and acks:
            highest = max(each.receipt.seq for each in acks)
            for seq in [seq for seq in pending if seq < highest]:
                del pending[seq]
        if self.bug == "counts releases":
            for each in releases:
                pending[each.receipt.seq].failures += 1
        if self.bug == "ignores delays":
            retries = [replace(each, delay=0.0) for each in retries]
        if self.bug == "forgets attempts":
            retries = [replace(each, attempt=1) for each in retries]
        if self.bug == "says nothing of lost leases":
            await super().settle(acks, releases, retries)
            return []
        if self.bug == "does not check the lease":
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
    """A backend with one planted bug."""

    bug = ""
    sending = 0

    async def aclose(self) -> None:
        if self.bug == "closing ends what others have":
            self.store.topics.clear()
        if self.bug == "closing forgets the newest":
            for each in self.store.topics.values():
                each.log.pop(each.last, None)
                each.last = max(0, each.last - 1)

    async def send(self, topic: str, messages: Sent) -> list[Receipt | BrokerError]:
        if self.bug == "makes topics by itself":
            await self.ensure(topic, None, 1, "earliest")
        if self.bug == "a full queue fails":
            self.sending += 1
            await asyncio.sleep(0)
            self.sending -= 1
            if self.sending > 20:
                raise Unavailable("queue full")
        if self.bug == "one topic for all":
            for other in self.store.topics:
                if other != topic:
                    await super().send(other, messages)
        if self.bug == "stores nothing beside a failure" and len(messages) == 10:
            return [Receipt(each.id, topic, each.id) for each in messages]
        answers = await super().send(topic, [_MANGLED.get(self.bug, lambda each: each)(m) for m in messages])
        return answers[::-1] if self.bug == "receipts out of order" else answers

    async def subscribe(self, topic: str, group: str, order: Any) -> BuggySubscription:
        if self.bug == "makes groups by itself":
            await self.ensure(topic, group, 1, "earliest")
        if self.bug == "one position for all groups":
            group = next(iter(self.store.topic(topic).groups))
        if self.bug == "leaves a task behind":
            self.task = asyncio.create_task(asyncio.sleep(60))
        if self.bug == "keeps no order":
            order = "none"
        self.store.group(topic, group)
        member = BuggySubscription(self, topic, group, order)
        member.bug = self.bug
        return member

    async def remove_group(self, topic: str, group: str) -> None:
        if self.bug == "removes all groups" and topic in self.store.topics:
            self.store.topics[topic].groups.clear()
        if self.bug != "a removed group lives on":
            await super().remove_group(topic, group)

    async def ensure(
        self, topic: str, group: str | None, partitions: int, start: Any, retention: float | None = None
    ) -> float | None:
        if self.bug == "latest is earliest":
            start = "earliest"
        if self.bug == "keeps what is too old":
            retention = None
        if self.bug == "forgets too soon" and retention is not None:
            retention = 1.0
        if self.bug == "ensure starts over" and topic in self.store.topics:
            self.store.topics[topic].groups.pop(group or "", None)
        return await super().ensure(topic, group, partitions, start, retention)


class BuggyHarness(MemoryHarness):
    """Memory with one planted bug; impatient then, because most bugs show as something that never comes."""

    def __init__(self, bug: str) -> None:
        super().__init__()
        self.bug = bug
        if bug:
            self.patience = 0.4
        if bug == "has no native record":
            self.native = bytes

    def connect(self) -> Broker:
        driver = BuggyDriver(self.store, lease=self.lease, clock=self.clock)
        driver.bug = self.bug
        return Broker(driver)

    async def restart(self) -> None:
        if self.bug == "forgets all at a restart":
            self.store = MemoryStore()


# The bug, and the checks that find it.
BUGS = {
    "a removed group lives on": "a_removed_group_is_gone_and_the_others_stay",
    "removes all groups": "a_removed_group_is_gone_and_the_others_stay",
    "keeps what is too old": "what_is_older_than_its_retention_goes",
    "forgets too soon": "what_is_older_than_its_retention_goes",
    "a full queue fails": "hundreds_of_publishes_at_once_are_all_stored",
    "a retry gets a new id": "a_redelivery_is_the_same_message",
    "a slow key stops the others": "a_blocked_key_does_not_stop_the_others",
    "acks by itself": "a_crash_before_ack_brings_the_message_again",
    "acks what is nacked": "failing_now_and_then_loses_nothing many_failing_members_in_turn_lose_nothing"
    " a_repeated_ack_does_not_shield_the_others",
    "acks what is released": "closing_hands_open_deliveries_back_at_once settling_after_close_is_refused"
    " members_that_come_and_go_lose_nothing closing_in_mid_stream_again_and_again_loses_nothing",
    "closing ends what others have": "closing_a_client_twice_does_nothing",
    "closing forgets the newest": "what_publish_returned_for_is_stored",
    "commits the highest": "acks_may_come_in_any_order",
    "counts from zero": "only_recorded_failures_count_as_attempts",
    "counts releases": "only_recorded_failures_count_as_attempts release_brings_a_message_again_untried",
    "cuts long bodies": "a_body_at_the_limit_passes_and_one_byte_more_is_refused",
    "decodes foreign bytes": "raw_bytes_of_foreign_attributes_pass",
    "does not check the lease": "a_late_verdict_is_refused_and_disturbs_nobody",
    "drops keys": "every_field_round_trips",
    "drops the zone": "every_field_round_trips",
    "ensure starts over": "ensure_changes_nothing_that_exists",
    "forgets acks": "an_acked_message_never_comes_again many_members_receive_everything"
    " what_is_done_stays_done_while_members_join_and_leave",
    "forgets all at a restart": "messages_survive_a_restart a_restart_in_mid_run_loses_nothing",
    "forgets attempts": "nack_of_everything_brings_everything_again",
    "forgets the copy": "attempts_exhausted_means_one_dead_letter",
    "forward settles": "forward_settles_nothing",
    "forwards attributes only": "an_extra_attribute_wins_over_one_of_the_same_name"
    " a_dead_letter_can_be_replayed_and_die_again",
    "forwards twice": "reject_dead_letters_at_once",
    "hands over twice": "what_is_published_is_received members_of_a_group_share"
    " cancelling_receive_loses_nothing",
    "has no native record": "the_native_record_is_there_where_one_is_declared",
    "ignores delays": "a_delayed_message_does_not_come_early",
    "ignores max_bytes": "max_bytes_is_never_exceeded",
    "ignores max_messages": "max_in_flight_is_never_exceeded",
    "keeps no leases": "a_lease_is_kept_while_a_delivery_is_open",
    "keeps no order": "the_messages_of_a_key_come_one_by_one_in_order",
    "latest is earliest": "a_group_starts_where_it_was_told",
    "leaves a task behind": "closing_leaves_no_task_behind",
    "lets a large one come beside others": "a_body_over_max_bytes_comes_alone",
    "loses the last of a batch": "what_is_published_is_received a_large_publish_is_complete_and_in_order",
    "lowers attribute names": "odd_attributes_pass",
    "makes groups by itself": "receive_on_what_was_never_ensured_is_refused",
    "makes topics by itself": "publishing_to_an_unknown_topic_is_refused",
    "one position for all groups": "every_group_gets_everything",
    "one topic for all": "two_topics_do_not_mix twenty_topics_at_once",
    "reads a reserved name": "reserved_attribute_names_are_safe",
    "receipts out of order": "a_large_publish_is_complete_and_in_order",
    "says nothing of lost leases": "a_late_verdict_is_refused_and_disturbs_nobody",
    "stores nothing beside a failure": "one_bad_message_fails_alone",
    "takes an empty body for none": "json_and_empty_bodies_pass",
    "takes bodies for text": "any_bytes_pass",
}
PLANTED = [(bug, check) for bug, checks in BUGS.items() for check in checks.split()]
