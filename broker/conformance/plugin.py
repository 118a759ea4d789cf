"""The suite as a pytest plugin: run checks several times, and see at the end what was declared impossible.

pytest loads this file wherever couturier is installed. Until a test module imports the suite it does nothing
but add two options.

``--conformance-repeat N`` runs every check N times, each on a harness of its own: what fails now and then
fails more often. ``--conformance-verify`` runs also what the harness declares impossible, and fails where
that passes: so a declaration is true in both directions. It takes long, since most of it waits for what never
comes. The summary at the end counts the checks of every suite that ran and lists, under each
reason, the checks that its harness declares impossible.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import pytest

# Names of user properties: which suite a check belongs to, and why it is declared impossible there.
SUITE = "broker_conformance_suite"
IMPOSSIBLE = "broker_conformance_impossible"


def _times(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of at least 1")
    return int(text)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add ``--conformance-repeat``."""
    group = parser.getgroup("broker conformance", "conformance suite of broker drivers (couturier)")
    group.addoption(
        "--conformance-repeat",
        type=_times,
        default=1,
        metavar="N",
        help="run every check of broker.conformance N times (default: 1)",
    )
    group.addoption(
        "--conformance-verify",
        action="store_true",
        help="run also the checks that are declared impossible; fail where one passes",
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Repeat the checks of the suite, and nothing else."""
    count: int = metafunc.config.getoption("conformance_repeat")
    # The suite is not imported here: where no test module has done so, there is none to repeat.
    checks = sys.modules.get("broker.conformance.checks")
    if count > 1 and checks and metafunc.cls and issubclass(metafunc.cls, checks.Checks):
        metafunc.fixturenames.append("conformance_run")
        metafunc.parametrize("conformance_run", range(1, count + 1), ids=lambda run: f"run{run}")


@pytest.fixture
def conformance_run() -> int:
    """Which run of a repeated check this is, from 1."""
    return 1


@dataclass
class _Suite:
    """What came of one suite; ``impossible`` has the names of checks under their reason."""

    passed: int = 0
    failed: int = 0
    impossible: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say for every suite that ran how many checks passed, and what its backend cannot do and why."""
    suites: dict[str, _Suite] = defaultdict(_Suite)
    for report, properties in _reports(terminalreporter):
        suite, reason = suites[properties[SUITE]], properties.get(IMPOSSIBLE)
        if reason is not None and report.skipped:  # An expected failure is reported as skipped, too.
            check = report.nodeid.rpartition("::")[2].partition("[")[0]
            suite.impossible[reason].add(check.removeprefix("test_"))
        elif report.failed:
            suite.failed += 1
        elif report.when == "call":
            suite.passed += report.passed
    if not suites:
        return
    terminalreporter.section("broker conformance")
    for name, suite in sorted(suites.items()):
        declared = sum(map(len, suite.impossible.values()))
        terminalreporter.line(
            f"{name}: {suite.passed} passed, {suite.failed} failed, {declared} declared impossible"
        )
        for reason, checks in suite.impossible.items():
            terminalreporter.line(f"  {reason}:")
            for check in sorted(checks):
                terminalreporter.line(f"    {check}")


def _reports(
    terminalreporter: pytest.TerminalReporter,
) -> Iterator[tuple[pytest.TestReport, dict[str, str]]]:
    """Yield the reports of the suite's checks, with their properties."""
    reports: Sequence[object]
    for outcome in ("passed", "failed", "error", "skipped", "xfailed"):
        reports = terminalreporter.stats.get(outcome, [])
        for report in reports:
            if isinstance(report, pytest.TestReport):
                properties = {name: str(value) for name, value in report.user_properties}
                if SUITE in properties:
                    yield report, properties
