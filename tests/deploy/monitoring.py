"""What the files of deploy/ that watch the program ask for: expressions of PromQL, and the metrics that they name."""

from __future__ import annotations

import json
import re
from typing import Any

import yaml

from tests.support.paths import ROOT

DEPLOY = ROOT / "deploy"
DASHBOARD = DEPLOY / "grafana/dispatchai.json"
ALERTS = DEPLOY / "prometheus/alerts.yml"
SCRAPE = DEPLOY / "prometheus/prometheus.yml"

METRIC = re.compile(r"\b(?:dispatchai|process)_\w+")
OF_PROMETHEUS = frozenset({"up"})
"""Metrics that Prometheus makes itself."""


def dashboard() -> dict[str, Any]:
    """Grafana's dashboard."""
    loaded: dict[str, Any] = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    return loaded


def panels() -> list[dict[str, Any]]:
    """Its panels, without the rows."""
    return [panel for panel in dashboard()["panels"] if panel["type"] != "row"]


def panel_expressions() -> dict[str, list[str]]:
    """The expressions of each panel, by its title."""
    return {panel["title"]: [target["expr"] for target in panel["targets"]] for panel in panels()}


def alerts() -> dict[str, dict[str, Any]]:
    """The alerts by name."""
    groups = yaml.safe_load(ALERTS.read_text(encoding="utf-8"))["groups"]
    return {rule["alert"]: rule for group in groups for rule in group["rules"]}


def metrics_asked_for() -> set[str]:
    """Every metric that a panel or an alert names."""
    expressions = [text for texts in panel_expressions().values() for text in texts]
    return {
        name for text in (*expressions, *(rule["expr"] for rule in alerts().values())) for name in METRIC.findall(text)
    }
