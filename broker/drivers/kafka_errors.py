"""What the errors of Kafka's client mean."""

from __future__ import annotations

from typing import Any

from ..errors import (
    BrokerError,
    DeadlineExceeded,
    InvalidMessage,
    NotFound,
    PermissionDenied,
    Unavailable,
)

_DENIED = {
    "TOPIC_AUTHORIZATION_FAILED", "GROUP_AUTHORIZATION_FAILED", "CLUSTER_AUTHORIZATION_FAILED",
    "TRANSACTIONAL_ID_AUTHORIZATION_FAILED", "SASL_AUTHENTICATION_FAILED", "UNSUPPORTED_SASL_MECHANISM",
    "ILLEGAL_SASL_STATE", "SECURITY_DISABLED", "UNACCEPTABLE_CREDENTIAL", "INVALID_PRINCIPAL_TYPE",
    "DELEGATION_TOKEN_AUTHORIZATION_FAILED", "DELEGATION_TOKEN_AUTH_DISABLED", "DELEGATION_TOKEN_NOT_FOUND",
    "DELEGATION_TOKEN_OWNER_MISMATCH", "DELEGATION_TOKEN_REQUEST_NOT_ALLOWED", "DELEGATION_TOKEN_EXPIRED",
    "_AUTHENTICATION", "_SSL",
}  # fmt: skip
# The protocol calls an unknown topic retriable, because a new one is announced late; ``ensure`` waits for
# that, so here it means that nobody made it.
_MISSING = {
    "UNKNOWN_TOPIC_OR_PART", "GROUP_ID_NOT_FOUND", "RESOURCE_NOT_FOUND", "_UNKNOWN_TOPIC",
    "_UNKNOWN_PARTITION", "_UNKNOWN_GROUP", "_NOENT",
}  # fmt: skip
# "Corrupt message" is how brokers call a record without a key in a compacted topic, among others. A batch is
# refused for any of its records; the driver then parts the bad ones from the rest.
_INVALID = {
    "INVALID_MSG", "INVALID_MSG_SIZE", "INVALID_RECORD", "INVALID_TIMESTAMP", "MSG_SIZE_TOO_LARGE",
    "RECORD_LIST_TOO_LARGE", "_INVALID_DIFFERENT_RECORD", "_INVALID_ARG",
}  # fmt: skip
_LATE = {"REQUEST_TIMED_OUT", "_TIMED_OUT", "_MSG_TIMED_OUT", "_TIMED_OUT_QUEUE"}
# What brokers say that passes by itself: the errors that the protocol calls retriable
# (kafka.apache.org/protocol#protocol_error_codes), and those of a member whose group rebalances.
_PASSING = {
    "LEADER_NOT_AVAILABLE", "NOT_LEADER_FOR_PARTITION", "BROKER_NOT_AVAILABLE", "REPLICA_NOT_AVAILABLE",
    "NETWORK_EXCEPTION", "COORDINATOR_LOAD_IN_PROGRESS", "COORDINATOR_NOT_AVAILABLE", "NOT_COORDINATOR",
    "NOT_ENOUGH_REPLICAS", "NOT_ENOUGH_REPLICAS_AFTER_APPEND", "NOT_CONTROLLER", "CONCURRENT_TRANSACTIONS",
    "KAFKA_STORAGE_ERROR", "FETCH_SESSION_ID_NOT_FOUND", "INVALID_FETCH_SESSION_EPOCH", "LISTENER_NOT_FOUND",
    "FENCED_LEADER_EPOCH", "UNKNOWN_LEADER_EPOCH", "STALE_BROKER_EPOCH", "STALE_CTRL_EPOCH",
    "OFFSET_NOT_AVAILABLE", "PREFERRED_LEADER_NOT_AVAILABLE", "ELIGIBLE_LEADERS_NOT_AVAILABLE",
    "ELECTION_NOT_NEEDED", "UNSTABLE_OFFSET_COMMIT", "THROTTLING_QUOTA_EXCEEDED", "UNKNOWN_TOPIC_ID",
    "INCONSISTENT_TOPIC_ID", "SHARE_SESSION_NOT_FOUND", "INVALID_SHARE_SESSION_EPOCH",
    "SHARE_SESSION_LIMIT_REACHED", "REBOOTSTRAP_REQUIRED", "REASSIGNMENT_IN_PROGRESS",
    "REBALANCE_IN_PROGRESS", "ILLEGAL_GENERATION", "UNKNOWN_MEMBER_ID", "MEMBER_ID_REQUIRED",
    "FENCED_MEMBER_EPOCH", "STALE_MEMBER_EPOCH",
}  # fmt: skip
# What the client says by itself (its own codes begin with "_") mostly means that the broker was not asked or
# did not answer. These are wrong uses, and ends.
_LASTING = {
    "_BAD_MSG", "_BAD_COMPRESSION", "_EXISTING_SUBSCRIPTION", "_CONFLICT", "_UNKNOWN_PROTOCOL",
    "_NOT_IMPLEMENTED", "_UNSUPPORTED_FEATURE", "_KEY_SERIALIZATION", "_VALUE_SERIALIZATION",
    "_KEY_DESERIALIZATION", "_VALUE_DESERIALIZATION", "_READ_ONLY", "_UNDERFLOW", "_INVALID_TYPE", "_FATAL",
    "_INCONSISTENT", "_GAPLESS_GUARANTEE", "_NOT_CONFIGURED", "_FENCED", "_APPLICATION",
}  # fmt: skip
_RIGHTS = "this login lacks a right; docs/security.md lists what each role needs"
_LOGIN = "check KAFKA_SASL_USERNAME, KAFKA_SASL_PASSWORD and KAFKA_SASL_MECHANISM"
_ADVICE = {
    "_AUTHENTICATION": _LOGIN,
    "SASL_AUTHENTICATION_FAILED": _LOGIN,
    "_SSL": "check KAFKA_SSL_CA_LOCATION, and that the broker's certificate is of this host and in date",
    "TOPIC_AUTHORIZATION_FAILED": _RIGHTS,
    "GROUP_AUTHORIZATION_FAILED": _RIGHTS,
    "CLUSTER_AUTHORIZATION_FAILED": _RIGHTS,
}
_KINDS: tuple[tuple[set[str], type[BrokerError]], ...] = (
    (_DENIED, PermissionDenied), (_MISSING, NotFound), (_INVALID, InvalidMessage), (_LATE, DeadlineExceeded),
    (_PASSING, Unavailable), (_LASTING, BrokerError),
)  # fmt: skip


def mapped(error: Any, what: str) -> BrokerError:
    """Return the error of ``broker.errors`` for a ``KafkaError`` or ``KafkaException``."""
    if isinstance(error, Exception):
        error = error.args[0]
    if not hasattr(error, "name"):
        return BrokerError(f"{what}: {error}")
    name, text = error.name(), f"{what}: {error.str()} ({error.name()})"
    if name in _ADVICE:
        return PermissionDenied(f"{text}; {_ADVICE[name]}")
    if error.fatal():
        return BrokerError(text)
    for names, kind in _KINDS:
        if name in names:
            return kind(text)
    return Unavailable(text) if error.retriable() or name.startswith("_") else BrokerError(text)


def refused(error: Exception) -> ValueError:
    """Return the error for settings that the client does not take."""
    text = error.args[0].str() if hasattr(error.args[0], "str") else error
    return ValueError(f"the Kafka client refuses its settings: {text}; see KAFKA_CLIENT_CONFIG")
