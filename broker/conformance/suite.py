"""The suite as one class, and the list of what it checks."""

from __future__ import annotations

from .administration import Administration
from .checks import Checks
from .flow import Flow
from .forwarding import Forwarding
from .groups import Groups
from .leases import Leases
from .lifecycle import Lifecycle
from .ordering import Ordering
from .process_faults import ProcessFaults
from .processing import Processing
from .publishing import Publishing
from .receiving import Receiving
from .settling import Settling
from .verdicts import Verdicts


class Conformance(
    Publishing,
    Receiving,
    Groups,
    Settling,
    Verdicts,
    Leases,
    Flow,
    Ordering,
    Forwarding,
    Lifecycle,
    Administration,
    Processing,
    ProcessFaults,
):
    """Every check; subclass it as ``Test...`` and add a fixture ``harness`` that returns a ``Harness``."""


def check_names(suite: type[Checks] = Conformance) -> tuple[str, ...]:
    """Return the names of all checks, sorted, as ``Harness.impossible`` uses them."""
    return tuple(sorted(name.removeprefix("test_") for name in dir(suite) if name.startswith("test_")))
