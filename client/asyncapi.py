"""AsyncAPI's description of the messages: ``python -m client.asyncapi`` prints ``docs/asyncapi.yaml``.

For teams that publish or receive in another language. Everything in it comes from the code that writes and
reads messages: the models of ``client.schema``, and the names that each binding of CloudEvents gives to
headers. A test compares the page with it, and real messages with the page.

Source: AsyncAPI 3.0.0; CloudEvents 1.0.2 with the Kafka and the Google Cloud Pub/Sub protocol bindings.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from broker import dead_letter_topic
from broker.drivers.cloudevents import KAFKA, PUBSUB, Binding
from broker.processing.dead_letter import ADDED, ATTEMPTS, ERROR, FAILED_AT, REASON, STAGE, TOPIC

from .context import CONTEXT
from .schema import CLASSIFIED, EXPIRES, MESSAGE_ID, SUBMITTED, ClassifyResult

_IMAGES, _GROUP, _RESULTS = "images", "classifiers", "results"
_ID = "#/components/schemas/"
_WHAT = {
    "specversion": "Version of CloudEvents.",
    "id": "Identity of the message: a repeat has the same, and there is one result for each.",
    "source": "Who sent it, a URI reference.",
    "type": "What happened.",
    "time": "When, RFC 3339.",
    "subject": "What it is about, in the sender's own words.",
}
_LETTER = {
    REASON: "Short token, such as `invalid-image` or `attempts-exhausted`.",
    STAGE: "Where it failed.",
    ATTEMPTS: "How often it was tried, a decimal number.",
    ERROR: "For a person.",
    TOPIC: "Where it was first published.",
    FAILED_AT: "When it was given up, ISO 8601.",
}


def document() -> dict[str, Any]:
    """Return the description, for topics with their usual names."""
    letters = dead_letter_topic(_IMAGES, _GROUP)
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "couturier",
            "version": "1.0.0",
            "description": "Images go in, labelled rows and dead letters come out. Every message is a"
            " CloudEvents 1.0 event in binary mode, with the headers of its broker's own binding; any other"
            " message that holds an image is classified, too. Names of topics are the usual ones.",
            "license": {"name": "Apache-2.0"},
        },
        "defaultContentType": "application/json",
        "servers": {
            "kafka": {"host": "localhost:9092", "protocol": "kafka"},
            "pubsub": {"host": "pubsub.googleapis.com", "protocol": "googlepubsub"},
        },
        "channels": {
            "images": _channel(_IMAGES, "submitted", "Images to be classified: `COUTURIER_TOPIC`."),
            "results": _channel(
                _RESULTS, "classified", "Rows as events, where `SINK_URL` names `topic:results`."
            ),
            "deadLetters": _channel(
                letters,
                "letter",
                "What could not be classified: `<topic>.<group>.dlq`, to be read in the group `operators`.",
            ),
        },
        "operations": {
            "classify": _operation("receive", "images", "submitted", "The workers take an image."),
            "answer": _operation("send", "results", "classified", "The workers write a row."),
            "giveUp": _operation("send", "deadLetters", "letter", "The workers give an image up."),
        },
        "components": {"messages": _messages(), "schemas": _schemas()},
    }


def _channel(address: str, message: str, description: str) -> dict[str, Any]:
    return {
        "address": address,
        "description": description,
        "messages": {message: {"$ref": f"#/components/messages/{message}"}},
    }


def _operation(action: str, channel: str, message: str, summary: str) -> dict[str, Any]:
    return {
        "action": action,
        "summary": summary,
        "channel": {"$ref": f"#/channels/{channel}"},
        "messages": [{"$ref": f"#/channels/{channel}/messages/{message}"}],
    }


def _messages() -> dict[str, Any]:
    image = {"type": "string", "format": "binary", "description": "A PNG or JPEG file."}
    return {
        "submitted": {
            "title": "An image to be classified",
            "summary": "The body is the image. Kafka's key, or Pub/Sub's ordering key, is the sender's own.",
            "contentType": "image/png",
            "headers": _either("submitted"),
            "payload": image,
        },
        "classified": {
            "title": "A row of the results",
            "summary": "Delivered at least once; a repeat has the same id.",
            "contentType": "application/json",
            "headers": _either("classified"),
            "payload": {"$ref": f"{_ID}ClassifyResult"},
        },
        "letter": {
            "title": "A dead letter",
            "summary": "The message that could not be classified, unchanged, and why.",
            "headers": _either("letter"),
            "payload": {"description": "The body as it came, whatever it is."},
        },
    }


def _either(message: str) -> dict[str, Any]:
    return {"oneOf": [{"$ref": f"{_ID}{message}OnKafka"}, {"$ref": f"{_ID}{message}OnPubsub"}]}


def _schemas() -> dict[str, Any]:
    row = ClassifyResult.model_json_schema()
    row["description"] = "One row of the results; a later version may have more columns."
    row["additionalProperties"] = True
    submitted = {
        EXPIRES: "RFC 3339: past it the result has the status `expired`.",
        CONTEXT: "A JSON object, text to text, that comes back beside the result, such as `title`; what"
        f" is longer than 1,024 bytes goes on in `{CONTEXT}-2` and so on.",
    }
    found: dict[str, Any] = {"ClassifyResult": row}
    for name, binding in (("Kafka", KAFKA), ("Pubsub", PUBSUB)):
        found[f"submittedOn{name}"] = _headers(binding, SUBMITTED, submitted, ())
        found[f"classifiedOn{name}"] = _headers(
            binding, CLASSIFIED, {MESSAGE_ID: "The id of the request."}, (MESSAGE_ID,)
        )
        letter = _headers(binding, None, {each: _LETTER[each] for each in ADDED}, (REASON,))
        # A foreign message has no headers of CloudEvents, and may have had room for few of ours.
        found[f"letterOn{name}"] = {**letter, "required": [REASON]}
    return found


def _headers(
    binding: Binding, kind: str | None, own: Mapping[str, str], needed: tuple[str, ...]
) -> dict[str, Any]:
    """Return the schema of a message's headers, all of which are text."""
    properties: dict[str, Any] = {}
    for header, attribute in binding.context.items():
        if attribute in _WHAT:
            properties[header] = {"type": "string", "description": _WHAT[attribute]}
            if attribute == "specversion":
                properties[header]["const"] = "1.0"
            if attribute == "type" and kind is not None:
                properties[header]["const"] = kind
    properties["content-type"] = {"type": "string", "description": "Media type of the body."}
    properties.update({name: {"type": "string", "description": text} for name, text in own.items()})
    subject = f"{binding.prefix}subject"
    return {
        "type": "object",
        "properties": properties,
        "required": [each for each in properties if each not in own and each != subject] + [*needed],
        "additionalProperties": {"type": "string", "description": "The sender's own attributes."},
    }


def page() -> str:
    """Return the description as YAML, for ``docs/asyncapi.yaml``."""
    import yaml

    head = "# Printed by `python -m client.asyncapi`; a test keeps it true.\n"
    return head + str(yaml.safe_dump(document(), sort_keys=False, allow_unicode=True, width=110))


if __name__ == "__main__":
    sys.stdout.write(page())
