"""The runbook: every command runs as it stands, and every alert leads to a section that exists."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "runbook.md"
CONSOLE = re.compile(r"^```console\n(.*?)^```", re.MULTILINE | re.DOTALL)
RULES = [
    rule
    for group in yaml.safe_load((ROOT / "deploy/prometheus/alerts.yml").read_text())["groups"]
    for rule in group["rules"]
]


def steps() -> list[tuple[str, list[str]]]:
    """Commands of the page in order, each with the lines that it is to print."""
    found: list[tuple[str, list[str]]] = []
    for block in CONSOLE.findall(PAGE.read_text()):
        for line in block.splitlines():
            if line.startswith("$ "):
                found.append((line[2:], []))
            elif line.strip():
                found[-1][1].append(line)
    return found


def pattern(expected: list[str]) -> str:
    """What output must match: "…" is anything, on a line of its own any lines; runs of blanks are one."""
    lines = [
        r"(?:.*\n)*?" if line == "…" else r"[^\n]*".join(map(re.escape, normal(line).split("…"))) + r"\n"
        for line in expected
    ]
    return "".join(lines) if expected else r"(?:.*\n)*"


def normal(text: str) -> str:
    lines = (re.sub(r"\s+", " ", line).strip() for line in text.splitlines())
    return "\n".join(line for line in lines if line)


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, by GitHub's rule."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", each.lower()).replace(" ", "-") for each in headings}


@pytest.mark.skipif(sys.platform == "win32", reason="the commands are those of a POSIX shell")
def test_every_command_of_the_runbook_runs_as_it_stands(tmp_path: Path) -> None:
    """From top to bottom in one shell; each exits 0 and prints what the page shows."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    commands = steps()
    script = ["set -o pipefail; trap 'kill $WORKER 2>/dev/null; wait' EXIT"]
    for number, (command, _) in enumerate(commands):
        script += [f"echo '@@{number}'", command, 'echo "@@exit $?"']
    ours = ("BROKER_", "SINK_", "COUTURIER_", "KAFKA_", "PUBSUB_", "GOOGLE_")
    clean = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", "\n".join(script)],
        cwd=tmp_path,
        env={**clean, "PATH": path, "COUTURIER_HTTP_PORT": str(port)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    parts = re.split(r"^@@\d+\n", done.stdout, flags=re.MULTILINE)[1:]
    assert len(parts) == len(commands) > 25
    for (command, expected), part in zip(commands, parts, strict=True):
        said, _, code = part.rpartition("@@exit ")
        assert code.strip() == "0", f"{command}\n{said}"
        assert re.fullmatch(pattern(expected), normal(said) + "\n"), f"{command}\n{said}"


def test_an_expectation_that_is_not_met_is_noticed() -> None:
    """The test of the test: a missing line, another word."""
    wanted = pattern(["…", "a  b …", "end"])
    assert re.fullmatch(wanted, normal("x\ny\na b  c\nend") + "\n")
    assert re.fullmatch(wanted, normal("a b c\nend") + "\n")
    assert not re.fullmatch(wanted, normal("a b c\nmore\nend") + "\n")
    assert not re.fullmatch(wanted, normal("a c\nend") + "\n")


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_an_alert_is_complete_and_leads_to_its_section(rule: dict[str, Any]) -> None:
    """A query that parses, a severity, a sentence, and a section that names it."""
    promql_parser.parse(rule["expr"])
    assert rule["labels"]["severity"] in {"page", "ticket"}
    assert re.fullmatch(r"[A-Z{].*\.", rule["annotations"]["summary"])
    page, _, anchor = rule["annotations"]["runbook_url"].partition("#")
    assert anchor in anchors(ROOT / page)
    heading, _, body = section(anchor).partition("\n")
    assert rule["alert"] in body, f"{heading} does not name {rule['alert']}"


def section(anchor: str) -> str:
    parts = re.split(r"^## ", PAGE.read_text(), flags=re.MULTILINE)[1:]
    return next(
        each
        for each in parts
        if re.sub(r"[^\w\- ]", "", each.splitlines()[0].lower()).replace(" ", "-") == anchor
    )


def test_the_runbook_names_no_alert_that_does_not_exist() -> None:
    """Renamed alerts are renamed here, too; none is there twice."""
    names = [rule["alert"] for rule in RULES]
    assert sorted(names) == sorted(set(re.findall(r"Couturier[A-Z]\w+", PAGE.read_text())))


def test_links_within_the_runbook_lead_to_a_section() -> None:
    """At night nobody looks for it."""
    links = re.findall(r"\]\(#([^)]+)\)", PAGE.read_text())
    assert len(links) > 5
    assert set(links) <= anchors(PAGE)


def test_rules_are_grouped_and_named_once() -> None:
    """Prometheus refuses a file in which a group is there twice."""
    groups = [
        each["name"] for each in yaml.safe_load((ROOT / "deploy/prometheus/alerts.yml").read_text())["groups"]
    ]
    assert all(left != right for left, right in pairwise(sorted(groups)))
    loaded = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())["rule_files"]
    assert loaded == ["alerts.yml"]
