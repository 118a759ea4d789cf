"""Dead letters are seen without being touched, replayed without being lost or doubled, purged with a note."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from dead_letters import DEAD, GROUP, TOPIC, bury, found, kill, process, waiting

from broker import OPERATORS, Broker, Delivery, Message, Subscription, connect
from client import dlq_removal
from client.dlq import (
    Choice,
    Letter,
    Removed,
    moment,
    pick,
    purge,
    purged_ids,
    purged_topic,
    replay,
)
from client.dlq_letter import letter_of
from client.errors import ReplayIncomplete

pytestmark = pytest.mark.anyio

NOW = datetime(2026, 5, 6, 12, tzinfo=UTC)


@pytest.fixture
async def broker(tmp_path: Path) -> AsyncIterator[Broker]:
    async with connect(f"sqlite:///{tmp_path}/queue.db?lease=0.5") as broker:
        await broker.ensure(TOPIC, group=GROUP)
        yield broker


def letter(error: str = "", failed_at: datetime | str = NOW) -> Letter:
    """A letter that says when it failed and why."""
    when = failed_at if isinstance(failed_at, str) else failed_at.isoformat()
    return Letter("m", "bad-image", "decode", 1, error, TOPIC, when, 0, None, "image/png", 0, b"")


@pytest.mark.parametrize(
    ("parent", "trace_id"),
    [
        ("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "0af7651916cd43dd8448eb211c80319c"),
        ("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\x1b[2J", None),
        ("", None),
    ],
)
def test_a_letter_names_the_trace_of_its_message(parent: str, trace_id: str | None) -> None:
    """Only what is one: anybody may write the attribute."""
    message = Message(data=b"", attributes={"traceparent": parent})
    assert letter_of(Delivery(message, DEAD, 1, NOW)).trace_id == trace_id


async def test_letters_say_what_happened_and_looking_changes_nothing(broker: Broker) -> None:
    """Reason, stage, attempts and error stand on a letter, as often as one looks."""
    assert await found(broker) == []
    sent = await kill(broker, 3)
    first = await found(broker)
    assert [each.message_id for each in first] == [each.id for each in sent]
    assert {(each.reason, each.stage, each.attempts, each.error) for each in first} == {
        ("bad-image", "decode", 1, "cannot be read")
    }
    assert await found(broker) == first
    assert (await broker.stats(DEAD, OPERATORS)).ready == 3


async def test_a_replayed_letter_is_the_message_again(broker: Broker) -> None:
    """Id, key, body and attributes come back to the topic, and the letter is gone; the others stay."""
    sent = await kill(broker, 3)
    replayed = await replay(broker, TOPIC, GROUP, lambda each: each.message_id == sent[1].id)
    assert replayed == Removed([sent[1].id])
    assert [each.message_id for each in await found(broker)] == [sent[0].id, sent[2].id]
    (again,) = await process(broker, 1, reject=False)
    assert (again.message.id, again.message.key, again.message.data) == (sent[1].id, "k1", b"body 1")
    assert again.message.attributes["site"] == "1"
    assert again.attempt == 1
    assert await replay(broker, TOPIC, GROUP, lambda each: each.message_id == sent[1].id) == Removed()


async def test_a_letter_that_dies_again_counts_its_replays(broker: Broker) -> None:
    """A replay never meets what it made itself, so it ends."""
    await kill(broker, 2)
    for count in (1, 2):
        assert len((await replay(broker, TOPIC, GROUP, Choice())).done) == 2
        await process(broker, 2, reject=True)
        assert [(each.replays, each.attempts) for each in await found(broker)] == [(count, 1)] * 2


async def test_the_loop_guard_leaves_out_what_was_replayed_too_often(broker: Broker) -> None:
    """Named, and not among those that go."""
    sent = await kill(broker, 2)
    await replay(broker, TOPIC, GROUP, Choice(frozenset([sent[0].id])))
    await process(broker, 1, reject=True)
    picked = await pick(broker, TOPIC, GROUP, Choice(), max_replays=1)
    assert (picked.ids, picked.worn, picked.seen) == ([sent[1].id], [sent[0].id], 2)
    assert (await replay(broker, TOPIC, GROUP, picked)).done == [sent[1].id]
    assert (await pick(broker, TOPIC, GROUP, Choice())).ids == [sent[0].id]


async def test_letters_that_someone_else_holds_are_told(
    broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A replay that could not do all of it says so; once they are free it does the rest."""
    monkeypatch.setattr(dlq_removal, "_PATIENCE_S", 0.1)
    await kill(broker, 3)
    async with broker.subscribe(DEAD, group=OPERATORS) as other:
        assert len(await other.receive(max_messages=1)) == 1
        with pytest.raises(ReplayIncomplete) as caught:
            await replay(broker, TOPIC, GROUP, Choice())
        assert (len(caught.value.sent), caught.value.left) == (2, 1)
    assert len((await replay(broker, TOPIC, GROUP, Choice())).done) == 1


async def test_a_replay_that_was_killed_can_be_repeated(broker: Broker, tmp_path: Path) -> None:
    """Letters that a dead process held come back within its lease, and are replayed then."""
    await kill(broker, 4)
    async with connect(f"sqlite:///{tmp_path}/queue.db?lease=0.5") as dead:
        member = await dead._driver.subscribe(DEAD, OPERATORS, "none")
        subscription = dead.subscribe(DEAD, group=OPERATORS)
        subscription._member = member  # holds and never renews, as a killed process does
        assert len(await subscription.receive()) == 4
        subscription._member = None
        assert len((await replay(broker, TOPIC, GROUP, Choice())).done) == 4
    assert (await broker.stats(TOPIC, GROUP)).ready == 4


async def test_two_operators_at_once_do_the_work_once(
    broker: Broker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the other one took out is not missed, and nothing is sent twice."""
    monkeypatch.setattr(dlq_removal, "_PATIENCE_S", 0.5)
    ids = await bury(broker, [Message(data=b"x") for _ in range(100)])
    async with connect(f"sqlite:///{tmp_path}/queue.db?lease=0.5") as other:
        both = await asyncio.gather(*(replay(each, TOPIC, GROUP, Choice(), 100) for each in (broker, other)))
    assert sorted(both[0].done + both[1].done) == sorted(ids) == sorted(await waiting(broker))


async def test_few_among_many_are_found_in_bounded_memory(
    broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Letters that stay are put aside when they are too many to hold, and are as before afterwards."""
    monkeypatch.setattr(dlq_removal, "_MOST_HELD", 300)
    monkeypatch.setattr(dlq_removal, "_ASIDE_S", 0.2)
    aside: list[int] = []
    put_aside = dlq_removal.Removal._put_aside

    async def noted(removal: dlq_removal.Removal, subscription: Subscription) -> None:
        aside.append(len(removal._held))
        await put_aside(removal, subscription)

    monkeypatch.setattr(dlq_removal.Removal, "_put_aside", noted)
    ids = await bury(broker, [Message(data=b"x" * 100) for _ in range(1_500)])
    before = await found(broker)
    wanted = frozenset(ids[::150])
    assert sorted((await replay(broker, TOPIC, GROUP, Choice(wanted))).done) == sorted(wanted)
    assert 300 < max(aside) <= 300 + 256
    assert await found(broker) == [each for each in before if each.message_id not in wanted]
    again = await replay(broker, TOPIC, GROUP, Choice(frozenset(ids[1::150])))
    assert len(again.done) == 10


async def test_a_rate_is_kept(broker: Broker) -> None:
    """Twelve letters at 20 a second take half a second at least: the first few go at once."""
    await bury(broker, [Message(data=b"x") for _ in range(12)])
    seen: list[int] = []
    start = time.monotonic()
    await replay(broker, TOPIC, GROUP, Choice(), rate=20, progress=seen.append)
    assert time.monotonic() - start >= (12 - 5) / 20
    assert seen == [5, 10, 12]


async def test_what_a_letter_says_of_its_origin_is_not_obeyed(broker: Broker) -> None:
    """Anybody may write to the topic of dead letters: a replay goes to the topic that was named."""
    await broker.ensure("elsewhere", "g")
    forged = {"couturier-topic": "elsewhere", "couturier-attempts": "9" * 5000, "couturier-replays": "-1"}
    ids = await bury(broker, [Message(data=b"x", attributes=forged)])
    (seen,) = await found(broker)
    assert (seen.attempts, seen.replays, seen.reason) == (0, 0, "unknown")
    assert (await replay(broker, TOPIC, GROUP, Choice())).done == ids
    assert (await waiting(broker), await waiting(broker, "elsewhere", "g")) == (ids, [])


async def test_a_purged_letter_leaves_a_note(broker: Broker) -> None:
    """Who, when and why, but no body; it cannot be replayed, and its neighbours stay."""
    sent = await kill(broker, 3)
    assert await purged_ids(broker, TOPIC, GROUP) == set()
    assert (await purge(broker, TOPIC, GROUP, Choice(frozenset([sent[1].id])))).done == [sent[1].id]
    assert [each.message_id for each in await found(broker)] == [sent[0].id, sent[2].id]
    (note,) = [each.message async for each in broker.browse(purged_topic(TOPIC, GROUP), OPERATORS)]
    facts = json.loads(note.data)
    assert set(facts) == {"message_id", "reason", "stage", "failed_at", "purged_at", "by"}
    assert (facts["message_id"], facts["reason"], facts["stage"]) == (sent[1].id, "bad-image", "decode")
    assert "@" in facts["by"]
    assert datetime.fromisoformat(facts["failed_at"]) <= datetime.fromisoformat(facts["purged_at"])
    assert await purge(broker, TOPIC, GROUP, Choice(frozenset([sent[1].id]))) == Removed()
    assert await purged_ids(broker, TOPIC, GROUP) == {sent[1].id}


async def test_no_letter_is_purged_whose_note_is_not_stored(broker: Broker) -> None:
    """The note comes first: without it the letter stays, and a later purge takes it."""
    (sent,) = await kill(broker, 1)
    gone: list[Message] = []

    class Full(Broker):
        """A broker that has no room in one topic."""

        async def publish(self, topic: str, messages: list[Message]) -> list[object]:  # type: ignore[override]
            gone.extend(messages)
            raise OSError(28, "No space left on device")

    full = Full(broker._driver._driver)
    full._opened = True
    with pytest.raises(OSError, match="No space"):
        await purge(full, TOPIC, GROUP, Choice())
    assert len(gone) == 1
    assert [each.message_id for each in await found(broker)] == [sent.id]
    assert (await purge(broker, TOPIC, GROUP, Choice())).done == [sent.id]


async def test_notes_that_nobody_of_us_wrote_are_passed_over(broker: Broker) -> None:
    """Garbage among the notes hides neither itself as a purge nor any true note."""
    (sent,) = await kill(broker, 1)
    await purge(broker, TOPIC, GROUP, Choice())
    garbage = [b"", b"\xff\xfe", b"[]", b"null", b'{"message_id": 3}', b'{"message_id"', b"[" * 100_000]
    await broker.publish(purged_topic(TOPIC, GROUP), [Message(data=each) for each in garbage])
    assert await purged_ids(broker, TOPIC, GROUP) == {sent.id}


@pytest.mark.parametrize(
    ("error", "wanted", "meant"),
    [
        ("OSError: image file is truncated", "OSError", True),
        ("PIL.UnidentifiedImageError: cannot identify", "UnidentifiedImageError", True),
        ("MyOSError: no", "OSError", False),
        ("OSError: image file is Truncated", "truncated", True),
        ("OSError: image file", "oserror", False),
        ("ValueError: raised by OSError", "OSError", True),
        ("OSError", "OSError", True),
        ("cannot be read: no", "be READ", True),
        ("", "OSError", False),
    ],
)
def test_an_error_is_found_by_its_class_or_its_text(error: str, wanted: str, meant: bool) -> None:
    """A class is not found in the name of another one."""
    assert Choice(error=wanted)(letter(error)) is meant


def test_letters_are_chosen_by_time() -> None:
    """From ``since`` on, and before ``until``; a time that cannot be read is never meant."""
    hour = timedelta(hours=1)
    assert Choice(since=NOW)(letter())
    assert not Choice(since=NOW + hour)(letter())
    assert not Choice(until=NOW)(letter())
    assert Choice(since=NOW - hour, until=NOW + hour)(letter())
    for garbage in ("", "yesterday", "2026-05-06T12:00:00", "9" * 1000):
        assert not Choice(since=NOW - hour)(letter(failed_at=garbage))
        assert Choice()(letter(failed_at=garbage))


def test_times_are_dates_or_ages() -> None:
    """ISO 8601, in UTC unless it says otherwise; or how long ago."""
    assert moment("2h", NOW) == NOW - timedelta(hours=2)
    assert moment("1.5d", NOW) == NOW - timedelta(hours=36)
    assert moment("1w", NOW) == NOW - timedelta(days=7)
    assert moment("2026-05-06") == datetime(2026, 5, 6, tzinfo=UTC)
    assert moment("2026-05-06T12:00+02:00") == NOW - timedelta(hours=2)
    for wrong in ("2x", "h", "-2h", "", "tomorrow", "999999w"):
        with pytest.raises(ValueError, match="is no time"):
            moment(wrong, NOW)


async def test_a_cancelled_replay_loses_nothing(broker: Broker) -> None:
    """Ctrl-C in the middle: what went is in the topic, what did not is still a letter."""
    ids = await bury(broker, [Message(data=b"x") for _ in range(40)])
    done: list[int] = []
    task = asyncio.create_task(replay(broker, TOPIC, GROUP, Choice(), rate=40, progress=done.append))
    async with asyncio.timeout(20):
        while not done:
            await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    left = [each.message_id for each in await found(broker)]
    assert len(left) == 40 - done[-1] > 0
    assert {*left, *await waiting(broker)} == set(ids)
    assert (await replay(broker, TOPIC, GROUP, Choice())).done == left
    assert sorted(await waiting(broker)) == sorted(ids)
