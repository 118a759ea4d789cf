"""What the gateway knows of an image: rows, dead letters, and nothing yet."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from broker import Broker, Reject, connect
from client import ClassifyRequest
from client.dlq import Choice, replay
from client.gateway.letters import Failure
from client.gateway.outcomes import Outcomes
from client.gateway.settings import GatewaySettings, listen
from client.gateway.stream import answered
from client.results import ResultsWriter
from client.schema import ClassifyResult, ResultRow

pytestmark = pytest.mark.anyio
PATIENCE_S = 30.0


@pytest.fixture
async def broker() -> AsyncIterator[Broker]:
    async with connect("memory://outcomes") as broker:
        await broker.ensure("images", "classifiers")
        yield broker


def outcomes(broker: Broker, directory: Path) -> Outcomes:
    return Outcomes(broker, "images", "classifiers", f"sqlite:///{directory}/results.db")


def write(directory: Path, *rows: ResultRow) -> None:
    writer = ResultsWriter(directory / "results.db")
    writer.write(rows)
    writer.close()


async def test_whoever_waits_first_sees_the_first_row(
    broker: Broker, tmp_path: Path, row: Callable[..., ResultRow]
) -> None:
    """Also when there was no table yet; of several images those that are there are told."""
    async with outcomes(broker, tmp_path) as found:
        waiting = [asyncio.create_task(found.first(ids, PATIENCE_S)) for ids in (["a"], ["b", "a"], ["b"])]
        await asyncio.sleep(0)
        assert await found.now(["a", "b"]) == {}
        await asyncio.to_thread(write, tmp_path, row("a"))
        assert {*await waiting[0]} == {*await waiting[1]} == {"a"}
        assert not waiting[2].done()
        await asyncio.to_thread(write, tmp_path, row("b"))
        assert isinstance((await waiting[2])["b"], ClassifyResult)


async def test_a_row_that_nobody_understands_harms_no_other(
    broker: Broker, tmp_path: Path, row: Callable[..., ResultRow]
) -> None:
    """A later version may write what this one does not know."""
    write(tmp_path, row("new", status="shadow"), row("odd", tags="no JSON"), row("good"))
    async with outcomes(broker, tmp_path) as found:
        assert {*await found.first(["new", "odd", "good"], PATIENCE_S)} == {"good"}


async def test_a_stop_ends_all_waiting(broker: Broker, tmp_path: Path) -> None:
    """Now and from now on, with what is known."""
    async with outcomes(broker, tmp_path) as found:
        waiting = asyncio.create_task(found.first(["a"], PATIENCE_S))
        while not waiting.done():
            await asyncio.sleep(0.01)
            found.hurry()
        assert await waiting == await found.first(["a"], PATIENCE_S) == {}


async def test_a_dead_letter_is_an_answer_until_it_is_replayed(broker: Broker, tmp_path: Path) -> None:
    """It says why; sent through again, the image is pending again."""
    image = ClassifyRequest(image=b"x")
    await broker.publish("images", [image.to_message()])
    stop = asyncio.Event()

    async def refuse(deliveries: object) -> list[Reject]:
        stop.set()
        return [Reject("invalid-image", stage="decode")]

    await broker.process("images", group="classifiers", handler=refuse, stop=stop)
    async with outcomes(broker, tmp_path) as found:
        (letter,) = (await found.first([image.id], PATIENCE_S)).values()
        assert isinstance(letter, Failure)
        assert (letter.message_id, letter.reason, letter.stage) == (image.id, "invalid-image", "decode")
        await replay(broker, "images", "classifiers", Choice())
        async with asyncio.timeout(PATIENCE_S):
            while await found.now([image.id]):
                await asyncio.sleep(0.05)


@pytest.mark.parametrize(
    ("header", "mask"),
    [(None, 0), ("", 0), ("5", 5), ("7", 7), ("8", 0), ("-1", 0), ("x", 0), ("f" * 60, 0)],
)
def test_an_event_id_names_what_was_told(header: str | None, mask: int) -> None:
    """Of three images; what is no id of ours tells nothing."""
    assert answered(header, 3) == mask


def test_answers_are_not_held_back() -> None:
    """asyncio turns Nagle's algorithm off for sockets that say TCP; accepted ones say what ours says."""
    with listen(GatewaySettings(port=0)) as sock:
        assert sock.proto == socket.IPPROTO_TCP
