"""What a sender says of an image reaches its row: on every sink, between old and new, past garbage."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit
from uuid import uuid4

import psycopg
import pytest
from dead_letters import GROUP, TOPIC, process
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from broker import Message, connect
from client import ClassifyRequest, ClassifyResult
from client.context import CONTEXT, MAX_CONTEXT_BYTES, context_text
from client.dlq import Choice, replay
from client.results import ResultsWriter, open_results
from client.results import postgres as table
from client.schema import ResultRow
from client.sources.catalogue import MAX_DESCRIPTION, MAX_TITLE
from tests.commands import Run
from tests.services.postgres import PostgresService
from worker import open_sink
from worker.sinks.console import ConsoleSink

Row = Callable[..., ResultRow]
TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=1500)
CONTEXT_OF_ROW = {"title": 'A "coat" \\', "description": "Ветровка\n"}
TEXT_OF_ROW = json.dumps(CONTEXT_OF_ROW, ensure_ascii=False)
# Of Google Pub/Sub, which grants least: bytes of a value, attributes that the broker leaves to the sender.
VALUE_BYTES, MOST_ATTRIBUTES = 1024, 80
# What the table was before it had the column; kept as it was.
OLD_TABLE = """
    CREATE TABLE results (
        message_id text PRIMARY KEY, status text NOT NULL, label text, label_index integer,
        confidence double precision, runner_up text, runner_up_confidence double precision, group_label text,
        tags jsonb NOT NULL, model text, model_version text, model_hash text, engine text, key text,
        source text NOT NULL, subject text, attempt integer NOT NULL, worker text NOT NULL,
        queue_s double precision NOT NULL, process_s double precision NOT NULL,
        latency_s double precision NOT NULL, created_at timestamptz NOT NULL
    );
    CREATE TABLE results_schema (version integer PRIMARY KEY);
    INSERT INTO results_schema VALUES (1);
    CREATE TABLE results_state (name text PRIMARY KEY, value text NOT NULL);
    INSERT INTO results_state VALUES ('revision', '2')
"""


@given(st.dictionaries(st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=9), TEXT))
def test_a_context_survives_the_wire(context: dict[str, str]) -> None:
    """In attributes that every broker takes, each of them text by itself; the sender's own stay apart."""
    request = ClassifyRequest(image=b"x", attributes={"site": "7"}, context=context)
    message = request.to_message()
    assert all(len(each.encode()) <= VALUE_BYTES for each in message.attributes.values())
    assert ClassifyRequest.from_message(message) == request
    assert json.loads(context_text(message) or "{}") == context
    assert (context_text(message) is None) == (context == {})


@pytest.mark.parametrize("letter", ["a", "\x01", '"', "é", "漢", "👗"])
def test_the_longest_title_and_description_travel(letter: str) -> None:
    """Whatever they are made of."""
    context = {"title": letter * MAX_TITLE, "description": letter * MAX_DESCRIPTION}
    message = ClassifyRequest(image=b"", context=context).to_message()
    assert len(message.attributes) <= MOST_ATTRIBUTES // 2 + 1
    assert json.loads(context_text(message) or "") == context


@pytest.mark.anyio
@pytest.mark.parametrize(
    "backend",
    [
        "sqlite",
        pytest.param("kafka", marks=pytest.mark.kafka),
        pytest.param("pubsub", marks=pytest.mark.pubsub),
    ],
)
async def test_every_broker_takes_the_longest(
    backend: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """And hands it over unchanged, also after a failure, which copies the message."""
    url = f"sqlite:///{tmp_path}/queue.db"
    if backend == "kafka":
        url = f"kafka://{request.getfixturevalue('kafka_service').bootstrap}?group_id={{topic}}.{{group}}"
    elif backend == "pubsub":
        monkeypatch.setenv("PUBSUB_EMULATOR_HOST", request.getfixturevalue("pubsub_service").host)
        url = f"pubsub://context-{uuid4().hex[:8]}"
    topic = f"images-{uuid4().hex[:8]}"
    context = {"title": "\x01" * MAX_TITLE, "description": "\x01" * MAX_DESCRIPTION}
    async with connect(url) as broker:
        await broker.ensure(topic, GROUP, partitions=1)
        sent = ClassifyRequest(image=b"x", context=context)
        await broker.publish(topic, [sent.to_message()])
        async with broker.subscribe(topic, group=GROUP) as subscription, asyncio.timeout(60):
            for attempt in (1, 2):
                while not (got := await subscription.receive(timeout=1.0)):
                    pass
                assert got[0].attempt == attempt
                assert ClassifyRequest.from_message(got[0].message).context == context
                await (subscription.nack(got) if attempt == 1 else subscription.ack(got))


def test_what_cannot_travel_is_refused_where_it_is_made() -> None:
    """Not by the broker, and not by the database on the other side of the queue."""
    with pytest.raises(ValidationError, match="40,960 can travel"):
        ClassifyRequest(image=b"", context={"description": "x" * MAX_CONTEXT_BYTES})
    with pytest.raises(ValidationError, match="NUL"):
        ClassifyRequest(image=b"", context={"title": "a\0b"})


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", '"title"', '{"title": 1}', '{"title": null}', '{"title": "\\u0000"}', "[" * 900,
     '{"title": "\\ud800"}', '{"title": "\udcff"}', json.dumps({"a": "x" * MAX_CONTEXT_BYTES})],
)  # fmt: skip
def test_a_strangers_garbage_is_no_context(text: str) -> None:
    """And costs the image nothing: the message can be read, and has a row."""
    message = Message(data=b"x", attributes={CONTEXT: text, "site": "7"})
    assert context_text(message) is None
    request = ClassifyRequest.from_message(message)
    assert (request.context, request.attributes) == ({}, {"site": "7"})


def test_a_part_without_its_beginning_is_the_senders_own() -> None:
    """Only what belongs to a context is taken out of the attributes."""
    message = Message(data=b"", attributes={f"{CONTEXT}-2": "{}"})
    assert context_text(message) is None
    assert ClassifyRequest.from_message(message).attributes == {f"{CONTEXT}-2": "{}"}


@pytest.fixture(params=["sqlite", "postgres", "jsonl"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """``SINK_URL`` of each place that keeps rows."""
    if request.param == "postgres":
        service: PostgresService = request.getfixturevalue("postgres_service")
        return service.new_database()
    return f"{request.param}:///{tmp_path}/rows"


@pytest.mark.anyio
async def test_every_sink_keeps_it(place: str, row: Row, tmp_path: Path) -> None:
    """Beside rows without one."""
    sink = open_sink(place)
    await sink.open()
    assert (await sink.write([row("a", context=TEXT_OF_ROW), row("b")])).new == 2
    await sink.aclose()
    if place.startswith("jsonl"):
        found = [json.loads(line)["context"] for line in (tmp_path / "rows").read_text().splitlines()]
    else:
        with open_results(place) as results:
            found = [each.result().context for each in sorted(results.find(["a", "b"]))]
    assert found == [CONTEXT_OF_ROW, None]


@pytest.mark.anyio
async def test_it_can_be_asked_for_in_the_database(postgres_service: PostgresService, row: Row) -> None:
    """Dashboards select parts of it by name."""
    url = postgres_service.new_database()
    sink = open_sink(url)
    await sink.open()
    await sink.write([row("a", context=TEXT_OF_ROW)])
    await sink.aclose()
    assert postgres_service.sql("SELECT context->>'title' FROM results", url) == CONTEXT_OF_ROW["title"]


@pytest.mark.anyio
async def test_lines_and_events_carry_it(row: Row) -> None:
    """Console in a pipe, and a result topic; an event of an older worker has none."""
    stream = io.StringIO()
    await ConsoleSink(stream).write([row("a", context=TEXT_OF_ROW)])
    assert json.loads(stream.getvalue())["context"] == CONTEXT_OF_ROW
    event = row("a", context=TEXT_OF_ROW).to_message()
    result = ClassifyResult.from_message(event)
    assert result is not None
    assert result.context == CONTEXT_OF_ROW
    columns = json.loads(event.data)
    del columns["context"]
    old = Message(data=json.dumps(columns).encode(), type=event.type, attributes=event.attributes)
    result = ClassifyResult.from_message(old)
    assert result is not None
    assert (result.message_id, result.context) == ("a", None)


def test_results_show_it(run: Run, tmp_path: Path, row: Row) -> None:
    """As an object, for machines."""
    writer = ResultsWriter(tmp_path / "home" / "results.db")
    writer.write([row("a", context=TEXT_OF_ROW)])
    writer.close()
    shown = json.loads(run("results", "--json").stdout)
    assert [each["context"] for each in shown] == [CONTEXT_OF_ROW]


@pytest.mark.anyio
async def test_a_dead_letter_keeps_it_through_a_replay() -> None:
    """It goes where the image goes."""
    async with connect(f"memory://{uuid4()}") as broker:
        await broker.ensure(TOPIC, GROUP)
        request = ClassifyRequest(image=b"", context=CONTEXT_OF_ROW)
        await broker.publish(TOPIC, [request.to_message()])
        await process(broker, 1, reject=True)
        await replay(broker, TOPIC, GROUP, Choice())
        (again,) = await process(broker, 1, reject=False)
    assert json.loads(context_text(again.message) or "") == CONTEXT_OF_ROW


@pytest.fixture
def writer_role(postgres_service: PostgresService) -> Iterator[tuple[str, str]]:
    """A database with the table of before, and the URL of a user who may write to it and change nothing."""
    url = postgres_service.new_database()
    name = f"writer_{url[-16:]}"
    postgres_service.sql(f"CREATE ROLE {name} LOGIN")
    postgres_service.sql(
        f"{OLD_TABLE}; REVOKE CREATE ON SCHEMA public FROM PUBLIC; GRANT SELECT, INSERT ON results TO {name};"
        f" GRANT SELECT ON results_schema, results_state TO {name}",
        url,
    )
    parts = urlsplit(url)
    yield url, urlunsplit(parts._replace(netloc=f"{name}@{parts.netloc.rpartition('@')[2]}"))
    postgres_service.sql(f"DROP OWNED BY {name}", url)
    postgres_service.sql(f"DROP ROLE {name}")


@pytest.mark.anyio
async def test_a_table_that_may_not_be_changed_takes_rows_without_it(
    postgres_service: PostgresService,
    writer_role: tuple[str, str],
    row: Row,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A new worker goes on where an administrator has not been yet; it says what is left out."""
    url, own = writer_role
    for name in ("before", "after"):
        sink = open_sink(own)
        await sink.open()
        assert (await sink.write([row(name, context=TEXT_OF_ROW)])).new == 1
        await sink.aclose()
        if name == "before":
            with open_results(own) as results:
                assert [each.result().context for each in results.rows()] == [None]
            said = capsys.readouterr()
            assert "python -m client.results.postgres" in said.out + said.err
            postgres_service.sql(table.ddl(), url)
    with open_results(own) as results:
        assert {each.message_id: each.result().context for each in results.rows()} == {
            "before": None,
            "after": CONTEXT_OF_ROW,
        }


@pytest.mark.anyio
async def test_an_old_table_keeps_its_rows(postgres_service: PostgresService, row: Row) -> None:
    """The column is added, once, whoever comes first; old rows and old statements stay good."""
    url = postgres_service.new_database()
    postgres_service.sql(OLD_TABLE, url)
    old = (
        "INSERT INTO results (message_id, status, tags, source, attempt, worker, queue_s, process_s,"
        " latency_s, created_at) VALUES (%s, 'expired', '[]', '/old', 1, 'w', 0, 0, 0, now())"
        " ON CONFLICT DO NOTHING"
    )
    with psycopg.connect(url, autocommit=True) as db:
        db.execute(old, ["before"])
        with open_results(url) as results:
            assert [each.context for each in results.rows()] == [None]
        sink = open_sink(url)
        await sink.open()
        assert (await sink.write([row("new", context=TEXT_OF_ROW)])).new == 1
        db.execute(old, ["meanwhile"])
        await sink.aclose()
    with open_results(url) as results:
        found = {each.message_id: each.result().context for each in results.rows()}
    assert found == {"before": None, "meanwhile": None, "new": CONTEXT_OF_ROW}
