"""The dashboard and the alerts ask only for what the gateway has: every metric, and every label of it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from app.telemetry import metrics

ROOT = Path(__file__).resolve().parents[2]
DASHBOARD = ROOT / "deploy" / "grafana" / "dashboards" / "gateway.json"
ALERTS = ROOT / "deploy" / "prometheus" / "alerts.yml"
OPERATIONS = ROOT / "docs" / "operations.md"
NAME = re.compile(r"\bgateway_[a-z0-9_]+")
SELECTOR = re.compile(r"\b(gateway_[a-z0-9_]+)\{([^}]*)\}")


def series() -> dict[str, set[str]]:
    """Every series that `/metrics` can show, with its labels."""
    found: dict[str, set[str]] = {}
    for family in metrics.snapshot():
        labels = set(family.labels)
        if family.kind == "histogram":
            found |= {f"{family.name}_bucket": labels | {"le"}}
            found |= {f"{family.name}_{part}": labels for part in ("sum", "count")}
        else:
            found[family.name] = labels
    return found


def dashboard() -> dict[str, Any]:
    return json.loads(DASHBOARD.read_text())  # type: ignore[no-any-return]


def alerts() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]]


def expressions() -> Iterator[tuple[str, str]]:
    for panel in dashboard()["panels"]:
        for target in panel["targets"]:
            yield panel["title"], target["expr"]
    for variable in dashboard()["templating"]["list"]:
        if variable["type"] == "query":
            yield f"${variable['name']}", variable["query"]
    for rule in alerts():
        yield rule["alert"], rule["expr"]


@pytest.mark.parametrize(("where", "expression"), list(expressions()))
def test_every_metric_that_is_asked_for_exists_with_its_labels(where: str, expression: str) -> None:
    known = series()
    names = set(NAME.findall(expression))
    assert names <= set(known) or "up{" in expression or "absent" in expression, names - set(known)
    for name, selector in SELECTOR.findall(expression):
        asked = set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", selector))
        assert asked <= known[name], (name, asked - known[name])
    grouped = {label.strip() for group in re.findall(r"by \(([^)]*)\)", expression) for label in group.split(",")}
    labels = set().union(*(known[name] for name in names)) if names else set()
    assert grouped <= labels | {"instance"}, grouped - labels
    assert expression.count("(") == expression.count(")")


def test_every_metric_of_the_gateway_is_shown_or_watched() -> None:
    asked = {name for _, expression in expressions() for name in NAME.findall(expression)}
    unseen = [family.name for family in metrics.snapshot() if not any(name.startswith(family.name) for name in asked)]

    assert unseen == []


def test_the_dashboard_can_be_imported_anywhere() -> None:
    shown = dashboard()
    assert shown["uid"] == "antigravity-gateway"
    assert "id" not in shown
    (source,) = [each for each in shown["templating"]["list"] if each["type"] == "datasource"]
    assert source["query"] == "prometheus"
    assert {panel["datasource"]["uid"] for panel in shown["panels"]} == {"${datasource}"}
    ids = [panel["id"] for panel in shown["panels"]]
    assert len(ids) == len(set(ids))
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in shown["panels"]]
    assert len(places) == len(set(places))


def test_every_alert_has_a_severity_and_a_runbook_that_exists() -> None:
    headings = re.findall(r"^### (\w+)$", OPERATIONS.read_text(), re.MULTILINE)
    for rule in alerts():
        assert rule["labels"]["severity"] in ("page", "ticket")
        assert rule["annotations"]["runbook"] == f"docs/operations.md#{rule['alert'].lower()}"
        assert rule["annotations"]["summary"].endswith(".")
    assert [rule["alert"] for rule in alerts()] == headings
