"""What a sender says of an image beside its subject: on the wire, and as a column of the row.

It travels as JSON text in message attributes: ``couturier-context`` and, where that is not enough, further
parts ``couturier-context-2``, ``-3``, ... Older workers leave these attributes alone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from broker.message import Message

CONTEXT = "couturier-context"
# Longest attribute value, bytes, of Google Pub/Sub, which grants least.
# Source: https://cloud.google.com/pubsub/quotas#resource_limits
_PART_BYTES = 1024
# 40 attributes, where Pub/Sub leaves 80 to a sender; a title and a description as `client send` cuts them
# fit, whatever they are made of.
MAX_CONTEXT_BYTES = 40 * _PART_BYTES
_MOST_PARTS = MAX_CONTEXT_BYTES // (_PART_BYTES - 3) + 1


def context_problem(context: Mapping[str, str]) -> str | None:
    """Return why a context cannot travel, or None."""
    size = len(_json(context).encode())
    if size > MAX_CONTEXT_BYTES:
        return (
            f"context has {size:,} bytes as JSON, at most {MAX_CONTEXT_BYTES:,} can travel; shorten its texts"
        )
    if "\0" in "".join((*context, *context.values())):
        return "context holds the character NUL, which no database takes; leave it out"
    return None


def context_attributes(context: Mapping[str, str]) -> dict[str, str]:
    """Return the attributes that carry a context; none for an empty one."""
    if not context:
        return {}
    parts = []
    rest = _json(context).encode()
    while rest:
        # Cut between characters: a part has to be text by itself.
        parts.append(rest[:_PART_BYTES].decode(errors="ignore"))
        rest = rest[len(parts[-1].encode()) :]
    return {_name(number): part for number, part in enumerate(parts, 1)}


def context_names(attributes: Mapping[str, str]) -> list[str]:
    """Return the names of the attributes that carry a context, in order."""
    names: list[str] = []
    while len(names) < _MOST_PARTS and (name := _name(len(names) + 1)) in attributes:
        names.append(name)
    return names


def context_text(message: Message) -> str | None:
    """Return the context of a message as the JSON text of its row, or None if it carries none.

    What is no JSON object of texts, or larger than can be sent, is no context: a stranger's attributes
    cost no image its row.
    """
    if CONTEXT not in message.attributes:
        return None
    context = parse_context(message.attributes)
    return _json(context) if context else None


def parse_context(attributes: Mapping[str, str]) -> dict[str, str]:
    """Return the context that attributes carry; empty where they carry none, or garbage."""
    text = "".join(attributes[name] for name in context_names(attributes))
    try:
        found = json.loads(text) if text else {}
        if not isinstance(found, dict) or not all(isinstance(each, str) for each in found.values()):
            return {}
        return {} if context_problem(found) else found
    except (ValueError, RecursionError):  # half a surrogate, too
        return {}


def _name(number: int) -> str:
    return CONTEXT if number == 1 else f"{CONTEXT}-{number}"


def _json(context: Mapping[str, str]) -> str:
    return json.dumps(context, ensure_ascii=False)
