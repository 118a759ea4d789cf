"""Checks of ``process`` where all is well: outcomes, batches, dead letters, draining."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import datetime

import pytest

from ..errors import DeadlineExceeded, NotFound
from ..message import Delivery, Message
from ..processing.batcher import Batching
from ..processing.dead_letter import ADDED, OPERATORS, dead_letter_topic
from ..processing.outcomes import Done, Outcome, Reject, Retry, RetryPolicy
from .bench import GROUP, Bench, numbered, unique_name, within
from .checks import Checks
from .running import Recorder, dead_letters, processing


class Processing(Checks):
    """The processing loop over this backend."""

    async def test_done_acks(self, bench: Bench) -> None:
        """What the handler calls ``Done`` is acked, each message once, and the totals say so."""
        handler = Recorder()
        async with processing(bench, handler) as running:
            await bench.publish(100)
            await running.until_settled(100)
            totals = await running.finish()
        assert handler.seen == {b"%d" % n: [1] for n in range(100)}
        assert sum(map(len, handler.batches)) == 100
        assert (totals.done, totals.retried, totals.dead_lettered, totals.dropped) == (100, 0, 0, 0)
        assert (await bench.stats()).unsettled == 0
        assert await dead_letters(bench, 0) == []

    async def test_a_retry_comes_again_and_can_succeed(self, bench: Bench) -> None:
        """``Retry`` brings a message again with ``attempt`` + 1; ``Done`` then ends it."""
        handler = Recorder(lambda each: Done() if each.attempt == 3 else Retry("not yet"))
        await bench.publish(5)
        async with processing(bench, handler, retry=RetryPolicy(attempts=4, base=0.0, cap=0.0)) as running:
            await running.until_settled(5)
            totals = await running.finish()
        assert handler.seen == {b"%d" % n: [1, 2, 3] for n in range(5)}
        assert (totals.done, totals.retried, totals.dead_lettered) == (5, 10, 0)
        assert await dead_letters(bench, 0) == []

    async def test_a_retry_waits_for_its_backoff(self, bench: Bench) -> None:
        """A retried message comes after the delay of the policy, on the backend's clock; others pass."""

        async def delayed() -> bool:
            return (await bench.stats()).delayed == 1

        failing, delay = (b"0", 1), bench.harness.delay
        backoff = RetryPolicy(attempts=3, base=delay, cap=delay)
        handler = Recorder(
            lambda each: Retry("later") if (each.message.data, each.attempt) == failing else Done()
        )
        await bench.publish(10)
        async with processing(bench, handler, retry=backoff) as running:
            await running.until_settled(9)
            await bench.eventually(delayed, "the failed message is delayed")
            assert handler.seen[b"0"] == [1]
            await bench.harness.advance(delay * 1.05)
            await running.until_settled(10)
            await running.finish()
        assert handler.seen[b"0"] == [1, 2]

    async def test_attempts_exhausted_means_one_dead_letter(self, bench: Bench) -> None:
        """After ``RetryPolicy.attempts`` a message is dead-lettered once, whole, and says why."""
        sent = Message(
            data=bytes(range(256)), key="k-é", attributes={"mine": "1", "topic": "t"},
            content_type="image/png", type="t", source="//s", subject="sub",
        )  # fmt: skip
        handler = Recorder(lambda _: Retry(OSError("it broke"), stage="write"))
        await bench.broker.publish(bench.topic, [sent])
        async with processing(bench, handler) as running:
            await running.until_settled(1)
            totals = await running.finish()
        assert list(handler.seen.values()) == [[1, 2, 3]]
        assert (totals.done, totals.retried, totals.dead_lettered) == (0, 2, 1)
        (letter,) = await dead_letters(bench, 1)
        added = self._check_letter(letter, sent, bench.topic)
        assert added["couturier-attempts"] == "3"
        assert added["couturier-stage"] == "write"
        assert added["couturier-error"] == "OSError: it broke"

    async def test_reject_dead_letters_at_once(self, bench: Bench) -> None:
        """``Reject`` sends a message to the dead-letter topic after its first attempt, with its reason."""
        handler = Recorder(
            lambda each: Reject("not-an-image", "no magic", "decode") if each.message.data == b"3" else Done()
        )
        sent = await bench.publish(8)
        async with processing(bench, handler) as running:
            await running.until_settled(8)
            totals = await running.finish()
        assert handler.seen == {b"%d" % n: [1] for n in range(8)}
        assert (totals.done, totals.retried, totals.dead_lettered) == (7, 0, 1)
        (letter,) = await dead_letters(bench, 1)
        added = self._check_letter(letter, sent[3], bench.topic)
        assert (added["couturier-reason"], added["couturier-stage"]) == ("not-an-image", "decode")
        assert (added["couturier-attempts"], added["couturier-error"]) == ("1", "no magic")

    async def test_without_dead_letters_what_cannot_succeed_is_dropped(self, bench: Bench) -> None:
        """With ``dead_letter=False`` what is rejected or exhausted is acked and counted; no topic is made."""
        handler = Recorder(lambda each: Reject("no") if each.message.data == b"0" else Retry("no"))
        await bench.publish(2)
        async with processing(bench, handler, dead_letter=False) as running:
            await running.until_settled(2)
            totals = await running.finish()
        assert (totals.dropped, totals.dead_lettered, totals.retried) == (2, 0, 2)
        with pytest.raises(NotFound):
            await bench.broker.stats(dead_letter_topic(bench.topic, GROUP), OPERATORS)

    async def test_dead_letters_have_a_place_before_the_first_message(self, bench: Bench) -> None:
        """Dead-letter topic and group ``operators`` exist before the handler is called for the first time."""
        found: list[int | None] = []
        letters = Bench(bench.harness, bench.broker, dead_letter_topic(bench.topic, GROUP))

        async def handler(deliveries: Sequence[Delivery]) -> list[Outcome]:
            stats = await letters.stats(OPERATORS)
            found.append(stats.published)
            return [Done()] * len(deliveries)

        await bench.publish(1)
        async with processing(bench, handler) as running:
            await running.until_settled(1)
            await running.finish()
        assert found == [0]

    async def test_process_creates_no_input(self, bench: Bench) -> None:
        """An un-ensured topic or group is ``NotFound`` within seconds, and nothing at all is created."""
        unknown = unique_name("unknown")
        for topic, group in ((unknown, GROUP), (bench.topic, unknown)):
            async with within(20, "process on what does not exist"):
                with pytest.raises(NotFound, match=unknown):
                    await bench.broker.process(topic, group=group, handler=Recorder())
            with pytest.raises(NotFound):
                await bench.broker.stats(topic, group)
            with pytest.raises(NotFound):
                await bench.broker.stats(dead_letter_topic(topic, group), OPERATORS)

    async def test_batches_keep_to_their_bounds(self, bench: Bench) -> None:
        """No batch has more messages or more cost than allowed; what costs more runs alone."""
        sizes = [10, 60, 50, 200, 10, 10, 90, 20] * 5
        sent = [Message(data=b"x" * size) for size in sizes]
        batches: list[list[int]] = []

        async def handler(deliveries: Sequence[Delivery]) -> list[Outcome]:
            batches.append([len(each.message.data) for each in deliveries])
            return [Done()] * len(deliveries)

        batching = Batching(max_messages=4, cost=lambda each: len(each.message.data), max_cost=100)
        await bench.broker.publish(bench.topic, sent)
        async with processing(bench, handler, batch=batching) as running:
            await running.until_settled(len(sent))
            await running.finish()
        assert sorted(size for batch in batches for size in batch) == sorted(sizes)
        assert all(len(batch) <= 4 for batch in batches)
        assert all(sum(batch) <= 100 or len(batch) == 1 for batch in batches)

    async def test_no_more_batches_run_than_allowed(self, bench: Bench) -> None:
        """``Batching.concurrency`` batches run at once when there is work, and never more."""
        now, most = 0, 0
        together = asyncio.Event()

        async def handler(deliveries: Sequence[Delivery]) -> list[Outcome]:
            nonlocal now, most
            now += 1
            most = max(most, now)
            if now == 3:
                together.set()
            async with within(bench.harness.patience, "three batches at once"):
                await together.wait()
            await asyncio.sleep(0.02)
            now -= 1
            return [Done()] * len(deliveries)

        await bench.publish(60)
        async with processing(bench, handler, batch=Batching(max_messages=5, concurrency=3)) as running:
            await running.until_settled(60)
            totals = await running.finish()
        assert most == 3
        assert totals.done == 60

    async def test_stop_finishes_what_is_held_and_takes_no_more(self, bench: Bench) -> None:
        """After ``stop`` the running batch is finished and acked; the rest is ready at once, untried."""
        started, go_on = asyncio.Event(), asyncio.Event()
        begun: list[int] = []

        async def handler(deliveries: Sequence[Delivery]) -> list[Outcome]:
            begun.append(len(deliveries))
            started.set()
            await go_on.wait()
            return [Done()] * len(deliveries)

        await bench.publish(200)
        async with processing(bench, handler, batch=Batching(max_messages=8)) as running:
            await running.until(started.is_set, "the handler is called")
            running.stop.set()
            await asyncio.sleep(0.05)
            assert not running.task.done()
            go_on.set()
            totals = await running.finish()
        stats = await bench.stats()
        assert totals.done >= begun[0]
        assert (stats.settled, stats.in_flight, stats.ready) == (totals.done, 0, 200 - totals.done)
        assert {each.attempt async for each in bench.broker.browse(bench.topic, GROUP)} == {1}

    async def test_stop_ends_an_idle_process_at_once(self, bench: Bench) -> None:
        """With nothing to do, and also when set beforehand, ``stop`` ends ``process`` promptly."""
        async with processing(bench, Recorder()) as running:
            running.stop.set()
            async with within(5, "an idle process that is stopped"):
                assert (await running.task).done == 0
        async with processing(bench, Recorder()) as running:
            await asyncio.sleep(0.1)
            async with within(5, "an idle process that is stopped"):
                assert (await running.finish()).done == 0

    async def test_a_drain_that_takes_too_long_is_an_error_and_loses_nothing(self, bench: Bench) -> None:
        """After ``drain_timeout`` the call raises ``DeadlineExceeded`` and everything held is handed back."""
        started = asyncio.Event()

        async def handler(deliveries: Sequence[Delivery]) -> list[Outcome]:
            started.set()
            await asyncio.Event().wait()
            return [Done()] * len(deliveries)

        await bench.publish(20)
        async with processing(bench, handler, drain_timeout=0.1) as running:
            await running.until(started.is_set, "the handler is called")
            running.stop.set()
            async with within(bench.harness.patience, "a drain with a timeout"):
                with pytest.raises(DeadlineExceeded):
                    await running.task
        stats = await bench.stats()
        assert (stats.settled, stats.in_flight, stats.ready) == (0, 0, 20)

    async def test_cancelling_process_hands_everything_back(self, bench: Bench) -> None:
        """Cancelled in the middle of a batch, ``process`` hands back all it holds, ready and untried."""
        started = asyncio.Event()

        async def handler(deliveries: Sequence[Delivery]) -> list[Outcome]:
            started.set()
            await asyncio.Event().wait()
            return [Done()] * len(deliveries)

        await bench.broker.publish(bench.topic, numbered(30))
        for _ in range(2):
            started.clear()
            async with processing(bench, handler, batch=Batching(max_messages=4, concurrency=2)) as running:
                await running.until(started.is_set, "the handler is called")
                running.task.cancel()
                async with within(bench.harness.patience, "a cancelled process"):
                    await asyncio.wait({running.task})
                assert running.task.cancelled()
            stats = await bench.stats()
            assert (stats.settled, stats.in_flight, stats.ready) == (0, 0, 30)
        assert {each.attempt async for each in bench.broker.browse(bench.topic, GROUP)} == {1}

    @staticmethod
    def _check_letter(letter: Delivery, sent: Message, topic: str) -> dict[str, str]:
        """Compare a dead letter with its original; return the attributes that were added."""
        message = letter.message
        assert letter.topic == dead_letter_topic(topic, GROUP)
        assert letter.attempt == 1
        assert (message.data, message.key, message.id, message.time) == (
            sent.data,
            sent.key,
            sent.id,
            sent.time,
        )
        assert (message.content_type, message.type) == (sent.content_type, sent.type)
        assert (message.source, message.subject) == (sent.source, sent.subject)
        added = {name: value for name, value in message.attributes.items() if name not in sent.attributes}
        assert {**sent.attributes, **added} == message.attributes
        assert set(added) == set(ADDED)
        assert added["couturier-topic"] == topic
        assert added["couturier-reason"]
        assert datetime.fromisoformat(added["couturier-failed-at"]).tzinfo is not None
        return added
