"""Dead letters are seen without being touched, and replayed without being lost or doubled."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest
from typer.testing import CliRunner

from broker import OPERATORS, Broker, Delivery, Done, Message, Outcome, Reject, connect, dead_letter_topic
from client import dlq
from client.dlq import Letter, letters, replay
from client.errors import ReplayIncomplete

pytestmark = pytest.mark.anyio

TOPIC, GROUP = "images", "classifiers"
DEAD = dead_letter_topic(TOPIC, GROUP)


@pytest.fixture
async def broker(tmp_path: Path) -> AsyncIterator[Broker]:
    async with connect(f"sqlite:///{tmp_path}/queue.db?lease=0.5") as broker:
        await broker.ensure(TOPIC, group=GROUP)
        yield broker


async def process(broker: Broker, count: int, *, reject: bool) -> list[Delivery]:
    """Run a handler over ``count`` messages that rejects all of them, or none."""
    stop, seen = asyncio.Event(), []

    async def handler(deliveries: Sequence[Delivery]) -> Sequence[Outcome]:
        seen.extend(deliveries)
        if len(seen) >= count:
            stop.set()
        return [Reject("bad-image", "cannot be read", "decode") if reject else Done()] * len(deliveries)

    async with asyncio.timeout(20):
        await broker.process(TOPIC, group=GROUP, handler=handler, stop=stop)
    return seen


async def kill(broker: Broker, count: int) -> list[Message]:
    """Publish messages and dead-letter every one of them."""
    sent = [Message(data=b"body %d" % n, key=f"k{n}", attributes={"site": str(n)}) for n in range(count)]
    await broker.publish(TOPIC, sent)
    await process(broker, count, reject=True)
    return sent


async def found(broker: Broker) -> list[Letter]:
    return [each async for each in letters(broker, TOPIC, GROUP)]


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
    assert [each.message_id for each in replayed] == [sent[1].id]
    assert [each.message_id for each in await found(broker)] == [sent[0].id, sent[2].id]
    (again,) = await process(broker, 1, reject=False)
    assert (again.message.id, again.message.key, again.message.data) == (sent[1].id, "k1", b"body 1")
    assert again.message.attributes["site"] == "1"
    assert again.attempt == 1
    assert await replay(broker, TOPIC, GROUP, lambda each: each.message_id == sent[1].id) == []


async def test_a_letter_that_dies_again_counts_its_replays(broker: Broker) -> None:
    """A replay never meets what it made itself, so it ends."""
    await kill(broker, 2)
    for count in (1, 2):
        assert len(await replay(broker, TOPIC, GROUP, lambda _: True)) == 2
        await process(broker, 2, reject=True)
        assert [each.replays for each in await found(broker)] == [count, count]


async def test_letters_that_someone_else_holds_are_told(
    broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A replay that could not do all of it says so; once they are free it does the rest."""
    monkeypatch.setattr(dlq, "_PATIENCE_S", 0.1)
    await kill(broker, 3)
    async with broker.subscribe(DEAD, group=OPERATORS) as other:
        assert len(await other.receive(max_messages=1)) == 1
        with pytest.raises(ReplayIncomplete) as caught:
            await replay(broker, TOPIC, GROUP, lambda _: True)
        assert (len(caught.value.sent), caught.value.left) == (2, 1)
    assert len(await replay(broker, TOPIC, GROUP, lambda _: True)) == 1


async def test_a_replay_that_was_killed_can_be_repeated(broker: Broker, tmp_path: Path) -> None:
    """Letters that a dead process held come back within its lease, and are replayed then."""
    await kill(broker, 4)
    async with connect(f"sqlite:///{tmp_path}/queue.db?lease=0.5") as dead:
        member = await dead._driver.subscribe(DEAD, OPERATORS, "none")
        subscription = dead.subscribe(DEAD, group=OPERATORS)
        subscription._member = member  # holds and never renews, as a killed process does
        assert len(await subscription.receive()) == 4
        subscription._member = None
        assert len(await replay(broker, TOPIC, GROUP, lambda _: True)) == 4
    assert (await broker.stats(TOPIC, GROUP)).ready == 4


def test_the_commands_show_and_replay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """list, show and replay work from the shell, for people and for machines."""
    import typer

    from client.dlq_cli import register

    url = f"sqlite:///{tmp_path}/queue.db"
    monkeypatch.setenv("BROKER_URL", url)

    async def prepare() -> list[Message]:
        async with connect(url) as broker:
            await broker.ensure(TOPIC, group=GROUP)
            return await kill(broker, 3)

    sent = asyncio.run(prepare())
    app = typer.Typer()
    register(app)

    def run(*arguments: str) -> str:
        result = CliRunner().invoke(app, ["dlq", *arguments])
        assert result.exit_code == 0, result.output
        return result.stdout

    listed = json.loads(run("list", "--json", "--limit", "2"))
    assert [each["message_id"] for each in listed] == [sent[0].id, sent[1].id]
    assert {"reason", "stage", "attempts", "error"} <= set(listed[0])
    assert sent[2].id in run("list")
    run("show", sent[0].id, "--out", str(tmp_path / "body"))
    assert (tmp_path / "body").read_bytes() == b"body 0"
    assert len(json.loads(run("replay", "--all", "--dry-run", "--json"))["replayed"]) == 3
    assert json.loads(run("replay", sent[0].id, "--json"))["replayed"] == [sent[0].id]
    assert json.loads(run("replay", "--reason", "bad-image", "--json"))["replayed"] == [
        sent[1].id,
        sent[2].id,
    ]
    assert "no dead letters" in run("list")
    unknown = CliRunner().invoke(app, ["dlq", "show", "nobody"])
    assert unknown.exit_code == 2
    assert "nobody" in unknown.output
