"""Every program in the documentation runs as it stands on the page."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import typer

import couturier

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([*ROOT.glob("docs/*.md"), ROOT / "README.md"])
PROGRAM = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
EXPECTED = {
    "broker.md": [
        "stored 10 messages",
        '{"total": 9} attempt 1',
        "dead letter: b'no order' not-an-order",
        "b'",
    ],
}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_programs_on_a_page_run_in_their_order(page: Path, tmp_path: Path) -> None:
    """A reader who copies them, one after the other, sees what the page says."""
    printed = []
    for number, program in enumerate(PROGRAM.findall(page.read_text())):
        script = tmp_path / f"program_{number}.py"
        script.write_text(program)
        done = subprocess.run(
            [sys.executable, str(script)],
            env={**os.environ, "COUTURIER_HOME": str(tmp_path / "home"), "BROKER_URL": "", "SINK_URL": ""},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, f"program {number} of {page.name}:\n{done.stderr}"
        printed.append(done.stdout)
    for expected, output in zip(EXPECTED.get(page.name, []), printed, strict=False):
        assert expected in output


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    """A reader is never sent to a page that does not exist."""
    for target in re.findall(r"\]\((?!https?:|#|mailto:)([^)#]+)", page.read_text()):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_pip_installs_every_extra_that_the_tests_need() -> None:
    """The README's line for those without uv names all that ``--all-extras`` takes."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    (named,) = re.findall(r"pip install -e '\.\[([\w,]+)\]' --group dev", (ROOT / "README.md").read_text())
    assert set(named.split(",")) == set(extras)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_figure_is_left_blank(page: Path) -> None:
    """What is to be measured has been measured."""
    assert not re.findall(r"@[A-Z]+@", page.read_text())


def test_every_command_of_the_readme_exists() -> None:
    """A reader who types one meets neither an unknown command nor an unknown option."""
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    blocks = [text for language, text in fenced if not language]
    typed = [each for block in blocks for each in re.findall(r"couturier ([a-z].*)", block)]
    assert len(typed) > 20
    for line in typed:
        words = shlex.split(line, comments=True)
        command: Any = typer.main.get_command(couturier.application())
        while hasattr(command, "commands"):
            command = command.commands[words.pop(0)]
        known = {option for each in command.params for option in each.opts}
        assert {word for word in words if word.startswith("--")} <= known, line
