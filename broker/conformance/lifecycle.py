"""Checks of clients: opening, closing, several at once; and of the declarations themselves."""

from __future__ import annotations

import pytest

from ..errors import BrokerError, Closed
from .bench import GROUP, Bench, attempts, bodies, numbered, within
from .checks import Checks
from .harness import Harness


class Lifecycle(Checks):
    """A client from open to close."""

    async def test_declarations_name_checks_that_exist(self, harness: Harness) -> None:
        """Every name in ``Harness.impossible`` is a check of this suite and has a reason."""
        known = {name.removeprefix("test_") for name in dir(self) if name.startswith("test_")}
        assert set(harness.impossible) <= known
        assert all(reason.strip() for reason in harness.impossible.values())

    async def test_capabilities_are_stated_in_full(self, bench: Bench) -> None:
        """The capabilities name the backend, say what the harness says, and have usable limits."""
        can = bench.broker.capabilities
        assert can.backend.isidentifier()
        assert can.lease == bench.harness.lease
        assert "none" in can.order
        assert can.max_delay > 0
        assert can.max_message_bytes >= 1_000_000
        assert can.max_attributes >= 50
        assert can.max_attribute_bytes >= 256
        assert can.max_attribute_name_bytes >= 200
        assert {type(each) for each in (can.shared, can.durable, can.history, can.counts)} == {bool}

    async def test_a_client_that_is_not_open_is_refused(self, bench: Bench) -> None:
        """Before it is opened and after it was closed, every call on a client is ``Closed``."""
        closed = bench.harness.connect()
        async with closed:
            await closed.publish(bench.topic, numbered(1))
        for client in (bench.harness.connect(), closed):
            with pytest.raises(Closed):
                await client.publish(bench.topic, numbered(1))
            with pytest.raises(Closed):
                await client.ensure(bench.topic)
            with pytest.raises(Closed):
                client.subscribe(bench.topic, group=GROUP)
            with pytest.raises(Closed):
                await client.stats(bench.topic, GROUP)
            with pytest.raises(Closed):
                _ = [each async for each in client.browse(bench.topic, GROUP)]
        assert (await bench.stats()).published == 1

    async def test_closing_a_client_twice_does_nothing(self, bench: Bench) -> None:
        """A second close is silent, and other clients go on."""
        client = bench.harness.connect()
        async with client:
            await client.aclose()
            await client.aclose()
        await client.aclose()
        await bench.publish(1)
        assert await bench.left() == [b"0"]

    async def test_clients_see_the_same(self, bench: Bench) -> None:
        """What one client ensures, publishes and settles, another sees."""
        async with bench.harness.connect() as one, bench.harness.connect() as two:
            mine = await bench.on(one).another("shared")
            yours = mine.on(two)
            await yours.publish(4)
            async with mine.subscribe() as member:
                await bench.take_and_ack(member, 3)
                await member.flush()
            stats = await yours.stats()
            assert (stats.published, stats.settled, stats.ready) == (4, 3, 1)

    async def test_closing_a_client_under_its_members_loses_nothing(self, bench: Bench) -> None:
        """When a client goes before its subscription, closing that works and all it held comes again."""
        await bench.publish(4)
        async with (
            within(bench.harness.patience, "closing in the wrong order"),
            bench.harness.connect() as client,
            bench.subscribe(broker=client) as subscription,
        ):
            await bench.take(subscription, 4)
            await client.aclose()
        await bench.advance_leases()
        async with bench.subscribe() as later:
            came = await bench.take(later, 4)
        assert sorted(bodies(came)) == [b"0", b"1", b"2", b"3"]
        assert attempts(came) == {1}

    async def test_errors_say_whether_to_try_again(self, bench: Bench) -> None:
        """What a client raises is a ``BrokerError`` with ``retryable``, and its text names the cause."""
        for call in (
            bench.broker.publish("never-ensured", numbered(1)),
            bench.broker.stats("never-ensured", GROUP),
            bench.broker.stats(bench.topic, "never-ensured"),
        ):
            with pytest.raises(BrokerError, match="never-ensured") as error:
                await call
            assert error.value.retryable is False
