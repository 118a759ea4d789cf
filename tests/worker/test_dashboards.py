"""Dashboard and alert rules ask only for what a worker that has met everything really exports."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import promql_parser
import pytest
import yaml
from odd_engine import marked
from prometheus_client.parser import text_string_to_metric_families
from rig import PATIENCE_S, Rig
from watched_model import watched_model

from client import Submission
from client.schema import ClassifyRequest

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
DASHBOARD = json.loads((DEPLOY / "grafana/couturier.json").read_text())
RULES = yaml.safe_load((DEPLOY / "prometheus/alerts.yml").read_text())["groups"]
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
# Given by Prometheus itself to every sample, and one series of its own.
TARGET = {"job", "instance"}
PROMETHEUS = {"up"}
Families = dict[str, list[dict[str, str]]]


def queries() -> Iterator[tuple[str, str]]:
    """Every query, and where it stands."""
    for panel in PANELS:
        for target in panel["targets"]:
            yield panel["title"], target["expr"].replace("$__rate_interval", "5m")
    for group in RULES:
        for rule in group["rules"]:
            yield rule["alert"], rule["expr"]


def selectors(expression: Any) -> list[Any]:
    """Every metric that an expression asks for."""
    found: list[Any] = []
    promql_parser.walk(expression, found.append)
    return [
        getattr(each, "vector_selector", each)
        for each in found
        if isinstance(each, promql_parser.VectorSelector | promql_parser.MatrixSelector)
    ]


def grouped(expression: Any) -> Iterator[tuple[list[str], Any]]:
    """Every aggregation: the labels that it keeps, and itself."""
    found: list[Any] = []
    promql_parser.walk(expression, found.append)
    for each in found:
        if isinstance(each, promql_parser.AggregateExpr) and each.modifier is not None:
            yield list(each.modifier.labels), each


def problems(query: str, exported: Families) -> list[str]:
    """What a query asks for that nobody exports: metrics, labels, values of labels."""
    expression, wrong = promql_parser.parse(query), []
    for selector in selectors(expression):
        series = exported.get(selector.name)
        if series is None:
            wrong += [] if selector.name in PROMETHEUS else [f"no metric {selector.name}"]
            continue
        for matcher in selector.matchers.matchers:
            wanted = matcher.value.split("|") if matcher.op == promql_parser.MatchOp.Re else [matcher.value]
            known = {each.get(matcher.name) for each in series}
            if matcher.name not in TARGET and not set(wanted) <= known:
                wrong.append(f"{selector.name} has no {matcher.name}={matcher.value}")
    for labels, aggregation in grouped(expression):
        inside = [exported.get(each.name, []) for each in selectors(aggregation.expr)]
        there = {label for series in inside for each in series for label in each} | TARGET
        wrong += [
            f"nothing in {aggregation.prettify()} has {label}" for label in labels if label not in there
        ]
    return wrong


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
async def exported(tmp_path_factory: pytest.TempPathFactory, pictures: list[bytes]) -> Families:
    """What a real worker process exports after good, broken, doubtful and deadly images."""
    directory = tmp_path_factory.mktemp("dashboard")
    model, _ = watched_model(directory / "model", pictures, times=50)
    rig = Rig(directory)
    try:
        sent = [*pictures, *pictures, b"no image", marked(pictures[0], "decode:SIGKILL")]
        await rig.publish([Submission(ClassifyRequest(image=each), "") for each in sent])
        process = await rig.ready(
            str(Path(__file__).parent / "odd_worker.py"),
            COUTURIER_MODEL=str(model),
            COUTURIER_CRASHES="1",
            COUTURIER_LAG_INTERVAL="0.05",
        )
        url = str(rig.events(process)["serving"]["url"])
        await rig.until(rig.settled)
        families: Families = {}
        async with asyncio.timeout(PATIENCE_S):
            while "couturier_estimated_drain_seconds" not in families:
                families = await asyncio.to_thread(scraped, url)
                await asyncio.sleep(0.05)
    finally:
        for each in rig.started:
            each.kill()
            each.wait()
            if each.stdin is not None:
                each.stdin.close()
    return families


def scraped(url: str) -> Families:
    with urlopen(f"{url}/metrics", timeout=PATIENCE_S) as reply:
        text = reply.read().decode()
    found: Families = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, []).append(sample.labels)
    return found


@pytest.mark.anyio
async def test_every_query_asks_for_what_is_exported(exported: Families) -> None:
    """A panel without data at night is worse than none."""
    wrong = {place: found for place, query in queries() if (found := problems(query, exported))}
    assert not wrong


@pytest.mark.anyio
async def test_everything_of_ours_is_on_the_dashboard_or_in_a_rule(exported: Families) -> None:
    """What nobody looks at need not be measured; but for who is who, and how much was counted."""
    asked = {each.name for _, query in queries() for each in selectors(promql_parser.parse(query))}
    ours = {re.sub("_(sum|count)$", "_bucket", name) for name in exported if name.startswith("couturier_")}
    created = {name for name in ours if name.endswith("_created")}
    shown = {re.sub("_(sum|count)$", "_bucket", name) for name in asked}
    assert ours - created - shown <= {"couturier_reference_images"}


@pytest.mark.anyio
@pytest.mark.parametrize(
    "query",
    [
        "couturier_no_such_metric",
        'sum(rate(couturier_rows_total{outcome="lost"}[5m]))',
        "sum by (reason) (couturier_predictions_total)",
        'max(couturier_drift_psi{of="texture"})',
    ],
)
async def test_a_query_that_asks_for_more_is_noticed(exported: Families, query: str) -> None:
    """The test of the test."""
    assert problems(query, exported)


def test_the_dashboard_can_be_provisioned() -> None:
    """Ids and places are unique, every panel is explained, and takes the chosen source of data."""
    assert (DASHBOARD["uid"], DASHBOARD["title"]) == ("couturier", "couturier")
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(ids) == len(set(ids)) > 20
    cells: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        mine = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert at["x"] + at["w"] <= 24
        assert not mine & cells, panel["title"]
        cells |= mine
    for panel in PANELS:
        assert panel["description"], panel["title"]
        for target in panel["targets"]:
            assert target["datasource"]["uid"] == "${datasource}"
    (variable,) = DASHBOARD["templating"]["list"]
    assert (variable["name"], variable["type"], variable["query"]) == (
        "datasource",
        "datasource",
        "prometheus",
    )


def test_legends_name_labels_that_the_query_keeps() -> None:
    """Else every line of a panel is called the same."""
    for panel in PANELS:
        for target in panel["targets"]:
            for label in re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]):
                expression = promql_parser.parse(target["expr"].replace("$__rate_interval", "5m"))
                kept = [labels for labels, _ in grouped(expression)]
                assert not kept or any(label in labels for labels in kept), panel["title"]


def test_the_names_of_the_rules_texts_are_kept_by_their_queries() -> None:
    """``$labels.instance`` of a query that sums instances away is empty."""
    for group in RULES:
        for rule in group["rules"]:
            for label in re.findall(r"\$labels\.(\w+)", rule["annotations"]["summary"]):
                kept = [labels for labels, _ in grouped(promql_parser.parse(rule["expr"]))]
                assert not kept or any(label in labels for labels in kept), rule["alert"]
