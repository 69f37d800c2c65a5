"""Dashboard, alerts and scrape configuration are what Grafana and Prometheus take, and are explained."""

from __future__ import annotations

import itertools
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard

from dispatchai.app import SPEECH, WORKER
from dispatchai.settings import Settings
from tests.deploy.monitoring import (
    ALERTS,
    METRIC,
    OF_PROMETHEUS,
    SCRAPE,
    alerts,
    dashboard,
    panel_expressions,
    panels,
)
from tests.support.paths import ROOT

EXAMPLES = Path(__file__).parent / "alerts_test.yml"
GUIDE = ROOT / "docs/operations.md"
WIDTH = 24
"""Columns of Grafana's grid."""

PROMTOOL = shutil.which("promtool")
needs_promtool = pytest.mark.skipif(PROMTOOL is None, reason="promtool is not installed (Debian: prometheus)")


def _not_in(known: Any, ours: Any, at: str = "") -> list[str]:
    """Where `ours` has what `known` has not, or has otherwise."""
    match ours, known:
        case dict(), dict():
            return [one for key in ours for one in _not_in(known.get(key), ours[key], f"{at}/{key}")]
        case list(), list() if len(ours) == len(known):
            return [one for n, item in enumerate(ours) for one in _not_in(known[n], item, f"{at}/{n}")]
        case _:
            return [] if ours == known else [at]


def test_grafanas_own_model_takes_the_dashboard_and_knows_each_of_its_fields() -> None:
    register_default_plugins()  # the panels' and the queries' own fields
    loaded = Dashboard.from_json(dashboard())
    assert _not_in(json.loads(JSONEncoder().encode(loaded)), dashboard()) == []


def test_panels_have_ids_of_their_own_and_do_not_overlap() -> None:
    shown = dashboard()["panels"]
    assert len({panel["id"] for panel in shown}) == len(shown)
    taken: set[tuple[int, int]] = set()
    for panel in shown:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= WIDTH, panel["title"]
        cells = set(
            itertools.product(range(place["x"], place["x"] + place["w"]), range(place["y"], place["y"] + place["h"]))
        )
        assert not cells & taken, panel["title"]
        taken |= cells


def test_every_panel_asks_the_data_source_that_the_reader_chooses() -> None:
    (variable,) = dashboard()["templating"]["list"]
    assert (variable["type"], variable["query"]) == ("datasource", "prometheus")
    for panel in panels():
        for source in (panel["datasource"], *(target["datasource"] for target in panel["targets"])):
            assert source == {"type": "prometheus", "uid": f"${{{variable['name']}}}"}, panel["title"]
        references = [target["refId"] for target in panel["targets"]]
        assert len(set(references)) == len(references) > 0, panel["title"]


def test_every_expression_names_a_metric() -> None:
    for title, texts in panel_expressions().items():
        for text in texts:
            assert METRIC.search(text), title
            assert text.count("(") == text.count(")"), title
    for name, rule in alerts().items():
        assert METRIC.search(rule["expr"]) or OF_PROMETHEUS & set(re.findall(r"\w+", rule["expr"])), name


def test_every_alert_says_how_urgent_it_is_and_is_explained() -> None:
    explained = set(re.findall(r"^\| `(\w+)` \|", GUIDE.read_text(encoding="utf-8"), re.MULTILINE))
    assert set(alerts()) <= explained
    for name, rule in alerts().items():
        assert rule["labels"]["severity"] in ("page", "ticket"), name
        assert rule["annotations"]["summary"], name


def test_prometheus_scrapes_the_default_port_of_each_process() -> None:
    config = yaml.safe_load(SCRAPE.read_text(encoding="utf-8"))
    targets = {
        job["job_name"]: target
        for job in config["scrape_configs"]
        for group in job["static_configs"]
        for target in group["targets"]
    }
    ports = {name: Settings.model_fields[f"{name}_port"].default for name in ("gateway", "console", "worker", "speech")}
    assert targets == {
        "dispatchai-gateway": f"127.0.0.1:{ports['gateway']}",
        "dispatchai-console": f"127.0.0.1:{ports['console']}",
        WORKER: f"127.0.0.1:{ports['worker']}",
        SPEECH: f"127.0.0.1:{ports['speech']}",
    }
    assert config["rule_files"] == [ALERTS.name]


@needs_promtool
def test_prometheus_takes_configuration_alerts_and_the_expressions_of_every_panel(tmp_path: Path) -> None:
    assert PROMTOOL is not None
    expressions = [text for texts in panel_expressions().values() for text in texts]
    rules = [
        {"record": f"panel:{number}", "expr": text.replace("$__rate_interval", "1m")}
        for number, text in enumerate(expressions)
    ]
    of_panels = tmp_path / "panels.yml"
    of_panels.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}), encoding="utf-8")
    for arguments in (["check", "config", SCRAPE], ["check", "rules", ALERTS], ["check", "rules", of_panels]):
        done = subprocess.run([PROMTOOL, *map(str, arguments)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


@needs_promtool
def test_each_alert_fires_for_what_it_watches_and_is_silent_in_a_rolling_restart() -> None:
    assert PROMTOOL is not None
    done = subprocess.run([PROMTOOL, "test", "rules", str(EXAMPLES)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_an_example_fires_each_alert() -> None:
    examples = yaml.safe_load(EXAMPLES.read_text(encoding="utf-8"))["tests"]
    fired = {one["alertname"] for test in examples for one in test.get("alert_rule_test", ()) if one["exp_alerts"]}
    assert fired == set(alerts())
