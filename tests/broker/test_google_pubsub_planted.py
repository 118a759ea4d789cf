"""Bugs that a Pub/Sub driver is likely to have, planted: the scenario that is there for each must fail."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any

import grpc
import pytest
from test_google_pubsub_scripted import GROUP, PROJECT, TOPIC, opened, publish, take

from broker import Delivery, LeaseLost, Unavailable
from broker.conformance import member_of
from broker.drivers.base import Order
from broker.drivers.google_pubsub import PubsubDriver
from broker.drivers.google_pubsub_member import PubsubMember
from broker.drivers.google_pubsub_wire import Held
from broker.message import Redelivery
from tests.services.fake_pubsub import FakePubSub

pytestmark = pytest.mark.anyio

LEASE_S = 30.0


class BuggyMember(PubsubMember):
    """A member with one planted bug, by name; without one it is the driver's own."""

    bug = ""

    async def settle(
        self, acks: Sequence[Delivery], releases: Sequence[Delivery], retries: Sequence[Redelivery]
    ) -> list[Delivery]:
        lost = await super().settle(acks, releases, retries)
        return [] if self.bug == "takes a failed ack for success" else lost

    async def extend(self, deliveries: Sequence[Delivery]) -> list[Delivery]:
        return [] if self.bug == "keeps no leases" else await super().extend(deliveries)

    async def _fail(self, retries: Sequence[Redelivery]) -> set[Held]:
        if self.bug == "acks before the copy is stored":
            await self._leases.acknowledge(each.delivery.receipt for each in retries)
        return await super()._fail(retries)

    def _holds(self, each: Delivery, now: float) -> bool:
        return super()._holds(each, now - 1e9 if self.bug == "forgets when leases end" else now)


class BuggyDriver(PubsubDriver):
    """Its members have the bug."""

    def __init__(self, bug: str, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self._kind = type("Member", (BuggyMember,), {"bug": bug})

    async def subscribe(self, topic: str, group: str, order: Order) -> PubsubMember:
        await self.check_group(topic, group)
        member: PubsubMember = self._kind(self, topic, group)
        self.members.add(member)
        return member


@pytest.fixture
def fake() -> Iterator[FakePubSub]:
    with FakePubSub() as fake:
        yield fake


async def a_failure_without_its_copy(fake: FakePubSub, bug: str) -> None:
    """The copy that counts a failure is not stored, and the process dies: the message must come again."""
    async with opened(BuggyDriver(bug, PROJECT, fake.host, LEASE_S)) as (broker, subscription):
        await publish(broker, 1)
        held = await take(subscription, 1)
        fake.deny("Publish", grpc.StatusCode.INTERNAL)
        with pytest.raises(Unavailable):
            await subscription.nack(held)
        member_of(subscription)._driver.rpc.close()  # type: ignore[attr-defined]
    fake.allow("Publish")
    fake.advance(2 * LEASE_S)
    async with opened(PubsubDriver(PROJECT, fake.host)) as (broker, subscription):
        assert (await broker.stats(TOPIC, GROUP)).unsettled == 1, "lost"
        (again,) = await take(subscription, 1)
        assert again.attempt == 1


async def an_ack_after_the_service_ended_the_lease(fake: FakePubSub, bug: str) -> None:
    """An exactly-once subscription refuses an ack: whoever gave it must hear that the message comes again."""
    driver = BuggyDriver(bug, PROJECT, fake.host, LEASE_S, exactly_once=True)
    async with opened(driver) as (broker, subscription):
        await publish(broker, 2)
        early, late = await take(subscription, 2)
        await subscription.ack(early)
        fake.advance(2 * LEASE_S)
        with pytest.raises(LeaseLost) as lost:
            await subscription.ack(late)
        assert lost.value.ids == (late.message.id,)
        assert (await broker.stats(TOPIC, GROUP)).unsettled == 1


async def long_work(fake: FakePubSub, bug: str) -> None:
    """A delivery is held for three leases: nobody else may get it meanwhile."""
    driver = BuggyDriver(bug, PROJECT, fake.host, 1.0)
    async with opened(driver) as (broker, subscription):
        await publish(broker, 1)
        held = await take(subscription, 1)
        async with opened(PubsubDriver(PROJECT, fake.host)) as (_, other):
            assert await other.receive(timeout=3.0) == [], "it came to another member"
        await subscription.ack(held)


async def a_verdict_of_a_frozen_member(fake: FakePubSub, bug: str) -> None:
    """After its lease a member must not believe that it still holds what another has by now."""
    now = 0.0
    driver = BuggyDriver(bug, PROJECT, fake.host, LEASE_S, lease_clock=lambda: now)
    async with opened(driver) as (broker, subscription):
        await publish(broker, 1)
        (held,) = await take(subscription, 1)
        now = 2 * LEASE_S
        fake.advance(2 * LEASE_S)
        async with opened(PubsubDriver(PROJECT, fake.host)) as (_, other):
            (theirs,) = await take(other, 1)
            with pytest.raises(LeaseLost):
                await subscription.nack(held)
            await other.ack(theirs)
        assert (await broker.stats(TOPIC, GROUP)).unsettled == 0


Scenario = Callable[[FakePubSub, str], Awaitable[None]]
SCENARIOS: dict[str, Scenario] = {
    "acks before the copy is stored": a_failure_without_its_copy,
    "takes a failed ack for success": an_ack_after_the_service_ended_the_lease,
    "keeps no leases": long_work,
    "forgets when leases end": a_verdict_of_a_frozen_member,
}


@pytest.mark.parametrize("bug", SCENARIOS)
async def test_the_driver_passes_every_scenario(fake: FakePubSub, bug: str) -> None:
    """Without the bug it holds."""
    await SCENARIOS[bug](fake, "")


@pytest.mark.parametrize("bug", SCENARIOS)
async def test_every_planted_bug_is_found(fake: FakePubSub, bug: str) -> None:
    """With it, it does not."""
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        await SCENARIOS[bug](fake, bug)
