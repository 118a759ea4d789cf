"""What the written parts promise is there: files, commands, figures, metrics, sums."""

from __future__ import annotations

import contextlib
import importlib
import io
import re
import runpy
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

import couturier

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
LINK = re.compile(r"\]\(([^)#]+)")
ROWS = [
    [cell.strip() for cell in line.strip("|").split(" | ")]
    for line in (DOCS / "requirements.md").read_text().splitlines()
    if line.startswith("| ") and not line.startswith("| demand")
]
COMMANDS = sorted({command for row in ROWS for command in re.findall(r"`([^`]+)`", row[2])})


def test_every_demand_has_a_place_a_command_and_room_for_a_figure() -> None:
    """A demand without a file that meets it is not met."""
    assert len(ROWS) > 30
    for row in ROWS:
        assert len(row) == 4, row
        places = LINK.findall(row[1])
        assert places, row[0]
        for place in places:
            assert (DOCS / place).exists(), place
        assert re.fullmatch(r"`[^`]+`", row[2]), row[0]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_accepted(command: str) -> None:
    """Typed as it stands, it meets neither an unknown command nor an unknown option."""
    words = shlex.split(command)
    if words[0] == "couturier":
        accepted_by_couturier(words[1:])
    elif words[:2] == ["python", "-m"]:
        accepted_by_module(words[2], words[3:])
    elif words[0] == "pytest":
        assert all((ROOT / place).exists() for place in words[1:])
    else:
        assert words[:4] == ["docker", "compose", "up", "--scale"]
        assert words[4].split("=")[0] in yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]


def accepted_by_couturier(words: list[str]) -> None:
    command: Any = typer.main.get_command(couturier.application())
    while hasattr(command, "commands"):
        command = command.commands[words.pop(0)]
    known = {option for each in command.params for option in each.opts}
    assert {word for word in words if word.startswith("--")} <= known


def accepted_by_module(module: str, words: list[str]) -> None:
    said = io.StringIO()
    with contextlib.redirect_stdout(said), pytest.raises(SystemExit) as end:
        importlib.import_module(module).main(["--help"])
    assert not end.value.code
    assert all(word in said.getvalue() for word in words if word.startswith("--"))


def test_every_figure_stands_where_it_was_measured() -> None:
    """A figure that is measured anew must be changed here, too."""
    found = 0
    for row in ROWS:
        pages = [(DOCS / place).read_text() for place in LINK.findall(row[3])]
        for figure in re.findall(r"\*\*([^*]+)\*\*", row[3]):
            assert any(figure in page for page in pages), f"{figure} of {row[0]!r}"
            found += 1
    assert found > 15


@pytest.mark.parametrize("page", ["deployment.md", "scaling.md"])
def test_every_metric_that_is_to_be_watched_is_exported(page: str) -> None:
    """An alert on a metric that nobody exports never comes."""
    source = (ROOT / "worker/metrics.py").read_text()
    named = set(re.findall(r"`(couturier_[a-z_]+)`", (DOCS / page).read_text()))
    assert named
    for name in named:
        assert f'"{re.sub(r"_(total|info|bucket|sum|count)$", "", name)}"' in source, name


def test_every_alert_that_the_plan_names_is_a_rule() -> None:
    """A threshold on paper wakes nobody."""
    rules = yaml.safe_load((ROOT / "deploy/prometheus/alerts.yml").read_text())
    known = {rule["alert"] for group in rules["groups"] for rule in group["rules"]}
    named = set(re.findall(r"`(Couturier\w+)`", (DOCS / "deployment.md").read_text()))
    assert named
    assert named <= known


@pytest.mark.parametrize("name", ["architecture", "google_cloud"])
def test_pictures_are_what_their_source_draws(name: str, tmp_path: Path) -> None:
    """Who changes the source draws anew: `python docs/images/draw.py`."""
    runpy.run_path(str(DOCS / "images/draw.py"))[name]().write(tmp_path / "drawn.svg")
    committed = DOCS / "images" / f"{name.replace('_', '-')}.svg"
    assert (tmp_path / "drawn.svg").read_text() == committed.read_text()


def test_the_price_is_the_sum_of_its_parts() -> None:
    """Who changes an assumption changes the sentence below the program."""
    text = (DOCS / "deployment.md").read_text()
    (program,) = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    told = re.search(r"prints ([\d,]+) dollars a month, ([\d.]+) a million", text)
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        exec(compile(program, "deployment.md", "exec"), {})
    last = said.getvalue().splitlines()[-1].split()
    assert told is not None
    assert (last[2], last[3]) == told.groups()
    assert f"{told[2]} dollars a million" in (DOCS / "requirements.md").read_text()
