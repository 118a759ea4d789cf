"""What can go wrong on the client's side of the queue, by cause.

::

    ClientError                retryable
    ├── StoreError             no    a results or ledger file is missing, unreadable, or is something else
    │   └── StoreUnavailable   yes   it is locked, its disk is full or failing
    ├── SourceError            no    images to be sent cannot be read
    ├── ReplayIncomplete       yes   some dead letters are held by someone else
    └── ResultsTimeout         yes   results did not arrive in time

Every message says what failed and what to do next. Bad configuration is a ``ValueError`` that names the
variable it came from; what the broker refuses is a ``broker.BrokerError``.
"""

from __future__ import annotations

from collections.abc import Iterable


class ClientError(Exception):
    """Base of every error of this package.

    Attributes:
        retryable: the same call may succeed later, unchanged.
    """

    retryable: bool = False


class StoreError(ClientError):
    """A results or ledger file is missing, unreadable, or holds something else."""


class StoreUnavailable(StoreError):  # noqa: N818 - reads as the state it names
    """A results or ledger file is locked, or its disk is full or failing; nothing was written."""

    retryable = True


class SourceError(ClientError):
    """Images to be sent cannot be read."""


class ReplayIncomplete(ClientError):  # noqa: N818 - reads as the state it names
    """Some dead letters could not be taken out: someone else holds them, or did until shortly before.

    Attributes:
        sent: message ids of the letters that were replayed, or purged.
        left: how many were not.
    """

    retryable = True

    def __init__(self, sent: Iterable[str], left: int) -> None:
        self.sent = tuple(sent)
        self.left = left
        super().__init__(
            f"{len(self.sent):,} letter(s) done, {left:,} not: another reader of the dead letters holds them;"
            " run the same command again"
        )


class ResultsTimeout(ClientError):  # noqa: N818 - reads as the state it names
    """Some results did not arrive in time.

    Attributes:
        missing: the message ids without a result.
    """

    retryable = True

    def __init__(self, missing: Iterable[str], timeout: float) -> None:
        self.missing = tuple(missing)
        super().__init__(
            f"{len(self.missing)} result(s) did not arrive within {timeout:g} s, first {self.missing[0]};"
            " is a worker running (`couturier worker`), or is the image a dead letter (`couturier dlq list`)?"
        )
