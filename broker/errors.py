"""What can go wrong at a broker, by cause.

::

    BrokerError                  retryable
    ├── Unavailable              yes   the broker, or what a handler needs, does not answer
    ├── DeadlineExceeded         yes   it answered too late
    ├── NotFound                 no    topic or group was never ensured, or is gone
    ├── PermissionDenied         no    credentials or file permissions
    ├── InvalidMessage           no    the message breaks a limit of the backend
    │   └── MessageTooLarge      no
    ├── PublishError             no    some messages were not stored; ``failed`` says which and why
    ├── LeaseLost                no    some deliveries belong to another member by now
    └── Closed                   no    used after close

Bad configuration is a ``ValueError`` that names the variable it came from.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping


class BrokerError(Exception):
    """Base of every error of this package.

    Attributes:
        retryable: the same call may succeed later, unchanged.
    """

    retryable: bool = False


class Unavailable(BrokerError):
    """The broker does not answer; a handler raises it when something *it* needs does not.

    ``process`` then blames no message: intake pauses and the same batch is tried again.
    """

    retryable = True


class DeadlineExceeded(BrokerError):
    """The broker did not answer in time; the work may or may not have been done."""

    retryable = True


class NotFound(BrokerError):
    """The topic or the group was never ensured, or has been deleted."""


class PermissionDenied(BrokerError):
    """The broker, or the file system below it, refuses these credentials."""


class InvalidMessage(BrokerError):
    """The message breaks a limit of the backend; nothing was sent."""


class MessageTooLarge(InvalidMessage):
    """The body is over the backend's limit.

    Attributes:
        size_bytes: of the body.
        limit_bytes: what the backend takes.
    """

    def __init__(self, size_bytes: int, limit_bytes: int) -> None:
        super().__init__(f"the body has {size_bytes:,} bytes, the backend takes at most {limit_bytes:,}")
        self.size_bytes = size_bytes
        self.limit_bytes = limit_bytes


class PublishError(BrokerError):
    """Some messages of a publish were not stored; all others were.

    Attributes:
        failed: message id to the error that kept it out.
    """

    def __init__(self, failed: Mapping[str, BrokerError]) -> None:
        message_id, error = next(iter(failed.items()))
        super().__init__(f"{len(failed)} message(s) not stored; first: {message_id}: {error}")
        self.failed = dict(failed)
        self.retryable = all(error.retryable for error in failed.values())


class LeaseLost(BrokerError):
    """Some deliveries could not be settled: another member holds them by now.

    They come again there; everything else in the same call was settled.

    Attributes:
        ids: message ids of the deliveries that were lost.
    """

    def __init__(self, ids: Iterable[str]) -> None:
        self.ids = tuple(ids)
        super().__init__(f"{len(self.ids)} delivery(ies) went to another member: {', '.join(self.ids[:3])}")


class Closed(BrokerError):
    """The broker or the subscription was closed before this call."""
