"""What the fake Pub/Sub service refuses, and how.

Limits: https://cloud.google.com/pubsub/quotas#resource_limits and the comments in ``pubsub.proto``.
Google's emulator enforces few of them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from google.rpc.error_details_pb2 import ErrorInfo
from google.rpc.status_pb2 import Status
from grpc import ServicerContext, StatusCode
from grpc_status import rpc_status

NAME = re.compile(
    r"projects/[^/]+/(topics|subscriptions|snapshots)/(?!goog)[A-Za-z][\w\-.~+%]{2,254}", re.ASCII
)
MAX_PUBLISH_BYTES = 10_000_000
MAX_PUBLISH_MESSAGES = 1_000
MAX_ATTRIBUTES, MAX_KEY_BYTES, MAX_VALUE_BYTES, MAX_ORDERING_KEY_BYTES = 100, 256, 1_024, 1_024
MAX_ACK_REQUEST_BYTES = 512 * 1_024
MAX_RETENTION_S = 31 * 86_400
INVALID_ACK_ID = "PERMANENT_FAILURE_INVALID_ACK_ID"


class Refused(Exception):  # noqa: N818 - an answer of the service, not a fault of the fake
    """An RPC ends with a status other than OK.

    ``failures`` is the metadata of a ``google.rpc.ErrorInfo`` in the status: ack id -> reason, by which an
    exactly-once subscription says what became of each id.
    """

    def __init__(self, code: StatusCode, detail: str, failures: Mapping[str, str] | None = None) -> None:
        super().__init__(detail)
        self.code, self.detail, self.failures = code, detail, dict(failures or {})


def need(condition: object, detail: str, code: StatusCode = StatusCode.INVALID_ARGUMENT) -> None:
    """Raise ``Refused`` unless ``condition``."""
    if not condition:
        raise Refused(code, detail)


def refuse_ack_ids(ack_ids: Sequence[str]) -> None:
    """Refuse ids as exactly-once subscriptions do: each by name; the others of the request are settled."""
    if ack_ids:
        detail = (
            "Some acknowledgement ids in the request were invalid. They may have expired or be malformed."
        )
        raise Refused(StatusCode.INVALID_ARGUMENT, detail, dict.fromkeys(ack_ids, INVALID_ACK_ID))


def refuse(context: ServicerContext, error: Refused) -> NoReturn:
    """End an RPC with the status of an error, in the rich form that the client reads acks from."""
    status = Status(code=error.code.value[0], message=error.detail)
    if error.failures:
        info = ErrorInfo(reason="EXACTLY_ONCE_ACKID_FAILURE", domain="pubsub.googleapis.com")
        info.metadata.update(error.failures)
        status.details.add().Pack(info)
    context.abort_with_status(rpc_status.to_status(status))
    raise AssertionError("abort_with_status always raises")


def check_name(name: str, kind: str) -> None:
    """Refuse a name that is not ``projects/P/KIND/ID``; an ID has 3 to 255 characters, at first no "goog"."""
    found = NAME.fullmatch(name)
    need(found and found[1] == kind, f"Invalid [{kind}] name: (name={name})")


def check_retention(pb: Any) -> None:
    """Refuse a retention outside 10 minutes to 31 days."""
    seconds = pb.message_retention_duration.seconds if pb.HasField("message_retention_duration") else 600
    need(600 <= seconds <= MAX_RETENTION_S, "message_retention_duration out of bounds")


def check_ack_ids(request: Any) -> None:
    """Refuse a request without ids, or above 512 KiB."""
    need(request.ack_ids, "No ack ids specified.")
    need(
        request.ByteSize() <= MAX_ACK_REQUEST_BYTES,
        f"Request payload size exceeds {MAX_ACK_REQUEST_BYTES} bytes",
    )


def check_publish(request: Any) -> None:
    """Refuse a request above the limits; a message without data needs an attribute, a key is not enough."""
    need(request.messages, "No messages to publish")
    need(
        len(request.messages) <= MAX_PUBLISH_MESSAGES,
        f"More than {MAX_PUBLISH_MESSAGES} messages in the request",
    )
    size = request.ByteSize()
    need(size <= MAX_PUBLISH_BYTES, f"The request has {size} bytes, the maximum is {MAX_PUBLISH_BYTES}")
    keys = {message.ordering_key for message in request.messages}
    need(len(keys) == 1, "All messages of a request must have the same ordering key")
    need(len(keys.pop().encode()) <= MAX_ORDERING_KEY_BYTES, "The ordering key is too long")
    for message in request.messages:
        need(message.data or message.attributes, "Some messages are empty")
        need(
            len(message.attributes) <= MAX_ATTRIBUTES, f"A message has more than {MAX_ATTRIBUTES} attributes"
        )
        for key, value in message.attributes.items():
            need(0 < len(key.encode()) <= MAX_KEY_BYTES, "An attribute key is empty or too long")
            need(not key.startswith("goog"), f"Attribute keys must not start with goog: {key}")
            need(len(value.encode()) <= MAX_VALUE_BYTES, f"The value of attribute {key} is too long")
