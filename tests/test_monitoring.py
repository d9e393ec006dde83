"""The rules for Prometheus and the dashboard of Grafana name metrics that exist, with labels that they have."""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from django.conf import settings

from audiences.tallies import Tally
from lytics_sync.metrics import collector
from tests.test_compose import compose

_PROMTOOL = os.environ.get("PROMTOOL") or shutil.which("promtool")
needs_promtool = pytest.mark.skipif(_PROMTOOL is None, reason="there is no promtool on PATH, and PROMTOOL names none")

ROOT = settings.BASE_DIR
PROMETHEUS = ROOT / "monitoring" / "prometheus"
DASHBOARDS = sorted((ROOT / "monitoring" / "grafana" / "dashboards").glob("*.json"))
NAME = re.compile(r"(?:[a-z]+:)?lytics_sync_[a-z_]+(?::[a-z0-9_]+)?")
STRING = re.compile(r'"[^"]*"')
# A metric with the matchers behind it, and the labels of a grouping.
MATCHERS = re.compile(r"(lytics_sync_[a-z_]+)\{([^}]*)\}")
DURATION = re.compile(r"\d+[smhd]")


def rules(file: str) -> list[dict[str, Any]]:
    (group,) = yaml.safe_load((PROMETHEUS / file).read_text(encoding="utf-8"))["groups"]
    found: list[dict[str, Any]] = group["rules"]
    return found


def samples() -> dict[str, set[str]]:
    """The name of each exported sample, and its labels."""
    found: dict[str, set[str]] = {}
    for metric in collector.ALL:
        labels = set(metric.labels)
        if isinstance(metric, Tally) and metric.bounds:
            found |= {f"{metric.name}_{part}": labels for part in ("sum", "count")}
            found[f"{metric.name}_bucket"] = {*labels, "le"}
        else:
            found[metric.name] = labels
    return found


def recorded() -> set[str]:
    return {rule["record"] for rule in rules("recording.yml")}


def expressions() -> Iterator[Any]:
    for file in ("recording.yml", "alerts.yml"):
        for rule in rules(file):
            yield pytest.param(rule["expr"], id=str(rule.get("alert") or rule["record"]))
    for dashboard in DASHBOARDS:
        for panel in json.loads(dashboard.read_text(encoding="utf-8"))["panels"]:
            for target in panel["targets"]:
                yield pytest.param(target["expr"], id=f"{panel['title']} {target['refId']}")


every_expression = pytest.mark.parametrize("expression", list(expressions()))


@every_expression
def test_every_metric_of_a_rule_or_panel_is_exported_or_recorded(expression: str) -> None:
    named = set(NAME.findall(STRING.sub('""', expression)))
    assert named
    assert named - set(samples()) - recorded() == set()


@every_expression
def test_every_matcher_names_a_label_that_the_metric_has(expression: str) -> None:
    for name, matchers in MATCHERS.findall(expression):
        labels = set(re.findall(r"(\w+)\s*(?:=~|!=|!~|=)", STRING.sub('""', matchers)))
        assert labels
        assert labels <= samples()[name], name
    for grouping in re.findall(r"\b(?:by|on) \(([^)]*)\)", expression):
        labels = set(re.split(r",\s*", grouping))
        named = NAME.findall(expression)
        assert labels <= {"install", "le"}.union(*(samples().get(name, set()) for name in named))


@every_expression
def test_every_counter_is_read_as_a_rate_and_no_gauge_is(expression: str) -> None:
    for name in NAME.findall(STRING.sub('""', expression)):
        if name in samples():
            is_counter = name.endswith(("_total", "_bucket", "_sum", "_count"))
            is_rate = re.search(rf"\b(?:rate|increase)\({name}(?:\{{[^}}]*\}})?\[", expression) is not None
            assert is_rate == is_counter, name


def test_every_alert_says_what_is_the_matter_and_how_urgent_it_is() -> None:
    alerts = rules("alerts.yml")
    assert len({alert["alert"] for alert in alerts}) == len(alerts) >= 15
    for alert in alerts:
        assert set(alert) == {"alert", "expr", "for", "labels", "annotations"}, alert["alert"]
        assert alert["alert"].startswith("LyticsSync")
        assert alert["labels"]["severity"] in ("page", "ticket")
        assert DURATION.fullmatch(alert["for"])
        assert set(alert["annotations"]) == {"summary", "description"}
        assert alert["annotations"]["description"].endswith(".")


@needs_promtool
@pytest.mark.parametrize(
    "command", [["check", "rules", "alerts.yml", "recording.yml"], ["test", "rules", "alerts_test.yml"]]
)
def test_prometheus_accepts_the_rules_and_each_fires_when_it_should(command: list[str]) -> None:
    assert _PROMTOOL is not None
    done = subprocess.run([_PROMTOOL, *command], cwd=PROMETHEUS, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_unit_tests_of_the_rules_name_each_alert_and_only_metrics_that_exist() -> None:
    text = (PROMETHEUS / "alerts_test.yml").read_text(encoding="utf-8")
    assert sorted(re.findall(r'alertname="(\w+)"', text)) == sorted(alert["alert"] for alert in rules("alerts.yml"))
    assert set(NAME.findall(text)) <= set(samples())


def test_a_recorded_metric_is_used_and_says_by_what_it_is_grouped() -> None:
    used = "".join(str(expression.values[0]) for expression in expressions())
    for rule in rules("recording.yml"):
        assert re.fullmatch(r"install:lytics_sync_[a-z_]+:[a-z0-9_]+", rule["record"])
        assert rule["record"] in used


def test_each_dashboard_has_panels_with_places_of_their_own_and_an_expression_each() -> None:
    assert DASHBOARDS
    for file in DASHBOARDS:
        dashboard = json.loads(file.read_text(encoding="utf-8"))
        panels = dashboard["panels"]
        places = {
            (panel["gridPos"]["x"] + x, panel["gridPos"]["y"] + y)
            for panel in panels
            for x in range(panel["gridPos"]["w"])
            for y in range(panel["gridPos"]["h"])
        }
        assert len(places) == sum(panel["gridPos"]["w"] * panel["gridPos"]["h"] for panel in panels)
        assert len({panel["id"] for panel in panels}) == len(panels)
        assert all(panel["description"] and panel["targets"] for panel in panels)
        assert max(x for x, _ in places) < 24


def test_prometheus_reads_the_rules_and_scrapes_the_web_process_with_the_token() -> None:
    config = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text(encoding="utf-8"))
    assert {*config["rule_files"], "prometheus.yml", "alerts_test.yml"} == {file.name for file in PROMETHEUS.iterdir()}
    (job,) = config["scrape_configs"]
    service = compose()["services"]["prometheus"]
    assert f">{job['authorization']['credentials_file']} " in service["entrypoint"][2]
    assert service["environment"]["METRICS_TOKEN"] == "${METRICS_TOKEN:-}"
    assert [target.partition(":")[0] for target in job["static_configs"][0]["targets"]] == ["web"]
    assert job.get("metrics_path", "/metrics") == "/metrics"


def test_the_containers_of_the_profile_read_the_files_and_listen_on_this_machine_only() -> None:
    for name in ("prometheus", "grafana"):
        service = compose()["services"][name]
        assert all(port.startswith("127.0.0.1:") for port in service["ports"])
        for volume in service["volumes"]:
            source = volume.partition(":")[0]
            assert not source.startswith("./") or (volume.endswith(":ro") and (ROOT / source).is_dir())
