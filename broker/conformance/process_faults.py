"""Checks of ``process`` where something fails: handlers that raise, outages, lost leases, two members."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence
from typing import Any, cast

import pytest

from ..errors import Unavailable
from ..message import Delivery, Message
from ..processing.batcher import Batching
from ..processing.breaker import BreakerPolicy
from ..processing.dead_letter import ADDED
from ..processing.outcomes import Done, Outcome, Reject, Retry, RetryPolicy
from .bench import MANY, Bench, bodies, numbered, spread, within
from .checks import Checks
from .harness import member_of
from .running import Recorder, dead_letters, processing


class UnprintableError(Exception):
    """An error whose text cannot be had."""

    def __str__(self) -> str:
        raise ValueError("no text")


class ProcessFaults(Checks):
    """Blame falls on the guilty message, on nobody during an outage, and nothing is lost either way."""

    async def test_only_the_raiser_is_blamed(self, bench: Bench) -> None:
        """A batch that raises is bisected: all others are done at attempt 1, the raiser is dead-lettered."""
        await self._one_bad_message(bench, ZeroDivisionError("poison"), "ZeroDivisionError: poison")

    async def test_an_error_without_a_text_is_blamed_like_any_other(self, bench: Bench) -> None:
        """An exception that cannot even be printed ends in a dead letter and stops nothing."""
        await self._one_bad_message(bench, UnprintableError(), "UnprintableError")

    async def test_a_handler_that_cancels_itself_is_blamed_like_any_other(self, bench: Bench) -> None:
        """A ``CancelledError`` of the handler's own is its failure, not the end of ``process``."""
        await self._one_bad_message(bench, asyncio.CancelledError("of something else"), "CancelledError")

    async def test_a_wrong_number_of_outcomes_is_a_failure(self, bench: Bench) -> None:
        """Too few, too many, no list or no outcomes are treated like raising: nothing is acked by mistake."""
        wrong: tuple[object, ...] = ([], None, [Done(), Done(), Done()], [None], ["done"], Done())

        for answer in wrong:

            async def handler(deliveries: Sequence[Delivery], answer: object = answer) -> Sequence[Outcome]:
                if any(each.message.data == b"bad" for each in deliveries):
                    return cast(Sequence[Outcome], answer)
                return [Done()] * len(deliveries)

            await bench.broker.publish(bench.topic, [Message(data=b"good"), Message(data=b"bad")])
            before = await bench.settled()
            async with processing(bench, handler) as running:
                await running.until_settled(before + 2)
                totals = await running.finish()
            assert (totals.done, totals.dead_lettered) == (1, 1), f"after {answer!r}"
        letters = await dead_letters(bench, len(wrong))
        assert bodies(letters) == [b"bad"] * len(wrong)

    async def test_unavailable_blames_nobody(self, bench: Bench) -> None:
        """While the handler raises ``Unavailable`` the same batch is tried again, whole and uncounted."""
        outages = 3
        calls: list[list[bytes]] = []
        attempts: set[int] = set()

        async def handler(deliveries: Sequence[Delivery]) -> list[Outcome]:
            calls.append(bodies(deliveries))
            attempts.update(each.attempt for each in deliveries)
            if len(calls) <= outages:
                raise Unavailable("the database is away")
            return [Done()] * len(deliveries)

        await bench.publish(20)
        async with processing(bench, handler, batch=Batching(max_messages=10)) as running:
            await running.until_settled(20)
            totals = await running.finish()
        assert calls[:outages] == [calls[outages]] * outages
        assert sorted(itertools.chain(*calls[outages:])) == sorted(b"%d" % n for n in range(20))
        assert attempts == {1}
        assert (totals.done, totals.retried, totals.dead_lettered) == (20, 0, 0)
        assert await dead_letters(bench, 0) == []

    async def test_an_outage_pauses_the_intake_and_keeps_the_leases(self, bench: Bench) -> None:
        """During a long outage little is held, nothing is handed to others twice, and no lease runs out."""
        away, calls = True, 0

        async def handler(deliveries: Sequence[Delivery]) -> list[Outcome]:
            nonlocal calls
            calls += 1
            if away:
                raise Unavailable("away")
            return [Done()] * len(deliveries)

        await bench.publish(500)
        async with processing(bench, handler, batch=Batching(max_messages=10)) as running:
            await running.until(lambda: calls >= 2, "the batch was tried again")
            await bench.advance_leases(3.5)
            stats = await bench.stats()
            assert 0 < stats.in_flight <= 50
            assert (stats.settled, stats.delayed) == (0, 0)
            away = False
            await running.until_settled(500)
            totals = await running.finish()
        assert (totals.done, totals.retried, totals.dead_lettered, totals.lost_leases) == (500, 0, 0, 0)

    async def test_an_outage_while_bisecting_blames_only_the_raiser(self, bench: Bench) -> None:
        """An outage in the middle of a bisection counts against nobody; the raiser alone is dead-lettered."""
        outages = 2
        seen: dict[bytes, set[int]] = {}

        async def handler(deliveries: Sequence[Delivery]) -> list[Outcome]:
            nonlocal outages
            for each in deliveries:
                seen.setdefault(each.message.data, set()).add(each.attempt)
            if b"2" in bodies(deliveries):
                raise RuntimeError("poison")
            if len(deliveries) < 8 and outages:
                outages -= 1
                raise Unavailable("away")
            return [Done()] * len(deliveries)

        await bench.publish(8)
        async with processing(bench, handler) as running:
            await running.until_settled(8)
            totals = await running.finish()
        assert seen == {b"%d" % n: {1, 2, 3} if n == 2 else {1} for n in range(8)}
        assert (totals.done, totals.dead_lettered) == (7, 1)
        assert bodies(await dead_letters(bench, 1)) == [b"2"]

    async def test_an_outage_that_comes_as_failures_blames_nobody(self, bench: Bench) -> None:
        """While every message fails, probes go on and nothing is counted or lost; then all is done."""
        away = True
        policy = BreakerPolicy(failures=5, base=0.05, cap=0.1, probe=4)
        handler = Recorder(lambda _: Retry("the model is away") if away else Done())
        await bench.publish(100)
        retry = RetryPolicy(attempts=3, base=0.0, cap=0.0, breaker=policy)
        async with processing(bench, handler, batch=Batching(max_messages=10), retry=retry) as running:
            await running.until(lambda: len(handler.batches) >= 4, "three probes failed")
            # A copy that waits for its retry and an original not yet settled may both count for a moment.
            assert await bench.settled() <= 0
            away = False
            # What failed in a probe waits for half of the time that the outage has lasted.
            async with within(bench.harness.patience, "all is done"):
                while await bench.settled() < 100:
                    await bench.harness.advance(0.2)
            totals = await running.finish()
        # A first batch may be smaller than what shows an outage.
        assert totals.retried < policy.failures
        assert (totals.done, totals.dead_lettered) == (100, 0)
        assert totals.unblamed >= 3
        assert sum(attempts != [1] for attempts in handler.seen.values()) <= totals.retried
        assert await dead_letters(bench, 0) == []

    async def test_a_message_with_all_it_may_carry_can_be_dead_lettered(self, bench: Bench) -> None:
        """A message with as many attributes as may be has room for those of a retry and of a letter."""
        most = bench.broker.capabilities.max_attributes
        sent = Message(data=b"full", attributes={f"name-{number}": str(number) for number in range(most)})
        handler = Recorder(lambda _: Retry("no"))
        await bench.broker.publish(bench.topic, [sent])
        async with processing(bench, handler) as running:
            await running.until_settled(1)
            assert (await running.finish()).dead_lettered == 1
        assert handler.seen == {b"full": [1, 2, 3]}
        (letter,) = await dead_letters(bench, 1)
        assert sent.attributes.items() <= letter.message.attributes.items()
        assert set(ADDED) <= set(letter.message.attributes)

    async def test_any_text_fits_on_a_dead_letter(self, bench: Bench) -> None:
        """Reasons and errors that are huge, binary or not Unicode keep no message from its dead letter."""
        texts = ("x" * 100_000, "nul \0 inside", "lone \ud800 surrogate", "é" * 5000, "", "line\nbreak")
        handler = Recorder(lambda each: Reject(texts[int(each.message.data)], texts[int(each.message.data)]))
        sent = await bench.publish(len(texts))
        async with processing(bench, handler) as running:
            await running.until_settled(len(texts))
            assert (await running.finish()).dead_lettered == len(texts)
        letters = {each.message.data: each.message for each in await dead_letters(bench, len(texts))}
        assert set(letters) == {each.data for each in sent}
        for message in letters.values():
            assert all(len(value.encode()) <= 1024 for value in message.attributes.values())
        assert letters[b"0"].attributes["couturier-error"].startswith("xxx")

    async def test_a_dead_letter_can_be_replayed_and_die_again(self, bench: Bench) -> None:
        """A dead letter that is sent back is processed anew; dying again it carries the newest reasons."""
        handler = Recorder(lambda _: Reject(f"reason-{len(handler.batches)}"))
        await bench.publish(1)
        async with processing(bench, handler) as running:
            await running.until_settled(1)
            letters = Bench(bench.harness, bench.broker, f"{bench.topic}.workers.dlq")
            async with letters.subscribe(group="operators") as subscription:
                (letter,) = await letters.take(subscription, 1)
                await subscription.forward(letter, bench.topic, {})
                await subscription.ack(letter)
            await running.until_settled(2)
            await running.finish()
        (letter,) = await dead_letters(bench, 1)
        assert letter.message.data == b"0"
        assert letter.message.attributes["couturier-reason"] == "reason-2"
        assert letter.message.attributes["couturier-attempts"] == "1"

    async def test_a_dead_letter_that_cannot_be_stored_is_waited_for(
        self, bench: Bench, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """While the dead-letter topic is away nothing is acked or counted; then there is one letter."""
        tries = 0
        handler = Recorder(lambda _: Reject("no"))

        async def failing(*arguments: Any) -> None:
            nonlocal tries
            tries += 1
            if tries < 3:
                raise Unavailable("the dead-letter topic is away")
            stats = await bench.stats()
            assert (stats.settled, stats.in_flight, stats.delayed) == (0, 1, 0)
            await forward(*arguments)

        async with processing(bench, handler) as running:
            member = member_of(await running.until_joined())
            forward = member.forward
            monkeypatch.setattr(member, "forward", failing)
            await bench.publish(1)
            await running.until_settled(1)
            totals = await running.finish()
        assert (tries, totals.dead_lettered, totals.retried) == (3, 1, 0)
        (letter,) = await dead_letters(bench, 1)
        assert letter.message.attributes["couturier-attempts"] == "1"

    async def test_two_processes_share_the_work(self, bench: Bench) -> None:
        """Two ``process`` calls of one group on two clients finish everything, each message once."""
        one, two = Recorder(), Recorder()
        bench = await bench.another(partitions=MANY)
        async with bench.harness.connect() as client:
            second = bench.on(client)
            batch = Batching(max_messages=5)
            first_run, other_run = processing(bench, one, batch=batch), processing(second, two, batch=batch)
            async with first_run as first, other_run as other:
                await first.until_joined()
                await other.until_joined()
                await bench.broker.publish(bench.topic, spread(numbered(200)))
                await first.until_settled(200)
                done = (await first.finish()).done + (await other.finish()).done
        assert done == 200
        handled = [body for batch in one.batches + two.batches for body in batch]
        assert sorted(handled) == sorted(b"%d" % n for n in range(200))

    async def test_batches_whose_leases_were_lost_are_counted(self, bench: Bench) -> None:
        """What is settled too late is counted in ``lost_leases`` and left to its holder; work goes on."""
        go_on, calls = asyncio.Event(), 0

        async def slow(deliveries: Sequence[Delivery]) -> list[Outcome]:
            nonlocal calls
            calls += 1
            await go_on.wait()
            return [Done()] * len(deliveries)

        await bench.publish(8)
        batch = Batching(max_messages=4)
        async with (
            bench.harness.connect() as client,
            processing(bench.on(client), slow, batch=batch) as running,
        ):
            late = await running.until_joined()
            await running.until(lambda: late.in_flight == 8, "one batch runs and one waits")
            await bench.harness.freeze(late)
            async with bench.subscribe() as other:
                await bench.advance_leases()
                came = await bench.take(other, 8)
                go_on.set()
                await running.until(lambda: calls == 2 and late.in_flight == 0, "two late verdicts")
                assert (await bench.stats()).in_flight == 8
                await other.ack(came)
            await bench.publish(1, first=100)
            await running.until_settled(9)
            totals = await running.finish()
        assert (totals.done, totals.lost_leases) == (1, 8)

    async def _one_bad_message(self, bench: Bench, error: BaseException, text: str) -> None:
        """Process 16 messages of which one makes the handler raise ``error``."""

        def judge(delivery: Delivery) -> Outcome:
            if delivery.message.data == b"11":
                raise error
            return Done()

        handler = Recorder(judge)
        await bench.publish(16)
        async with processing(bench, handler, batch=Batching(max_messages=16)) as running:
            await running.until_settled(16)
            totals = await running.finish()
        assert handler.seen == {b"%d" % n: [1, 2, 3] if n == 11 else [1] for n in range(16)}
        assert (totals.done, totals.retried, totals.dead_lettered) == (15, 2, 1)
        # Bisecting n messages calls the handler at most 2 log2(n) + 1 times; two retries come alone.
        assert sum(b"11" in batch for batch in handler.batches) <= 5 + 2
        (letter,) = await dead_letters(bench, 1)
        assert letter.message.data == b"11"
        assert text in letter.message.attributes["couturier-error"]
