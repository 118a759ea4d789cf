"""What Pub/Sub and its client libraries refuse, as errors of this package.

Everything is told apart by type and status code, never by text, with one exception: gRPC reports credentials
that could not be refreshed as UNAVAILABLE, with the cause in the text alone.
"""

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

LOGIN = (
    "log in with `gcloud auth application-default login`, or name a key file in"
    " GOOGLE_APPLICATION_CREDENTIALS"
)

# By name of grpc.StatusCode. That CANCELLED and UNKNOWN may succeed later is what the service's own client
# holds (google.pubsub_v1.services.publisher.transports.base, retry of Publish).
BY_STATUS: dict[str, type[BrokerError]] = {
    "OK": BrokerError,
    "CANCELLED": Unavailable,
    "UNKNOWN": Unavailable,
    "INVALID_ARGUMENT": BrokerError,
    "DEADLINE_EXCEEDED": DeadlineExceeded,
    "NOT_FOUND": NotFound,
    "ALREADY_EXISTS": BrokerError,
    "PERMISSION_DENIED": PermissionDenied,
    "UNAUTHENTICATED": PermissionDenied,
    "RESOURCE_EXHAUSTED": Unavailable,
    "FAILED_PRECONDITION": BrokerError,
    "ABORTED": Unavailable,
    "UNIMPLEMENTED": BrokerError,
    "INTERNAL": Unavailable,
    "UNAVAILABLE": Unavailable,
    "DATA_LOSS": BrokerError,
    "OUT_OF_RANGE": BrokerError,
}
# By HTTP status, for errors of google.api_core that carry no status of gRPC.
BY_HTTP: dict[int, type[BrokerError]] = {
    301: BrokerError,
    304: BrokerError,
    307: Unavailable,
    308: Unavailable,
    400: BrokerError,
    401: PermissionDenied,
    403: PermissionDenied,
    404: NotFound,
    405: BrokerError,
    409: BrokerError,
    411: BrokerError,
    412: BrokerError,
    416: BrokerError,
    429: Unavailable,
    499: Unavailable,
    500: Unavailable,
    501: BrokerError,
    502: Unavailable,
    503: Unavailable,
    504: DeadlineExceeded,
}
# By class name along the inheritance, for what has neither. Also the errors of google.auth.
BY_NAME: dict[str, type[BrokerError]] = {
    "RetryError": DeadlineExceeded,
    "FutureTimeoutError": DeadlineExceeded,
    "FutureCancelledError": Unavailable,
    "TimeoutError": DeadlineExceeded,
    "DuplicateCredentialArgs": PermissionDenied,
    "TransportError": Unavailable,
    "ResponseError": Unavailable,
    "GoogleAuthError": PermissionDenied,
    "TransferStalledError": Unavailable,
    "ResumableTransferError": BrokerError,
    "AsyncRestUnsupportedParameterError": BrokerError,
}
# How gRPC begins the text of a call whose credentials could not be had.
_NO_TOKEN = "Getting metadata from plugin failed"  # noqa: S105 - a text, no secret
# Of the causes that follow it: these do not pass. Source: google.oauth2.reauth, google.oauth2._client.
_BAD_CREDENTIALS = (
    "invalid_grant",
    "invalid_client",
    "invalid_rapt",
    "unauthorized_client",
    "Reauthentication",
)


def status_of(error: BaseException) -> str | None:
    """Return the name of the gRPC status that an error carries, if any."""
    code: Any = getattr(error, "grpc_status_code", None)
    if code is None and callable(getattr(error, "code", None)):
        code = error.code()  # type: ignore[attr-defined]
    return getattr(code, "name", None)


def kind_of(error: BaseException) -> type[BrokerError] | None:
    """Return what an error of the client libraries means here; None for one that nobody has thought of."""
    status = status_of(error)
    if status == "UNAVAILABLE" and (text := details_of(error)).startswith(_NO_TOKEN):
        return PermissionDenied if any(each in text for each in _BAD_CREDENTIALS) else Unavailable
    if status is not None:
        return BY_STATUS.get(status)
    http = getattr(error, "code", None)
    if isinstance(http, int) and int(http) in BY_HTTP:
        return BY_HTTP[int(http)]
    return next((BY_NAME[each.__name__] for each in type(error).__mro__ if each.__name__ in BY_NAME), None)


def details_of(error: BaseException) -> str:
    """Return the text of an error without the dump of the call that gRPC adds."""
    details = getattr(error, "details", None)
    text = details() if callable(details) else None
    return str(text if text is not None else error)


def mapped(error: BaseException, doing: str, *, missing: str = "", publishing: bool = False) -> BrokerError:
    """Return the error of this package for one of the client libraries; raise it ``from`` the original.

    Args:
        error: from gRPC, google.api_core or google.auth.
        doing: what was tried, for the text.
        missing: the text where the thing asked for does not exist.
        publishing: an invalid argument is then an invalid message.
    """
    kind, status = kind_of(error) or BrokerError, status_of(error)
    if kind is NotFound and missing:
        return NotFound(missing)
    if publishing and status == "INVALID_ARGUMENT":
        kind = InvalidMessage
    advice = f"; {LOGIN}" if status == "UNAUTHENTICATED" else ""
    return kind(f"{doing}: {details_of(error)} ({status or type(error).__name__}){advice}")


def ack_failures(error: BaseException | None) -> dict[str, str]:
    """Return what an exactly-once subscription said of single ack ids: id to reason; {} if nothing.

    Reasons begin with ``TRANSIENT_FAILURE_`` or ``PERMANENT_FAILURE_``.

    Source: cloud.google.com/pubsub/docs/exactly-once-delivery; google.rpc.ErrorInfo in the status.
    """
    import grpc  # type: ignore[import-untyped]
    from google.api_core.exceptions import from_grpc_error

    if not isinstance(error, grpc.RpcError) or not hasattr(error, "trailing_metadata"):
        return {}
    info = from_grpc_error(error)  # type: ignore[no-untyped-call]
    metadata = getattr(info, "metadata", None)
    return {} if metadata is None else {str(name): str(reason) for name, reason in metadata.items()}
