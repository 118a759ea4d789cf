"""``docs/asyncapi.yaml`` is what the code says, valid, and true of real messages."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft7Validator, Draft202012Validator
from jsonschema.exceptions import ValidationError

from broker import Delivery, Message
from broker.drivers.cloudevents import KAFKA, PUBSUB, Binding, encode
from broker.processing.dead_letter import letter_attributes
from client.asyncapi import document, page
from client.schema import ClassifyRequest, ResultRow

PAGE = Path(__file__).resolve().parents[2] / "docs" / "asyncapi.yaml"
# The official schema of AsyncAPI 3.0.0 (Apache-2.0), `schemas/3.0.0.json` of npm's @asyncapi/specs 6.11.1.
OFFICIAL = Path(__file__).parent / "asyncapi-3.0.0.schema.json.gz"
BINDINGS = pytest.mark.parametrize(("name", "binding"), [("Kafka", KAFKA), ("Pubsub", PUBSUB)])


def check(schema: str, value: object) -> None:
    """Hold a value against a schema of the page."""
    found: dict[str, Any] = yaml.safe_load(PAGE.read_text())
    Draft202012Validator({"$ref": f"#/components/schemas/{schema}", **found}).validate(value)


def test_the_page_is_what_the_code_says() -> None:
    """To mend it: ``python -m client.asyncapi > docs/asyncapi.yaml``."""
    assert PAGE.read_text() == page()


def test_the_page_is_valid() -> None:
    """By the schema of its makers, which finds a mistake where there is one."""
    validator = Draft7Validator(json.loads(gzip.decompress(OFFICIAL.read_bytes())))
    validator.validate(document())
    wrong = document()
    wrong["operations"]["classify"]["action"] = "subscribe"
    with pytest.raises(ValidationError):
        validator.validate(wrong)


def test_every_reference_leads_somewhere() -> None:
    """The official schema does not look."""
    found = document()

    def look(part: object) -> None:
        if isinstance(part, dict):
            target: Any = found
            for step in str(part.get("$ref", "#")).split("/")[1:]:
                target = target[step]
            for each in part.values():
                look(each)
        elif isinstance(part, list):
            for each in part:
                look(each)

    look(found)


@BINDINGS
def test_a_request_is_as_described(name: str, binding: Binding) -> None:
    """With everything that a sender can say, and with nothing."""
    full = ClassifyRequest(
        image=b"x",
        key="k",
        subject="s",
        attributes={"site": "7"},
        expires=datetime.now(UTC),
        context={"title": "t" * 2000},
    )
    for each in (full, ClassifyRequest(image=b"x")):
        check(f"submittedOn{name}", encode(each.to_message(), binding))
    foreign = Message(data=b"x", type="org.example.other.v1")
    with pytest.raises(ValidationError):
        check(f"submittedOn{name}", encode(foreign, binding))


@BINDINGS
def test_a_result_is_as_described(name: str, binding: Binding, row: Callable[..., ResultRow]) -> None:
    """Headers and body, with and without an answer."""
    for each in (row(), row(label=None, status="expired", context='{"title": "t"}')):
        message = each.to_message()
        check(f"classifiedOn{name}", encode(message, binding))
        check("ClassifyResult", json.loads(message.data))
    with pytest.raises(ValidationError):
        check("ClassifyResult", {**row().to_dict(), "status": "done"})


@BINDINGS
def test_a_dead_letter_is_as_described(name: str, binding: Binding) -> None:
    """The request's own headers, and why."""
    now = datetime.now(UTC)
    request = ClassifyRequest(image=b"x").to_message()
    why = letter_attributes(Delivery(request, "images", 1, now), "invalid-image", "decode", "no PNG", now)
    check(f"letterOn{name}", {**encode(request, binding), **why})
    with pytest.raises(ValidationError):
        check(f"letterOn{name}", encode(request, binding))
