"""The blocking form: the same names and the same effects, without an event loop."""

from __future__ import annotations

import inspect
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from blocking_face import BlockingHarness

from broker import (
    Batching,
    Broker,
    Closed,
    Delivery,
    Done,
    Message,
    NotFound,
    Outcome,
    PublishError,
    Reject,
    Subscription,
    connect_blocking,
    dead_letter_topic,
)
from broker.blocking import BlockingBroker, BlockingSubscription
from broker.conformance import Conformance

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


@pytest.mark.parametrize(
    ("blocking", "form"), [(BlockingBroker, Broker), (BlockingSubscription, Subscription)]
)
def test_everything_public_is_there(blocking: type, form: type) -> None:
    """Each public name, with the same parameters in the same order; ``with`` opens and closes."""

    def surface(kind: type) -> dict[str, list[str]]:
        members = {name: value for name, value in inspect.getmembers(kind) if name[0] != "_"}
        return {
            name: [*inspect.signature(value).parameters] if inspect.isfunction(value) else []
            for name, value in members.items()
            if name != "aclose"
        }

    facts = {"topic": [], "group": []} if form is Subscription else {}
    assert surface(blocking) == {**surface(form), **facts}


def test_a_script_can_look_around(broker: BlockingBroker) -> None:
    """Topics, lag, facts and what is not settled; a look that is broken off leaves nothing behind."""
    sent = [Message(data=b"%d" % number) for number in range(5)]
    broker.publish("images", sent)
    assert [each.message for each in broker.browse("images", GROUP)] == sent
    for shown in broker.browse("images", GROUP):
        assert shown.message == sent[0]
        break
    assert [(each.name, each.groups) for each in broker.topics()] == [("images", (GROUP,))]
    assert sum(each.unsettled for each in broker.lag("images", GROUP)) == 5
    assert broker.describe()
    assert broker.address
    with pytest.raises(NotFound, match="nowhere"):
        next(broker.browse("nowhere", GROUP))


def test_a_function_can_process(broker: BlockingBroker) -> None:
    """The handler is an ordinary function in threads of its own; ``stop`` drains and returns the totals."""
    stop, both, lock = threading.Event(), threading.Event(), threading.Lock()
    threads: set[int] = set()
    seen: list[Delivery] = []

    def handler(deliveries: Sequence[Delivery]) -> list[Outcome]:
        with lock:
            threads.add(threading.get_ident())
            seen.extend(deliveries)
            if len(threads) == 2:
                both.set()
            if len(seen) == 8:
                stop.set()
        both.wait(20.0)
        return [Reject("bad") if each.message.data == b"3" else Done() for each in deliveries]

    broker.publish("images", [Message(data=b"%d" % number) for number in range(8)])
    batch = Batching(max_messages=2, concurrency=2)
    totals = broker.process("images", group=GROUP, handler=handler, batch=batch, stop=stop)
    assert (totals.done, totals.dead_lettered) == (7, 1)
    assert len(threads) == 2
    assert threading.get_ident() not in threads
    (letter,) = broker.browse(dead_letter_topic("images", GROUP), "operators")
    assert letter.message.data == b"3"


INTERRUPTED = """
import signal, sys, time
from broker import Batching, Done, Message, connect_blocking

signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it

def handler(deliveries):
    print("started", flush=True)
    time.sleep(0.3)
    return [Done()] * len(deliveries)

with connect_blocking(sys.argv[1]) as broker:
    broker.ensure("images", group="workers")
    broker.publish("images", [Message(data=b"%d" % number) for number in range(20)])
    broker.process("images", group="workers", handler=handler, batch=Batching(max_messages=1))
"""


def test_an_interrupt_drains(tmp_path: Path) -> None:
    """Ctrl-C finishes what is at work, hands the rest back and ends in ``KeyboardInterrupt``."""
    url = f"sqlite:///{tmp_path}/queue.db"
    command = [sys.executable, "-c", INTERRUPTED, url]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as script:
        assert script.stdout is not None
        assert script.stdout.readline() == b"started\n"
        script.send_signal(signal.SIGINT)
        _, said = script.communicate(timeout=30.0)
    assert b"KeyboardInterrupt" in said
    assert b"RuntimeError" not in said
    with connect_blocking(url) as broker:
        stats = broker.stats("images", GROUP)
    assert stats.settled in (1, 2)
    assert (stats.in_flight, stats.ready) == (0, 20 - stats.settled)


def test_leaving_ends_the_work_of_other_threads(url: str) -> None:
    """A thread that waits in its own subscription ends when the broker does, and what it held goes back."""
    held, ended = threading.Event(), []

    def work(broker: BlockingBroker) -> None:
        with broker.subscribe("images", group=GROUP) as subscription:
            ended.extend(each.message.data for each in subscription if not held.set())
            with pytest.raises(Closed):
                subscription.receive()

    with connect_blocking(url) as keeper:
        keeper.ensure("images", group=GROUP)
        with connect_blocking(url) as broker:
            thread = threading.Thread(target=work, args=(broker,))
            thread.start()
            broker.publish("images", [Message(data=b"x")])
            assert held.wait(20.0)
        thread.join(20.0)
        assert not thread.is_alive()
        assert ended == [b"x"]
        assert keeper.stats("images", GROUP).ready == 1
    with pytest.raises(Closed):
        broker.publish("images", [])


class TestBlocking(Conformance):
    """Every check of the suite, each call from a thread of its own."""

    @pytest.fixture
    async def harness(self, monkeypatch: pytest.MonkeyPatch) -> BlockingHarness:
        return BlockingHarness(monkeypatch)
