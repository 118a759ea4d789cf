"""The blocking form: the same names and the same effects, without an event loop."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from broker import Closed, Delivery, Message, NotFound, PublishError, connect_blocking
from broker.blocking import BlockingBroker

GROUP = "workers"


@pytest.fixture(params=["memory", "sqlite"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return f"memory://{tmp_path.name}" if request.param == "memory" else f"sqlite:///{tmp_path}/queue.db"


@pytest.fixture
def broker(url: str) -> Iterator[BlockingBroker]:
    with connect_blocking(url) as broker:
        broker.ensure("images", group=GROUP)
        yield broker


def take(subscription: object, count: int) -> list[Delivery]:
    """Receive exactly ``count`` deliveries."""
    taken: list[Delivery] = []
    for _ in range(100):
        taken += subscription.receive(max_messages=count - len(taken), timeout=5.0)  # type: ignore[attr-defined]
        if len(taken) == count:
            return taken
    raise AssertionError(f"{len(taken)} of {count}")


def test_a_script_can_publish_and_receive(broker: BlockingBroker) -> None:
    """Publish, receive, and every verb, as in the asynchronous form."""
    sent = [Message(data=b"%d" % number) for number in range(4)]
    receipts = broker.publish("images", sent)
    assert [each.message_id for each in receipts] == [each.id for each in sent]
    with broker.subscribe("images", group=GROUP) as subscription:
        held = take(subscription, 4)
        assert [each.message for each in held] == sent
        subscription.ack(held[0])
        subscription.nack([held[1]])
        subscription.release(held[2:3])
        subscription.nack(held[3], delay=3600.0)
        subscription.flush()
        again = {each.message.data: each.attempt for each in take(subscription, 2)}
        assert again == {b"1": 2, b"2": 1}
        assert subscription.receive(timeout=0.05) == []
    stats = broker.stats("images", GROUP)
    assert (stats.published, stats.settled, stats.delayed, stats.ready) == (4, 1, 1, 2)


def test_iteration_yields_one_by_one(broker: BlockingBroker) -> None:
    """``for delivery in subscription`` works, and leaving it loses nothing."""
    broker.publish("images", [Message(data=b"%d" % number) for number in range(6)])
    seen = []
    with broker.subscribe("images", group=GROUP) as subscription:
        for delivery in subscription:
            seen.append(delivery.message.data)
            subscription.ack(delivery)
            if len(seen) == 3:
                break
    assert seen == [b"0", b"1", b"2"]
    assert broker.stats("images", GROUP).ready == 3


def test_iteration_ends_after_a_drain(broker: BlockingBroker) -> None:
    """As in the asynchronous form, a drained subscription ends the loop without an error."""
    broker.publish("images", [Message(data=b"x")])
    count = 0
    with broker.subscribe("images", group=GROUP) as subscription:
        for delivery in subscription:
            count += 1
            subscription.ack(delivery)
            assert subscription.drain(5.0) is True
    assert count == 1


def test_leases_are_kept_while_the_caller_is_busy(tmp_path: Path) -> None:
    """A caller that computes for longer than the lease, without a call to us, still holds its message."""
    url = f"sqlite:///{tmp_path}/queue.db?lease=0.5"
    with connect_blocking(url) as broker:
        broker.ensure("images", group=GROUP)
        broker.publish("images", [Message(data=b"x")])
        with broker.subscribe("images", group=GROUP) as subscription:
            (held,) = take(subscription, 1)
            with connect_blocking(url) as other, other.subscribe("images", group=GROUP) as rival:
                assert rival.receive(timeout=1.2) == []
            subscription.ack(held)
        assert broker.stats("images", GROUP).settled == 1


def test_errors_are_those_of_the_contract(broker: BlockingBroker) -> None:
    """Nothing is wrapped: causes, fields and texts are the same."""
    with pytest.raises(NotFound, match="nowhere"):
        broker.publish("nowhere", [Message(data=b"x")])
    bad = Message(data=b"x", id="")
    with pytest.raises(PublishError) as error:
        broker.publish("images", [bad, Message(data=b"good")])
    assert list(error.value.failed) == [""]
    with pytest.raises(ValueError, match="order"):
        broker.subscribe("images", group=GROUP, order="total").__enter__()  # type: ignore[arg-type]
    with broker.subscribe("images", group=GROUP) as subscription:
        (held,) = take(subscription, 1)
    with pytest.raises(Closed):
        subscription.ack(held)


def test_what_is_held_goes_back_when_the_block_fails(broker: BlockingBroker) -> None:
    """An error of the caller hands open deliveries back at once."""
    broker.publish("images", [Message(data=b"x")])

    def fail() -> None:
        with broker.subscribe("images", group=GROUP) as subscription:
            take(subscription, 1)
            raise LookupError

    with pytest.raises(LookupError):
        fail()
    assert broker.stats("images", GROUP).ready == 1


def test_closing_leaves_no_thread_behind(url: str) -> None:
    """The event loop's thread, and the backend's, end with the context."""
    before = threading.active_count()
    with connect_blocking(url) as broker:
        broker.ensure("images", group=GROUP)
        assert threading.active_count() > before
        assert broker.capabilities.backend in ("memory", "sqlite")
    assert threading.active_count() == before


def test_it_works_from_several_threads(broker: BlockingBroker, url: str) -> None:
    """A threaded server may share one client: every message arrives once."""

    def publish(first: int) -> None:
        for number in range(first, first + 20):
            broker.publish("images", [Message(data=b"%d" % number)])

    threads = [threading.Thread(target=publish, args=(first,)) for first in range(0, 100, 20)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    with broker.subscribe("images", group=GROUP) as subscription:
        came = sorted(int(each.message.data) for each in take(subscription, 100))
    assert came == list(range(100))
    if url.startswith("sqlite"):
        path = url.removeprefix("sqlite:///").split("?")[0]
        assert sqlite3.connect(path).execute("PRAGMA integrity_check").fetchone() == ("ok",)
