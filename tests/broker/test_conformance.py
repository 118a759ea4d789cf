"""The suite itself: its declarations bind both ways, its skips are pinned, and it finds planted bugs."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from planted import PLANTED, BuggyHarness

from broker import BrokerError
from broker.conformance import GROUP, ITEMS, Bench, Conformance, check_names

pytestmark = pytest.mark.anyio


def test_every_check_says_what_must_hold() -> None:
    """Each check is documented by one sentence, and there are as many as ever."""
    names = check_names()
    assert len(names) >= 140
    for name in names:
        text = getattr(Conformance, f"test_{name}").__doc__
        assert text is not None, name
        assert text.endswith("."), name


def test_the_driver_on_the_page_keeps_the_contract(tmp_path: Path) -> None:
    """Whoever copies ``docs/test-a-driver.md`` sees all checks pass that it does not declare impossible."""
    page = Path(__file__).resolve().parents[2] / "docs" / "test-a-driver.md"
    files = re.findall(r"^```python (\S+)\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
    assert [name for name, _ in files] == ["listqueue.py", "test_listqueue.py"]
    for name, text in files:
        (tmp_path / name).write_text(text)
    printed = run_pytest(tmp_path / "test_listqueue.py")
    assert f"TestListQueue: {len(check_names()) - 13} passed, 0 failed, 13 declared impossible" in printed


_LIAR = """
import pytest
from broker import Broker, ManualClock
from broker.conformance import Conformance, Harness
from broker.drivers.base import Room
from broker.drivers.memory import MemoryDriver, MemoryStore
from dataclasses import replace

class Liar(Harness):
    lease = 30.0
    quiet = 0.02
    impossible = {impossible}

    def connect(self):
        driver = MemoryDriver(self.store, lease=30.0, clock=self.clock)
        driver.capabilities = replace(driver.capabilities, **{claims})
        return Broker(driver)

    async def advance(self, seconds):
        await self.clock.advance(seconds)

    async def restart(self):
        self.store = MemoryStore()

class TestLiar(Conformance):
    @pytest.fixture
    async def harness(self):
        harness = Liar()
        harness.store, harness.clock = MemoryStore(), ManualClock()
        return harness
"""
_DECLARED = {
    "messages_survive_a_restart": "memory",
    "verdicts_survive_a_restart": "memory",
    "a_restart_in_mid_run_loses_nothing": "memory",
}


def run_pytest(module: Path, *options: str) -> str:
    """Run the checks in a module as a third party would; return what was printed."""
    command = [sys.executable, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", str(module), *options]
    return subprocess.run(command, cwd=module.parent, capture_output=True, text=True, check=False).stdout


def run_suite(
    tmp_path: Path, impossible: Mapping[str, str], claims: Mapping[str, Any], chosen: str, *options: str
) -> str:
    """Run chosen checks on a memory backend with these declarations."""
    module = tmp_path / "test_liar.py"
    module.write_text(_LIAR.format(impossible=dict(impossible), claims=dict(claims)))
    return run_pytest(module, "-k", chosen, *options)


def test_a_third_party_needs_one_fixture(tmp_path: Path) -> None:
    """Outside this repository, with pytest and the package alone, checks run and skips show their reason."""
    printed = run_suite(tmp_path, _DECLARED, {}, "settling or restart or declarations or capabilities_are")
    assert "3 skipped" in printed, printed
    assert " passed" in printed, printed
    assert " 0 failed," in printed, printed
    assert "memory" in printed


def test_a_declaration_against_the_claims_fails(tmp_path: Path) -> None:
    """Declaring impossible what the capabilities claim is a failure, not a skip."""
    declared = {**_DECLARED, "order_outlives_a_crash": "too hard"}
    printed = run_suite(tmp_path, declared, {}, "order_outlives")
    assert "1 error" in printed, printed
    assert "the capabilities claim order='key'" in printed


def test_denying_a_capability_without_declaring_it_fails(tmp_path: Path) -> None:
    """A check that the capabilities rule out must be declared, so that the list of skips is complete."""
    printed = run_suite(tmp_path, {}, {}, "messages_survive_a_restart")
    assert "1 error" in printed, printed
    assert "declare messages_survive_a_restart impossible" in printed


def test_a_declaration_that_is_not_true_is_found(tmp_path: Path) -> None:
    """With ``--conformance-verify`` what is declared impossible has to fail; without, it is skipped."""
    declared = {**_DECLARED, "any_bytes_pass": "text only"}
    chosen = "any_bytes_pass or verdicts_survive"
    assert "2 skipped" in run_suite(tmp_path, declared, {}, chosen)
    printed = run_suite(tmp_path, declared, {}, chosen, "--conformance-verify")
    assert "1 failed, " in printed, printed
    assert "1 xfailed" in printed, printed
    assert "XPASS(strict)" in printed
    assert "text only" in printed


def test_claims_that_do_not_hold_fail(tmp_path: Path) -> None:
    """Denying history that is there, claiming another lease and declaring unknown checks all fail."""
    declared = {**_DECLARED, "no_such_check": "typing error"}
    chosen = "starts_where_it_was_told or capabilities_are_stated or declarations"
    printed = run_suite(tmp_path, declared, {"history": False, "lease": 31.0}, chosen)
    assert "3 failed" in printed, printed


@pytest.mark.parametrize(("bug", "check"), PLANTED, ids=[" - ".join(each) for each in PLANTED])
async def test_a_planted_bug_is_found(bug: str, check: str) -> None:
    """A check that is there for a bug passes without it and fails with it."""
    run: Callable[[Bench], Any] = getattr(Conformance(), f"test_{check}")
    for planted in ("", bug):
        harness = BuggyHarness(planted)
        async with harness.connect() as broker, asyncio.timeout(30):
            await broker.ensure("images", group=GROUP)
            bench = Bench(harness, broker, "images")
            if planted:
                with pytest.raises((AssertionError, pytest.fail.Exception, BrokerError, TypeError)):
                    await run(bench)
            else:
                await run(bench)


def test_every_item_has_a_check_that_can_fail() -> None:
    """Each of the 48 items names checks that exist, of which a planted bug fails at least one."""
    assert list(ITEMS) == list(range(1, 49))
    for number, item in ITEMS.items():
        assert item.checks, number
        assert set(item.checks) <= set(check_names()), number
    found = {check for _, check in PLANTED}
    assert [number for number, item in ITEMS.items() if not found & set(item.checks)] == []
